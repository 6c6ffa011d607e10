#!/usr/bin/env bash
# Builds a Debian system that boots over the cast: make-netboot.sh DIRECTORY. Writes the kernel,
# an initial RAM disk of each family with programs that are built for size, that of the first stage,
# and the image in two forms: vmlinuz, initrd.initramfs-tools, initrd.dracut, first-stage,
# root.squashfs, root.cpio.gz.
#
# If there is a small kernel for the first stage, DIRECTORY/vmlinuz.small (docs/NETBOOT.md, "Kernel
# and initramfs by the cast"), the first stage is made for it.
#
# The system is kept in DIRECTORY/tree, so that only what is ours is made anew each time. It says on
# its console when it has reached multi-user mode, and then does what `netboot.then=` on the kernel
# command line names: poweroff or reboot.
set -euo pipefail

out=$1
project=$(cd "$(dirname "$0")/../.." && pwd)
. "$project/tests/scripts/debian-tree.sh"
packages=dbus,dracut-core,dracut-network,initramfs-tools,iproute2,linux-image-cloud-amd64,procps
packages+=,systemd-sysv,udev

# Lets the system report, and lets it end by itself if it is told so.
add_report() {
    report_up "$out/tree" <<'EOF'
#!/bin/sh
# Says that the system is up, and ends it as the kernel command line says.
count=0
for name in /proc/[0-9]*/comm; do
    case $(cat "$name" 2>/dev/null) in
    bootcast*) count=$((count + 1)) ;;
    esac
done
echo "multi-user after $(cut -d ' ' -f 1 /proc/uptime) s, bootcast processes: $count" >/dev/ttyS0
initramfs=/proc/$(pgrep -x bootcastfs)/root
[ -d "$initramfs/bootcast" ] && bootcast status --once "$initramfs/bootcast/mnt" >/dev/ttyS0 2>&1
for word in $(cat /proc/cmdline); do
    case $word in
    netboot.then=*) systemctl --no-block "${word#*=}" ;;
    esac
done
EOF
}

# Runs a command in the system, which gets a /proc for it.
inside() {
    ln -sfn /proc/self/fd "$out/tree/dev/fd"
    unshare --mount --pid --fork --mount-proc="$out/tree/proc" \
        chroot "$out/tree" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

make_initrds() {
    local version
    version=$(basename "$(echo "$out"/tree/lib/modules/*)")
    make -s -C "$project" install-initramfs DESTDIR="$(realpath "$out/tree")"
    ln -sf /usr/lib/bootcast/bootcast "$out/tree/usr/bin/"
    inside mkinitramfs -o /boot/initrd.initramfs-tools "$version"
    inside dracut --quiet --force --no-hostonly --add bootcast --install cpio \
        /boot/initrd.dracut "$version"
    cp "$out/tree/boot/vmlinuz-$version" "$out/vmlinuz"
    cp "$out"/tree/boot/initrd.initramfs-tools "$out"/tree/boot/initrd.dracut "$out/"
    local drivers
    drivers="$(realpath "$out/tree")/lib/modules/$version virtio_pci virtio_net"
    if [ -e "$out/vmlinuz.small" ]; then drivers=; fi
    make -s -C "$project" first-stage DRIVERS="$drivers" \
        FIRST_STAGE="$(realpath "$out")/first-stage"
}

[ -d "$out/tree" ] || debian_tree "$out/tree" "$packages"
add_report
make_initrds
# What a running system does not need.
unneeded=(boot var/cache var/lib/apt usr/share/doc usr/share/locale usr/share/man)
mksquashfs "$out/tree" "$out/root.squashfs" -comp lz4 -noappend -no-progress -quiet \
    -e "${unneeded[@]}"
prune=()
for name in "${unneeded[@]}"; do
    prune+=(-path "./$name" -prune -o)
done
(cd "$out/tree" && find . "${prune[@]}" -print | busybox cpio -o -H newc) |
    gzip -1 >"$out/root.cpio.gz"
