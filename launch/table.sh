#!/bin/bash
# The results table in Slurm: sbatch [options of sbatch] launch/table.sh RECIPE OUT [--setting value …]
#
#   sbatch launch/table.sh recipes/table_full.yaml tables/full --slurm="--partition=gpu --gpus=1" --data.posts STORE …
#
# This job submits the jobs of the table's cells as job arrays, with the options in --slurm, and waits for them. Submit it in the
# repository's folder. At its time limit it is requeued; the cells continue meanwhile.
#
# Options of sbatch override these:
#SBATCH --job-name=table
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
[ -f launch/common.sh ] || { echo "error: submit this in the repository's folder, not in $PWD" >&2; exit 2; }
source launch/common.sh

if [[ $# -lt 2 || $1 == --* || $2 == --* ]]; then
    refuse "name a recipe and a folder: sbatch launch/table.sh RECIPE OUT [--setting value …]"
fi
slurm=$(value_of --slurm "${@:3}")
cromic-ds table --recipe "$1" --out "$2" "${@:3}" --slurm="$slurm" &
wait_for $! USR1
if [ "$code" != 0 ] && [ -n "${stopping-}" ] && still_ours; then requeue "stopped before the table's end"; fi
exit "$code"
