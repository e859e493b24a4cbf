"""A plan in the words of other tools, each format made from what ``up`` would run. Pure.

Read ``containers`` and ``yamltext`` (what formats share), then ``compose``, ``k8s``, ``slurm`` and ``shell``, and
``formats``, which chooses; ``peers`` has the commands of other benchmarks. ``prometheus``, with ``grafana`` and
``promql``, is for watching a fleet: it exports where the services are, not how to run them.
"""
