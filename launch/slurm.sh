#!/usr/bin/env bash
# Submits an experiment to SLURM.
#
#   launch/slurm.sh gpu NODES GPUS --config=... --workdir=DIR [FLAGS]
#   launch/slurm.sh cpu NODES      --config=... --workdir=DIR [FLAGS]
#
# One process per GPU, or per node without. The repository, its environment and
# DIR must be seen by all nodes. Two minutes before its time is over the job gets
# SIGTERM, saves, and is queued again until it has ended by itself. Account,
# partition and time go into SBATCH_FLAGS. --dry-run, first, prints the script.
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
if ((status == 143)); then  # Stopped by the signal, and saved.
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$status
END
