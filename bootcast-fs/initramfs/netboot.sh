# shellcheck shell=sh
# Mounts a root file system that comes over the cast. Both families of initramfs source this file:
# initramfs-tools and dracut. It needs a POSIX shell, cat, mkdir, mount, modprobe, sleep, losetup,
# and the programs bootcastfs and bootcast. Those of klibc and busybox are enough, but for losetup
# and modprobe. docs/NETBOOT.md says what an operator may write.
#
# Everything is mounted below /bootcast in the initramfs and not below /run. So the new system does
# not see these mounts: systemd would unmount them when it shuts down, while it still reads there.
# /bootcast is a mount of its own, which what empties the initramfs leaves alone.

bootcast_dir=/bootcast

# Prints a line on the console.
bootcast_say() {
    echo "bootcast: $*" >/dev/console
}

# Prints a line on the console unless the kernel command line has `quiet`.
bootcast_progress() {
    bootcast_has_word quiet || bootcast_say "$@"
}

# Succeeds if the kernel command line has this word.
bootcast_has_word() {
    # shellcheck disable=SC2013 # Words are what is wanted.
    for bootcast_word in $(cat /proc/cmdline); do
        [ "$bootcast_word" = "$1" ] && return 0
    done
    return 1
}

# Prints the last value of a parameter of the kernel command line, or else the default.
bootcast_parameter() {
    bootcast_value=$2
    # shellcheck disable=SC2013 # Words are what is wanted.
    for bootcast_word in $(cat /proc/cmdline); do
        case $bootcast_word in
        "$1"=*) bootcast_value=${bootcast_word#*=} ;;
        esac
    done
    echo "$bootcast_value"
}

# Reads `bootcast:[HEAD[:PORT][,HEAD[:PORT]..]:]/PATH[,OPTION..]`, the value of root=. Fails with a
# line on the console if it is wrong. $2 are the heads if the value names none.
bootcast_parse() {
    case $1 in
    bootcast:*) bootcast_parse_place root=bootcast: "${1#bootcast:}" "$2" ;;
    *)
        bootcast_say "root=$1 is not root=bootcast:HEAD[:PORT][,HEAD..]:/PATH[,OPTION..]"
        return 1
        ;;
    esac
}

# Reads the place of a file, $2, on heads: `[HEAD[:PORT][,HEAD[:PORT]..]:]/PATH[,OPTION..]`. Fails
# with a line on the console if it is wrong, which calls the parameter $1. $3 are the heads if the
# place names none. The first `:/` ends the heads, so commas before it separate heads, and commas
# behind it separate options.
bootcast_parse_place() {
    bootcast_heads=
    bootcast_path=
    case $2 in
    /?*)
        bootcast_heads=$3
        bootcast_path=$2
        if [ -z "$bootcast_heads" ]; then
            bootcast_say "$1$2 names no head, and DHCP names none: $1HEAD:/PATH"
            return 1
        fi
        ;;
    ?*:/?*)
        bootcast_heads=${2%%:/*}
        bootcast_path=/${2#*:/}
        ;;
    esac
    case $bootcast_path in
    *,*) bootcast_options=,${bootcast_path#*,} ;;
    *) bootcast_options= ;;
    esac
    bootcast_path=${bootcast_path%%,*}
    if ! bootcast_are_heads "$bootcast_heads" || [ -z "${bootcast_path#/}" ]; then
        bootcast_say "$1$2 is not $1HEAD[:PORT][,HEAD..]:/PATH[,OPTION..]"
        return 1
    fi
    bootcast_name=${bootcast_path##*/}
    bootcast_read_options
}

# Succeeds if this can be a list of heads. An option does not belong there.
bootcast_are_heads() {
    case ,$1, in
    *,,* | *=* | */*) return 1 ;;
    esac
}

# Finds the options that concern more than the mount.
bootcast_read_options() {
    bootcast_hash=$(bootcast_option b3)
    bootcast_interface=$(bootcast_option interface)
    bootcast_port=$(bootcast_option port)
    bootcast_mode=$(bootcast_parameter bootcast.mode cast)
}

# Prints the last value of a mount option, or nothing.
bootcast_option() {
    case $bootcast_options in
    *,"$1"=*)
        bootcast_value=${bootcast_options##*,"$1"=}
        echo "${bootcast_value%%,*}"
        ;;
    esac
}

# Reads what DHCP says about the root into bootcast_dhcp_head and bootcast_dhcp_root, which are
# empty if it says nothing. Klibc's ipconfig has written it to net-NAME.conf in directory $1. The
# one of network card $2 counts, if it is named and there.
bootcast_read_klibc() {
    bootcast_dhcp_head=
    bootcast_dhcp_root=
    for bootcast_file in "$1/net-$2.conf" "$1"/net-*.conf; do
        if [ -e "$bootcast_file" ]; then
            bootcast_read_ipconfig "$bootcast_file"
            return
        fi
    done
}

# Succeeds if klibc's ipconfig has found an address.
bootcast_is_configured() {
    for bootcast_conf in /run/net-*.conf; do
        [ -e "$bootcast_conf" ] && return 0
    done
    return 1
}

# Reads a file of ipconfig.
bootcast_read_ipconfig() {
    # shellcheck disable=SC1090 # The files are written when this runs.
    bootcast_dhcp_head=$(ROOTSERVER='' && . "$1" && echo "$ROOTSERVER")
    # shellcheck disable=SC1090
    bootcast_dhcp_root=$(ROOTPATH='' && . "$1" && echo "$ROOTPATH")
    [ "$bootcast_dhcp_head" != 0.0.0.0 ] || bootcast_dhcp_head=
}

# Sets bootcast_root to the root-path that DHCP names. Fails if it is none of ours.
bootcast_take_dhcp_root() {
    bootcast_root=$bootcast_dhcp_root
    case $bootcast_root in
    bootcast:*) ;;
    *) return 1 ;;
    esac
}

# Waits for another answer of DHCP.
bootcast_wait_dhcp_root() {
    bootcast_wait "waits for root-path bootcast:HEAD:/PATH of DHCP, which is '$bootcast_dhcp_root'"
}

# Reads the same from the files of dracut below directory $1, which is empty for the real ones.
# With BOOTIF= on the kernel command line only the lease of that network card counts. Fails if there
# is no lease yet.
bootcast_read_dracut() {
    for bootcast_card in "$1"/sys/class/net/*; do
        bootcast_is_boot_card "$bootcast_card" || continue
        bootcast_dhcp_head=
        bootcast_dhcp_root=
        bootcast_file=$1/tmp/dhclient.${bootcast_card##*/}.dhcpopts
        [ -e "$bootcast_file" ] && bootcast_read_dhcpopts "$bootcast_file" && return
        bootcast_file=$1/run/systemd/netif/leases/$(cat "$bootcast_card/ifindex")
        [ -e "$bootcast_file" ] && bootcast_read_lease "$bootcast_file" && return
    done
    return 1
}

# Reads $1, a file that dracut's network-legacy or network-manager wrote
# (/tmp/dhclient.NAME.dhcpopts).
bootcast_read_dhcpopts() {
    # shellcheck disable=SC1090
    bootcast_dhcp_head=$(new_next_server='' new_dhcp_server_identifier='' && . "$1" &&
        echo "${new_next_server:-$new_dhcp_server_identifier}")
    # shellcheck disable=SC1090
    bootcast_dhcp_root=$(new_root_path='' && . "$1" && echo "$new_root_path")
}

# Reads $1, a lease of systemd-networkd (/run/systemd/netif/leases/N).
bootcast_read_lease() {
    bootcast_server=
    while read -r bootcast_line; do
        bootcast_value=${bootcast_line#*=}
        case $bootcast_line in
        NEXT_SERVER=*) bootcast_dhcp_head=$bootcast_value ;;
        SERVER_ADDRESS=*) bootcast_server=$bootcast_value ;;
        ROOT_PATH=*) bootcast_dhcp_root=$bootcast_value ;;
        esac
    done <"$1"
    [ -n "$bootcast_dhcp_head" ] || bootcast_dhcp_head=$bootcast_server
}

# Succeeds if BOOTIF=01-MAC names the network card $1, a directory of /sys, or if there is none.
bootcast_is_boot_card() {
    bootcast_boot_card=$(bootcast_parameter BOOTIF '')
    [ -n "$bootcast_boot_card" ] || return 0
    bootcast_boot_card=$(bootcast_bytes "${bootcast_boot_card#*-}")
    [ "$bootcast_boot_card" = "$(bootcast_bytes "$(cat "$1/address")")" ]
}

# Prints the bytes of a hardware address as decimal numbers. klibc has no tr.
bootcast_bytes() {
    IFS=:-
    for bootcast_byte in $1; do
        echo "$((0x$bootcast_byte))"
    done
}

# Says what is waited for, and waits. A line that repeats is printed once a minute.
bootcast_wait() {
    if [ "$*" != "$bootcast_said" ] || [ "$bootcast_repeats" -ge 30 ]; then
        bootcast_say "$*"
        bootcast_said=$*
        bootcast_repeats=0
    fi
    bootcast_repeats=$((bootcast_repeats + 1))
    sleep 2
}

# Runs a command for one head after the other, as bootcast_head, until it succeeds. Tries for ever.
# A command that fails sets bootcast_reason, which is printed on the console.
bootcast_try_heads() {
    while :; do
        bootcast_reasons=
        bootcast_rest=$bootcast_heads,
        while [ -n "$bootcast_rest" ]; do
            bootcast_head=${bootcast_rest%%,*}
            bootcast_rest=${bootcast_rest#*,}
            "$@" && return
            bootcast_reasons="$bootcast_reasons${bootcast_reasons:+; }$bootcast_reason"
        done
        bootcast_wait "$bootcast_reasons"
    done
}

# Mounts the directory of the image from the head, or the image alone if its hash is known, and
# attaches the image. The mount stays if there is no other head: the head may still get the image.
bootcast_try_mount() {
    if [ "$bootcast_mounted" != "$bootcast_head" ]; then
        [ "$bootcast_head" = "$bootcast_heads" ] || bootcast_probe || return
        bootcast_mount || return
        bootcast_mounted=$bootcast_head
    fi
    bootcast_image=$bootcast_dir/mnt/$bootcast_name
    bootcast_attach && return
    if [ "$bootcast_head" != "$bootcast_heads" ] && umount "$bootcast_dir/mnt"; then
        bootcast_mounted=
    fi
    return 1
}

# Finds out whether the head has the image. Each mount leaves lines in the log, so a head without
# the image is not mounted again and again.
bootcast_probe() {
    bootcast_error=$(bootcast ls "$(bootcast_url)" 2>&1 </dev/null) && return
    case $? in
    5) bootcast_reason="waits for $bootcast_path: $bootcast_head has no such file" ;;
    # 6: the server does not list, see README. The mount shows whether it has the image.
    6) return 0 ;;
    *) bootcast_reason="waits for $bootcast_head:$bootcast_path: ${bootcast_error##*bootcast: }" ;;
    esac
    return 1
}

# Mounts what the head serves.
bootcast_mount() {
    bootcast_from=$bootcast_head:${bootcast_path%/*}
    [ -n "$bootcast_hash" ] && bootcast_from=$bootcast_head:$bootcast_path
    [ "$bootcast_from" = "$bootcast_head:" ] && bootcast_from=$bootcast_head:/
    mkdir -p "$bootcast_dir/mnt"
    bootcast_error=$(bootcastfs "$bootcast_from" "$bootcast_dir/mnt" -o \
        "ro,allow_other,default_permissions,root_fs,cache=memory,retry=0$bootcast_options" \
        2>&1 </dev/null) && return
    bootcast_reason="waits for $bootcast_head:$bootcast_path: ${bootcast_error#bootcastfs: }"
    return 1
}

# Finds the image, and attaches it to a loop device if it is not a directory.
bootcast_attach() {
    if ! [ -e "$bootcast_image" ]; then
        bootcast_reason="waits for $bootcast_path: $bootcast_head has no such file"
        return 1
    fi
    [ -d "$bootcast_image" ] && return
    bootcast_device=$(losetup --read-only --find --show "$bootcast_image" 2>/dev/null) && return
    if [ -n "$bootcast_hash" ]; then
        bootcast_refuse
    else
        bootcast_reason="waits for $bootcast_path: $bootcast_head cannot read it"
    fi
    return 1
}

# Fetches the whole image into memory. Nothing of ours runs afterwards.
bootcast_fetch_to_ram() {
    mkdir -p "$bootcast_dir/ram"
    mount -t tmpfs -o mode=0700,size=90% bootcast "$bootcast_dir/ram"
    bootcast_image=$bootcast_dir/ram/$bootcast_name
    bootcast_try_heads bootcast_fetch "$bootcast_image"
    bootcast_attach && return
    bootcast_say "$bootcast_reason"
    return 1
}

# Fetches the whole image onto block device $1, which is overwritten. Nothing of ours runs
# afterwards.
bootcast_fetch_to_disk() {
    until [ -b "$1" ]; do
        bootcast_wait "waits for the device $1 of bootcast.mode="
    done
    bootcast_try_heads bootcast_fetch "$1"
    bootcast_image=$1
    bootcast_device=$1
}

# Fetches the whole image from the head to $1.
bootcast_fetch() {
    bootcast_error=$(bootcast_get "$1" 2>&1) && return
    # 8: the content is not that of --b3, see README.
    if [ "$?" -eq 8 ]; then
        bootcast_refuse
    else
        bootcast_reason="waits for $bootcast_head:$bootcast_path: ${bootcast_error##*bootcast: }"
    fi
    return 1
}

# Fetches the whole image to $1, with those of the mount options that a fetch has too. More options
# may follow. If $1 is a pipe, pages that arrive early wait in TMPDIR. Its file system must know
# its free space, which the root of an initramfs does not.
bootcast_get() {
    TMPDIR=$bootcast_dir bootcast get "$(bootcast_url)" -O "$@" \
        ${bootcast_hash:+--b3 "$bootcast_hash"} \
        ${bootcast_interface:+--interface "$bootcast_interface"} </dev/null
}

# Sets the reason: the image is not the one of b3=.
bootcast_refuse() {
    bootcast_reason="refused: $bootcast_path on $bootcast_head is not the content of b3= or cannot"
    bootcast_reason="$bootcast_reason be proven; waits for the right one"
}

# Prints the image's URL, which always names a port.
bootcast_url() {
    bootcast_authority=$bootcast_head:${bootcast_port:-8888}
    case $bootcast_head in
    *]) ;;
    *:*) bootcast_authority=$bootcast_head ;;
    esac
    echo "http://$bootcast_authority$bootcast_path"
}

# Mounts the device read-only, whatever file system it has. $1 is a type, or empty.
bootcast_mount_device() {
    for bootcast_type in ${1:-squashfs erofs ext4 xfs iso9660}; do
        bootcast_flags=ro
        # The journal cannot be replayed on a read-only device.
        [ "$bootcast_type" = ext4 ] && bootcast_flags=ro,noload
        modprobe -q "$bootcast_type"
        mount -t "$bootcast_type" -o "$bootcast_flags" "$bootcast_device" "$2" 2>/dev/null &&
            return 0
    done
    bootcast_say "$bootcast_path is none of squashfs, erofs, ext4, xfs, iso9660: rootfstype=TYPE"
    return 1
}

# Succeeds if the distribution puts its own overlay over the root, or none is wanted.
bootcast_is_bare() {
    [ "$(bootcast_parameter bootcast.overlay yes)" = no ] ||
        bootcast_is_on overlayroot || bootcast_is_on rd.overlay || bootcast_has_word rd.overlay
}

# Succeeds if the kernel command line has this parameter with a value that does not turn it off.
bootcast_is_on() {
    case $(bootcast_parameter "$1" '') in
    '' | disabled | no | off | 0) return 1 ;;
    esac
}

# Mounts memory over $1, and both together as the new root $2.
bootcast_overlay() {
    bootcast_rw=$bootcast_dir/rw
    mkdir -p "$bootcast_rw"
    mount -t tmpfs -o "mode=0755,size=$(bootcast_parameter bootcast.overlay_size 50%)" \
        bootcast-rw "$bootcast_rw" &&
        mkdir -p "$bootcast_rw/upper" "$bootcast_rw/work" &&
        mount -t overlay \
            -o "lowerdir=$1,upperdir=$bootcast_rw/upper,workdir=$bootcast_rw/work" \
            bootcast-root "$2"
}

# Mounts the image itself at $2: a directory as it is, or else its device. $1 is the type of its
# file system, or empty.
bootcast_mount_image() {
    if [ -d "$bootcast_image" ]; then
        # The mount of klibc has no --bind.
        mount -o bind "$bootcast_image" "$2"
    else
        bootcast_mount_device "$1" "$2"
    fi
}

# Mounts the new root $1. $2 is the type of its file system, or empty. bootcast_parse comes first.
# With bootcast.mode=kexec another kernel is started instead, which does it.
bootcast_mount_root() {
    if bootcast_has_word bootcast.mode=kexec; then
        bootcast_start_kernel
        return 1
    fi
    modprobe -q fuse
    modprobe -q loop
    modprobe -q overlay
    mkdir -p "$bootcast_dir"
    mount -t tmpfs -o mode=0700 bootcast "$bootcast_dir"
    bootcast_mounted=
    if bootcast_is_archive; then
        bootcast_unpack_root "$1"
        return
    fi
    bootcast_bring_image || return
    if bootcast_is_bare; then
        bootcast_mount_image "$2" "$1" || return 1
    else
        mkdir -p "$bootcast_dir/lower"
        bootcast_mount_image "$2" "$bootcast_dir/lower" &&
            bootcast_overlay "$bootcast_dir/lower" "$1" || return 1
    fi
    bootcast_progress "the root is $bootcast_path of $bootcast_head"
}

# Fetches the kernel and the initramfs that bootcast.kernel= and bootcast.initrd= name, and starts
# them. bootcast_heads are the heads if these name none. Returns only if the command line is wrong.
bootcast_start_kernel() {
    bootcast_default_heads=$bootcast_heads
    mkdir -p "$bootcast_dir"
    # Half of the memory by default, which the kernel's own copy needs as well.
    mount -t tmpfs -o mode=0700 bootcast "$bootcast_dir"
    bootcast_initrd=$(bootcast_parameter bootcast.initrd '')
    while :; do
        bootcast_bring_file kernel || return
        if [ -n "$bootcast_initrd" ]; then
            bootcast_bring_file initrd || return
        fi
        bootcast_kernel=$(bootcast_parameter bootcast.kernel '')
        bootcast_progress "starting the kernel $bootcast_kernel"
        bootcast_error=$(bootcast kexec "$bootcast_dir/kernel" \
            ${bootcast_initrd:+--initrd "$bootcast_dir/initrd"} \
            --append "$(bootcast_next_words)" 2>&1 </dev/null)
        # The files are large, so all machines do not fetch them every other second.
        bootcast_say "refused: the kernel $bootcast_kernel: ${bootcast_error##*bootcast: }"
        sleep 60
    done
}

# Fetches the file that the parameter bootcast.$1 of the kernel command line names into memory.
bootcast_bring_file() {
    bootcast_parse_place "bootcast.$1=" "$(bootcast_parameter "bootcast.$1" '')" \
        "$bootcast_default_heads" || return
    bootcast_progress "fetching $bootcast_heads:$bootcast_path"
    bootcast_try_heads bootcast_fetch "$bootcast_dir/$1"
}

# Prints the kernel command line for the kernel that comes next.
bootcast_next_words() {
    set -f
    bootcast_next=
    # shellcheck disable=SC2013 # Words are what is wanted.
    for bootcast_word in $(cat /proc/cmdline); do
        case $bootcast_word in
        bootcast.mode=kexec | bootcast.kernel=* | bootcast.initrd=*) ;;
        *) bootcast_next="$bootcast_next${bootcast_next:+ }$bootcast_word" ;;
        esac
    done
    set +f
    echo "$bootcast_next"
}

# Succeeds if the image is an archive by its name.
bootcast_is_archive() {
    case $bootcast_name in
    *.tar | *.tar.gz | *.tgz | *.tar.xz | *.tar.zst) ;;
    *.cpio | *.cpio.gz | *.cpio.xz | *.cpio.zst) ;;
    *) return 1 ;;
    esac
}

# Unpacks an archive into memory, which is the new root $1. Nothing of ours runs afterwards.
bootcast_unpack_root() {
    if [ "$bootcast_mode" != ram ] && [ "$bootcast_mode" != cast ]; then
        bootcast_say "$bootcast_path is an archive: it is unpacked into memory, not onto a disk"
        return 1
    fi
    case $bootcast_name in
    *.cpio*) bootcast_needs cpio ;;
    *) bootcast_needs tar ;;
    esac || return
    bootcast_progress "unpacking $bootcast_heads:$bootcast_path"
    bootcast_try_heads bootcast_unpack
    mount -o bind "$bootcast_dir/tree" "$1" || return
    bootcast_progress "the root is $bootcast_path of $bootcast_head"
}

# Succeeds if the initramfs has a program, or says on the console that it is missing.
bootcast_needs() {
    command -v "$1" >/dev/null && return
    bootcast_say "$bootcast_path cannot be unpacked: this initramfs has no $1"
    return 1
}

# Unpacks the archive of the head into memory that is empty at first.
bootcast_unpack() {
    bootcast_tree=$bootcast_dir/tree
    # What an attempt before has left.
    [ -d "$bootcast_tree" ] && umount "$bootcast_tree"
    mkdir -p "$bootcast_tree"
    mount -t tmpfs -o "mode=0755,size=$(bootcast_parameter bootcast.overlay_size 50%)" \
        bootcast-root "$bootcast_tree"
    # The shells here have no pipefail. Each program that fails writes a word to descriptor 4.
    bootcast_failed=$({
        { bootcast_get_archive 2>"$bootcast_dir/get.log" || echo "get$?" >&4; } |
            { bootcast_extract 2>"$bootcast_dir/extract.log" || echo extract >&4; }
    } 4>&1 >/dev/null)
    bootcast_error=
    case $bootcast_failed in
    # Busybox reads no padding behind the last entry, so that the fetch may lose its reader (141).
    '' | get141) return ;;
    # A fetch that lost its reader is not the cause. Files that do not fit are the usual one.
    *get141* | extract)
        read -r bootcast_error <"$bootcast_dir/extract.log"
        bootcast_reason="waits for $bootcast_path, which cannot be unpacked: $bootcast_error"
        ;;
    *)
        bootcast_error=$(cat "$bootcast_dir/get.log")
        bootcast_reason="waits for $bootcast_head:$bootcast_path: ${bootcast_error##*bootcast: }"
        ;;
    esac
    return 1
}

# Fetches the archive to standard output, without its compression.
bootcast_get_archive() {
    case $bootcast_name in
    *.cpio | *.tar) bootcast_get - ;;
    *) bootcast_get - --decompress ;;
    esac
}

# Extracts the archive on standard input. Names of users that the initramfs knows do not matter.
bootcast_extract() {
    case $bootcast_name in
    *.cpio*)
        cd "$bootcast_tree" || return
        # The one of klibc knows no other option: it makes directories, and sets no times.
        case $(cpio -i -d -m 2>&1 </dev/null) in
        *"not implemented"*) cpio -i ;;
        *) cpio -i -d -m ;;
        esac
        ;;
    *) tar -x -p -f - -C "$bootcast_tree" --numeric-owner ;;
    esac
}

# Brings the image to this machine, as bootcast.mode= says.
bootcast_bring_image() {
    case $(bootcast_parameter bootcast.release 0):$bootcast_mode in
    0:* | *:ram | *:disk:*) ;;
    *)
        bootcast_say "bootcast.release=1 needs bootcast.mode=ram or bootcast.mode=disk:/dev/NAME"
        return 1
        ;;
    esac
    case $bootcast_mode in
    cast)
        bootcast_progress "mounting $bootcast_heads:$bootcast_path"
        bootcast_try_heads bootcast_try_mount
        ;;
    ram)
        bootcast_progress "fetching $bootcast_heads:$bootcast_path into memory"
        bootcast_fetch_to_ram
        ;;
    disk:/dev/?*)
        bootcast_progress "fetching $bootcast_heads:$bootcast_path to ${bootcast_mode#disk:}"
        bootcast_fetch_to_disk "${bootcast_mode#disk:}"
        ;;
    *)
        bootcast_say "bootcast.mode=$bootcast_mode is none of cast, ram, disk:/dev/NAME"
        return 1
        ;;
    esac
}
