#!/bin/sh
# Hook of dracut, sourced when the kernel command line is read: takes root=bootcast:.. or
# netroot=bootcast:.., and has dracut bring up the network and wait for the root. With root=dhcp,
# which is dracut's own, only the network is prepared.

# shellcheck disable=SC2154,SC2034 # dracut sets and reads some names.

# Has systemd-networkd ask DHCP for the root-path (option 17). The names are those of the files that
# systemd-network-generator writes for `ip=dhcp` and `ip=NAME:dhcp`.
bootcast_request_root_path() {
    for bootcast_name in 91-default 71-default; do
        bootcast_add_request "$bootcast_name"
    done
    for bootcast_ip in $(getargs ip=); do
        case $bootcast_ip in
        *:dhcp | *:dhcp:*)
            bootcast_add_request "90-${bootcast_ip%%:*}"
            bootcast_add_request "70-${bootcast_ip%%:*}"
            ;;
        esac
    done
}

bootcast_add_request() {
    mkdir -p "/run/systemd/network/$1.network.d"
    printf '[DHCPv4]\nRequestOptions=17\n' >"/run/systemd/network/$1.network.d/bootcast.conf"
}

[ -z "$root" ] && root=$(getarg root=)
case $root in
bootcast:*) netroot=$root ;;
esac
case $netroot in
bootcast:*)
    root=bootcast
    rootok=1
    # shellcheck disable=SC2016 # This is expanded when it runs.
    echo '[ -e /run/bootcast.mounted ]' >"$hookdir/initqueue/finished/bootcast.sh"
    ;;
esac
case $root in
bootcast | dhcp)
    mkdir -p /etc/cmdline.d
    echo "rd.neednet=1" >/etc/cmdline.d/74-bootcast.conf
    bootcast_request_root_path
    ;;
esac
