#!/bin/bash
# Pretrain in Slurm: sbatch [options of sbatch] launch/pretrain.sh [RECIPE] [--setting value …]
#
#   sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 launch/pretrain.sh recipes/pretrain_cmt.yaml --data.path STORE
#
# Submit it in the repository's folder. The run folder is --out, or runs/ and the recipe's name. Before the time limit and when the
# job is preempted, the training saves, and the job is requeued until the run is finished; `scancel` ends it.
#
# Options of sbatch override these:
#SBATCH --job-name=pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120
[ -f launch/common.sh ] || { echo "error: submit this in the repository's folder, not in $PWD" >&2; exit 2; }
source launch/common.sh

recipe=recipes/pretrain_cmt.yaml
if [[ $# -gt 0 && $1 != --* ]]; then
    recipe=$1
    shift
fi
train pretrain.py "$recipe" "$@"
