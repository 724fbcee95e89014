#!/bin/bash
# Evaluate in Slurm, on one GPU or CPU: sbatch [options of sbatch] launch/evaluate.sh EXPORT --data STORE [--setting value …]
#
#   sbatch --gpus 1 launch/evaluate.sh runs/finetune_vqa2/export --data vqa-store --split val
#
# Submit it in the repository's folder; `cromic-ds evaluate --help` lists the settings. A requeued job starts from the beginning.
#
# Options of sbatch override these:
#SBATCH --job-name=evaluate
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=4:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
[ -f launch/common.sh ] || { echo "error: submit this in the repository's folder, not in $PWD" >&2; exit 2; }
source launch/common.sh

OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK} exec cromic-ds evaluate "$@"
