#!/bin/sh
# Hook of dracut, sourced after it has waited for long: dracut would give up soon.

# shellcheck disable=SC2154,SC2034 # dracut sets and reads these names.
case $netroot in
bootcast:* | dhcp)
    echo "bootcast: waits for an address or for root-path of DHCP: is a network cable plugged in?" \
        >/dev/console
    main_loop=0
    ;;
esac
