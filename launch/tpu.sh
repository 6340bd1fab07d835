#!/usr/bin/env bash
# Runs an experiment on TPU VMs, which Cloud TPU gives out as queued resources.
#
#   launch/tpu.sh --create NAME ZONE TOPOLOGY [FLAGS OF GCLOUD]
#   launch/tpu.sh --setup NAME ZONE
#   launch/tpu.sh NAME ZONE --config=experiments/demo.py --workdir=DIR [FLAGS]
#   launch/tpu.sh --stop NAME ZONE
#
# TOPOLOGY is that of `r1jax plan`, such as v5p:4x4x4, or v6e:8x8*2 for two slices.
# --setup copies the code to ~/r1jax on every host, with all changes, and makes
# its environment; repeat it after a change. The run is started in the background
# of every host, where run.log is its output, and outlives the connection. JAX
# finds the hosts from the metadata of the slices. DIR is on a file system that all
# hosts share, such as Filestore; --bucket=gs://... may hold the checkpoints.
# --stop tells a run to save a checkpoint and to end.
#
# TPU7x and slices of more than 100 hosts need launch/gke.sh. --dry-run, as the
# first argument, prints the commands.
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
usage() {
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
}
action=--start
if [[ ${1:-} == --@(create|setup|stop) ]]; then
  action=$1
  shift
fi
(($# >= 2)) || usage
name=$1 zone=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all=(--node=all --worker=all)
on_all_hosts() {
  "${run[@]}" gcloud compute tpus queued-resources ssh "$name" --zone="$zone" \
    "${all[@]}" --command="$1"
}
# gcloud only connects to several hosts with a key that ssh-agent holds.
add_key() {
  "${run[@]}" ssh-add "$HOME/.ssh/google_compute_engine"
}

create() {
  local topology=${1,,} nodes=(--node-id="$name") type runtime
  shift
  if ! [[ $topology =~ ^(v4|v5e|v5p|v6e):([0-9]+(x[0-9]+)+)(\*([0-9]+))?$ ]]; then
    echo "error: TOPOLOGY is $topology; use one such as v5p:4x4x4 or v6e:8x8*2," \
      "of v4, v5e, v5p or v6e" >&2
    exit 2
  fi
  type=${BASH_REMATCH[1]}
  case $type in
    v4) runtime=tpu-ubuntu2204-base ;;
    v5e) type=v5litepod runtime=v2-alpha-tpuv5-lite ;;
    v5p) runtime=v2-alpha-tpuv5 ;;
    v6e) runtime=v2-alpha-tpuv6e ;;
  esac
  if ((${BASH_REMATCH[5]:-1} > 1)); then
    nodes=(--node-count="${BASH_REMATCH[5]}" --node-prefix="$name")
  fi
  "${run[@]}" gcloud alpha compute tpus queued-resources create "$name" \
    --zone="$zone" --type="$type" --topology="${BASH_REMATCH[2]}" \
    --runtime-version="$runtime" "${nodes[@]}" "$@"
}

# Python 3.12 comes from uv: the images have Ubuntu 22.04, and so Python 3.10.
setup() {
  add_key
  "${run[@]}" bash -c "mkdir -p build && git ls-files -z --cached --others \
--exclude-standard | tar --null --files-from=- -czf build/r1jax.tgz"
  "${run[@]}" gcloud compute tpus queued-resources scp build/r1jax.tgz \
    "$name:r1jax.tgz" --zone="$zone" "${all[@]}"
  on_all_hosts "mkdir -p r1jax && tar -xzf r1jax.tgz -C r1jax && cd r1jax && \
python3 -m pip install --quiet --user uv && \
python3 -m uv venv --quiet --allow-existing --python=3.12 .venv && \
python3 -m uv pip install --quiet --python=.venv/bin/python \
--constraint=constraints/py312.txt --editable='.[tpu,gcs]'"
}

# gcloud repeats a command, up to ten times, if its connection breaks. A host has
# one run: whoever holds run.lock. And a run is told to stop once: whoever has
# taken run.pid.
start() {
  local flags
  printf -v flags ' %q' "$@"
  add_key
  on_all_hosts "cd r1jax && if flock --nonblock run.lock true; then \
setsid --fork flock --nonblock run.lock sh -c 'echo \$\$ >run.pid; exec \"\$@\"' \
run .venv/bin/python -m r1jax train$flags >>run.log 2>&1 </dev/null; \
else echo 'a run is here already'; fi"
}

stop() {
  add_key
  on_all_hosts "cd r1jax && if flock --nonblock run.lock true; then \
echo 'no run is here'; elif mv run.pid run.stopped 2>/dev/null; then \
kill -TERM \"\$(cat run.stopped)\"; fi"
}

case $action in
  --create)
    (($# >= 1)) || usage
    create "$@"
    ;;
  --setup) setup ;;
  --stop) stop ;;
  --start)
    (($# >= 1)) || usage
    start "$@"
    ;;
esac
