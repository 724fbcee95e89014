# Functions of the sbatch scripts, which source this file in the repository's folder.

refuse() { # MESSAGE: end the job because it cannot work
    echo "error: $*" >&2
    exit 2
}

[ -n "${SLURM_JOB_ID-}" ] || refuse "this is a job for Slurm: sbatch $0 …"
if [ -z "${VIRTUAL_ENV-}" ] && [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi
command -v cromic-ds >/dev/null ||
    refuse "no cromic-ds on $(hostname): activate the environment before sbatch, or make one with 'make setup'"

# Without this, each host would compile DeepSpeed's operation in its home folder.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$PWD/.cache/torch_extensions}

train() { # SCRIPT RECIPE [--setting value …]: one task per GPU, or per CPU slot; never returns
    local script=$1 recipe=$2 run before port step
    shift 2
    [ -f "$recipe" ] || refuse "there is no recipe $recipe in $PWD"
    one_task_per_gpu
    run=$(value_of --out "$@")
    run=${run:-runs/$(basename "$recipe" .yaml)} # the same after a requeue, and for the next sbatch
    find_paths "$run"
    before=$(newest_checkpoint)

    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    port=$((20000 + SLURM_JOB_ID % 10000)) # different for jobs that share the host
    export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$port}
    unset RANK WORLD_SIZE LOCAL_RANK # set if sbatch was called in a process that a launcher started
    # By itself srun does not use the job's --cpus-per-task.
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

    describe "$run"
    run_step python -u "$script" --config "$recipe" "$@" --out "$run"
    if [ -e "$run_finished" ]; then
        echo "finished: $run"
        exit "$code"
    fi
    [ "$code" = 0 ] || echo "failed with exit code $code; the logs of all ranks: $logs/rank-*.txt"
    if ! still_ours; then
        exit "$code" # cancelled, or Slurm requeues it
    elif [ "$code" = 0 ] && [ "$(newest_checkpoint)" != "$before" ]; then
        requeue "stopped before its end; $run will resume from $(newest_checkpoint)"
    elif being_preempted; then
        requeue "preempted before it could save"
    elif [ "$code" = 0 ]; then
        echo "ended without an error, but without $run_finished and without a new checkpoint: not requeued"
        exit 1
    fi
    show_errors "$run"
    exit "$code"
}

run_step() { # COMMAND: run it on all tasks with srun; sets $code and $logs
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

wait_for() { # PROCESS [SIGNAL]: sets $code; if Slurm asks this job to stop, sends SIGNAL to PROCESS and sets $stopping
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

tasks() { # number of tasks, from a list such as 8(x2),4; SLURM_NTASKS is wrong after a requeue with fewer nodes
    tr , '\n' <<<"$SLURM_TASKS_PER_NODE" | tr -c '0-9\n' ' ' | awk '{ n += $1 * ($2 ? $2 : 1) } END { print n }'
}

one_task_per_gpu() {
    local tasks=${SLURM_TASKS_PER_NODE%%[!0-9]*} gpus=${SLURM_GPUS_ON_NODE:-0}
    [ "$gpus" = 0 ] || [ "$gpus" = "$tasks" ] ||
        refuse "$tasks tasks for $gpus GPUs on $(hostname), and each task drives one: sbatch --ntasks-per-node=$gpus …"
}

describe() { # RUN: the first lines of the job's output
    echo "== $(date '+%F %T') job $SLURM_JOB_ID ($SLURM_JOB_NAME), start ${SLURM_RESTART_COUNT:-0}, in $PWD"
    echo "   run folder  $1"
    echo "   hosts       $SLURM_JOB_NODELIST, tasks $SLURM_TASKS_PER_NODE, GPUs on each ${SLURM_GPUS_ON_NODE:-none}"
    echo "   rendezvous  $MASTER_ADDR:$MASTER_PORT"
    echo "   python      $(command -v python), extensions in $TORCH_EXTENSIONS_DIR"
    env | grep -E '^(CUDA|NCCL|GLOO|OMP|DS|WANDB|HF|TORCH)_' | grep -v KEY | sort | sed 's/^/   /'
}

requeue() { # WHY: have Slurm start this job again with the same arguments
    echo "$1; requeued"
    scontrol requeue "$SLURM_JOB_ID"
    exit
}

value_of() { # OPTION ARGUMENTS…: the last value of the option, empty if it is not given
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

find_paths() { # RUN: sets $run_finished, $run_latest and the array $run_failures, which has the files there are now
    local paths
    paths=$(python -m cromic_ds.run_folder "$1") || refuse "$(command -v python) has no cromic_ds: activate its environment"
    eval "$paths"
}

newest_checkpoint() { cat "$run_latest" 2>/dev/null; }

job_field() { # NAME: a field of this job in Slurm, up to the end of its line
    scontrol show job "$SLURM_JOB_ID" | sed -nE "s/^(.* )?$1=(.*)/\2/p"
}

still_ours() { [[ $(job_field JobState) == RUNNING* ]]; }

being_preempted() { [[ $(job_field PreemptTime) == [0-9]* ]]; }

show_errors() { # RUN: print the failure of the rank that failed first; if none was noted, the last errors in the logs
    local first=
    killed_task
    find_paths "$1"
    first=$(grep -hs "\"job\": \"$SLURM_JOB_ID\"" "${run_failures[@]}" /dev/null |
        sed -E 's/.*"error": "(.*)"\}$/error: \1/; s/\\(["\\])/\1/g')
    if [ -n "$first" ]; then
        echo "$first"
        return
    fi
    # The last line of Python's tracebacks and of this project's commands.
    grep -hE '^(error: |[A-Za-z_.]*(Error|Exception)\b)' "$logs"/rank-*.txt | sort -u | tail -n 5
}

killed_task() { # print srun's message about the first task of this start that a signal ended
    local line
    line=$(tac "$(job_field StdOut)" | sed '/^== .* job /q' | grep '^srun: error: .*: tasks\? ' | tail -n 1)
    [[ ${line:-Exited with} == *"Exited with"* ]] || echo "error: ${line#srun: error: } (a task is a rank)"
}
