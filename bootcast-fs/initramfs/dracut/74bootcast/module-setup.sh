#!/bin/bash
# dracut module: root=bootcast:.., see docs/NETBOOT.md.

# Prints the path of a program. Those that are built for size come first.
bootcast_program() {
    if [[ -x /usr/lib/bootcast/$1 ]]; then
        echo "/usr/lib/bootcast/$1"
    else
        command -v "$1"
    fi
}

# Included only if it is asked for: `dracut --add bootcast`, or add_dracutmodules in dracut.conf.
check() {
    require_binaries losetup || return 1
    bootcast_program bootcastfs >/dev/null && bootcast_program bootcast >/dev/null || return 1
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
    inst "$(bootcast_program bootcastfs)" /usr/bin/bootcastfs
    inst "$(bootcast_program bootcast)" /usr/bin/bootcast
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
