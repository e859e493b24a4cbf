"""What people are shown: lines and tables in the terminal, a run as one HTML file, one run against another.

Read ``terminal`` and ``tables``, ``savedrun`` (a run read again), ``markup``, ``svg`` and ``look`` (HTML, plots,
style), then ``figures`` and ``page``, ``compare`` and ``comparetraffic``.
"""
