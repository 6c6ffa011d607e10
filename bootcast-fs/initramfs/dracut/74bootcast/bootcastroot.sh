#!/bin/sh
# Handler of dracut: bootcastroot NETIF NETROOT NEWROOT. Mounts the root. It is called when a
# network card has an address, and again and again. The first call that knows head and path does
# all, and tries for ever. NETIF is not used: the leases of all cards are read.

command -v getarg >/dev/null || . /lib/dracut-lib.sh
. /usr/share/bootcast/netboot.sh

# Sets bootcast_root and bootcast_dhcp_head. Fails if DHCP must name one of them and has not yet.
find_root() {
    bootcast_root=$1
    bootcast_dhcp_head=
    case $1 in
    dhcp) bootcast_read_dracut "" && bootcast_take_dhcp_root ;;
    bootcast:/*) bootcast_read_dracut "" ;;
    esac
}

mkdir /run/bootcast.lock 2>/dev/null || exit 0
if ! find_root "$2"; then
    rmdir /run/bootcast.lock
    exit 0
fi
bootcast_parse "$bootcast_root" "$bootcast_dhcp_head" || die "bootcast: wrong root=$bootcast_root"
bootcast_mount_root "$3" "$(getarg rootfstype=)" || die "bootcast: the root cannot be mounted"
: >/run/bootcast.mounted
