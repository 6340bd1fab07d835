#!/usr/bin/env bash
# Runs an experiment on every host of a TPU slice, through `gcloud`.
#
#   launch/tpu.sh NAME ZONE --config=experiments/demo.py --workdir=DIR [FLAGS]
#
# The repository must be in ~/r1jax on every host, with its environment
# (`make venv EXTRAS=tpu`). JAX finds the hosts from the metadata of the slice.
# DIR is on a file system that all hosts share, or --bucket=gs://... names a place
# for the checkpoints.
# --dry-run, before NAME, prints the command.
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
if (($# < 3)); then
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
fi
name=$1 zone=$2
shift 2

printf -v flags ' %q' "$@"
"${run[@]}" gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd r1jax && exec .venv/bin/python -m r1jax train$flags"
