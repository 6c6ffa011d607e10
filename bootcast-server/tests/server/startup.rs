//! Start and stop of the process: errors at the start, signals, and the service manager.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{DEADLINE, Server, command};

#[test]
fn an_invalid_configuration_is_explained_and_exits_with_2() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("file"), "bytes").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = listener.local_addr().unwrap().to_string();
    let file = dir.path().join("file");
    let file = file.to_str().unwrap();
    for (args, text) in [
        (["--dir", "/no/such/directory"], "--dir"),
        (["--dir", file], "--dir"),
        (["--listen", &in_use], "--listen"),
        (["--interface", "no-such-0"], "lo (127.0.0.1)"),
        (["--interface", "192.0.2.77"], "lo (127.0.0.1)"),
        (["--groups", "192.168.0.0/16"], "not multicast"),
        (["--groups", "224.0.0.0/24"], "no usable group"),
        (["--groups", "224.0.1.1/32"], "no usable group"),
        (["--groups", "239.255.255.248/29"], "SSDP"),
        (["--groups", "232.1.1.0/24"], "RFC 4607"),
        (["--groups", "239.255.0.0"], "--groups"),
        (["--page-size", "0"], "1 to 65491"),
        (["--page-size", "65492"], "1 to 65491"),
        (["--rate", "fast"], "900mbit"),
        (["--rate", "0"], "900mbit"),
        (["--rate", "5"], "needs a unit"),
        (["--rate", "5bit"], "100kbit"),
        (["--lease", "60"], "--lease"),
        (["--lease", "99999999999999999999s"], "--lease"),
        (["--ttl", "0"], "--ttl"),
        (["--idle-passes", "0"], "--idle-passes"),
        (["--linger", "long"], "--linger"),
        (["--linger", "9999999999years"], "--linger"),
        (["--linger", "2days"], "more than a day"),
        (["--log", "=,=["], "--log"),
        (["--log", "inof"], "--log"),
        (["--interleave", "513"], "--interleave"),
        (["--repair-port", "0"], "--repair-port"),
        (["--data-port", "65535"], "--repair-port"),
    ] {
        let mut command = command(dir.path(), &dir.path().join("state"));
        let output = command.args(args).env("BOOTCAST_LOG", "warn").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(text), "{args:?}: {stderr}");
    }
}

#[test]
fn a_signal_ends_the_casts_and_the_server_exits_with_0() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut server = Server::start(&[]);
        server.write("file", b"bytes");
        server.get("/join/file");
        // An idle connection must not delay the exit.
        let _idle = std::net::TcpStream::connect(server.address()).unwrap();
        assert_eq!(server.stop_with(signal).code(), Some(0));
        crate::process::wait_for("the end of the cast in the log", || {
            server.log().contains("reason=server stops").then_some(())
        });
    }
}

#[test]
fn the_service_manager_is_notified_when_the_server_listens() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command = command(dir.path(), &dir.path().join("state"));
    let mut child = command.env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let mut message = [0; 64];
    let received = socket.recv(&mut message).map(|len| message[..len].to_vec());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(received.unwrap().starts_with(b"READY=1"));
}

#[test]
fn a_log_that_nobody_reads_delays_no_answer() {
    let server = Server::start(&["--log", "debug"]);
    server.write("file", b"bytes");
    let unread = server.leave_log_unread();
    // Each join is logged in about 150 bytes, and a pipe holds 64 KiB.
    for _ in 0..1500 {
        assert_eq!(server.get("/join/file").status, 200);
    }
    assert_eq!(server.status().casts[0].joins, 1500);
    drop(unread);
}
