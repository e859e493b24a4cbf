"""What the samples of a run prove: nothing here measures, and the same samples give the same result.

Read ``sample`` (one measured request), ``verdict`` (what it proves), ``stats`` and ``answers``, then ``sections`` and
``results``, which make the result document; ``record`` writes a run to disk. What runs at the moment is ``scrape``
(one reading of counters), ``window`` and ``rates``, then ``frame`` (a whole fleet).
"""
