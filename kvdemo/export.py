"""A plan as a shell script that starts the same fleet without kvdemo. Pure; quoting is shlex's.

The script stays in the foreground: Ctrl-C (or SIGTERM) stops what it started, engines before caches.
"""

from __future__ import annotations

import shlex

from kvdemo.plan import Plan, ServiceSpec

_HEAD = """#!/usr/bin/env bash
# The fleet of project {project}, made by `kvdemo plan --format shell` from {profile}.
set -euo pipefail
engines=(); caches=()
stop() {{
  trap - EXIT INT TERM
  for one in "${{engines[@]}}"; do kill -TERM "$one" 2>/dev/null || true; done
  for one in "${{engines[@]}}"; do wait "$one" 2>/dev/null || true; done
  for one in "${{caches[@]}}"; do kill -TERM "$one" 2>/dev/null || true; done
  wait || true
}}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
ready() {{  # ready NAME PID URL: wait for 200, or for the end of the process
  until curl --silent --fail --output /dev/null "$3"; do
    kill -0 "$2" 2>/dev/null || {{ echo "$1 ended before it was ready; see $1.log" >&2; exit 1; }}
    sleep 1
  done
  echo "$1 is ready: ${{3%/*}}"
}}
"""

_TAIL = 'echo "all ready; Ctrl-C stops them"\nwait\n'


def shell(plan: Plan) -> str:
    """The script. Secrets appear as ``${NAME:?}``, never as values."""
    caches = [spec for spec in plan.services if spec.kind == "cache"]
    parts = [_HEAD.format(project=plan.project, profile=plan.profile)]
    for group, array in ((caches, "caches"), (plan.engines, "engines")):
        parts += [_start(spec, array) for spec in group]
        parts += [_wait(spec) for spec in group]
    return "\n".join([*parts, _TAIL])


def _variable(name: str) -> str:
    return "pid_" + name.replace("-", "_").replace(".", "_")


def _start(spec: ServiceSpec, array: str) -> str:
    env = [shlex.quote(f"{name}={value}") for name, value in spec.env.items()]
    env += [f'{name}="${{{name}:?set it first}}"' for name in spec.secrets]
    words = " \\\n  ".join([" ".join(env), *(_grouped(spec.argv))])
    store = f"mkdir -p {shlex.quote(spec.store)}\n" if spec.store else ""
    # setsid: Ctrl-C reaches this script alone, and the whole group of a service can be found by its id.
    return (
        f"# {spec.kind} {spec.name}\n{store}mkdir -p {shlex.quote(spec.env.get('VLLM_RPC_BASE_PATH', '.'))}\n"
        f"setsid env {words} >{spec.name}.log 2>&1 </dev/null &\n{_variable(spec.name)}=$!; {array}+=($!)\n"
    )


def _grouped(argv: tuple[str, ...]) -> list[str]:
    """Quoted words, a flag and its values on one line."""
    lines: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not lines:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return [" ".join(line) for line in lines]


def _wait(spec: ServiceSpec) -> str:
    path = "healthcheck" if spec.kind == "cache" else "health"
    return f'ready {spec.name} "${_variable(spec.name)}" {spec.url}/{path}'
