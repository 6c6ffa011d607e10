//! A file system that is mounted below the served directory hangs. The rest of the tree does not.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use bootcast_proto::DEFAULT_PORT;
use harness::content::Image;
use harness::lab::HEAD_ADDRESS;
use harness::{Lab, MountProc, ServerProc, lab_or_skip, wait_until};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

use crate::TRANSFER;
use crate::transfers::{Copy, Get};

/// Number of requests below one directory. More than the server looks up or lists there at a time.
const REQUESTS: usize = 300;

/// Size of a file that takes a while to be cast, in bytes.
const LARGE: u64 = 40_000_000;

/// Mounts the served directory `inner`, with the file `file`, on client 1 and again as `hung` in
/// the served directory. The server must run. A stopped daemon makes names in `hung` hang.
fn mount_below_the_served_directory(lab: &Lab) -> MountProc<'_> {
    lab.put("inner/file", 1000);
    let source = format!("{HEAD_ADDRESS}:/inner");
    let mount = lab.mount(1).source(&source).option("attr_ttl=0").start();
    let hung = lab.served().join("hung");
    std::fs::create_dir(&hung).unwrap();
    let bound = Command::new("mount").arg("--bind").args([mount.path(), &hung]).status().unwrap();
    assert!(bound.success());
    mount
}

/// Sends a request and does not wait for the answer. Must be called on a client.
fn send_request(path: &str) -> TcpStream {
    let mut stream = TcpStream::connect((HEAD_ADDRESS, DEFAULT_PORT)).unwrap();
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    stream
}

#[test]
fn a_submount_that_hangs_delays_no_other_name() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("fine/file", 1000);
    let image = lab.put("image", 100_000);
    let _server = lab.server().start();
    let mut mount = mount_below_the_served_directory(&lab);
    let host = lab.client(1);
    assert!(host.get(&lab.url("meta/hung/")).body.contains(r#""name":"file""#));

    mount.proc().signal(Signal::STOP);
    let _waiting: Vec<TcpStream> = host.enter(|| {
        let send = |k| {
            let name = ["hung/", "hung/file", "hung"][k % 3];
            let endpoint = ["meta", "join", "file", "meta"][k % 4];
            send_request(&format!("{endpoint}/{name}"))
        };
        (0..REQUESTS).map(send).collect()
    });
    mount.wait_parked(20);
    for path in ["meta/fine/", "meta/image", "meta/image?entries=0", "file/fine/file", "status"] {
        assert_eq!(host.get(&lab.url(path)).status, 200, "{path}");
    }
    let listing = host.get(&lab.url("meta/")).body;
    assert!(listing.contains(r#"{"name":"hung","kind":"directory""#), "{listing}");
    Get::start(&lab, 1, &image).finish(&image);

    mount.proc().signal(Signal::CONT);
    wait_until(TRANSFER, "the submount is served again", || {
        host.get(&lab.url("meta/hung/")).status == 200
    });
}

#[test]
fn while_one_name_hangs_a_mount_shows_its_cached_attributes_and_fresh_ones_of_others() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    lab.put("image", 1000);
    let _server = lab.server().start();
    let mut inner = mount_below_the_served_directory(&lab);
    let mount = lab.mount(2).option("attr_ttl=0").start();
    let stat = |name: &str| std::fs::metadata(mount.join(name)).unwrap().len();
    assert_eq!((stat("hung/file"), stat("image")), (1000, 1000));
    // A lookup of a name that the kernel forgot would wait for the server.
    let known =
        rustix::fs::open(mount.join("hung/file"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .unwrap();

    inner.proc().signal(Signal::STOP);
    assert_eq!(stat("hung/file"), 1000, "the cached attributes");
    lab.put("image", 2000);
    assert_eq!(stat("image"), 2000);
    let log = mount.log();
    assert!(log.contains("showing cached"), "{log}");
    assert!(!log.contains("answers again"), "{log}");
    drop(known);
    inner.proc().signal(Signal::CONT);
}

/// A cast of `hung/large` that has begun, and its member.
struct SlowCast<'lab> {
    server: ServerProc<'lab>,
    mount: MountProc<'lab>,
    get: Get,
    /// The file as the member must receive it.
    large: Image,
}

impl<'lab> SlowCast<'lab> {
    /// Starts a server, and a `bootcast get` of `hung/large` on client 2.
    fn start(lab: &'lab Lab) -> Self {
        let inner = lab.put("inner/large", LARGE);
        let server = lab.server().option("--rate", "50mbit").start();
        let mount = mount_below_the_served_directory(lab);
        let large = Image { name: "hung/large".into(), ..inner };
        let get = Get::start(lab, 2, &large);
        server.wait_cast("hung/large", "has sent pages", |cast| cast.pages_sent > 0);
        Self { server, mount, get, large }
    }
}

/// Requires that other casts begin and complete, and that requests are answered, while the cast of
/// `hung/large` to `slow` is incomplete.
fn assert_others_go_on(lab: &Lab, server: &ServerProc<'_>, slow: &mut Get) {
    let image = lab.put("image", 3_000_000);
    // The pages come by multicast or not at all.
    let mount = lab.mount(2).option("unicast=never").start();
    Copy::start_on(mount, &image).finish(&image);
    assert_eq!(lab.client(2).get(&lab.url("join/image")).status, 200);
    let slow_cast = server.cast_of("hung/large").expect("its member waits");
    assert!(slow_cast.pages_sent > 0 && slow_cast.passes == 0, "{slow_cast:?}");
    assert!(slow.proc.exited().is_none());
}

#[test]
fn a_file_that_hangs_while_it_is_cast_stops_no_other_cast() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let mut slow = SlowCast::start(&lab);
    slow.mount.proc().signal(Signal::STOP);
    slow.mount.wait_parked(1);
    assert_others_go_on(&lab, &slow.server, &mut slow.get);
    slow.mount.proc().signal(Signal::CONT);
    slow.get.finish(&slow.large);
}

#[test]
fn a_file_that_is_read_slowly_does_not_slow_other_casts_down() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let mut slow = SlowCast::start(&lab);
    let daemon = slow.mount.proc();
    std::thread::scope(|threads| {
        let (running, stopped) = mpsc::channel::<()>();
        // The daemon runs a twentieth of the time.
        threads.spawn(move || {
            let is_over = |time| stopped.recv_timeout(time) != Err(RecvTimeoutError::Timeout);
            while !is_over(Duration::from_millis(5)) {
                daemon.signal(Signal::STOP);
                is_over(Duration::from_millis(95));
                daemon.signal(Signal::CONT);
            }
        });
        assert_others_go_on(&lab, &slow.server, &mut slow.get);
        drop(running);
    });
    slow.get.finish(&slow.large);
}

#[test]
fn a_server_that_is_stopped_does_not_wait_for_a_file_system_that_hangs() {
    let lab = lab_or_skip!(Lab::builder());
    let mut server = lab.server().start();
    let mut inner = mount_below_the_served_directory(&lab);
    inner.proc().signal(Signal::STOP);
    let _waiting = lab.client(1).enter(|| send_request("meta/hung/file"));
    inner.wait_parked(1);
    server.stop();
    inner.proc().signal(Signal::CONT);
}
