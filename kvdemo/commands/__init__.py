"""Commands from their arguments to what they print; ``cli`` registers them.

Read ``options`` and ``invocation`` (around every command), ``scope`` (which project is meant), ``checks`` and
``doctor``, then ``benchmark`` and ``measuring``.
"""
