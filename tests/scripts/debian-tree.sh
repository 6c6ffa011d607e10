# shellcheck shell=bash
# Functions for scripts that build a Debian system that virtual machines boot. Sourced by
# make-guest.sh and make-netboot.sh.

# Unpacks a Debian system with these packages, separated by commas, into a directory that is not
# there yet: debian_tree DIRECTORY PACKAGES. An interrupted run leaves DIRECTORY.new behind.
debian_tree() {
    local tree=$1 packages=$2 suite=bookworm
    echo "building a Debian system in $tree: two minutes, once"
    rm -rf --one-file-system "$tree.new"
    mkdir -p "$tree.new"
    mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
        --skip=cleanup/reproducible "$suite" "$tree.tar"
    tar --extract --file "$tree.tar" --directory "$tree.new" --exclude './dev/*'
    rm "$tree.tar"
    mv "$tree.new" "$tree"
}

# Has the system run the script on standard input when it has reached multi-user mode: report_up
# TREE.
report_up() {
    local tree=$1
    local units=$tree/etc/systemd/system
    cat >"$tree/usr/local/sbin/booted"
    chmod 755 "$tree/usr/local/sbin/booted"
    cat >"$units/booted.service" <<'UNIT'
[Unit]
Description=Report on the console
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/booted
UNIT
    mkdir -p "$units/graphical.target.wants"
    ln -sf ../booted.service "$units/graphical.target.wants/"
}
