#!/usr/bin/env bash
# Submits an experiment to SLURM.
#
#   launch/slurm.sh gpu NODES GPUS --config=... --workdir=DIR [FLAGS]
#   launch/slurm.sh cpu NODES      --config=... --workdir=DIR [FLAGS]
#
# It starts one process per GPU, or per node without GPUs. The repository, its
# environment and DIR must be on a file system that all nodes share. Two minutes
# before its time limit, the job gets SIGTERM, saves a checkpoint, and is requeued
# until it is finished. Set account, partition and time in SBATCH_FLAGS.
# --dry-run, as the first argument, prints the script.
set -euo pipefail

submit=(sbatch)
if [[ ${1:-} == --dry-run ]]; then
  submit=(cat)
  shift
fi
usage() {
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
}
(($# >= 3)) || usage
kind=$1 nodes=$2
shift 2
case $kind in
  gpu)
    tasks=$1
    resources="#SBATCH --gpus-per-node=$1"
    shift
    ;;
  cpu)
    tasks=1
    resources="#SBATCH --cpus-per-task=${CPUS:-1}"
    ;;
  *) usage ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
printf -v flags ' %q' "$@"
printf -v python '%q' "${PYTHON:-.venv/bin/python}"
read -ra more <<<"${SBATCH_FLAGS:-}"
[[ ${submit[0]} == cat ]] || submit+=("${more[@]}")
"${submit[@]}" <<END
#!/usr/bin/env bash
#SBATCH --job-name=r1jax
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
$resources
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
cd ${PWD@Q}
status=0
srun --kill-on-bad-exit=1 --label $python -m r1jax train$flags || status=\$?
if ((status == 143)); then  # Interrupted by SIGTERM, and saved.
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$status
END
