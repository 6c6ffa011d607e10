#!/bin/sh
# Hook of dracut, sourced when the kernel command line is read: takes root=bootcast:.. or
# netroot=bootcast:.., and has dracut bring up the network and wait for the root.

# shellcheck disable=SC2154,SC2034 # dracut sets and reads these names.
[ -z "$root" ] && root=$(getarg root=)
case $root in
bootcast:*) netroot=$root ;;
esac
case $netroot in
bootcast:*)
    root=bootcast
    rootok=1
    mkdir -p /etc/cmdline.d
    echo "rd.neednet=1" >/etc/cmdline.d/74-bootcast.conf
    # shellcheck disable=SC2016 # This is expanded when it runs.
    echo '[ -e /run/bootcast.mounted ]' >"$hookdir/initqueue/finished/bootcast.sh"
    ;;
esac
