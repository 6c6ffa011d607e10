#!/bin/sh
# Handler of dracut: bootcastroot NETIF NETROOT NEWROOT. Mounts the root. It is called when the
# network is up, maybe for each interface; the first call does all, and tries for ever.

command -v getarg >/dev/null || . /lib/dracut-lib.sh
. /usr/share/bootcast/netboot.sh

# The head that DHCP names, if root=bootcast:/PATH names none.
bootcast_dhcp_head() {
    # shellcheck disable=SC1090
    [ -e "/tmp/dhclient.$1.dhcpopts" ] && . "/tmp/dhclient.$1.dhcpopts"
    # shellcheck disable=SC2154 # dhclient sets these names.
    echo "${new_next_server:-$new_dhcp_server_identifier}"
}

mkdir /run/bootcast.lock 2>/dev/null || exit 0
bootcast_parse "$2" "$(bootcast_dhcp_head "$1")" || die "bootcast: wrong root=$2"
bootcast_mount_root "$3" "$(getarg rootfstype=)" || die "bootcast: the root cannot be mounted"
: >/run/bootcast.mounted
