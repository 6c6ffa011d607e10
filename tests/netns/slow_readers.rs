//! `bootcast get -O -` with a reader that is slower than the network, and with little space for the
//! spool.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use harness::binaries::binary;
use harness::{Lab, SOON, ServerProc, lab_or_skip, mib, wait_for, wait_until};

use crate::outputs::small_disk;

/// A get that writes to a pipe, which the test reads when it likes. Killed when dropped.
struct PipedGet {
    child: Child,
    pipe: ChildStdout,
}

impl PipedGet {
    /// Starts a get on client 1, with its spool in `tmpdir`.
    fn start(lab: &Lab, tmpdir: &Path, options: &[&str]) -> Self {
        let mut command = lab.client(1).command(binary("bootcast"));
        command.args(["get", "--interface", "eth0", &lab.url("image"), "-O", "-"]).args(options);
        command.env("TMPDIR", tmpdir).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let pipe = child.stdout.take().unwrap();
        Self { child, pipe }
    }

    /// Reads the rest of the output. Returns it with the exit code and standard error.
    fn finish(mut self) -> (Vec<u8>, Option<i32>, String) {
        let mut bytes = Vec::new();
        self.pipe.read_to_end(&mut bytes).unwrap();
        let status = wait_for(SOON, "the get ends", || self.child.try_wait().unwrap());
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (bytes, status.code(), errors)
    }

    /// Reads the rest of the output, and requires that it equals `expected`.
    #[track_caller]
    fn finish_with(self, expected: &[u8]) {
        let (bytes, code, errors) = self.finish();
        assert_eq!(code, Some(0), "{errors}");
        assert!(bytes == expected, "{} other bytes than {}", bytes.len(), expected.len());
    }
}

impl Drop for PipedGet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server that is faster than the readers in these tests.
fn start_server(lab: &Lab) -> ServerProc<'_> {
    lab.server().option("--rate", "500mbit").start()
}

/// Waits until the get has joined a cast and left it.
fn wait_left(server: &ServerProc<'_>) {
    wait_until(SOON, "the get has left the cast", || server.status().totals.leaves > 0);
}

#[test]
fn a_reader_that_pauses_gets_the_file_although_the_spool_is_small() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64) + 3);
    let server = start_server(&lab);
    let reading = PipedGet::start(&lab, &small_disk(lab.client(1), 16), &[]);
    wait_left(&server);
    reading.finish_with(&fs::read(&image.path).unwrap());
    assert_eq!(server.status().totals.joins, 1);
}

#[test]
fn a_reader_that_pauses_gets_its_range_although_the_spool_is_small() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64));
    let _server = start_server(&lab);
    let range = format!("{}-{}", mib(1) + 1, mib(60));
    let reading = PipedGet::start(&lab, &small_disk(lab.client(1), 8), &["--range", &range]);
    let asked = usize::try_from(mib(1) + 1).unwrap()..=usize::try_from(mib(60)).unwrap();
    reading.finish_with(&fs::read(&image.path).unwrap()[asked]);
}

#[test]
fn without_a_directory_for_the_spool_a_bounded_part_is_spooled_in_memory() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(96));
    let server = start_server(&lab);
    let reading = PipedGet::start(&lab, &lab.client(1).fresh_path("no-such-directory"), &[]);
    wait_left(&server);
    reading.finish_with(&fs::read(&image.path).unwrap());
}

#[test]
fn versions_of_a_file_that_changes_while_the_reader_pauses_never_mix() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(64));
    let old = fs::read(&image.path).unwrap();
    let server = start_server(&lab);
    let reading = PipedGet::start(&lab, &small_disk(lab.client(1), 16), &[]);
    wait_left(&server);
    let new = lab.put("new-version", mib(64));
    fs::rename(&new.path, &image.path).unwrap();
    let (bytes, code, errors) = reading.finish();
    assert_eq!(code, Some(7), "{errors}");
    assert!(bytes.len() < old.len() && old.starts_with(&bytes), "{} other bytes", bytes.len());
    assert!(errors.contains("changed on the server"), "{errors}");
}
