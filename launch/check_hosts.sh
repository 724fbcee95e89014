#!/bin/bash
# Look at each host of a hostfile before `deepspeed --hostfile`: launch/check_hosts.sh HOSTFILE [STORE]
#
# A line for each host: ok, or what stops a run there. Exit code 1 where one cannot take part. Call it in the repository's
# folder, from where the launcher will be called. PORT=29501 looks at another port than DeepSpeed's 29500.
[[ $# -ge 1 && -r $1 ]] || { echo "error: which hosts? launch/check_hosts.sh HOSTFILE [STORE]" >&2; exit 2; }

# Runs on the host, with: folder, Python, store, slots, port (empty for all but the first host).
look() {
    cd "$1" 2>/dev/null || { echo "has no folder $1: the repository must be at the same path on each host"; return; }
    [ -x "$2" ] || { echo "has no $2: Python must be at the same path on each host"; return; }
    "$2" -c 'import cromic_ds' 2>/dev/null || { echo "$2 has no cromic_ds: run 'make setup' in $1 there"; return; }
    [ -z "$3" ] || [ -e "$3" ] || { echo "has no store $3: copy it there, or put it on a shared file system"; return; }
    if command -v nvidia-smi >/dev/null; then
        gpus=$(nvidia-smi --list-gpus | wc -l)
        [ "$4" -le "$gpus" ] || { echo "has $gpus GPUs and slots=$4: write slots=$gpus"; return; }
    fi
    [ -z "$5" ] || "$2" -c "import socket; socket.socket().bind(('', $5))" 2>/dev/null ||
        { echo "port $5 is in use: give deepspeed another --master_port"; return; }
    echo ok
}

python=$(command -v python) port=${PORT:-29500} failed=0
while read -r host slots rest <&3; do
    [[ -z $host || $host == \#* ]] && continue
    if [[ $slots =~ ^slots=[1-9][0-9]*$ && -z $rest ]]; then
        about=$(printf '%q ' "$PWD" "$python" "${2-}" "${slots#slots=}" "$port")
        answer=$(ssh -o BatchMode=yes -o ConnectTimeout=10 "$host" bash -s <<<"$(declare -f look); look $about" 2>&1)
        answer=${answer:-"no answer by ssh"}
        port=
    else
        answer="the line is not HOST slots=NUMBER"
    fi
    echo "$host: ${answer##*$'\n'}"
    [ "$answer" = ok ] || failed=1
done 3<"$1"
exit $failed
