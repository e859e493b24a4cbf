"""The story of measuring: one document, plain and cached engines, every request yielded as a sample.

Read ``context`` and ``workload`` (what is asked), ``wire``, ``client`` and ``calibrate`` (one timed request),
``cacheserver`` and ``measure`` (where its tokens came from), ``rig`` and ``modes`` (trials), then ``bench``;
``preheat`` comes before all of it. ``attach`` is for engines that something else started, ``conditions`` for what two
runs must share to be compared.
"""
