//! What a mount tells of itself and its files, as extended attributes. docs/SEMANTICS.md, "What a
//! mount tells of itself".

use std::fs::{self, File};
use std::path::Path;

use harness::binaries::binary;
use harness::{Lab, MountProc, SOON, digest_of, lab_or_skip, mib, wait_for, wait_until};
use rustix::io::Errno;
use serde_json::Value;

use crate::mounting::place;
use crate::proving::b3;
use crate::{CRAWL, TRANSFER, text};

/// Returns an attribute as `getfattr -n` gets it.
pub(crate) fn attribute(path: &Path, name: &str) -> Result<String, Errno> {
    let mut value = vec![0; 64 << 10];
    let len = rustix::fs::getxattr(path, format!("user.bootcast.{name}"), &mut value[..])?;
    value.truncate(len);
    Ok(String::from_utf8(value).unwrap())
}

/// Returns the status of the mount.
fn status(mount: &MountProc<'_>) -> Value {
    serde_json::from_str(&attribute(mount.path(), "status").unwrap()).unwrap()
}

/// Returns the status of a file; null if the mount does not know it.
fn file_status(mount: &MountProc<'_>, name: &str) -> Value {
    let status = status(mount);
    let files = status["files"].as_array().unwrap();
    files.iter().find(|file| file["path"] == name).cloned().unwrap_or_default()
}

#[test]
fn a_program_that_asks_whether_a_file_is_a_terminal_leaves_no_trace_in_the_log() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", 1000);
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    let program = "import os, sys; print(os.isatty(os.open(sys.argv[1], os.O_RDONLY)))";
    let answer = mount.host().run_ok("python3", ["-c", program, text(&mount.join("image"))]);
    assert_eq!(answer.trim(), "False");
    assert!(!mount.log().contains("Not Implemented"), "{}", mount.log());
    mount.umount();
}

#[test]
fn a_file_tells_how_far_it_is() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("dir/an image", mib(1) + 7);
    let server = lab.server().start();
    let mount = lab.mount(1).start();
    let path = mount.join("dir/an image");
    let of = |name| attribute(&path, name);
    let size = image.size;
    assert_eq!(of("state"), Ok("closed".into()));
    assert_eq!(of("progress"), Ok(format!("0/{size}")));
    assert_eq!(of("verified"), Err(Errno::NODATA));
    assert_eq!(of("source"), Ok(lab.url("dir/an%20image")));

    let file = File::open(&path).unwrap();
    assert_eq!(digest_of(&path), image.digest);
    wait_until(TRANSFER, "the file is complete", || of("state") == Ok("complete".into()));
    assert_eq!(of("progress"), Ok(format!("{size}/{size}")));
    assert_eq!(of("verified"), Ok(format!("{size}/{size}")));
    let etag = of("etag").unwrap();
    let url = lab.url("meta/dir/an%20image");
    assert!(lab.client(1).get(&url).body.contains(&etag), "{etag}");
    drop((file, server));

    // The size of the value is asked for first, as `getfattr` does.
    assert_eq!(rustix::fs::getxattr_query(&path, "user.bootcast.state"), Ok(8));
    assert_eq!(rustix::fs::listxattr_query(&path), Ok(0));
    for (path, name) in [(mount.join("dir"), "state"), (mount.join("dir"), "status")] {
        assert_eq!(attribute(&path, name), Err(Errno::NODATA), "{name}");
    }
    assert_eq!(of("status"), Err(Errno::NODATA));
    assert_eq!(attribute(mount.path(), "state"), Err(Errno::NODATA));
    mount.umount();
}

#[test]
fn a_file_that_is_not_open_tells_what_the_cache_has() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let _server = lab.server().start();
    let cache = lab.client(1).fresh_path("shared");
    fs::create_dir(&cache).unwrap();
    let option = format!("cache_dir={}", text(&cache));
    let mount = lab.mount(1).option(&option).start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    mount.umount();
    let mount = lab.mount(1).option(&option).start();
    let (size, of) = (image.size, |name| attribute(&mount.join("image"), name));
    assert_eq!(of("state"), Ok("closed".into()));
    assert_eq!(of("progress"), Ok(format!("{size}/{size}")));
}

#[test]
fn without_hashes_nothing_is_verified() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let _server = lab.server().start();
    let mount = lab.mount(1).option("verify=tag").start();
    let path = mount.join("image");
    assert_eq!(digest_of(&path), image.digest);
    wait_until(SOON, "the file is complete", || attribute(&path, "state") == Ok("complete".into()));
    assert_eq!(attribute(&path, "verified"), Err(Errno::NODATA));
}

#[test]
fn the_mount_tells_who_waits_and_that_the_server_is_away_without_asking_it() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let mut server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).option("unicast=never,attr_ttl=1h").start();
    let path = mount.join("image");
    let mut reader = lab.client(1).spawn("cat", [text(&path)]);
    mount.wait_parked(1);
    let file = wait_for(SOON, "a read waits", || {
        let file = file_status(&mount, "image");
        (file["waiting"].as_u64() > Some(0)).then_some(file)
    });
    assert!(file["oldest_wait_ms"].is_u64() && file["opens"] == 1, "{file}");
    wait_until(SOON, "pages arrive", || {
        let file = file_status(&mount, "image");
        file["state"] == "multicast"
            && file["held"].as_u64() > Some(0)
            && !file["cast_bps"].is_null()
    });
    let before = status(&mount);
    assert_eq!(before["server_away_s"], Value::Null, "{before}");
    assert!(before["totals"]["multicast_bytes"].as_u64() > Some(0), "{before}");
    assert!(before["waiting"].as_u64() > Some(0), "{before}");

    server.kill();
    wait_until(TRANSFER, "the file says that the server is away", || {
        attribute(&path, "state") == Ok("away".into())
    });
    let after = status(&mount);
    assert!(after["server_away_s"].is_u64(), "{after}");
    let warnings = after["warnings"].to_string();
    assert!(warnings.contains("cannot join yet"), "{warnings}");
    reader.kill_within(SOON);
}

#[test]
fn a_mount_without_multicast_says_since_when_and_why() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(2));
    let _server = lab.server().start();
    lab.client(1).drop_multicast();
    let mount = lab.mount(1).start();
    let path = mount.join("image");
    assert_eq!(digest_of(&path), image.digest);
    let status = status(&mount);
    assert!(status["multicast_lost_s"].is_u64(), "{status}");
    let why = status["multicast_lost"].as_str().unwrap();
    assert!(why.contains("fetching over HTTP"), "{why}");
    assert!(status["totals"]["unicast_bytes"].as_u64() > Some(0), "{status}");
}

#[test]
fn with_modes_enforced_only_root_and_the_mounting_user_see_which_files_are_used() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 1000);
    let _server = lab.server().start();
    let program =
        "import os, sys; print(os.getxattr(sys.argv[1], 'user.bootcast.status').decode())";
    for (options, shown) in [("allow_other", 1), ("allow_other,default_permissions", 0)] {
        let mount = lab.mount(1).option(options).start();
        assert_eq!(digest_of(mount.join("image")), image.digest);
        let args = ["-u", "nobody", "--", "python3", "-c", program, text(mount.path())];
        let printed = lab.client(1).run("runuser", args);
        assert!(printed.status.success(), "{printed:?}");
        let seen: Value = serde_json::from_slice(&printed.stdout).unwrap();
        assert_eq!(seen["files"].as_array().unwrap().len(), shown, "{options}: {seen}");
        assert_eq!(status(&mount)["files"].as_array().unwrap().len(), 1);
    }
}

/// Runs `bootcast status` for a directory of a client. Returns its exit code and what it printed.
fn run_status(lab: &Lab, args: &[&str]) -> (Option<i32>, String) {
    let program = binary("bootcast");
    let args: Vec<_> = ["status"].iter().chain(args).collect();
    let output = lab.client(1).run(text(&program), args);
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(printed).unwrap())
}

#[test]
fn bootcast_status_shows_a_mount_to_people_and_to_programs() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("an image", mib(16));
    let mut server = lab.server().option("--rate", CRAWL).start();
    let mount = lab.mount(1).option("unicast=never").start();
    let mut reader = lab.client(1).spawn("cat", [text(&mount.join("an image"))]);
    mount.wait_parked(1);
    let path = text(mount.path());
    let file = wait_for(SOON, "the server counts a member", || {
        let (code, json) = run_status(&lab, &["--json", path]);
        assert_eq!(code, Some(0), "{json}");
        let status: Value = serde_json::from_str(&json).unwrap();
        assert!(status["cache_bytes"].is_u64() && status["cache_free_bytes"].is_u64(), "{json}");
        let file = &status["files"][0];
        (file["members"] == 1).then(|| file.clone())
    });
    assert_eq!(file["path"], "an%20image");
    let (code, table) = run_status(&lab, &[path]);
    assert_eq!(code, Some(0), "{table}");
    let row = table.lines().find(|line| line.starts_with("an image ")).unwrap();
    assert!(row.contains('[') && row.contains(" for "), "{table}");
    server.kill();
    wait_until(TRANSFER, "the display says what is wrong", || {
        let (_, table) = run_status(&lab, &["--once", path]);
        let problems: Vec<_> = table.lines().filter(|line| line.starts_with("! ")).collect();
        let says = |what: &str| problems.iter().any(|line| line.contains(what));
        says("the server has not answered for") && says("waiting read")
    });
    reader.kill_within(SOON);
}

#[test]
fn bootcast_status_says_what_is_no_mount_and_what_is_a_dead_one() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("dir/image", 1000);
    let _server = lab.server().start();
    let mut mount = lab.mount(1).start();
    for path in [mount.join("dir").as_path(), Path::new("/proc"), lab.directory()] {
        let (code, message) = run_status(&lab, &[text(path)]);
        assert_eq!((code, message.lines().count()), (Some(2), 1), "{message}");
        assert!(message.contains("not the top directory of a bootcast mount"), "{message}");
    }
    let (code, message) = run_status(&lab, &["/nowhere"]);
    assert!(code == Some(2) && message.contains("/nowhere: No such file"), "{message}");
    mount.proc().kill_within(SOON);
    let (code, message) = run_status(&lab, &[text(mount.path())]);
    assert!(code == Some(2) && message.contains("the mount is dead"), "{message}");
}

#[test]
fn a_mount_serves_metrics_at_an_address_or_a_socket() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let _server = lab.server().start();
    let socket = lab.client(1).fresh_path("metrics");
    let at_socket = format!("metrics={}", text(&socket));
    let by_socket = ["-sS", "--unix-socket", text(&socket), "http://localhost/metrics"];
    let address = "127.0.0.1:9555";
    let url = format!("http://{address}/metrics");
    let by_address = ["-sS", "--noproxy", "*", &url];
    for (option, curl) in
        [(at_socket, &by_socket[..]), (format!("metrics={address}"), &by_address[..])]
    {
        let mount = lab.mount(1).option(&option).option("unicast=never").start();
        assert_eq!(digest_of(mount.join("image")), image.digest);
        let output = lab.client(1).run("curl", curl);
        let metrics = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{metrics}");
        let name = "bootcast_mount_received_bytes_total{by=\"multicast\"} ";
        let received = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert!(received.parse::<u64>().unwrap() > 0, "{metrics}");
        assert!(metrics.contains("server=\"10.77.0.1:8888\""), "{metrics}");
        mount.umount();
    }
    assert!(!socket.exists(), "the socket is removed at the end");
    // A file that is no dead socket is left alone, and the mount fails.
    fs::write(&socket, "precious").unwrap();
    let (path, options) = place(lab.client(1));
    let options = format!("{options},metrics={}", text(&socket));
    let program = binary("bootcastfs");
    let failed = lab.client(1).run(text(&program), ["10.77.0.1:/", text(&path), "-o", &options]);
    assert_eq!(failed.status.code(), Some(32), "{failed:?}");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("cannot serve metrics"), "{failed:?}");
    assert_eq!(fs::read(&socket).unwrap(), b"precious");
}

#[test]
fn a_file_that_is_opened_again_and_again_is_logged_once() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    let server = lab.server().start();
    let mount = lab.mount(1).option("linger=0s,fill=demand").start();
    for _ in 0..3 {
        drop(File::open(mount.join("image")).unwrap());
        server.wait_no_members();
    }
    assert_eq!(server.status().totals.joins, 3);
    let log = mount.log();
    let joins = log.lines().filter(|line| line.contains(" joined ")).count();
    assert_eq!(joins, 1, "{log}");
}

#[test]
fn the_mount_tells_that_a_pin_refused_a_file() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", 1000);
    let other = lab.put("other", 1000);
    let _server = lab.server().start();
    let pins = lab.client(1).fresh_path("pins");
    fs::write(&pins, format!("{}  image\n", b3(&other))).unwrap();
    let mount = lab.mount(1).option(&format!("pins={}", text(&pins))).start();
    assert!(File::open(mount.join("image")).is_err());
    let status = status(&mount);
    assert_eq!(status["pinned"], true);
    let warning = status["warnings"][0]["text"].as_str().unwrap();
    assert!(
        warning.contains("cannot open a pinned file") && warning.contains("/image"),
        "{status}"
    );
}
