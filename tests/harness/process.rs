//! A running program, which ends with the test.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{SOON, try_wait_for, wait_until};

/// A started program. It is killed when this is dropped, or by the kernel if the test dies first.
#[derive(Debug)]
pub struct Proc {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Proc {
    /// Starts `command`, with its output going to the file `log`.
    #[track_caller]
    pub fn start(mut command: Command, log: &Path) -> Self {
        let name = format!("{command:?}");
        let file = File::options().create(true).append(true).open(log);
        let file = file.unwrap_or_else(|error| panic!("opening {}: {error}", log.display()));
        let same_file = file.try_clone().expect("a second handle of the log");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(same_file).spawn();
        let child = child.unwrap_or_else(|error| panic!("starting {name}: {error}"));
        Self { name, child, log: log.into() }
    }

    /// Process id of the program itself; the wrappers that started it have replaced themselves.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The program's output so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into()).unwrap_or_default()
    }

    /// Sends a signal. Does nothing if the process has ended. Waits until SIGSTOP has stopped all
    /// threads: they may run on for a while where the machine is busy.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        // The child has not been waited for, so its id cannot belong to another process.
        let sent = kill_process(self.rustix_pid(), signal);
        if signal == Signal::STOP && sent.is_ok() {
            wait_until(SOON, &format!("{} is stopped", self.name), || self.is_stopped());
        }
    }

    fn is_stopped(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a running process");
        tasks.flatten().all(|task| {
            // The state follows the name, which is in parentheses.
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['T', 'Z', 'X']))
        })
    }

    /// Exit status, if the program has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|error| panic!("waiting for {}: {error}", self.name))
    }

    /// Waits until the program ends; panics when `deadline` has passed.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        try_wait_for(deadline, || self.exited()).unwrap_or_else(|| {
            panic!("{} still runs after {deadline:?}; it printed:\n{}", self.name, self.log())
        })
    }

    /// Waits until the program ends, and requires that it succeeds.
    #[track_caller]
    pub fn wait_success(&mut self, deadline: Duration) {
        let status = self.wait(deadline);
        assert!(status.success(), "{}: {status}; it printed:\n{}", self.name, self.log());
    }

    /// Sends SIGKILL and requires that it ends the process within `deadline`.
    #[track_caller]
    pub fn kill_within(&mut self, deadline: Duration) {
        self.signal(Signal::KILL);
        let status = self.wait(deadline);
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{}: {status}", self.name);
    }

    /// CPU time used so far, including the kernel's work for the process.
    pub fn cpu_time(&self) -> Duration {
        let stat = self.proc_file("stat");
        // The name, in parentheses, may contain spaces. User and system time are the 12th and 13th
        // field after it.
        let fields =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Peak resident memory in bytes.
    pub fn peak_rss_bytes(&self) -> u64 {
        let status = self.proc_file("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.expect("a running process has a peak") * 1024
    }

    fn proc_file(&self, name: &str) -> String {
        let path = format!("/proc/{}/{name}", self.pid());
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn rustix_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::KILL);
            if std::thread::panicking() {
                // A process that is stuck in the kernel may live on. The test has failed already.
                let _ = self.child.try_wait();
            } else {
                self.wait(SOON);
            }
        }
    }
}
