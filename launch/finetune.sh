#!/bin/bash
# Fine-tune in Slurm: sbatch [options of sbatch] launch/finetune.sh TASK BACKBONE [--setting value …]
#
#   sbatch --gpus-per-node 8 --ntasks-per-node 8 launch/finetune.sh vqa2 runs/pretrain_cmt/export --data.path vqa-store
#
# TASK names the recipe recipes/finetune_TASK.yaml, BACKBONE an export or a run folder ("" starts from random weights). Submit it
# in the repository's folder. The run folder is --out, or runs/finetune_TASK. For stops and requeues see launch/pretrain.sh.
#
# Options of sbatch override these:
#SBATCH --job-name=finetune
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

if [[ $# -lt 2 || $1 == --* || $2 == --* ]]; then
    refuse "name a task and a backbone: sbatch launch/finetune.sh TASK BACKBONE [--setting value …]"
fi
train finetune.py "recipes/finetune_$1.yaml" --backbone "$2" "${@:3}"
