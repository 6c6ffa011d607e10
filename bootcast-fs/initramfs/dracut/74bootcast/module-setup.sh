#!/bin/bash
# dracut module: root=bootcast:.., see docs/NETBOOT.md.

# Prints the path of the program. The one that is built for size comes first.
bootcast_program() {
    if [[ -x /usr/lib/bootcast/bootcast ]]; then
        echo /usr/lib/bootcast/bootcast
    else
        command -v bootcast
    fi
}

# Included only if it is asked for: `dracut --add bootcast`, or add_dracutmodules in dracut.conf.
check() {
    require_binaries losetup || return 1
    bootcast_program >/dev/null || return 1
    return 255
}

depends() {
    echo network
}

installkernel() {
    instmods fuse loop overlay squashfs erofs ext4 xfs isofs af_packet
}

install() {
    inst_multiple losetup modprobe mount umount cat mkdir rmdir sleep tr ip
    inst "$(bootcast_program)" /usr/bin/bootcast
    # Under this name it mounts.
    ln_r /usr/bin/bootcast /usr/bin/bootcastfs
    inst_simple /usr/share/bootcast/netboot.sh
    # shellcheck disable=SC2154 # dracut sets these names.
    inst_hook cmdline 90 "$moddir/parse-bootcastroot.sh"
    inst_hook initqueue/settled 90 "$moddir/bootcast-settled.sh"
    inst_hook initqueue/timeout 10 "$moddir/bootcast-timeout.sh"
    inst_script "$moddir/bootcastroot.sh" /sbin/bootcastroot
    if dracut_module_included systemd-initrd; then
        # shellcheck disable=SC2154
        inst_script "$moddir/bootcast-generator.sh" \
            "$systemdutildir/system-generators/dracut-bootcast-generator"
    fi
    dracut_need_initqueue
}
