//! Tests of the shell functions of an initramfs (`initramfs/netboot.sh`), in this machine's shell.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Directory of klibc's programs, which are the ones of a small Debian initramfs.
const KLIBC: &str = "/usr/lib/klibc/bin";

/// Shell functions under test.
const FUNCTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/initramfs/netboot.sh");

/// Replaces the console by standard output, and the kernel command line by `$WORDS`.
const STUBS: &str = r#"
    bootcast_say() { echo "console: $*"; }
    cat() { if [ "${1-}" = /proc/cmdline ]; then echo "$WORDS"; else command cat "$@"; fi; }
"#;

/// Sources the functions and runs a script with arguments, in the shell of this machine and in
/// those of an initramfs that are here. Returns what it printed, which must be the same in all.
fn run(words: &str, script: &str, args: &[&str]) -> String {
    let mut printed: Option<String> = None;
    for shell in shells() {
        let output = run_in(&shell, words, script, args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.is_empty(), "{shell:?}: {error}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(*printed.get_or_insert_with(|| text.clone()), text, "{shell:?}");
    }
    printed.expect("a shell")
}

/// Commands that start the shells of this machine.
fn shells() -> Vec<Vec<&'static str>> {
    let mut shells = vec![vec!["sh"]];
    if has_busybox() {
        shells.push(vec!["busybox", "sh"]);
    }
    if Path::new(KLIBC).exists() {
        shells.push(vec!["/usr/lib/klibc/bin/sh"]);
    }
    shells
}

fn has_busybox() -> bool {
    Command::new("busybox").arg("true").status().is_ok_and(|status| status.success())
}

/// Runs a script after the functions in a shell.
fn run_in(shell: &[&str], words: &str, script: &str, args: &[&str]) -> Output {
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg("-euc").arg(format!(". {FUNCTIONS}\n{STUBS}\n{script}"));
    command.arg("sh").args(args).env("WORDS", words).output().expect("a shell")
}

#[test]
fn root_names_head_path_and_options() {
    let script = "bootcast_parse \"$1\" \"$2\" && bootcast_head=$bootcast_heads && echo \
        \"$bootcast_heads $bootcast_path $bootcast_name [$bootcast_options] [$bootcast_hash] \
        $(bootcast_url)\"";
    for (root, dhcp, expected) in [
        (
            "bootcast:10.0.0.1:/images/a.squashfs",
            "",
            "10.0.0.1 /images/a.squashfs a.squashfs [] [] \
             http://10.0.0.1:8888/images/a.squashfs",
        ),
        (
            "bootcast:10.0.0.1:80:/a,b3=0f,fill=demand",
            "",
            "10.0.0.1:80 /a a [,b3=0f,fill=demand] [0f] http://10.0.0.1:80/a",
        ),
        (
            "bootcast:[fd00::1]:/x/a,interface=eth0",
            "",
            "[fd00::1] /x/a a [,interface=eth0] [] http://[fd00::1]:8888/x/a",
        ),
        ("bootcast:[fd00::1]:81:/a", "", "[fd00::1]:81 /a a [] [] http://[fd00::1]:81/a"),
        (
            "bootcast:/a,unicast=never",
            "10.0.0.9",
            "10.0.0.9 /a a [,unicast=never] [] http://10.0.0.9:8888/a",
        ),
    ] {
        assert_eq!(run("", script, &[root, dhcp]).trim_end(), expected, "{root}");
    }
}

#[test]
fn a_wrong_root_is_told_in_one_line() {
    for root in [
        "bootcast:10.0.0.1",
        "bootcast:10.0.0.1:/",
        "bootcast:10.0.0.1:/,fill=demand",
        "bootcast:10.0.0.1,fill=demand:/a",
        "bootcast:10.0.0.1,,10.0.0.2:/a",
        "bootcast:/a",
        "bootcast:",
        "/dev/sda",
    ] {
        let printed = run("", "bootcast_parse \"$1\" '' || echo failed", &[root]);
        let lines: Vec<_> = printed.lines().collect();
        let [line, "failed"] = lines[..] else { panic!("{root}: {printed}") };
        assert!(line.starts_with(&format!("console: root={root} ")), "{line}");
    }
}

/// Parts of values that a kernel command line may have, or that somebody tries.
const PIECES: [&str; 30] = [
    "bootcast:",
    "10.0.0.1",
    "head",
    "[fd00::1]",
    "[",
    "]",
    ":",
    ":/",
    "/",
    "//",
    ",",
    "b3=",
    "0f",
    "port=",
    "99999999999",
    "interface=",
    "eth0",
    "fill=demand",
    "=",
    "*",
    "?",
    "$HOME",
    "$((1/0))",
    "$(touch ran)",
    "`touch ran`",
    ";touch ran;",
    "&",
    "'",
    "\"",
    "%2f",
];

#[test]
fn no_root_makes_the_shell_fail_or_run_anything() {
    let dir = tempfile::TempDir::new().expect("a directory");
    // Numbers of a linear congruential generator: the same every time.
    let mut state = 1_u64;
    let mut below = |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).expect("31 bits") % end
    };
    let mut roots = Vec::new();
    for _ in 0..500 {
        let mut root = String::from(if below(4) > 0 { "bootcast:" } else { "" });
        for _ in 0..=below(9) {
            root += PIECES[below(PIECES.len())];
        }
        roots.push(root);
    }
    let args: Vec<_> = roots.iter().map(String::as_str).collect();
    let script = format!(
        "cd {}; for root; do if bootcast_parse \"$root\" 10.0.0.9; then
            bootcast_head=${{bootcast_heads%%,*}}; bootcast_url >/dev/null
            echo \"$bootcast_heads $bootcast_path $bootcast_options $bootcast_hash\"; fi; done",
        dir.path().display()
    );
    let printed = run("", &script, &args);
    assert_eq!(printed.lines().count(), roots.len(), "{printed}");
    assert!(printed.lines().any(|line| !line.starts_with("console: ")), "{printed}");
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0, "something ran");
}

#[test]
fn parameters_and_words_come_from_the_kernel_command_line() {
    let words = "ro quiet bootcast.mode=cast bootcast.mode=ram bootcast.overlay=no";
    let script = "bootcast_parameter bootcast.mode cast; bootcast_parameter rootfstype none; \
        bootcast_has_word quiet && echo quiet; bootcast_has_word bootcast || echo bare; \
        bootcast_is_bare && echo bare; bootcast_progress nothing";
    assert_eq!(run(words, script, &[]), "ram\nnone\nquiet\nbare\nbare\n");
    assert_eq!(run("rw", "bootcast_is_bare || echo overlay", &[]), "overlay\n");
    assert_eq!(run("rw", "bootcast_progress going on", &[]), "console: going on\n");
}

#[test]
fn what_is_waited_for_is_said_once_a_minute() {
    let script = "sleep() { :; }\nbootcast_said= bootcast_repeats=0\n\
        for i in 1 2 3; do bootcast_wait waits for it; done; bootcast_wait refused\n\
        for i in $(seq 30); do bootcast_wait refused; done";
    let expected = "console: waits for it\nconsole: refused\nconsole: refused\n";
    assert_eq!(run("", script, &[]), expected);
}

#[test]
fn an_overlay_of_the_distribution_that_is_off_does_not_count() {
    for (words, expected) in [
        ("overlayroot=disabled", "overlay"),
        ("overlayroot=", "overlay"),
        ("rd.overlay=0", "overlay"),
        ("overlayroot=tmpfs", "bare"),
        ("rd.overlay=1", "bare"),
        ("rd.overlay", "bare"),
        ("bootcast.overlay=no overlayroot=disabled", "bare"),
    ] {
        let script = "if bootcast_is_bare; then echo bare; else echo overlay; fi";
        assert_eq!(run(words, script, &[]).trim_end(), expected, "{words}");
    }
}

#[test]
fn a_fetch_has_the_hash_the_interface_and_the_port_of_the_options() {
    let script = "bootcast() { echo \"$*\"; }\nbootcast_parse \"$1\" ''\n\
        bootcast_head=$bootcast_heads\nbootcast_get /dev/vda";
    for (options, expected) in [
        ("", "get http://10.0.0.1:8888/a -O /dev/vda"),
        (
            ",interface=eth1,fill=demand,b3=0f",
            "get http://10.0.0.1:8888/a -O /dev/vda --b3 0f --interface eth1",
        ),
        (
            ",interface=eth0,port=80,interface=eth1",
            "get http://10.0.0.1:80/a -O /dev/vda --interface eth1",
        ),
    ] {
        let root = format!("bootcast:10.0.0.1:/a{options}");
        assert_eq!(run("", script, &[&root]).trim_end(), expected, "{root}");
    }
}

/// Mounts a directory as the root in a mount namespace of its own, and shows what is there.
const BIND: &str = r#"
    mount -t tmpfs -o mode=0700 bootcast "$1"
    mkdir "$1/image" "$1/root"
    echo here >"$1/image/file"
    bootcast_image=$1/image
    bootcast_mount_image "" "$1/root"
    while read -r line; do echo "$line"; done <"$1/root/file"
"#;

/// Runs a script as root in a mount namespace of its own, with an empty directory as its first
/// argument: once with the tools of this machine, and once with those of each family of initramfs
/// that are here. Returns what it printed, which must be the same.
fn run_with_tools(words: &str, script: &str, args: &[&str]) -> String {
    let busybox = tempfile::tempdir().expect("a directory");
    let mut paths = vec!["/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    if Path::new(KLIBC).exists() {
        paths.push(KLIBC.to_owned());
    }
    if has_busybox() {
        for tool in ["cat", "cpio", "mkdir", "mount", "tar", "umount"] {
            let link = busybox.path().join(tool);
            std::os::unix::fs::symlink("/bin/busybox", link).expect("a link");
        }
        paths.push(busybox.path().display().to_string());
    }
    let mut printed: Option<String> = None;
    for path in paths {
        let place = tempfile::tempdir().expect("a directory");
        let place = place.path().to_str().expect("UTF-8");
        let variable = format!("PATH={path}");
        let shell = ["unshare", "--mount", "/usr/bin/env", &variable, "/bin/sh"];
        let output = run_in(&shell, words, script, &[&[place], args].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{path}: {output:?}");
        assert_eq!(*printed.get_or_insert_with(|| text.clone()), text, "{path}: {output:?}");
    }
    printed.expect("tools")
}

/// Whether a test that mounts can run. Says so if not.
fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root();
    if !can {
        println!("skipped: mounting needs root");
    }
    can
}

#[test]
fn a_directory_is_mounted_with_the_tools_of_an_initramfs() {
    if can_mount() {
        assert_eq!(run_with_tools("", BIND, &[]), "here\n");
    }
}

/// Unpacks the archive `$2`, which has the name `$3` on the head, and shows one file of it.
const UNPACK: &str = r#"
    archive=$2
    # The program expands the archive itself.
    bootcast() {
        case "$*" in
        *--decompress*) /usr/bin/gzip -dc "$archive" ;;
        *) cat "$archive" ;;
        esac
    }
    sleep() { exit 0; }
    bootcast_dir=$1/bootcast bootcast_said='' bootcast_repeats=0
    mkdir "$1/bootcast" "$1/root"
    bootcast_parse "bootcast:10.0.0.1:/images/$3" ''
    bootcast_is_archive
    bootcast_unpack_root "$1/root" || exit 0
    while read -r line; do echo "$line"; done <"$1/root/etc/name"
"#;

/// Makes archives of a small tree with the tools of this machine.
fn archives() -> tempfile::TempDir {
    let place = files(&[("tree/etc/name", "unpacked\n")]);
    let script = "cd tree\ntar -cf ../root.tar .\nfind . | busybox cpio -o -H newc >../root.cpio\n\
        cd ..\ngzip -k root.tar root.cpio";
    let made = Command::new("sh").arg("-euc").arg(script).current_dir(place.path()).output();
    let made = made.expect("a shell");
    assert!(made.status.success(), "{made:?}");
    place
}

#[test]
fn archives_are_unpacked_with_the_tools_of_an_initramfs() {
    if !can_mount() || !has_busybox() {
        return println!("skipped: no root or no busybox");
    }
    let place = archives();
    let has_no_tar = "command -v tar >/dev/null || { echo unpacked; exit 0; }\n";
    for (name, before) in [
        ("root.cpio", ""),
        ("root.cpio.gz", ""),
        // klibc has no tar.
        ("root.tar", has_no_tar),
        ("root.tar.gz", has_no_tar),
    ] {
        let archive = place.path().join(name);
        let args = [archive.to_str().expect("UTF-8"), name];
        let printed = run_with_tools("quiet", &format!("{before}{UNPACK}"), &args);
        assert_eq!(printed, "unpacked\n", "{name}");
    }
}

#[test]
fn an_archive_with_padding_that_is_not_read_is_unpacked() {
    if !can_mount() || !has_busybox() {
        return println!("skipped: no root or no busybox");
    }
    let place = archives();
    let archive = place.path().join("root.cpio");
    let padded = r#"/bin/sh -c 'cat "$0"; /usr/bin/head -c 1000000 /dev/zero' "$archive""#;
    let script = UNPACK.replace("*) cat \"$archive\"", &format!("*) {padded}"));
    assert_ne!(script, UNPACK);
    let args = [archive.to_str().expect("UTF-8"), "root.cpio"];
    assert_eq!(run_with_tools("quiet", &script, &args), "unpacked\n");
}

#[test]
fn an_archive_that_cannot_be_unpacked_is_told_in_one_line() {
    if !can_mount() || !has_busybox() {
        return println!("skipped: no root or no busybox");
    }
    let place = files(&[("root.cpio", "no archive")]);
    let archive = place.path().join("root.cpio");
    let archive = archive.to_str().expect("UTF-8");
    // What the program says differs.
    let say = "bootcast_say() { set -- $*; echo \"console: $1 $2 $3 $4 $5 $6\"; }\n";
    let expected = "console: waits for /images/root.cpio, which cannot be\n";
    assert_eq!(
        run_with_tools("quiet", &format!("{say}{UNPACK}"), &[archive, "root.cpio"]),
        expected
    );

    let away = UNPACK.replace("cat \"$archive\"", "{ echo bootcast: it is away >&2; return 3; }");
    let expected = "console: waits for 10.0.0.1:/images/root.cpio: it is away\n";
    assert_eq!(run_with_tools("quiet", &away, &[archive, "root.cpio"]), expected);

    let no_tar = UNPACK.replace("sleep()", "command() { [ \"$2\" != tar ]; }\nsleep()");
    let expected = "console: /images/root.tar cannot be unpacked: this initramfs has no tar\n";
    assert_eq!(run_with_tools("quiet", &no_tar, &[archive, "root.tar"]), expected);

    let disk = "quiet bootcast.mode=disk:/dev/vda";
    let expected = "console: /images/root.cpio is an archive: it is unpacked into memory, \
        not onto a disk\n";
    assert_eq!(run_with_tools(disk, UNPACK, &[archive, "root.cpio"]), expected);
}

#[test]
fn a_release_needs_a_mode_without_a_process() {
    let script = "bootcast_parse bootcast:a:/x '' && bootcast_try_heads() { echo tried; }\n\
        bootcast_fetch_to_ram() { echo ram; }\nbootcast_bring_image || echo failed";
    for (words, expected) in [
        ("quiet bootcast.release=1 bootcast.mode=ram", "ram\n"),
        ("quiet bootcast.release=0", "tried\n"),
        (
            "quiet bootcast.release=1",
            "console: bootcast.release=1 needs bootcast.mode=ram or bootcast.mode=disk:/dev/NAME\n\
             failed\n",
        ),
    ] {
        assert_eq!(run(words, script, &[]), expected, "{words}");
    }
}

#[test]
fn several_heads_are_separated_by_commas_before_the_path() {
    let script = "bootcast_parse \"$1\" '' && echo \"$bootcast_heads $bootcast_path \
        $bootcast_options\"";
    for (root, expected) in [
        ("bootcast:a,b:81:/x,b3=0f", "a,b:81 /x ,b3=0f"),
        ("bootcast:[fd00::1],[fd00::2]:81:/d/x", "[fd00::1],[fd00::2]:81 /d/x "),
        ("bootcast:a:/x,fsname=b:/y", "a /x ,fsname=b:/y"),
    ] {
        assert_eq!(run("", script, &[root]), format!("{expected}\n"), "{root}");
    }
}

#[test]
fn several_heads_are_tried_in_their_order_until_one_has_the_image() {
    let script = "sleep() { :; }\nbootcast_said= bootcast_repeats=0 tries=0\n\
        try() { tries=$((tries + 1)); echo \"$bootcast_head\"; \
            bootcast_reason=\"$bootcast_head is away\"; [ \"$tries\" -eq 4 ]; }\n\
        bootcast_parse bootcast:a,[b]:/x '' && bootcast_try_heads try && echo \"$bootcast_head\"";
    let expected = "a\n[b]\nconsole: a is away; [b] is away\na\n[b]\n[b]\n";
    assert_eq!(run("", script, &[]), expected);
}

/// Head `a` is away, head `b` has no image, head `c` cannot list what it has and has no image, and
/// head `d` has it.
const FOUR_HEADS: &str = r#"
    bootcast() {
        echo "$1 $2" >>"$bootcast_dir/log"
        case $2 in
        http://a:*) echo "bootcast: connection refused"; return 3 ;;
        http://b:*) echo "bootcast: no such file"; return 5 ;;
        http://c:*) echo "bootcast: no list"; return 6 ;;
        esac
    }
    bootcastfs() {
        echo "mount $1" >>"$bootcast_dir/log"
        case $1 in
        d:*) : >"$2/x" ;;
        esac
    }
    umount() { echo "umount" >>"$bootcast_dir/log"; }
    losetup() { echo /dev/loop9; }
    sleep() { echo "no head was right" >&2; exit 1; }
    bootcast_dir=$1 bootcast_said='' bootcast_repeats=0 bootcast_mounted=''
    mkdir -p "$1/mnt"
    bootcast_parse bootcast:a,b,c,d:/x ''
    bootcast_try_heads bootcast_try_mount
    echo "$bootcast_head $bootcast_device, not: $bootcast_reasons"
    while read -r line; do echo "$line"; done <"$1/log"
"#;

#[test]
fn a_head_without_the_image_is_left_for_the_next_one() {
    let expected = "d /dev/loop9, not: waits for a:/x: connection refused; \
        waits for /x: b has no such file; waits for /x: c has no such file\n\
        ls http://a:8888/x\nls http://b:8888/x\nls http://c:8888/x\nmount c:/\numount\n\
        ls http://d:8888/x\nmount d:/\n";
    for shell in shells() {
        let place = tempfile::tempdir().expect("a directory");
        let place = place.path().to_str().expect("UTF-8");
        let output = run_in(&shell, "", FOUR_HEADS, &[place]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{shell:?}: {output:?}");
    }
}

/// Fetches a kernel and an initramfs that are not there, and starts the kernel. The first try to
/// start it fails.
const KEXEC: &str = r#"
    mount() { :; }
    sleep() { echo "sleep $1"; [ ! -e "$bootcast_dir/started" ] || exit 0; }
    bootcast() {
        if [ -e "$bootcast_dir/tried" ]; then
            echo "$*" >"$bootcast_dir/started"
        else
            : >"$bootcast_dir/tried"
            echo "bootcast: it is no kernel for this machine" >&2
            return 2
        fi
    }
    bootcast_try_heads() { bootcast_head=$bootcast_heads; echo "$(bootcast_url) to ${2##*/}"; }
    bootcast_dir=$1
    if bootcast_parse "$2" '' && ! bootcast_mount_root "$1/root" ''; then echo ended; fi
"#;

#[test]
fn kexec_fetches_both_files_and_starts_the_kernel_with_the_rest_of_the_words() {
    let words = "console=ttyS0 bootcast.mode=ram bootcast.mode=kexec quiet \
        bootcast.kernel=/boot/vmlinuz,b3=0f bootcast.initrd=10.0.0.2:81:/initrd * a=b";
    let expected =
        "http://10.0.0.1:8888/boot/vmlinuz to kernel\nhttp://10.0.0.2:81/initrd to initrd\n";
    let again = format!(
        "{expected}console: refused: the kernel /boot/vmlinuz,b3=0f: it is no kernel for this \
         machine\nsleep 60\n{expected}"
    );
    for shell in shells() {
        let place = tempfile::tempdir().expect("a directory");
        let place = place.path().to_str().expect("UTF-8");
        let output = run_in(&shell, words, KEXEC, &[place, "bootcast:10.0.0.1:/a"]);
        let started = fs::read_to_string(format!("{place}/started"))
            .unwrap_or_else(|_| panic!("{shell:?}: {output:?}"));
        let started = started.replace(place, "");
        assert_eq!(
            started,
            "kexec /kernel --initrd /initrd --append console=ttyS0 bootcast.mode=ram quiet * a=b\n",
            "{shell:?}"
        );
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(printed.starts_with(&again), "{shell:?}: {printed}");
    }
}

#[test]
fn kexec_without_a_kernel_ends_the_boot_with_one_line() {
    let root = "bootcast:10.0.0.1:/a";
    for (kernel, expected) in [
        (
            "",
            "console: bootcast.kernel= is not bootcast.kernel=HEAD[:PORT][,HEAD..]:/PATH\
             [,OPTION..]",
        ),
        (
            "bootcast.kernel=a/b",
            "console: bootcast.kernel=a/b is not bootcast.kernel=HEAD[:PORT][,HEAD..]:/PATH\
             [,OPTION..]",
        ),
    ] {
        let place = tempfile::tempdir().expect("a directory");
        let place = place.path().to_str().expect("UTF-8");
        let words = format!("bootcast.mode=kexec {kernel}");
        assert_eq!(run(&words, KEXEC, &[place, root]), format!("{expected}\nended\n"), "{kernel}");
    }
}

/// Writes files, given as pairs of a path and a text, below a new directory.
fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a directory");
    for (path, text) in files {
        let path = place.path().join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
    place
}

#[test]
fn klibc_says_which_head_dhcp_names() {
    let script = "bootcast_read_klibc \"$1\" ''\necho \"$bootcast_dhcp_head $bootcast_dhcp_root\"";
    for (text, expected) in [
        (
            "DEVICE='eth0'\nROOTSERVER='10.0.0.1'\nROOTPATH='bootcast:10.0.0.2:/a,b3=0f'\n",
            "10.0.0.1 bootcast:10.0.0.2:/a,b3=0f\n",
        ),
        ("DEVICE=eth0\nROOTSERVER=10.0.0.1\nROOTPATH=\n", "10.0.0.1 \n"),
        ("DEVICE='eth0'\nROOTSERVER='0.0.0.0'\nROOTPATH=''\n", " \n"),
    ] {
        let place = files(&[("net-eth0.conf", text)]);
        let run_directory = place.path().to_str().expect("UTF-8");
        assert_eq!(run("", script, &[run_directory]), expected, "{text}");
    }
}

#[test]
fn klibc_says_it_about_the_card_of_the_boot() {
    let place = files(&[
        ("net-eth0.conf", "ROOTSERVER='10.0.0.1'\n"),
        ("net-eth1.conf", "ROOTSERVER='10.0.0.2'\n"),
    ]);
    let script = "bootcast_read_klibc \"$1\" \"$2\"\necho \"$bootcast_dhcp_head\"";
    for (card, expected) in [("", "10.0.0.1\n"), ("eth1", "10.0.0.2\n"), ("eth2", "10.0.0.1\n")] {
        let run_directory = place.path().to_str().expect("UTF-8");
        assert_eq!(run("", script, &[run_directory, card]), expected, "{card}");
    }
}

/// Two network cards of a machine as dracut sees them, one with a lease of systemd-networkd and one
/// with a lease of dhclient.
const CARDS: [(&str, &str); 6] = [
    ("sys/class/net/eth0/address", "52:54:00:77:00:01\n"),
    ("sys/class/net/eth0/ifindex", "2\n"),
    ("sys/class/net/eth1/address", "52:54:00:77:00:0a\n"),
    ("sys/class/net/eth1/ifindex", "3\n"),
    (
        "run/systemd/netif/leases/2",
        "# This is private data. Do not parse.\nSERVER_ADDRESS=10.0.0.8\nNEXT_SERVER=10.0.0.1\n\
         ROOT_PATH=bootcast:10.0.0.1:/a=b\n",
    ),
    (
        "tmp/dhclient.eth1.dhcpopts",
        "new_dhcp_server_identifier='10.0.0.9'\nnew_root_path='bootcast:/c'\n",
    ),
];

#[test]
fn dracut_says_which_head_dhcp_names_on_the_card_of_the_boot() {
    let place = files(&CARDS);
    let script = "bootcast_read_dracut \"$1\" && echo \"$bootcast_dhcp_head $bootcast_dhcp_root\" \
        || echo none";
    for (words, expected) in [
        ("", "10.0.0.1 bootcast:10.0.0.1:/a=b\n"),
        ("BOOTIF=01-52-54-00-77-00-01", "10.0.0.1 bootcast:10.0.0.1:/a=b\n"),
        ("BOOTIF=01-52-54-00-77-00-0a", "10.0.0.9 bootcast:/c\n"),
        ("BOOTIF=01-52-54-00-77-00-0A", "10.0.0.9 bootcast:/c\n"),
        ("BOOTIF=01-52-54-00-77-00-0b", "none\n"),
    ] {
        let root = place.path().to_str().expect("UTF-8");
        assert_eq!(run(words, script, &[root]), expected, "{words}");
    }
}

#[test]
fn a_lease_without_next_server_names_the_dhcp_server() {
    let place = files(&[("lease", "SERVER_ADDRESS=10.0.0.8\n")]);
    let script = "bootcast_dhcp_head= bootcast_dhcp_root=; bootcast_read_lease \"$1\"\n\
        echo \"$bootcast_dhcp_head\"; bootcast_take_dhcp_root || echo none";
    let lease = place.path().join("lease");
    assert_eq!(run("", script, &[lease.to_str().expect("UTF-8")]), "10.0.0.8\nnone\n");
}
