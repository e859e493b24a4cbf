"""Commands from their arguments to what they print; ``cli`` registers them.

Read ``options`` and ``frame`` (around every command), ``lookup`` (which project is meant), ``checks``, ``doctor`` and
``checkup``, then ``benchmark`` and ``measuring``.
"""
