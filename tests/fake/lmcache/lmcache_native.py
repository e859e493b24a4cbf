"""In the place of LMCache's compiled part for processors."""
