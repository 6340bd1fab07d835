#!/usr/bin/env bash
# Runs an experiment as several processes under Open MPI.
#
#   launch/mpi.sh PROCESSES --config=experiments/demo.py --workdir=DIR [FLAGS]
#
# One process per GPU, or per host without GPUs: name the hosts in MPIRUN_FLAGS,
# as in MPIRUN_FLAGS="--hostfile hosts". A stopped run has ten minutes to save.
# --dry-run, before PROCESSES, prints the command.
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
