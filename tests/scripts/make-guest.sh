#!/usr/bin/env bash
# Builds a bootable Debian system out of Debian packages: make-guest.sh DIRECTORY. Writes root.img,
# and the kernel and initial RAM disk that boot it, as vmlinuz and initrd. Does nothing if they are
# there. The system says on its console when it has reached multi-user mode.
set -euo pipefail

out=$1 suite=bookworm size=1G
packages=dbus,initramfs-tools,iproute2,linux-image-cloud-amd64,openssh-server,systemd-sysv,udev

if [ -e "$out/initrd" ]; then exit 0; fi
mkdir -p "$out"
build=$(mktemp -d "$out/build-XXXX")
trap 'rm -rf --one-file-system "$build"' EXIT

echo "building a Debian system in $out: two minutes, once"
mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" "$suite" "$build/root.tar"
mkdir "$build/tree"
tar --extract --file "$build/root.tar" --directory "$build/tree" --exclude './dev/*'

units=$build/tree/etc/systemd/system
cat >"$units/booted.service" <<'EOF'
[Unit]
Description=Report on the console
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo "multi-user after $(cut -d " " -f 1 /proc/uptime) s" >/dev/ttyS0'
EOF
mkdir -p "$units/graphical.target.wants"
ln -s ../booted.service "$units/graphical.target.wants/"

mke2fs -q -t ext4 -d "$build/tree" "$build/root.img" "$size"
mv "$build/root.img" "$out/root.img"
cp "$build"/tree/boot/vmlinuz-* "$out/vmlinuz"
cp "$build"/tree/boot/initrd.img-* "$out/initrd"
