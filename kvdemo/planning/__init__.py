"""What will run, exactly, before anything does: arithmetic over the profile and the facts of a machine. Pure.

Read ``shape`` and ``facts`` (what is known), ``environment``, ``services``, ``engines`` and ``caches`` (one service),
``compatibility`` (who may share), ``demand``, ``budget`` and ``sums`` (does it fit), then ``plan``; ``order`` says who
waits for whom, ``ceiling`` and ``predict`` what reuse could buy.
"""
