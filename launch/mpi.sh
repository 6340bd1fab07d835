#!/usr/bin/env bash
# Runs an experiment as several processes under Open MPI 4 or 5.
#
#   launch/mpi.sh PROCESSES --config=experiments/demo.py --workdir=DIR [FLAGS]
#
# Start one process per GPU, or per host without GPUs, from the host of the first
# process. The others reach it at JAX_COORDINATOR_ADDRESS (HOST:PORT), or else at
# this host's name. MPIRUN_FLAGS passes flags to mpirun, such as "--hostfile hosts".
#
# Ctrl-C and SIGTERM end the run once it has saved a checkpoint; a second one ends
# it immediately. --dry-run, before PROCESSES, prints the command.
set -euo pipefail

# Runs a command, and sends it SIGNAL when one of the signals ON arrives here.
relay() {
  local signal=$1 on=$2 job status=0
  shift 2
  "$@" &
  job=$!
  # shellcheck disable=SC2064,SC2086  # The values of now; several signals.
  trap "kill -s $signal $job" $on
  while wait "$job" || status=$?; kill -0 "$job" 2>/dev/null; do status=0; done
  return "$status"
}

# mpirun itself ends its processes a second after a SIGTERM. It only passes on
# SIGUSR1, to the whole process group: each process makes a SIGTERM of it, which
# the run saves at, and its children ignore it.
if [[ ${1:-} == --process ]]; then
  address=$2
  shift 2
  export JAX_LOCAL_DEVICE_IDS=$OMPI_COMM_WORLD_LOCAL_RANK
  trap '' USR1
  relay TERM USR1 "$@" --coordinator_address="$address" \
    --num_processes="$OMPI_COMM_WORLD_SIZE" \
    --process_id="$OMPI_COMM_WORLD_RANK"
  exit
fi

run=(relay USR1 "INT TERM HUP")
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
# In a session of its own, mpirun does not see the terminal's Ctrl-C.
"${run[@]}" setsid mpirun -np "$processes" --bind-to none --tag-output \
  "${more[@]}" launch/mpi.sh --process \
  "${JAX_COORDINATOR_ADDRESS:-$(hostname):$((61440 + $$ % 4096))}" \
  "${PYTHON:-.venv/bin/python}" -m r1jax train "$@"
