"""A plan as a shell script that starts the same fleet without kvdemo. Pure; quoting is shlex's.

The script stays in the foreground: Ctrl-C (or SIGTERM) stops what it started, engines before caches.
"""

from __future__ import annotations

import shlex

from kvdemo.config import flags
from kvdemo.export import containers
from kvdemo.planning import order
from kvdemo.planning.plan import Plan, ServiceSpec

_HEAD = """#!/usr/bin/env bash
# The fleet of project {project}, made by `kvdemo export shell` from its profile.
# It needs bash, awk and curl, not kvdemo:
#
#     bash FILE       starts everything and waits until it is ready; Ctrl-C stops it. Logs: NAME.log here
#
# {measuring}
# To adapt: nothing on this machine. Elsewhere the paths of the interpreter, the model and the KV files, ports and GPUs.
# shellcheck disable=SC2016 # a dollar in a value is one
set -euo pipefail
engines=() caches=()
declare -A names=()
sockets=$(mktemp -d /tmp/kvdemo-XXXXXX) # of the engines; their paths may have 107 characters
end() {{ # end SECONDS PID...: ask these services to stop; what has not after so long, or is left of one, is killed
  local until=$((SECONDS + $1)) one
  shift
  for one in "$@"; do
    while [[ "/proc/$one/exe" -ef "$BASH" ]]; do sleep 0.05; done # a copy of this shell yet, which hears nothing
    kill -TERM "$one" 2>/dev/null || true
  done
  for one in "$@"; do
    while kill -0 "$one" 2>/dev/null && ((SECONDS < until)); do sleep 0.1; done
    kill -KILL -- "-$one" 2>/dev/null || true
    wait "$one" 2>/dev/null || true
  done
}}
stop() {{
  trap - EXIT
  trap '' INT TERM HUP
  end {patience:.0f} "${{engines[@]}}"
  end {patience:.0f} "${{caches[@]}}"
  rm -rf "$sockets"
}}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
fail() {{
  echo "$1" >&2
  exit 1
}}
listening() {{ # listening PORT: the inodes of the sockets that listen there, as the kernel knows them
  awk -v port="$(printf ':%04X' "$1")" '$4 == "0A" && substr($2, length($2) - 4) == port {{ print $10 }}' \
    /proc/net/tcp /proc/net/tcp6 2>/dev/null || true
}}
free() {{ # free NAME PORT...: before it starts, nobody may listen on its ports
  local name=$1 port
  shift
  for port in "$@"; do
    [[ -z $(listening "$port") ]] ||
      fail "$name: port $port is taken by another program; end it, or change the port here"
  done
}}
ours() {{ # ours PID PORT: whether the service of this process listens there, not another program
  local pid inode
  # Not awk itself reads them: it ends at the first process that has ended meanwhile.
  for pid in $(cat /proc/[0-9]*/stat 2>/dev/null | awk -v session="$1" \
    '{{ pid = $1; sub(/^.*[)] /, ""); if ($4 == session) print pid }}' || true); do
    for inode in $(listening "$2"); do
      [[ -z $(find "/proc/$pid/fd" -lname "socket:\\[$inode\\]" -print -quit 2>/dev/null) ]] || return 0
    done
  done
  return 1
}}
alive() {{ kill -0 "$1" 2>/dev/null || fail "${{names[$1]}} ended $2; see ${{names[$1]}}.log"; }}
ready() {{ # ready NAME PID PORT URL SECONDS: wait until it answers there itself, for its end, or for so long
  local until=$((SECONDS + $5))
  while true; do
    alive "$2" "before it was ready"
    if curl --silent --fail --max-time 5 --output /dev/null "$4"; then
      if ours "$2" "$3"; then break; fi
      alive "$2" "before it was ready"
      fail "$1: port $3 is answered by another program, which took it after it was checked"
    fi
    ((SECONDS < until)) || fail "$1 is not ready after $5 s; see $1.log"
    sleep 1
  done
  echo "$1 is ready: ${{4%/*}}"
}}
"""

_SOCKETS = "VLLM_RPC_BASE_PATH"
_TAIL = """\
for one in "${!names[@]}"; do alive "$one" "after it was ready"; done
echo "all ready; Ctrl-C stops them"
while true; do
  sleep 1 & # an end that bash has noticed before it waits is none that it waits for
  wait -n || true
  for one in "${!names[@]}"; do alive "$one" "after it was ready"; done
done
"""


def shell(plan: Plan) -> str:
    """The script. Secrets appear as ``${NAME:?}``, never as values."""
    patience = max(spec.stop_timeout for spec in plan.services)
    parts = [_HEAD.format(project=plan.project, measuring=containers.measuring(plan), patience=patience)]
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
    words = " \\\n  ".join([" ".join(env), *_lines(spec)])
    folder = containers.directory(spec)
    mkdir = f"mkdir -p {shlex.quote(folder)}\n" if folder else ""
    array = "caches" if spec.kind == "cache" else "engines"
    # setsid: Ctrl-C reaches this script alone, and the whole group of a service can be found by its id.
    ports = " ".join(map(str, spec.ports))
    return (
        f"# {spec.kind} {spec.name}\nfree {spec.name} {ports}\n{mkdir}"
        f"setsid env {words} >{spec.name}.log 2>&1 </dev/null &\n"
        f'{_variable(spec.name)}=$!\n{array}+=("$!")\nnames[$!]={spec.name}\n'
    )


def _lines(spec: ServiceSpec) -> list[str]:
    """The program, then a line for each flag with its values; quoted."""
    options = [flags.words({name: value}) for name, value in spec.options.items()]
    return [shlex.join(words) for words in (spec.command, *options) if words]


def _wait(spec: ServiceSpec) -> str:
    address = f"{spec.url}{spec.health_path}"
    return f'ready {spec.name} "${_variable(spec.name)}" {spec.port} {address} {spec.start_timeout:.0f}'
