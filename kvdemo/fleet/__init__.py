"""The stories of services: up, restart, ps, logs, down. They yield events; nothing here prints.

Read ``diagnose`` (what a log says), ``stores`` and ``keystore`` (KV that outlives its cache), ``launchers``, ``watch``
and ``turns`` (until a service is ready), ``teardown``, then ``fleet`` and ``logbook``.
"""
