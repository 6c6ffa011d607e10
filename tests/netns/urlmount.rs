//! `bootcast-urlmount`: one file from the first of several URLs. docs/SEMANTICS.md,
//! "bootcast-urlmount".

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use harness::binaries::binary;
use harness::lab::HEAD_ADDRESS;
use harness::mount::is_mounted;
use harness::{Host, Lab, Proc, SOON, digest_of, lab_or_skip, mib, wait_until};

use crate::mounting::place;
use crate::plain_peers::plain_server;
use crate::text;

/// URL at which nobody listens.
const NOBODY: &str = "http://10.77.0.1:1/images/root.sfs";

/// Returns the program under its name.
fn program(host: &Host) -> PathBuf {
    let directory = host.fresh_path("bin");
    fs::create_dir(&directory).unwrap();
    let program = directory.join("bootcast-urlmount");
    symlink(binary("bootcast"), &program).unwrap();
    program
}

/// Creates the command that mounts one of the URLs, and then runs a shell script in which `$2` is
/// the directory. The mount ends with the script, whatever comes.
fn urlmount(host: &Host, urls: &[&str], options: &str, script: &str) -> (Command, PathBuf) {
    let (place, cache) = place(host);
    let script = format!(
        "\"$1\" $3 \"$2\" -o \"$4\" || exit\n\
         trap 'umount \"$2\"' EXIT\n\
         {script}"
    );
    let options = format!("{cache},{options}");
    let mut command = host.command("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh", text(&program(host)), text(&place)]);
    command.args([&urls.join(" "), options.trim_end_matches(',')]);
    (command, place)
}

fn run(host: &Host, urls: &[&str], options: &str, script: &str) -> (Output, PathBuf) {
    let (mut command, place) = urlmount(host, urls, options, script);
    (command.output().unwrap(), place)
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn copy(place: &Path) -> PathBuf {
    place.with_extension("copy")
}

#[test]
fn the_first_url_that_answers_is_mounted_as_the_only_file() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("images/root.sfs", mib(3) + 1);
    lab.put("images/other", 10);
    let _server = lab.server().start();
    let url = lab.url("images/root.sfs");
    let https = "https://10.77.0.1/images/root.sfs";
    let absent = lab.url("elsewhere/root.sfs");
    let script = "ls \"$2\" && cat \"$2/root.sfs\" >\"$2.copy\" && grep \"$2 \" /proc/mounts";
    let (output, place) = run(lab.client(1), &[NOBODY, https, &absent, &url], "", script);
    let (printed, told) = (String::from_utf8_lossy(&output.stdout).into_owned(), errors(&output));
    assert!(output.status.success(), "{told}");
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines[0], "root.sfs", "{printed}");
    assert!(lines[1].starts_with(&format!("{url} ")), "{printed}");
    assert_eq!(digest_of(copy(&place)), image.digest);
    for (line, (url, reason)) in told.lines().zip([
        (NOBODY, "10.77.0.1:1"),
        (https, "https is not supported"),
        (&absent, "no file /elsewhere/root.sfs"),
    ]) {
        assert!(line.starts_with(&format!("bootcast-urlmount: {url}: ")), "{told}");
        assert!(line.contains(reason), "{told}");
    }
    assert_eq!(told.lines().count(), 3, "{told}");
}

#[test]
fn only_what_is_read_arrives() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("root.sfs", mib(32));
    let other = lab.put("other", mib(32));
    let _server = lab.server().start();
    let before = lab.client(1).counters().rx_bytes;
    // While the other file arrives, the rest of an open file would arrive beside it.
    let script = format!(
        "exec 3<\"$2/root.sfs\"\n\
         dd of=\"$2.copy\" bs=64K count=4 status=none <&3\n\
         {} get {} -q -i eth0 -O \"$2.other\" 3<&-; code=$?\n\
         exec 3<&-; exit $code",
        text(&binary("bootcast")),
        lab.url("other")
    );
    let (output, place) = run(lab.client(1), &[&lab.url("root.sfs")], "", &script);
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(digest_of(place.with_extension("other")), other.digest);
    let read = fs::read(copy(&place)).unwrap();
    assert!(fs::read(&image.path).unwrap().starts_with(&read) && read.len() == 4 * 65_536);
    let received = lab.client(1).counters().rx_bytes - before;
    assert!(received < mib(48), "{received} bytes for {} and another file", read.len());
}

#[test]
fn a_loop_device_shows_the_file_system_in_the_file() {
    let lab = lab_or_skip!(Lab::builder());
    let tree = lab.directory().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("hello"), "from the image").unwrap();
    let image = lab.served().join("root.sfs");
    let Ok(made) = Command::new("mksquashfs").args([&tree, &image]).arg("-quiet").output() else {
        return harness::requirements::report_skipped("mksquashfs is missing (squashfs-tools)");
    };
    assert!(made.status.success(), "{}", errors(&made));
    let _server = lab.server().start();
    // As in imageboot.sh of confluent.
    let script = "device=$(losetup -f) && losetup -r \"$device\" \"$2/root.sfs\" || exit 77\n\
                  mkdir \"$2.remote\"\n\
                  mount -o ro \"$device\" \"$2.remote\" && cat \"$2.remote/hello\"\n\
                  umount \"$2.remote\"; losetup -d \"$device\"";
    let (output, _) = run(lab.client(1), &[&lab.url("root.sfs")], "", script);
    if output.status.code() == Some(77) {
        return harness::requirements::report_skipped("no loop device");
    }
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from the image", "{}", errors(&output));
}

#[test]
fn urls_that_are_no_file_of_a_bootcast_server_mount_nothing_and_exit_with_1() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("root.sfs", 10_000);
    let web_args =
        ["-m", "http.server", "8000", "--directory", text(&lab.served())].map(String::from);
    let web = lab.head().spawn("python3", web_args);
    let listens = |port: &str| {
        let query = ["-ltnH", &format!("sport = :{port}")].map(String::from);
        !lab.head().run_ok("ss", query).is_empty()
    };
    wait_until(SOON, "the web server listens", || listens("8000"));
    let web_url = format!("http://{HEAD_ADDRESS}:8000/root.sfs");
    let check = |urls: &[&str], code: i32, reasons: &[&str]| {
        let (output, place) = run(lab.client(1), urls, "", "echo mounted");
        let told = errors(&output);
        assert_eq!(output.status.code(), Some(code), "{urls:?}: {told}");
        assert!(output.stdout.is_empty() && !is_mounted(&place), "{urls:?}");
        assert_eq!(told.lines().count(), reasons.len(), "{told}");
        for (line, reason) in told.lines().zip(reasons) {
            assert!(line.starts_with("bootcast-urlmount: ") && line.contains(reason), "{told}");
        }
    };
    let none = "no URL can be mounted";
    check(&[NOBODY], 1, &["10.77.0.1:1", none]);
    check(&[&web_url, NOBODY], 1, &["needs bootcast-server", "10.77.0.1:1", none]);
    check(&[&web_url, "http://10.77.0.1/other"], 1, &["names another file"]);
    drop(web);
    let plain = plain_server(&lab, &[]);
    check(&[&lab.url("root.sfs")], 1, &["needs bootcast-server", none]);
    drop(plain);
    fs::create_dir(lab.served().join("directory")).unwrap();
    let _server = lab.server().start();
    check(&[&lab.url("directory")], 1, &["is a directory", none]);
}

#[test]
fn with_retry_the_urls_are_tried_until_a_server_has_the_file() {
    let lab = lab_or_skip!(Lab::builder());
    let url = lab.url("images/root.sfs");
    let script = "cat \"$2/root.sfs\" >\"$2.copy\"";
    let (command, place) = urlmount(lab.client(1), &[NOBODY, &url], "retry=5", script);
    let mut mount = Proc::start(command, &lab.client(1).fresh_path("log"));
    wait_until(SOON, "every URL was tried twice", || {
        mount.log().matches(NOBODY).count() > 1 && mount.log().matches(&url).count() > 1
    });
    let image = lab.put("images/root.sfs", 100_000);
    let _server = lab.server().start();
    mount.wait_success(SOON);
    assert_eq!(digest_of(copy(&place)), image.digest);
}
