#!/usr/bin/env bash
# Runs an experiment on TPU slices of a GKE cluster, as a JobSet.
#
#   launch/gke.sh NAME IMAGE TOPOLOGY --config=... --workdir=DIR [FLAGS]
#   launch/gke.sh r1 REGION-docker.pkg.dev/PROJECT/REPOSITORY/r1jax:TAG v6e:8x8*2 \
#     --config=experiments/distill.py:qwen_32b --workdir=/data/qwen_32b
#
# IMAGE is built from launch/Dockerfile.tpu. TOPOLOGY is that of `r1jax plan`: two
# slices of 8x8 chips take two node pools of that topology. The ReadWriteMany
# claim CLAIM (r1jax, if not set) is mounted on /data, for DIR; with CLAIM= there
# is none, and checkpoints need --bucket. NODES adds node labels, such as
# NODES="cloud.google.com/gke-spot=true". GRACE is how many seconds a pod that is
# told to stop may take (600, if not set; 15 on preemptible and Spot nodes).
#
# If a pod fails or is preempted, all restart from the last checkpoint, up to 50
# times; wrong input (exit code 2) ends the job. `kubectl delete jobset NAME` stops
# it. --dry-run, before NAME, prints the manifest.
set -euo pipefail

create=(kubectl create -f -)
if [[ ${1:-} == --dry-run ]]; then
  create=(cat)
  shift
fi
if (($# < 4)); then
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
fi
name=$1 image=$2 topology=${3,,}
shift 3

if ! [[ $topology =~ ^([a-z0-9]+):([0-9]+(x[0-9]+)+)(\*([0-9]+))?$ ]]; then
  echo "error: TOPOLOGY is $topology; use one such as v5p:8x8x8 or v6e:8x8*2" >&2
  exit 2
fi
shape=${BASH_REMATCH[2]} slices=${BASH_REMATCH[5]:-1}
case ${BASH_REMATCH[1]} in
  v4) accelerator=tpu-v4-podslice ;;
  v5e) accelerator=tpu-v5-lite-podslice ;;
  v5p) accelerator=tpu-v5p-slice ;;
  v6e) accelerator=tpu-v6e-slice ;;
  tpu7x) accelerator=tpu7x ;;
  *)
    echo "error: no TPU ${BASH_REMATCH[1]}; there is v4, v5e, v5p, v6e, tpu7x" >&2
    exit 2
    ;;
esac
chips=$((${shape//x/ * }))
per_host=$((chips < 4 ? chips : 4))
hosts=$((chips / per_host))

# A JSON string is a YAML string. Kubernetes reads $$ as one $.
quote() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  printf '"%s"' "${text//\$/\$\$}"
}
command=""
for word in python -m r1jax train "$@"; do
  command+="${command:+, }$(quote "$word")"
done
labels=""
for label in ${NODES:-}; do
  labels+="
                ${label%%=*}: $(quote "${label#*=}")"
done
mounts="" volumes=""
if [[ -n ${CLAIM=r1jax} ]]; then
  mounts="
                  env:  # What one start has compiled, the next one reads.
                    - name: JAX_COMPILATION_CACHE_DIR
                      value: /data/.cache/xla
                  volumeMounts:
                    - name: data
                      mountPath: /data"
  volumes="
              volumes:
                - name: data
                  persistentVolumeClaim:
                    claimName: $CLAIM"
fi

"${create[@]}" <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:  # A slice is a node pool, and has one job.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 50
    restartStrategy: BlockingRecreate  # The workdir has one owner at a time.
    rules:
      - name: wrongInput
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob  # Wrong input: another try meets it again.
                onExitCodes:
                  containerName: r1jax
                  operator: In
                  values: [2]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: ${GRACE:-600}
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $shape$labels
              containers:
                - name: r1jax
                  image: $(quote "$image")
                  command: [$command]
                  ports:
                    - containerPort: 8471  # libtpu
                    - containerPort: 8482  # jax.distributed
                    - containerPort: 8080  # between slices
                  resources:
                    limits:
                      google.com/tpu: $per_host$mounts$volumes
END
