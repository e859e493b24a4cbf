"""The edges to this machine: its processes, GPUs, memory, disk and packages; above them its launcher.

Read ``shim`` (the guardian of one service), ``procfs`` and ``process``, then ``state`` (a project's directory).
``gpus``, ``machine``, ``packages``, ``runtime``, ``hub``, ``probe``, ``bandwidth`` and ``health`` look at one thing
each, ``imports`` asks whether packages load together, ``survey`` gathers what a plan needs. Last ``launcher`` (what
every launcher offers) and ``local`` (this machine's).
"""
