"""A plan as a shell script that starts the same fleet without kvdemo. Pure; quoting is shlex's.

The script stays in the foreground: Ctrl-C (or SIGTERM) stops what it started, engines before caches.
"""

from __future__ import annotations

import shlex

from kvdemo.export import containers
from kvdemo.planning import order
from kvdemo.planning.plan import Plan, ServiceSpec

_HEAD = """#!/usr/bin/env bash
# The fleet of project {project}, made by `kvdemo export shell` from its profile. It needs bash and curl, not kvdemo:
#
#     bash FILE       starts everything and waits until it is ready; Ctrl-C stops it. Logs: NAME.log here
#
# {measuring}
# To adapt: nothing on this machine. Elsewhere the paths of the interpreter, the model and the KV files, ports and GPUs.
# shellcheck disable=SC2016 # a dollar in a value is one
set -euo pipefail
engines=() caches=()
sockets=$(mktemp -d /tmp/kvdemo-XXXXXX) # of the engines; their paths may have 107 characters
stop() {{
  trap - EXIT INT TERM
  for one in "${{engines[@]}}"; do kill -TERM "$one" 2>/dev/null || true; done
  for one in "${{engines[@]}}"; do wait "$one" 2>/dev/null || true; done
  for one in "${{caches[@]}}"; do kill -TERM "$one" 2>/dev/null || true; done
  wait || true
  rm -rf "$sockets"
}}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
ready() {{ # ready NAME PID URL SECONDS: wait for 200, for the end of the process, or for so long
  local until=$((SECONDS + $4))
  until curl --silent --fail --max-time 5 --output /dev/null "$3"; do
    kill -0 "$2" 2>/dev/null || {{
      echo "$1 ended before it was ready; see $1.log" >&2
      exit 1
    }}
    ((SECONDS < until)) || {{
      echo "$1 is not ready after $4 s; see $1.log" >&2
      exit 1
    }}
    sleep 1
  done
  echo "$1 is ready: ${{3%/*}}"
}}
"""

_SOCKETS = "VLLM_RPC_BASE_PATH"
_TAIL = 'echo "all ready; Ctrl-C stops them"\nwait\n'


def shell(plan: Plan) -> str:
    """The script. Secrets appear as ``${NAME:?}``, never as values."""
    parts = [_HEAD.format(project=plan.project, measuring=containers.measuring(plan))]
    pythons = dict.fromkeys(spec.python for spec in plan.services if containers.uses_extension(spec))
    parts += [f"{shlex.quote(one)} -c {shlex.quote(containers.EXTENSION_LOADS)}\n" for one in pythons]
    awaited: set[str] = set()
    for spec in plan.services:
        for other in plan.services:
            if other.name in order.in_export(spec, plan.services) - awaited:
                parts.append(_wait(other))
                awaited.add(other.name)
        parts.append(_start(spec))
    parts += [_wait(spec) for spec in plan.services if spec.name not in awaited]
    return "\n".join([*parts, _TAIL])


def _variable(name: str) -> str:
    return "pid_" + name.replace("-", "_").replace(".", "_")


def _start(spec: ServiceSpec) -> str:
    offline = spec.env.get("HF_HUB_OFFLINE") == "1"
    env = [shlex.quote(f"{name}={value}") for name, value in spec.env.items() if name != _SOCKETS]
    env += [f'{_SOCKETS}="$sockets"'] if _SOCKETS in spec.env else []
    env += [f'{name}="${{{name}:?set it first}}"' for name in containers.secrets(spec, fetches=not offline)]
    words = " \\\n  ".join([" ".join(env), *(_grouped(spec.argv))])
    folder = containers.directory(spec)
    made = f"mkdir -p {shlex.quote(folder)}\n" if folder else ""
    array = "caches" if spec.kind == "cache" else "engines"
    # setsid: Ctrl-C reaches this script alone, and the whole group of a service can be found by its id.
    return (
        f"# {spec.kind} {spec.name}\n{made}setsid env {words} >{spec.name}.log 2>&1 </dev/null &\n"
        f'{_variable(spec.name)}=$!\n{array}+=("$!")\n'
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
    return f'ready {spec.name} "${_variable(spec.name)}" {spec.url}/{path} {spec.start_timeout:.0f}'
