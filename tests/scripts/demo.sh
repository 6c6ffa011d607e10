#!/usr/bin/env bash
# Shows what bootcast does: a server sends an image once, while two nodes mount it and copy it at
# the same time. As root, the server and the nodes are hosts of their own (network namespaces at a
# switch), and one of the nodes loses packets. Otherwise all use the loopback interface, and no
# packet is lost. The demo removes everything at its end, also after ctrl-C.
set -euo pipefail

bin=$(realpath "${BOOTCAST_BIN_DIR:-target/debug}")
rate=100mbit size_mib=128 loss_percent=2
dir=$(mktemp -d "${TMPDIR:-/tmp}/bct-$$-demo-XXXX")
ns=bct-$$-demo
server=10.77.0.1 interface=eth0 is_lab=
pids=()

say() {
    if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi
}

# Runs a command on a host: on HOST COMMAND.., where HOST is server, node1 or node2.
on() {
    local host=$1
    shift
    if [ "$is_lab" ]; then nsenter --net="/run/netns/$ns-$host" -- "$@"; else "$@"; fi
}

# Starts a command on a host in the background: start_on HOST LOG COMMAND... Its process id is in
# `$!`; no wrapper remains.
start_on() {
    local host=$1 log=$2
    shift 2
    if [ "$is_lab" ]; then
        nsenter --net="/run/netns/$ns-$host" -- "$@" >>"$log" 2>&1 &
    else
        "$@" >>"$log" 2>&1 &
    fi
    pids+=($!)
}

unmount() {
    if [ "$(id -u)" -eq 0 ]; then umount "$@"; else fusermount3 -u "$@"; fi
}

clean_up() {
    trap - EXIT INT TERM
    local pid mount
    [ ! -t 1 ] || printf '\033[?25h'
    for mount in "$dir"/node?/mnt; do
        if ! mountpoint -q "$mount"; then continue; fi
        # Lazily, because an interrupted reader may still use the mount.
        if [ "$(id -u)" -eq 0 ]; then unmount -l "$mount"; else unmount -z "$mount"; fi || true
    done
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    for host in server node1 node2 switch; do
        ip netns del "$ns-$host" 2>/dev/null || true
    done
    rm -rf --one-file-system "$dir"
}
trap clean_up EXIT
trap 'echo; echo "interrupted: removing everything"; exit 130' INT TERM

failed() {
    echo "demo: $1" >&2
    tail -n 20 "$dir"/*.log "$dir"/node?/*.log >&2 2>/dev/null
    exit 1
}

# Waits up to 20 s until a command succeeds: wait_until DESCRIPTION COMMAND...
wait_until() {
    local what=$1
    shift
    for _ in $(seq 400); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    failed "not within 20 s: $what"
}

can_mount() {
    [ -w /dev/fuse ] && { [ "$(id -u)" -eq 0 ] || command -v fusermount3 >/dev/null; }
}

# Creates three hosts at a switch. Fails, and leaves nothing behind, if that is not possible.
build_lab() {
    [ "$(id -u)" -eq 0 ] && ip netns add "$ns-switch" 2>/dev/null || return 1
    ip -n "$ns-switch" link add br0 type bridge
    ip -n "$ns-switch" link set br0 up
    for host in "server $server" "node1 10.77.0.11" "node2 10.77.0.12"; do
        read -r name address <<<"$host"
        ip netns add "$ns-$name"
        ip link add eth0 netns "$ns-$name" type veth peer name "$name" netns "$ns-switch"
        ip -n "$ns-switch" link set "$name" master br0 up
        ip -n "$ns-$name" link set lo up
        ip -n "$ns-$name" addr add "$address/24" dev eth0
        ip -n "$ns-$name" link set eth0 up
    done
}

# Adds packet loss on the way to node 2. The server sends single datagrams, so that each lost packet
# is one datagram.
lose_packets() {
    command -v nft >/dev/null || return 1
    ip -n "$ns-server" link set eth0 gso_max_segs 1
    on node2 nft -f - <<EOF
table netdev demo {
    chain toward_node {
        type filter hook ingress device "eth0" priority 0; policy accept;
        ip protocol udp numgen random mod 100 < $loss_percent drop
    }
}
EOF
}

# Prints a number from the server's status, such as bytes_sent.
status() {
    on server bash -c "exec 3<>/dev/tcp/$server/8888
        printf 'GET /status HTTP/1.0\r\n\r\n' >&3; cat <&3" |
        grep -o "\"$1\":[0-9]*" | tail -n 1 | cut -d : -f 2
}

# Prints hundredths as a decimal: 1.03 for 103.
decimal() {
    printf '%d.%02d' $(($1 / 100)) $(($1 % 100))
}

files_sent() {
    decimal $(($(status bytes_sent) * 100 / (size_mib << 20)))
}

copied_percent() {
    local bytes
    bytes=$(stat -c %s "$dir/$1/copy.img" 2>/dev/null || echo 0)
    echo $((bytes * 100 / (size_mib << 20)))
}

bar() {
    local filled=$(($1 * 30 / 100))
    local full='##############################' empty='..............................'
    printf '[%s%s] %3d %%' "${full:0:filled}" "${empty:filled}" "$1"
}

is_any_running() {
    kill -0 "$1" 2>/dev/null || kill -0 "$2" 2>/dev/null
}

# Prints the progress: on a terminal three lines that the next call overwrites, else one line.
show_progress() {
    local one two sent
    one=$(copied_percent node1) two=$(copied_percent node2) sent=$(files_sent)
    if [ ! -t 1 ]; then
        echo "  node 1 has read $one %, node 2 $two %; the server has sent $sent times the image"
        return
    fi
    printf '\r\033[K  node 1  %s\n' "$(bar "$one")"
    printf '\r\033[K  node 2  %s  %s\n' "$(bar "$two")" "$node2_is"
    printf '\r\033[K  wire    sent %s times the image: 2 nodes, 1 copy on the wire\n' "$sent"
}

follow() {
    local rounds=0
    [ ! -t 1 ] || printf '\033[?25l'
    while is_any_running "$1" "$2"; do
        if [ -t 1 ] || [ $((rounds % 8)) -eq 0 ]; then
            [ ! -t 1 ] || [ "$rounds" -eq 0 ] || printf '\033[3A'
            show_progress
        fi
        rounds=$((rounds + 1))
        sleep 0.25
    done
    [ ! -t 1 ] || [ "$rounds" -eq 0 ] || printf '\033[3A'
    show_progress
    [ ! -t 1 ] || printf '\033[?25h'
}

if build_lab; then
    is_lab=yes
    if lose_packets; then
        node2_is="loses $loss_percent % of its packets"
    else
        node2_is="no nft: loses nothing"
    fi
else
    server=127.0.0.1 interface=lo node2_is="on the same host"
fi

say "bootcast demo: two nodes read one image at the same time, and it is sent once"
mkdir -p "$dir/images" "$dir"/node{1,2}/{mnt,cache}
head -c "${size_mib}M" /dev/urandom >"$dir/images/debian.img"
echo "  image   debian.img, $size_mib MiB of random bytes"
if [ "$is_lab" ]; then
    echo "  server  $server, sends at $rate"
    echo "  node 1  10.77.0.11"
    echo "  node 2  10.77.0.12, $node2_is"
    echo "  Each is a host of its own (a network namespace) at one switch."
else
    echo "  server and nodes share this machine's loopback interface, at $rate"
    echo "  As root they are hosts of their own, and node 2 loses packets."
fi

say "1. The server serves a directory"
echo "  \$ bootcast-server --dir images --interface $interface --rate $rate"
start_on server "$dir/server.log" "$bin/bootcast-server" --dir "$dir/images" \
    --listen "$server:8888" --interface "$interface" --rate "$rate" --state-dir "$dir/state"
wait_until "the server listens" grep -q listening "$dir/server.log"

if can_mount; then
    say "2. Both nodes mount it"
    echo "  \$ bootcastfs $server:/ mnt"
    for node in node1 node2; do
        start_on "$node" "$dir/$node/mount.log" "$bin/bootcastfs" "$server:/" "$dir/$node/mnt" \
            -o "interface=$interface,cache_dir=$dir/$node/cache" -f
        wait_until "$node has mounted" mountpoint -q "$dir/$node/mnt"
    done
    say "3. Both read the image while it arrives"
    echo "  \$ cp mnt/debian.img copy.img"
    read_image() {
        start_on "$1" "$dir/$1/cp.log" cp "$dir/$1/mnt/debian.img" "$dir/$1/copy.img"
    }
else
    say "2. Both nodes could mount it, but you may not use /dev/fuse here, so they fetch it"
    say "3. Both write the image while it arrives"
    echo "  \$ bootcast get $server:/debian.img -O - > copy.img"
    read_image() {
        # Runs a shell that redirects standard output to the copy.
        start_on "$1" "$dir/$1/get.log" bash -c 'exec "$@" >"$0"' "$dir/$1/copy.img" \
            "$bin/bootcast" get --interface "$interface" "$server:/debian.img" -O -
    }
fi
begin=$(date +%s%N)
for node in node1 node2; do
    read_image "$node"
done
readers=("${pids[@]: -2}")
follow "${readers[@]}"
tenths=$((($(date +%s%N) - begin) / 100000000))
wait "${readers[0]}" || failed "node 1 could not read the image"
wait "${readers[1]}" || failed "node 2 could not read the image"
sent=$(files_sent)

say "4. The copies are the image"
(cd "$dir" && sha256sum images/debian.img node1/copy.img node2/copy.img) | sed 's/^/  /'
for node in node1 node2; do
    cmp "$dir/images/debian.img" "$dir/$node/copy.img"
    if mountpoint -q "$dir/$node/mnt"; then unmount "$dir/$node/mnt"; fi
done

say "Summary"
seconds=$((tenths / 10)).$((tenths % 10))
echo "  Two nodes read $size_mib MiB each in $seconds s; all checksums are equal."
echo "  The server sent $sent times the image, headers and repair included, for both of them."
clean_up
echo "  Mounts, processes and files of this demo are removed."
