"""The same fleet on the nodes of a Ray cluster. Nothing of it is imported for a fleet of one machine.

Read ``layout`` (one profile on several nodes), ``agent`` (what runs on each), ``cluster`` (the only module that knows
Ray), ``remote`` (the launcher), then ``placements`` (the plan of such a fleet).
"""
