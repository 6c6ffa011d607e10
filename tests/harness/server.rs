//! `bootcast-server` on the head.

use std::ffi::OsString;
use std::path::PathBuf;

use bootcast_proto::DEFAULT_PORT;
use bootcast_proto::api::{CastStatus, Status};
use rustix::process::Signal;

use crate::binaries::binary;
use crate::host::Host;
use crate::lab::Lab;
use crate::process::Proc;
use crate::wait::{SOON, wait_until};

/// Options of a server that is not started yet.
#[derive(Debug)]
pub struct ServerBuilder<'lab> {
    host: &'lab Host,
    args: Vec<OsString>,
}

/// A running server.
#[derive(Debug)]
pub struct ServerProc<'lab> {
    host: &'lab Host,
    args: Vec<OsString>,
    log: PathBuf,
    proc: Option<Proc>,
}

impl<'lab> ServerBuilder<'lab> {
    pub(crate) fn new(lab: &'lab Lab, host: &'lab Host) -> Self {
        let args = [
            "--dir".into(),
            lab.served().into(),
            "--state-dir".into(),
            host.fresh_path("state").into(),
            "--listen".into(),
            format!("0.0.0.0:{DEFAULT_PORT}").into(),
            "--interface".into(),
            "eth0".into(),
            "--log".into(),
            "info".into(),
        ];
        Self { host, args: args.into() }
    }

    /// Adds an option, such as `("--rate", "50mbit")`.
    #[must_use]
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.args.extend([name.into(), value.into()]);
        self
    }

    /// Adds an option without a value, such as `--no-repair`.
    #[must_use]
    pub fn flag(mut self, name: &str) -> Self {
        self.args.push(name.into());
        self
    }

    /// Starts the server and waits until it listens.
    #[track_caller]
    pub fn start(self) -> ServerProc<'lab> {
        let log = self.host.fresh_path("server.log");
        let mut server = ServerProc { host: self.host, args: self.args, log, proc: None };
        server.start();
        server
    }
}

impl ServerProc<'_> {
    /// Starts the server again after [`ServerProc::kill`] or [`ServerProc::stop`], with the same
    /// options.
    #[track_caller]
    pub fn start(&mut self) {
        let mut command = self.host.command(binary("bootcast-server"));
        command.args(&self.args);
        let before = self.log().matches("listening").count();
        let mut proc = Proc::start(command, &self.log);
        wait_until(SOON, "the server says that it is listening", || {
            assert!(proc.exited().is_none(), "the server ended:\n{}", proc.log());
            proc.log().matches("listening").count() > before
        });
        self.proc = Some(proc);
    }

    /// Kills the server with SIGKILL, to simulate a crash.
    #[track_caller]
    pub fn kill(&mut self) {
        if let Some(mut proc) = self.proc.take() {
            proc.kill_within(SOON);
        }
    }

    /// Stops the server with SIGTERM, and requires exit status 0.
    #[track_caller]
    pub fn stop(&mut self) {
        if let Some(mut proc) = self.proc.take() {
            proc.signal(Signal::TERM);
            proc.wait_success(SOON);
        }
    }

    /// The server's process. Panics if the server is stopped.
    pub fn proc(&self) -> &Proc {
        self.proc.as_ref().expect("the server runs")
    }

    /// Log of the server, with that of earlier starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// URL of `path` on this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}:{DEFAULT_PORT}/{path}", self.host.address())
    }

    /// Answer to `GET /status`.
    #[track_caller]
    pub fn status(&self) -> Status {
        let answer = self.host.get(&self.url("status"));
        serde_json::from_str(&answer.body)
            .unwrap_or_else(|error| panic!("/status says {answer:?}: {error}"))
    }

    /// State of the running cast of the file `path`; `None` if there is no such cast.
    #[track_caller]
    pub fn cast_of(&self, path: &str) -> Option<CastStatus> {
        self.status().casts.into_iter().find(|cast| cast.path == path)
    }

    /// Waits until the running cast of `path` satisfies `condition`.
    #[track_caller]
    pub fn wait_cast(&self, path: &str, what: &str, condition: impl Fn(&CastStatus) -> bool) {
        wait_until(SOON, what, || self.cast_of(path).is_some_and(|cast| condition(&cast)));
    }

    /// Waits until no member is left in any cast.
    #[track_caller]
    pub fn wait_no_members(&self) {
        wait_until(SOON, "every member has left", || {
            self.status().casts.iter().all(|cast| cast.members == 0)
        });
    }
}
