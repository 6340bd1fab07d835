#!/usr/bin/env bash
# Submits an experiment to SLURM.
#
#   launch/slurm.sh gpu NODES GPUS --config=... --workdir=DIR [FLAGS]
#   launch/slurm.sh cpu NODES      --config=... --workdir=DIR [FLAGS]
#
# It starts one process per GPU, or per node without GPUs, with CPUS cores each (8
# with a GPU, else 1). The repository, its environment and DIR must be on a file
# system that all nodes share. Nodes with GPUs need NVIDIA's driver R580 or newer,
# for CUDA 13; NCCL comes with `make venv EXTRAS=gpu`.
#
# GRACE seconds before its time limit (600, if not set), the job gets SIGTERM,
# saves a checkpoint, and is requeued until it is finished. Choose what a round
# and a save take together, well below the time limit. Set account, partition,
# time and memory in SBATCH_FLAGS. --dry-run, as the first argument, prints the
# script.
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
    tasks=$1 cpus=${CPUS:-8}
    gpus="#SBATCH --gpus-per-node=$1"
    shift
    ;;
  cpu) tasks=1 cpus=${CPUS:-1} gpus="" ;;
  *) usage ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
printf -v flags ' %q' "$@"
printf -v python '%q' "${PYTHON:-.venv/bin/python}"
"${submit[@]}" <<END
#!/usr/bin/env bash
#SBATCH --job-name=r1jax
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
#SBATCH --cpus-per-task=$cpus
${gpus:+$gpus
}#SBATCH --signal=TERM@${GRACE:-600}
#SBATCH --requeue
#SBATCH --open-mode=append
${SBATCH_FLAGS:+#SBATCH $SBATCH_FLAGS
}cd ${PWD@Q}
export SRUN_CPUS_PER_TASK=$cpus  # srun does not take it from the job.
status=0
srun --kill-on-bad-exit=1 --label $python -m r1jax train$flags || status=\$?
if ((status == 143)); then  # Interrupted by SIGTERM, and saved.
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$status
END
