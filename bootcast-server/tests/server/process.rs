//! Starts server processes, each with directories of its own.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::http::{Response, request};

/// Time after which a condition counts as failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Time between two checks of a condition.
const POLL: Duration = Duration::from_millis(5);

pub(crate) struct Server {
    pub(crate) dir: Arc<TempDir>,
    pub(crate) state_dir: Arc<TempDir>,
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// Creates the command of a server on loopback with free ports. Tests run in parallel, and servers
/// that send to the same group and port would disturb each other.
pub(crate) fn command(dir: &Path, state_dir: &Path) -> Command {
    let data_port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // A shell may start the tests in the background with signals ignored; children inherit that.
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_bootcast-server")]);
    command.args(["--listen", "127.0.0.1:0", "--interface", "lo", "--data-port"]);
    command.arg(data_port.to_string()).arg("--dir").arg(dir);
    command.arg("--state-dir").arg(state_dir);
    command
}

/// Polls until `poll` returns a value. Panics with `what` after the [`DEADLINE`].
pub(crate) fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(POLL);
    }
}

impl Server {
    /// Starts a server of new directories with these arguments. Returns when it listens.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_in(Arc::new(TempDir::new().unwrap()), Arc::new(TempDir::new().unwrap()), args)
    }

    /// Stops the server, and starts another one of the same directories.
    pub(crate) fn restart(self) -> Self {
        self.restart_with(&[])
    }

    /// Stops the server, and starts another one of the same directories with these arguments.
    pub(crate) fn restart_with(mut self, args: &[&str]) -> Self {
        self.stop_with(Signal::TERM);
        Self::start_in(Arc::clone(&self.dir), Arc::clone(&self.state_dir), args)
    }

    fn start_in(dir: Arc<TempDir>, state_dir: Arc<TempDir>, args: &[&str]) -> Self {
        let mut command = command(dir.path(), state_dir.path());
        let mut child = command.args(args).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, lines) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = lines.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let address = wait_for("listening addr=", || {
            let log = log.lock().unwrap();
            let line = log.lines().find_map(|line| line.split_once("listening addr="))?.1;
            line.trim().parse().ok()
        });
        Self { dir, state_dir, child, address, log }
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        request(self.address, "GET", path, &[])
    }

    pub(crate) fn status(&self) -> bootcast_proto::api::Status {
        serde_json::from_slice(&self.get("/status").body).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Stops reading the log until the guard is dropped.
    pub(crate) fn leave_log_unread(&self) -> MutexGuard<'_, String> {
        self.log.lock().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends a signal and waits for the end of the process.
    pub(crate) fn stop_with(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        wait_for("the end of the process", || self.child.try_wait().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the server\n{}", self.log());
        }
    }
}
