//! Captures packets on a host's `eth0` with `tcpdump`.

use crate::host::Host;
use crate::process::Proc;
use crate::wait::{SOON, wait_until};

/// A running `tcpdump`.
#[derive(Debug)]
pub struct Capture {
    proc: Proc,
}

impl Capture {
    /// Starts `tcpdump`, which prints every packet that matches `filter` with its content as text.
    /// `filter` is a pcap filter such as `igmp`.
    #[track_caller]
    pub fn start(host: &Host, filter: &str) -> Self {
        let mut proc = host.spawn("tcpdump", ["-lnA", "--immediate-mode", "-i", "eth0", filter]);
        wait_until(SOON, "tcpdump listens", || {
            assert!(proc.exited().is_none(), "tcpdump ended:\n{}", proc.log());
            proc.log().contains("listening on eth0")
        });
        Self { proc }
    }

    /// Waits until `text` appears in a packet or in tcpdump's description of one.
    #[track_caller]
    pub fn wait_text(&self, text: &str) {
        wait_until(SOON, &format!("a packet with {text:?}"), || self.proc.log().contains(text));
    }

    /// Output of `tcpdump` so far.
    pub fn log(&self) -> String {
        self.proc.log()
    }
}
