#!/bin/sh
# Work pools of one type (process, docker, kubernetes) and every deployment; from the folder of prefect.yaml. Safe to repeat.
set -eu
for pool in cpu gpu; do
    prefect --no-prompt work-pool create "$pool" --type "$1" --base-job-template "infra/work-pools/$1-$pool.json" --overwrite
done
exec prefect --no-prompt deploy --all
