//! Tests of the shell functions of an initramfs (`initramfs/netboot.sh`), in this machine's shell.

use std::process::Command;

/// Sources the functions, with the console on standard output and the kernel command line in
/// `words`, and runs a script with arguments. Returns what it printed.
fn run(words: &str, script: &str, args: &[&str]) -> String {
    let functions = concat!(env!("CARGO_MANIFEST_DIR"), "/initramfs/netboot.sh");
    let prelude = format!(
        ". {functions}\n\
         bootcast_say() {{ echo \"console: $*\"; }}\n\
         cat() {{\n\
         if [ \"$1\" = /proc/cmdline ]; then echo '{words}'; else command cat \"$@\"; fi\n\
         }}\n"
    );
    let mut command = Command::new("sh");
    let output =
        command.arg("-euc").arg(prelude + script).arg("sh").args(args).output().expect("a shell");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.is_empty(), "{error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn root_names_head_path_and_options() {
    let script = "bootcast_parse \"$1\" \"$2\" && echo \
        \"$bootcast_head $bootcast_path $bootcast_name [$bootcast_options] [$bootcast_hash] \
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
    for root in ["bootcast:10.0.0.1", "bootcast:10.0.0.1:/", "bootcast:/a", "bootcast:", "/dev/sda"]
    {
        let printed = run("", "bootcast_parse \"$1\" '' || echo failed", &[root]);
        let lines: Vec<_> = printed.lines().collect();
        let [line, "failed"] = lines[..] else { panic!("{root}: {printed}") };
        assert!(line.starts_with(&format!("console: root={root} ")), "{line}");
    }
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
