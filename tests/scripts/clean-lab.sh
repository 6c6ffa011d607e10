#!/usr/bin/env bash
# Removes what killed test runs, demos and benchmarks left behind: mounts, processes, network
# namespaces and directories. Their names begin with bct-<process id of the run>-.
set -euo pipefail

# Directories in which labs are built: tests use the first, benchmarks the second.
roots=("${TMPDIR:-/tmp}" /dev/shm)

# Whether the run that created something of this name still exists.
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
