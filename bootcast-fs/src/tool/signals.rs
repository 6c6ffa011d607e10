//! Signals that end a command in an orderly way: what was begun is left and removed first.

use std::fmt;
use std::io;

use tokio::signal::unix::{self, SignalKind};

use super::error::ToolError;

/// A signal that asks for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// The terminal went away.
    Hangup,
    /// Ctrl-C.
    Interrupt,
    /// A polite kill.
    Terminate,
}

impl Signal {
    /// As a shell reports a death by this signal.
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::Hangup => 128 + 1,
            Self::Interrupt => 128 + 2,
            Self::Terminate => 128 + 15,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangup => "hung up",
            Self::Interrupt => "interrupted",
            Self::Terminate => "terminated",
        })
    }
}

/// Listens from its making on.
#[derive(Debug)]
pub(super) struct Signals {
    hangup: unix::Signal,
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl Signals {
    /// Takes the signals over from the kernel's default. Needs the runtime.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: unix::signal(SignalKind::hangup())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
        })
    }

    /// Does `work` unless a signal comes first.
    pub(super) async fn guard<T>(
        &mut self,
        work: impl Future<Output = Result<T, ToolError>>,
    ) -> Result<T, ToolError> {
        let signal = tokio::select! {
            done = work => return done,
            _ = self.hangup.recv() => Signal::Hangup,
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        };
        Err(ToolError::Signal(signal))
    }
}
