# What the sbatch scripts share; sourced by them, in the repository's folder.

refuse() { # MESSAGE: the job ends, as one that cannot work
    echo "error: $*" >&2
    exit 2
}

[ -n "${SLURM_JOB_ID-}" ] || refuse "this is a job for Slurm: sbatch $0 …"
if [ -z "${VIRTUAL_ENV-}" ] && [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi
command -v cromic-ds >/dev/null ||
    refuse "no cromic-ds on $(hostname): activate the environment before sbatch, or make one with 'make setup'"

# Each host would compile DeepSpeed's operation by itself at home.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$PWD/.cache/torch_extensions}

train() { # SCRIPT RECIPE [--setting value …]: a task for each GPU, or for each CPU slot; never returns
    local script=$1 recipe=$2 run before port step
    shift 2
    [ -f "$recipe" ] || refuse "there is no recipe $recipe in $PWD"
    one_task_per_gpu
    run=$(value_of --out "$@")
    run=${run:-runs/$(basename "$recipe" .yaml)} # the same after a requeue, and for the next sbatch
    before=$(newest_checkpoint "$run")

    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    port=$((20000 + SLURM_JOB_ID % 10000)) # another one for each job that may share the host
    export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$port}
    unset RANK WORLD_SIZE LOCAL_RANK # of a launcher that sbatch was called below
    # srun does not take the job's CPUs for each task over by itself.
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

    describe "$run"
    run_step python -u "$script" --config "$recipe" "$@" --out "$run"
    if [ -e "$run/finished.json" ]; then
        echo "finished: $run"
        exit "$code"
    fi
    [ "$code" = 0 ] || echo "failed with exit code $code; the logs of all ranks: $logs/rank-*.txt"
    if ! still_ours; then
        exit "$code" # cancelled, or Slurm requeues it
    elif [ "$code" = 0 ] && [ "$(newest_checkpoint "$run")" != "$before" ]; then
        requeue "stopped before its end; $run goes on from $(newest_checkpoint "$run")"
    elif being_preempted; then
        requeue "preempted before it could save"
    elif [ "$code" = 0 ]; then
        echo "ended without an error, but $run has no finished.json and no new checkpoint: not requeued"
        exit 1
    fi
    show_errors "$run"
    exit "$code"
}

run_step() { # COMMAND: by srun on all tasks; sets $code and $logs
    logs=$(job_field StdOut)
    logs=${logs%.*}.ranks
    mkdir -p "$logs"
    srun --ntasks="$(tasks)" --kill-on-bad-exit=1 --open-mode=append --output="$logs/rank-%t.txt" "$@" &
    step=$!
    # The job's own output shows rank 0.
    tail --lines=0 --follow=name --retry --pid="$step" "$logs/rank-0.txt" 2>/dev/null &
    wait_for "$step"
    wait
}

wait_for() { # JOB [SIGNAL]: sets $code; passes SIGNAL on when this job is told to stop, and sets $stopping
    local caught=yes
    trap "caught=yes stopping=yes; ${2:+kill -$2 $1}" USR1 TERM
    trap 'caught=yes' CONT
    while [ -n "$caught" ]; do # a signal interrupts the shell's wait
        caught=
        wait "$1"
        code=$?
    done
    trap - USR1 TERM CONT
}

tasks() { # of this allocation, from a list such as 8(x2),4; after a requeue with fewer nodes SLURM_NTASKS is the old one's
    tr , '\n' <<<"$SLURM_TASKS_PER_NODE" | tr -c '0-9\n' ' ' | awk '{ n += $1 * ($2 ? $2 : 1) } END { print n }'
}

one_task_per_gpu() {
    local tasks=${SLURM_TASKS_PER_NODE%%[!0-9]*} gpus=${SLURM_GPUS_ON_NODE:-0}
    [ "$gpus" = 0 ] || [ "$gpus" = "$tasks" ] ||
        refuse "$tasks tasks for $gpus GPUs on $(hostname), and each task drives one: sbatch --ntasks-per-node=$gpus …"
}

describe() { # RUN: what somebody who reads the job's output wants to know first
    echo "== $(date '+%F %T') job $SLURM_JOB_ID ($SLURM_JOB_NAME), start ${SLURM_RESTART_COUNT:-0}, in $PWD"
    echo "   run folder  $1"
    echo "   hosts       $SLURM_JOB_NODELIST, tasks $SLURM_TASKS_PER_NODE, GPUs on each ${SLURM_GPUS_ON_NODE:-none}"
    echo "   rendezvous  $MASTER_ADDR:$MASTER_PORT"
    echo "   python      $(command -v python), extensions in $TORCH_EXTENSIONS_DIR"
    env | grep -E '^(CUDA|NCCL|GLOO|OMP|DS|WANDB|HF|TORCH)_' | grep -v KEY | sort | sed 's/^/   /'
}

requeue() { # WHY: Slurm starts this job again, with the same arguments
    echo "$1; requeued"
    scontrol requeue "$SLURM_JOB_ID"
    exit
}

value_of() { # OPTION ARGUMENTS…: the option's last value, empty without one
    local option=$1 value=
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        "$option") value=${2-} ;;
        "$option"=*) value=${1#*=} ;;
        esac
        shift
    done
    echo "$value"
}

newest_checkpoint() { cat "$1/checkpoints/latest" 2>/dev/null; }

job_field() { # NAME: what Slurm knows of this job, to the end of the line that NAME is in
    scontrol show job "$SLURM_JOB_ID" | sed -nE "s/^(.* )?$1=(.*)/\2/p"
}

still_ours() { [[ $(job_field JobState) == RUNNING* ]]; }

being_preempted() { [[ $(job_field PreemptTime) == [0-9]* ]]; }

show_errors() { # RUN: last of all the rank that failed first, where the run got as far as to note that
    local first=
    killed_task
    first=$(grep -hs "\"job\": \"$SLURM_JOB_ID\"" "$1"/ranks/failed-*.json |
        sed -E 's/.*"error": "(.*)"\}$/error: \1/; s/\\(["\\])/\1/g')
    if [ -n "$first" ]; then
        echo "$first"
        return
    fi
    # In one line each, as this project's commands and Python end with.
    grep -hE '^(error: |[A-Za-z_.]*(Error|Exception)\b)' "$logs"/rank-*.txt | sort -u | tail -n 5
}

killed_task() { # what srun said of the first task of this start that a signal ended
    local line
    line=$(tac "$(job_field StdOut)" | sed '/^== .* job /q' | grep '^srun: error: .*: tasks\? ' | tail -n 1)
    [[ ${line:-Exited with} == *"Exited with"* ]] || echo "error: ${line#srun: error: } (a task is a rank)"
}
