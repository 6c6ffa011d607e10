#!/usr/bin/env bash
# Serves a sample directory, mounts it, and copies a 256 MiB image through the mount while its pages
# arrive. As root the server and the client are two hosts (network namespaces joined by a cable);
# otherwise both are on the loopback interface. Everything is removed at the end, also by ctrl-C.
set -euo pipefail

bin=$(realpath "${BOOTCAST_BIN_DIR:-target/release}")
rate=400mbit
size_mib=256
dir=$(mktemp -d "${TMPDIR:-/tmp}/bct-$$-demo-XXXX")
head_ns=bct-$$-demo-head client_ns=bct-$$-demo-client
server_pid= mount_pid=

say() {
    if [ -t 1 ]; then printf '\n\033[1m==> %s\033[0m\n' "$*"; else printf '\n==> %s\n' "$*"; fi
}

unmount() {
    if [ "$(id -u)" -eq 0 ]; then umount "$@" "$dir/mnt"; else fusermount3 -u ${1:+-z} "$dir/mnt"; fi
}

stop() {
    [ -z "$1" ] || kill "$1" 2>/dev/null || return 0
    [ -z "$1" ] || wait "$1" 2>/dev/null || true
}

clean_up() {
    trap - EXIT INT TERM
    if mountpoint -q "$dir/mnt"; then unmount -l || true; fi
    stop "$mount_pid"
    stop "$server_pid"
    ip netns del "$head_ns" 2>/dev/null || true
    ip netns del "$client_ns" 2>/dev/null || true
    rm -rf --one-file-system "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Waits up to 10 s until the command succeeds.
wait_until() {
    local what=$1 tries
    shift
    for tries in $(seq 200); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    echo "not within 10 s: $what" >&2
    cat "$dir"/*.log >&2
    exit 1
}

if [ "$(id -u)" -eq 0 ] && ip netns add "$head_ns" 2>/dev/null; then
    ip netns add "$client_ns"
    ip link add eth0 netns "$head_ns" type veth peer name eth0 netns "$client_ns"
    for host in "$head_ns 10.77.0.1" "$client_ns 10.77.0.11"; do
        read -r ns address <<<"$host"
        ip -n "$ns" link set lo up
        ip -n "$ns" addr add "$address/24" dev eth0
        ip -n "$ns" link set eth0 up
    done
    at_head() { exec nsenter --net="/run/netns/$head_ns" -- "$@"; }
    at_client() { exec nsenter --net="/run/netns/$client_ns" -- "$@"; }
    head=10.77.0.1 interface=eth0 where="two hosts (network namespaces), cable, $rate"
else
    at_head() { exec "$@"; }
    at_client() { exec "$@"; }
    head=127.0.0.1 interface=lo where="one host, loopback interface, $rate"
fi

say "The network: $where"
mkdir "$dir/images" "$dir/mnt" "$dir/cache"
echo "making a sample image of $size_mib MiB .."
head -c "${size_mib}M" /dev/urandom >"$dir/images/debian.img"

say "Serve: bootcast-server --dir images --interface $interface --rate $rate"
(at_head "$bin/bootcast-server" --dir "$dir/images" --listen "$head:8888" \
    --interface "$interface" --rate "$rate") >"$dir/server.log" 2>&1 &
server_pid=$!
wait_until "the server listens" grep -q listening "$dir/server.log"
tail -n 1 "$dir/server.log"

say "Mount: bootcastfs $head:/ mnt -o interface=$interface"
(at_client "$bin/bootcastfs" "$head:/" "$dir/mnt" \
    -o "interface=$interface,cache_dir=$dir/cache" -f) >"$dir/mount.log" 2>&1 &
mount_pid=$!
wait_until "the mount is there" mountpoint -q "$dir/mnt"
ls -l "$dir/mnt"

say "Copy: cp mnt/debian.img copy.img, while the pages arrive"
(at_client cp "$dir/mnt/debian.img" "$dir/copy.img") &
copy_pid=$!
while kill -0 "$copy_pid" 2>/dev/null; do
    sleep 0.5
    copied=$(stat -c %s "$dir/copy.img" 2>/dev/null || echo 0)
    printf '  %3d of %d MiB read  ' $((copied >> 20)) "$size_mib"
    (at_client "$bin/bootcast" status "http://$head:8888/") | grep debian.img || echo "no cast runs"
done
wait "$copy_pid"

say "The server's log: join and leave"
wait_until "the end of the cast" grep -q 'cast ended' "$dir/server.log"
grep -E 'cast began|joined|left|cast ended' "$dir/server.log"

say "Checksums of the image that was served and of the copy"
(cd "$dir" && sha256sum images/debian.img copy.img)
cmp "$dir/images/debian.img" "$dir/copy.img"
echo "equal"

say "Unmount and stop"
unmount
stop "$server_pid"
server_pid=
echo "done: nothing is left behind"
