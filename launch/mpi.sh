#!/usr/bin/env bash
# Runs an experiment as several processes under Open MPI.
#
#   launch/mpi.sh PROCESSES --config=experiments/demo.py --workdir=DIR [FLAGS]
#
# Start one process per GPU, or per host without GPUs. MPIRUN_FLAGS passes flags
# to mpirun, such as "--hostfile hosts". An interrupted run has ten minutes to
# save a checkpoint. --dry-run, before PROCESSES, prints the command.
set -euo pipefail

run=()
show() {
  printf '%q ' "$@"
  echo
}
if [[ ${1:-} == --dry-run ]]; then
  run=(show)
  shift
fi
if (($# < 2)); then
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
fi
processes=$1
shift

cd "$(dirname "${BASH_SOURCE[0]}")/.."
read -ra more <<<"${MPIRUN_FLAGS:-}"
"${run[@]}" mpirun -np "$processes" --bind-to none --tag-output \
  --mca odls_base_sigkill_timeout 600 "${more[@]}" \
  "${PYTHON:-.venv/bin/python}" -m r1jax train "$@"
