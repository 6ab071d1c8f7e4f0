#!/bin/bash
# Installs this repository on every host of a Cloud TPU slice and runs one command on all of them.
#
#   experiments/launch/tpu_pod.sh install NAME ZONE
#   experiments/launch/tpu_pod.sh run NAME ZONE python -m experiments.train \
#       --config cifar10_lgrawa --workdir /mnt/runs/a
#
# Not run by us: no TPU here (a test runs it with a stand-in for gcloud). Before:
#   gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=... --version=...
#   https://docs.cloud.google.com/tpu/docs/jax-pods
# Change: PYTHON below, if you like; --workdir is a folder that all hosts share, for example a
# Filestore or Cloud Storage FUSE mount.
#
# One process per host drives all its chips. `run` ends when all hosts have; start it in tmux. To
# stop, send SIGTERM to one host: all save and end, and the same command resumes:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=0 \
#       --command='pkill -TERM -f experiments.train'
set -euo pipefail

PYTHON=3.11 # the images' own may be older than 3.11, which is needed

usage="usage: $0 install NAME ZONE | $0 run NAME ZONE COMMAND ..."
[[ $# -ge 3 ]] || { echo "$usage" >&2; exit 2; }
action=$1 name=$2 zone=$3
shift 3

on_all() {
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

# What JAX itself would ask the metadata server for; single slices only. Process 0 listens at 8482.
join='
ask() { curl -sf -H Metadata-Flavor:Google "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
hosts=$(ask worker-network-endpoints) && JAX_PROCESS_ID=$(ask agent-worker-number) || exit 1
first=${hosts%%,*}; commas=${hosts//[^,]/}
JAX_COORDINATOR_ADDRESS=${first##*:}:8482 JAX_NUM_PROCESSES=$((${#commas} + 1))
export JAX_PROCESS_ID JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES
'

case $action in
install)
    archive=$(mktemp --suffix=.tgz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tgz --output="$archive" HEAD # what is committed
    gcloud compute tpus tpu-vm scp "$archive" "$name:jaxdist.tgz" --zone="$zone" --worker=all
    on_all "set -e; mkdir -p jaxdist; tar -xzf jaxdist.tgz -C jaxdist; cd jaxdist
        python3 -m pip install --user uv; python3 -m uv venv --allow-existing --python $PYTHON .venv
        python3 -m uv pip install -c constraints.txt -e '.[train,tpu]'"
    ;;
run)
    [[ $# -ge 1 ]] || { echo "$usage" >&2; exit 2; }
    on_all "cd jaxdist && . .venv/bin/activate || exit 1
        $join
        exec $(printf '%q ' "$@")"
    ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
