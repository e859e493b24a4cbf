"""The stories of services: up, restart, ps, logs, down. They yield events; nothing here prints.

Read ``diagnose`` (what a log says), ``stores`` (KV that outlives its cache), ``launchers``, ``watch`` and
``gpulocks`` (until a service is ready), ``teardown``, then ``fleet``, ``logbook`` and ``gauges``.
"""
