//! What crosses a host's `eth0`, as `tcpdump` tells it.

use rustix::process::Signal;

use crate::host::Host;
use crate::process::Proc;
use crate::wait::{SOON, wait_until};

/// A running `tcpdump`.
#[derive(Debug)]
pub struct Capture {
    proc: Proc,
}

impl Capture {
    /// Begins to print every packet that matches `filter`, a pcap filter such as `igmp`.
    #[track_caller]
    pub fn start(host: &Host, filter: &str) -> Self {
        let mut proc = host.spawn("tcpdump", ["-ln", "--immediate-mode", "-i", "eth0", filter]);
        wait_until(SOON, "tcpdump listens", || {
            assert!(proc.exited().is_none(), "tcpdump ended:\n{}", proc.log());
            proc.log().contains("listening on eth0")
        });
        Self { proc }
    }

    /// The packets up to now, one a line.
    pub fn lines(&self) -> Vec<String> {
        self.proc.log().lines().filter(|line| line.contains(" IP ")).map(Into::into).collect()
    }

    /// Waits until a packet's line contains `text`.
    #[track_caller]
    pub fn wait_line(&self, text: &str) {
        wait_until(SOON, &format!("a packet with {text:?}"), || {
            self.lines().iter().any(|line| line.contains(text))
        });
    }

    /// Ends it and gives all lines.
    #[track_caller]
    pub fn stop(mut self) -> Vec<String> {
        self.proc.signal(Signal::INT);
        self.proc.wait(SOON);
        self.lines()
    }
}
