//! `bootcast get`, `ls` and `status`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;

use harness::binaries::binary;
use harness::capture::Capture;
use harness::{Host, Lab, Proc, SOON, digest_of, lab_or_skip, mib, wait_until};

use crate::{CRAWL, TRANSFER, text};

fn bootcast(host: &Host, args: &[&str]) -> Output {
    host.run(binary("bootcast"), args)
}

/// Runs `bootcast get` on the interface that has the multicast route.
fn get(host: &Host, args: &[&str]) -> Output {
    bootcast(host, &[&["get", "--interface", "eth0"], args].concat())
}

fn start_get(host: &Host, args: &[&str]) -> Proc {
    host.spawn(binary("bootcast"), [&["get", "--interface", "eth0"], args].concat())
}

fn assert_success(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
}

/// Returns the names in `directory`, except hidden ones, which may be partial files.
fn visible_names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}

#[test]
fn get_writes_the_named_file_and_prints_nothing_without_a_terminal() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(8) + 1);
    let server = lab.server().start();
    let target = lab.client(1).fresh_path("image");
    let output = get(lab.client(1), &[&lab.url("image"), "-O", text(&target)]);
    assert_success(&output);
    assert_eq!(digest_of(target), image.digest);
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    server.wait_no_members();
    assert_eq!(server.status().totals.leaves, 1);
}

#[test]
fn a_connection_without_answers_is_replaced_by_another() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let _server = lab.server().start();
    let capture = Capture::start(lab.client(1), "tcp[tcpflags] = tcp-syn");
    lab.drop_toward(1, "tcp flags & (syn | ack) == (syn | ack)");
    let target = lab.client(1).fresh_path("image");
    let mut get = start_get(lab.client(1), &[&lab.url("image"), "-O", text(&target)]);
    // 12:00:00.000001 IP 10.99.0.101.40000 > 10.99.0.1.8888: Flags [S], ..
    let source = |line: &str| Some(line.split(" > ").next()?.split(' ').nth(2)?.to_owned());
    let sources = || -> Vec<_> {
        let log = capture.log();
        log.lines().filter(|line| line.contains("Flags [S],")).filter_map(source).collect()
    };
    // The client sends two requests at once, from two ports.
    wait_until(SOON, "connections from a third port", || {
        let sources: BTreeSet<_> = sources().into_iter().collect();
        sources.len() > 2
    });
    lab.pass_toward(1);
    get.wait_success(TRANSFER);
    assert_eq!(digest_of(target), image.digest);
    // Within the first connection, TCP would repeat the SYN after 1 s and after 3 s.
    let sources = sources();
    let third = sources.iter().position(|it| *it != sources[0] && *it != sources[1]).unwrap();
    let tries = sources[..third].iter().filter(|it| **it == sources[0]).count();
    assert!(tries < 3, "{sources:?}");
}

#[test]
fn get_streams_to_standard_output_in_order() {
    let lab = lab_or_skip!(Lab::builder().loss(2.0));
    let image = lab.put("image", mib(4) + 5);
    let _server = lab.server().option("--rate", "200mbit").start();
    let output = get(lab.client(1), &[&lab.url("image"), "-O", "-"]);
    assert_success(&output);
    assert!(output.stdout == fs::read(image.path).unwrap());
}

#[test]
fn get_names_the_file_after_the_url() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("dir/my image.img", 10_000);
    let _server = lab.server().start();
    let directory = lab.client(1).fresh_path("dir");
    fs::create_dir(&directory).unwrap();
    let mut command = lab.client(1).command(binary("bootcast"));
    command.args(["get", "--interface", "eth0", &lab.url("dir/my%20image.img")]);
    assert_success(&command.current_dir(&directory).output().unwrap());
    assert_eq!(digest_of(directory.join("my image.img")), image.digest);
    assert_eq!(visible_names(&directory), ["my image.img"]);
}

#[test]
fn get_of_an_empty_file_makes_an_empty_file() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("empty", 0);
    let _server = lab.server().start();
    let target = lab.client(1).fresh_path("empty");
    assert_success(&get(lab.client(1), &[&lab.url("empty"), "-O", text(&target)]));
    assert_eq!(fs::metadata(target).unwrap().len(), 0);
}

#[test]
fn get_by_unicast_joins_nothing() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(4));
    let server = lab.server().start();
    let target = lab.client(1).fresh_path("image");
    let url = lab.url("image");
    assert_success(&bootcast(lab.client(1), &["get", "--unicast", &url, "-O", text(&target)]));
    assert_eq!(digest_of(target), image.digest);
    assert_eq!(server.status().totals.joins, 0);
}

#[test]
fn an_unknown_name_gives_one_line_an_exit_code_and_no_file() {
    let lab = lab_or_skip!(Lab::builder());
    let _server = lab.server().start();
    let target = lab.client(1).fresh_path("image");
    let output = get(lab.client(1), &[&lab.url("nothing"), "-O", text(&target)]);
    assert!(output.status.code().is_some_and(|code| code != 0), "{output:?}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
    assert!(errors.contains("404") || errors.contains("no such"), "{errors}");
    assert!(!target.exists());
}

#[test]
fn an_absent_server_gives_one_line_and_an_exit_code() {
    let lab = lab_or_skip!(Lab::builder());
    let output = get(lab.client(1), &[&lab.url("image"), "-O", "-"]);
    assert!(output.status.code().is_some_and(|code| code != 0), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim_end().lines().count(), 1, "{output:?}");
}

#[test]
fn a_killed_get_leaves_the_target_file_as_it_was() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let server = lab.server().option("--rate", CRAWL).start();
    let directory = lab.client(1).fresh_path("dir");
    fs::create_dir(&directory).unwrap();
    let (new, old) = (directory.join("new"), directory.join("old"));
    fs::write(&old, "what was here before").unwrap();
    let mut running: Vec<Proc> = [&new, &old]
        .iter()
        .map(|path| start_get(lab.client(1), &[&lab.url("image"), "-O", text(path)]))
        .collect();
    server.wait_cast("image", "pages are being sent to both", |cast| {
        cast.members == 2 && cast.pages_sent > 100
    });
    for get in &mut running {
        get.kill_within(SOON);
    }
    assert!(!new.exists());
    assert_eq!(fs::read_to_string(&old).unwrap(), "what was here before");
}

#[test]
fn many_gets_share_one_cast() {
    let lab = lab_or_skip!(Lab::builder().clients(3));
    let image = lab.put("image", mib(4));
    let server = lab.server().option("--rate", "4mbit").start();
    let targets: Vec<_> = lab.clients().iter().map(|host| host.fresh_path("image")).collect();
    let mut running: Vec<Proc> = lab
        .clients()
        .iter()
        .zip(&targets)
        .map(|(host, target)| start_get(host, &[&lab.url("image"), "-O", text(target)]))
        .collect();
    lab.wait_members(&server, "image", 1..=3);
    let cast = server.cast_of("image").unwrap();
    for get in &mut running {
        get.wait_success(TRANSFER);
    }
    for target in &targets {
        assert_eq!(digest_of(target), image.digest);
    }
    let totals = server.status().totals;
    assert_eq!(totals.casts, 1);
    // Pages that were sent before the last member joined may be sent again for it.
    let sent = totals.pages_sent + totals.symbols_sent;
    let most = u64::from(cast.pages) * 11 / 10 + cast.pages_sent;
    assert!(sent < most, "{totals:?} for three copies of {} pages", cast.pages);
}

#[test]
fn ls_lists_names_and_status_lists_casts() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("images/debian.img", mib(4));
    lab.put("images/other.img", 10);
    let server = lab.server().option("--rate", CRAWL).start();
    let listed = bootcast(lab.client(1), &["ls", &lab.url("images")]);
    assert_success(&listed);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("debian.img") && listed.contains("other.img"), "{listed}");

    let _running = start_get(lab.client(1), &[&lab.url("images/debian.img"), "-O", "-"]);
    server.wait_cast("images/debian.img", "the get joined", |cast| cast.members == 1);
    let status = bootcast(lab.client(1), &["status", &lab.url("")]);
    assert_success(&status);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("images/debian.img"), "{status}");
}
