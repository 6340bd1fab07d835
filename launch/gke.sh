#!/usr/bin/env bash
# Runs an experiment on a TPU slice of a GKE cluster, as a JobSet.
#
#   launch/gke.sh NAME IMAGE ACCELERATOR TOPOLOGY HOSTS CHIPS --config=... \
#     --workdir=DIR [FLAGS]
#   launch/gke.sh r1 gcr.io/me/r1jax tpu-v5p-slice 4x4x4 16 4 --config=...
#
# IMAGE contains the repository, installed with the extra `tpu`. The slice has
# HOSTS x CHIPS chips. If a pod fails or is preempted, the job restarts from its
# checkpoint, up to 20 times. The volume claim NFS_VOLUME is mounted on /data, for
# DIR. --dry-run, before NAME, prints the manifest.
set -euo pipefail

apply=(kubectl apply -f -)
if [[ ${1:-} == --dry-run ]]; then
  apply=(cat)
  shift
fi
if (($# < 8)); then
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
fi
name=$1 image=$2 accelerator=$3 topology=$4 hosts=$5 chips=$6
shift 6

# A JSON string is a YAML string.
quote() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}
command=""
for word in python -m r1jax train "$@"; do
  command+="${command:+, }$(quote "$word")"
done

"${apply[@]}" <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  failurePolicy:
    maxRestarts: 20
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 600
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
              containers:
                - name: r1jax
                  image: $image
                  command: [$command]
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    limits:
                      google.com/tpu: $chips
                  volumeMounts:
                    - name: data
                      mountPath: /data
              volumes:
                - name: data
                  persistentVolumeClaim:
                    claimName: ${NFS_VOLUME:-r1jax}
END
