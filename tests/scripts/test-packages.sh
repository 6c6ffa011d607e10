#!/usr/bin/env bash
# Installs, uses and removes the Debian packages in a Debian system of their own: test-packages.sh
# DIRECTORY [TREE]. systemd runs there in namespaces that no packet leaves. The system is built
# once, and kept in TREE.
set -euo pipefail

packages=$(realpath "$1")
work=$(mktemp -d "${TMPDIR:-/tmp}/bct-$$-packages-XXXX")
tree=$work/tree

clean_up() {
    if [ -n "${init:-}" ]; then
        kill -KILL "$init" 2>/dev/null || true
        wait "$init" 2>/dev/null || true
    fi
    umount --recursive --lazy "$tree" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT

. "$(dirname "$0")/debian-tree.sh"
fresh=${2:-$packages-tree}
[ -d "$fresh" ] || debian_tree "$fresh" \
    dbus,fuse3,init-system-helpers,iproute2,initramfs-tools,man-db,procps,systemd-sysv
cp -a "$fresh" "$tree"
mkdir "$tree/packages"
cp "$packages"/bootcast*.deb "$tree/packages"
# A getty would wait for a terminal that is not there.
ln -sf /dev/null "$tree/etc/systemd/system/console-getty.service"
ln -sf /lib/systemd/system/multi-user.target "$tree/etc/systemd/system/default.target"

# The first process of the namespaces is systemd: the script waits for its socket.
unshare --fork --pid --mount --net --uts --ipc --cgroup --kill-child bash -euc '
    tree=$1
    hostname packages
    ip link set lo up
    ip link set lo multicast on
    ip link add eth0 type veth peer name eth1
    ip address add 10.77.0.1/24 dev eth0
    ip link set eth0 up
    ip link set eth1 up
    ip route add default via 10.77.0.2
    mount --make-rprivate /
    mount --bind "$tree" "$tree"
    for name in null zero full random urandom tty fuse; do
        [ -e "$tree/dev/$name" ] || : >"$tree/dev/$name"
        mount --bind "/dev/$name" "$tree/dev/$name"
    done
    mount -t proc proc "$tree/proc"
    mount -t sysfs -o ro sysfs "$tree/sys"
    mount -t tmpfs tmpfs "$tree/run"
    mkdir -p "$tree/sys/fs/cgroup"
    mount -t cgroup2 cgroup2 "$tree/sys/fs/cgroup"
    exec env container=bootcast chroot "$tree" /sbin/init --log-target=null
' init "$tree" </dev/null >"$work/console" 2>&1 &
init=$!

inside() {
    local first
    first=$(cat "/proc/$init/task/$init/children")
    nsenter --target "${first%% *}" --all --root --wd -- "$@"
}

wait_until() {
    local what=$1
    shift
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.2
    done
    echo "not within a minute: $what" >&2
    cat "$work/console" >&2
    inside journalctl --no-pager --unit bootcast-server --lines 20 >&2 || true
    exit 1
}

is_up() { case $(inside systemctl is-system-running) in running | degraded) ;; *) false ;; esac; }
wait_until "systemd is up" is_up

echo "installing"
inside sh -c 'dpkg --install /packages/*.deb'
wait_until "the server is active" inside systemctl is-active bootcast-server
wait_until "the server answers" inside bootcast ls http://127.0.0.1
inside systemd-analyze verify bootcast-server.service
inside systemd-analyze security --no-pager bootcast-server.service | tail -1
[ "$(inside ps -o user= -C bootcast-server)" = bootcast ]
for page in "1 bootcast-get" "8 bootcastfs" "8 bootcast-server" "7 bootcast-netboot"; do
    # shellcheck disable=SC2086
    inside man -w $page
done

echo "using"
inside sh -c 'head -c 20000000 /dev/urandom >/srv/bootcast/image
    echo BOOTCAST_INTERFACE=lo >>/etc/default/bootcast-server
    systemctl restart bootcast-server'
wait_until "the server answers" inside bootcast ls http://127.0.0.1
inside sh -c 'cd /tmp && bootcast get http://127.0.0.1/image -i lo && cmp image /srv/bootcast/image'
inside sh -c 'mkdir /mnt/images
    mount -t bootcastfs 127.0.0.1:/ /mnt/images -o interface=lo
    cmp /mnt/images/image /srv/bootcast/image
    umount /mnt/images'
# The kernel is that of this machine, which may have no configuration there.
inside sh -c 'mkdir -p "/lib/modules/$(uname -r)"
    echo CONFIG_RD_GZIP=y >"/boot/config-$(uname -r)"
    mkinitramfs -o /tmp/initrd
    lsinitramfs /tmp/initrd | grep -q usr/bin/bootcastfs'

echo "removing"
inside dpkg --purge bootcast-initramfs bootcast bootcast-server
if inside systemctl is-active bootcast-server; then
    echo "the server still runs" >&2
    exit 1
fi
left=$(inside find / -xdev -name '*bootcast*' -not -path '/packages/*' -not -path '/srv/*' \
    -not -path '/proc/*' -not -path '/var/log/*' -not -path '/var/cache/man/*' \
    -not -path '/var/lib/systemd/*')
if [ -n "$left" ]; then
    echo "left behind:" "$left" >&2
    exit 1
fi
echo "the packages were installed, used and removed"
