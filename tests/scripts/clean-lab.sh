#!/usr/bin/env bash
# Removes what test runs, demos and benchmarks left behind because they were killed: mounts,
# processes, network namespaces and directories named bct-<pid of the run>-... of runs that are gone.
set -euo pipefail

# Tests use the first, benchmarks the second.
roots=("${TMPDIR:-/tmp}" /dev/shm)

# Whether the run that made the thing of this name is still there.
is_running() {
    local pid=${1#bct-}
    kill -0 "${pid%%-*}" 2>/dev/null
}

while read -r mount; do
    for root in "${roots[@]}"; do
        name=${mount#"$root"/}
        if [[ $name == bct-* ]] && ! is_running "${name%%/*}"; then
            echo "unmounting $mount"
            umount -l "$mount"
        fi
    done
done < <(awk '{ print $5 }' /proc/self/mountinfo | tac)

while read -r namespace _; do
    is_running "$namespace" && continue
    echo "removing namespace $namespace"
    for pid in $(ip netns pids "$namespace"); do
        kill -KILL "$pid" 2>/dev/null || true
    done
    ip netns del "$namespace"
done < <(ip netns list | grep '^bct-' || true)

for root in "${roots[@]}"; do
    for directory in "$root"/bct-*; do
        if [ -d "$directory" ] && ! is_running "${directory##*/}"; then
            echo "removing $directory"
            rm -rf --one-file-system "$directory"
        fi
    done
done
