"""What people are shown: lines and tables in the terminal, a run as one HTML file, one run against another.

Read ``terminal`` and ``tables``, ``saved`` (a run read again), ``markup``, ``svg`` and ``look`` (HTML, plots, style),
then ``figures`` and ``page``, ``sides`` and ``compare``.
"""
