#!/usr/bin/env bash
# Builds a bootable Debian system out of Debian packages: make-guest.sh DIRECTORY. Writes root.img,
# and the kernel and initial RAM disk that boot it, as vmlinuz and initrd. Does nothing if they are
# there. The system says on its console when it has reached multi-user mode.
set -euo pipefail

out=$1 size=1G
. "$(dirname "$0")/debian-tree.sh"
packages=dbus,initramfs-tools,iproute2,linux-image-cloud-amd64,openssh-server,systemd-sysv,udev

if [ -e "$out/initrd" ]; then exit 0; fi
mkdir -p "$out"
build=$(mktemp -d "$out/build-XXXX")
trap 'rm -rf --one-file-system "$build"' EXIT

debian_tree "$build/tree" "$packages"
report_up "$build/tree" <<'EOF'
#!/bin/sh
echo "multi-user after $(cut -d ' ' -f 1 /proc/uptime) s" >/dev/ttyS0
EOF

mke2fs -q -t ext4 -d "$build/tree" "$build/root.img" "$size"
mv "$build/root.img" "$out/root.img"
cp "$build"/tree/boot/vmlinuz-* "$out/vmlinuz"
cp "$build"/tree/boot/initrd.img-* "$out/initrd"
