"""A plan in the words of other tools, each format made from what ``up`` would run. Pure.

Read ``containers`` and ``yamltext`` (what formats share), then ``compose``, ``k8s``, ``slurm`` and ``shell``, and
``formats``, which chooses; ``peers`` has the commands of other benchmarks.
"""
