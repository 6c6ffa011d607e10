//! One host of the lab: a network namespace with an `eth0`.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::link;
use crate::process::Proc;

/// Directory in which `ip netns` keeps a file for each namespace.
pub(crate) const NAMESPACES: &str = "/run/netns";

/// Longest time for an HTTP request of a test.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);

/// A host of the lab.
#[derive(Debug)]
pub struct Host {
    namespace: String,
    address: Ipv4Addr,
    directory: PathBuf,
    next_file: AtomicU32,
}

/// An HTTP answer with any status.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body as text.
    pub body: String,
}

/// Counters of a host's `eth0` since the lab was built.
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    /// Bytes received, Ethernet headers included. A GSO packet that was not split counts with one
    /// header.
    pub rx_bytes: u64,
    /// Bytes sent, counted like `rx_bytes`.
    pub tx_bytes: u64,
}

impl Host {
    pub(crate) fn new(namespace: String, address: Ipv4Addr, directory: PathBuf) -> Self {
        Self { namespace, address, directory, next_file: AtomicU32::new(0) }
    }

    /// Name of the network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Address of `eth0`.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Returns an unused path in the lab's directory, such as `c1-3-log`.
    pub fn fresh_path(&self, purpose: &str) -> PathBuf {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        self.directory.join(format!("{self}-{number}-{purpose}"))
    }

    /// Creates a command that runs on this host. Its process dies with the test's thread.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NAMESPACES}/{}", self.namespace));
        command.args(["--", "setpriv", "--pdeathsig", "KILL", "--"]);
        // The tests may run with signals ignored, as under nohup, and programs inherit that.
        command.args(["env", "--default-signal=HUP,INT,TERM"]).arg(program);
        command
    }

    /// Starts a program on this host.
    #[track_caller]
    pub fn spawn<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Proc {
        let mut command = self.command(program);
        command.args(args);
        Proc::start(command, &self.fresh_path("log"))
    }

    /// Runs a program on this host and waits until it ends.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Output {
        let mut command = self.command(program);
        command.args(args);
        command.output().unwrap_or_else(|error| panic!("starting {command:?}: {error}"))
    }

    /// Like [`Host::run`], but requires success and returns the output.
    #[track_caller]
    pub fn run_ok<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> String {
        let program = program.as_ref();
        let output = self.run(program, args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {}: {errors}", program.display(), output.status);
        String::from_utf8_lossy(&output.stdout).into()
    }

    /// Runs `job` on a thread in this host's network namespace.
    pub fn enter<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let path = Path::new(NAMESPACES).join(&self.namespace);
        let entered = std::thread::scope(|scope| {
            let job = scope.spawn(|| {
                let namespace = File::open(&path).expect("the namespace of a host");
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("entering the namespace of a host");
                job()
            });
            job.join()
        });
        entered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Sends a GET request with `headers` from this host.
    #[track_caller]
    pub fn get_with(&self, url: &str, headers: &[(&str, &str)]) -> Answer {
        let answer = self.enter(|| request(url, headers));
        answer.unwrap_or_else(|error| panic!("GET {url} from {self}: {error}"))
    }

    /// Sends a GET request from this host.
    #[track_caller]
    pub fn get(&self, url: &str) -> Answer {
        self.get_with(url, &[])
    }

    /// Blocks all multicast datagrams to this host.
    pub fn drop_multicast(&self) {
        link::drop_multicast(&self.namespace);
    }

    /// Lets multicast datagrams through again.
    pub fn pass_multicast(&self) {
        link::pass_multicast(&self.namespace);
    }

    /// Counts the multicast that leaves by `eth0` from now on.
    pub fn count_multicast(&self) {
        link::count_multicast(&self.namespace);
    }

    /// Bytes that [`Host::count_multicast`] has counted, in the way of [`Counters`].
    pub fn multicast_bytes(&self) -> u64 {
        link::multicast_bytes(&self.namespace)
    }

    /// Counters of `eth0`.
    pub fn counters(&self) -> Counters {
        let text = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        let text = text.expect("the interface counters");
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
        let fields: Vec<u64> = line
            .expect("every host has an eth0")
            .split_whitespace()
            .map(|field| field.parse().expect("a counter"))
            .collect();
        Counters { rx_bytes: fields[0], tx_bytes: fields[8] }
    }

    /// Whether this host is subscribed to any multicast group other than "all hosts" (224.0.0.1).
    pub fn is_in_a_group(&self) -> bool {
        let text = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/igmp"));
        text.expect("the groups of a host")
            .lines()
            .filter(|line| line.starts_with("\t\t"))
            .any(|line| !line.trim_start().starts_with("010000E0"))
    }
}

/// Sends one GET request on a connection of its own.
///
/// Does not use an HTTP library: it would normalise paths such as `join/%2e%2e/x`, which some tests
/// must send as they are.
fn request(url: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let (host, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(|| invalid("not http://HOST:PORT/PATH".into()))?;
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(HTTP_TIMEOUT))?;
    let mut request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.extend([*name, ": ", *value, "\r\n"]);
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let parts = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, body: body.to_owned() })
    });
    parts.ok_or_else(|| invalid(format!("no HTTP answer: {answer:?}")))
}

impl fmt::Display for Host {
    /// Writes the name of the host: `head`, `c1`, ..
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.namespace.rsplit('-').next().unwrap_or_default())
    }
}
