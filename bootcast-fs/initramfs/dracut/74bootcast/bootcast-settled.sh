#!/bin/sh
# Hook of dracut, sourced while it waits for the root: calls the handler as soon as there is an
# address. systemd-networkd calls no handler; other network modules do, and this one comes second.

# shellcheck disable=SC2154 # dracut sets these names.
case $netroot in
bootcast:* | dhcp)
    if [ ! -e /run/bootcast.lock ] && [ -n "$(ip -oneline address show scope global)" ]; then
        /sbin/bootcastroot "" "$netroot" "$NEWROOT"
    fi
    ;;
esac
