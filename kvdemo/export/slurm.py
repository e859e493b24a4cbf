"""A plan as a batch script for Slurm that runs the whole story: up, bench, down. Pure; quoting is shlex's.

For a profile of one machine kvdemo starts local processes. For one of a cluster (``on: ray``) ``ray symmetric-run``
starts Ray on each node, runs the story on the first, and ends Ray with it.
"""

from __future__ import annotations

import shlex

from kvdemo.export import containers
from kvdemo.planning.plan import Plan

_SCRIPT = """#!/usr/bin/env bash
# The fleet of project {project} as a Slurm job, made by `kvdemo export slurm` from its profile: up, bench, down.
#
#     sbatch FILE
#
# To adapt: partition, account and time; the paths, which every node must see; KVDEMO, the command to run.
# Arguments of sbatch go to bench: sbatch FILE --trials 10
#SBATCH --job-name={project}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
{gpus}#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail
{secrets}export KVDEMO=${{KVDEMO:-kvdemo}} PROFILE={profile}
# State is the job's own, and on the node: it names processes there.
export KVDEMO_STATE_DIR=${{KVDEMO_STATE_DIR:-/tmp/kvdemo-$(id -u)-${{SLURM_JOB_ID:-0}}}}

# shellcheck disable=SC2016 # for the shell that runs it
story='
child=
run() {{ "$@" & child=$!; wait "$child"; }}
stop() {{
  code=$?
  trap "" TERM
  [[ -z $child ]] || {{ kill "$child" 2>/dev/null || true; wait "$child" || true; }}
  "$KVDEMO" down -p {project} || code=$?
  exit "$code"
}}
set -euo pipefail
trap stop EXIT
trap "exit 143" TERM
run "$KVDEMO" up "$PROFILE" -p {project}
run "$KVDEMO" bench -p {project} --result-dir "${{SLURM_SUBMIT_DIR:-.}}/results" "$@"
'
{start}
child=$!
trap 'kill "$child" 2>/dev/null' TERM
code=0
wait "$child" || code=$?
# A signal ends the first wait; the second one is for the story's own end.
((code <= 128)) || wait "$child" || code=$?
exit "$code"
"""
_LOCAL = 'bash -c "$story" story "$@" &'
_RAY = """\
# The node must be this job's alone: at its end symmetric-run stops every Ray process of this user on it.
export RAY_worker_niceness=0 RAY_USAGE_STATS_ENABLED=0 # Ray would lower the priority of the engines
head=${{HEAD:-$(hostname -I | cut -d " " -f 1)}} # this node's address towards the others
srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 \\
  ray symmetric-run --address "$head:6379" --min-nodes {nodes}{gpus} -- bash -c "$story" story "$@" &"""


def slurm(plan: Plan, nodes: int = 1) -> str:
    """The script for this many nodes."""
    used = [gpu for spec in plan.engines for gpu in spec.gpus]
    each = -(-len(used) // nodes) if plan.on else max(used, default=-1) + 1
    names = dict.fromkeys(
        name
        for spec in plan.engines
        for name in containers.secrets(spec, fetches=spec.env.get("HF_HUB_OFFLINE") != "1")
    )
    ray = _RAY.format(nodes=nodes, gpus=f" --num-gpus {each}" if each else "")
    return _SCRIPT.format(
        project=plan.project,
        nodes=nodes,
        gpus=f"#SBATCH --gpus-per-node={each}\n" if each else "",
        secrets="".join(f': "${{{name}:?set it where you call sbatch}}"\n' for name in names),
        profile=shlex.quote(plan.profile),
        start=ray if plan.on else _LOCAL,
    )
