#!/bin/sh
# Generator of systemd in the initramfs: a sysroot.mount for root=bootcast:.. and root=dhcp that
# waits for the handler. The handler has mounted the root by then. Without this unit, systemd would
# write one of its own, which tries to mount the value of root=.

command -v getarg >/dev/null || . /lib/dracut-lib.sh

case $(getarg root=) in
bootcast:* | dhcp) ;;
*) exit 0 ;;
esac

# The directory of generators that replaces units of other generators.
early=$2
mkdir -p "$early/initrd-root-fs.target.requires"
cat >"$early/sysroot.mount" <<'EOF'
[Unit]
Description=Root file system over the cast
DefaultDependencies=no
Before=initrd-root-fs.target
Requires=dracut-initqueue.service
After=dracut-initqueue.service dracut-pre-mount.service

[Mount]
Where=/sysroot
What=bootcast-root
Type=overlay
EOF
ln -sf ../sysroot.mount "$early/initrd-root-fs.target.requires/sysroot.mount"
