"""The story of measuring: one document, plain and cached engines, every request yielded as a sample.

Read ``context`` and ``workload`` (what is asked), ``wire``, ``client`` and ``calibrate`` (one timed request),
``cacheserver`` and ``measure`` (where its tokens came from), ``session`` and ``trials``, ``modes`` (the shapes of a
run), then ``bench``; ``events`` are what it yields, ``pace`` is how long it takes. ``preheat`` comes before all of it.
``attach`` is for engines that something else started, ``conditions`` for what two runs must share to be compared.
"""
