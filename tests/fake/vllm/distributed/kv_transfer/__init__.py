"""A stand-in for the tests; see fakeserver."""
