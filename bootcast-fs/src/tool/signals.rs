//! Signals that end a command in an orderly way: it leaves its cast and deletes partial files
//! first.

use std::fmt;
use std::io;

use tokio::signal::unix::SignalKind;

use super::error::ToolError;
use crate::signals::EndSignal;

/// A signal that ends the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGHUP: the terminal was closed.
    Hangup,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: the usual kill.
    Terminate,
}

impl Signal {
    /// Exit code by which a shell reports death by this signal.
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

/// Listens for signals from its creation on. Those that were ignored before stay ignored.
#[derive(Debug)]
pub(super) struct Signals {
    hangup: EndSignal,
    interrupt: EndSignal,
    terminate: EndSignal,
}

impl Signals {
    /// Replaces the default action of the signals. Needs the runtime.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: EndSignal::listen(SignalKind::hangup())?,
            interrupt: EndSignal::listen(SignalKind::interrupt())?,
            terminate: EndSignal::listen(SignalKind::terminate())?,
        })
    }

    /// Runs `work` unless a signal arrives first.
    pub(super) async fn guard<T>(
        &mut self,
        work: impl Future<Output = Result<T, ToolError>>,
    ) -> Result<T, ToolError> {
        let signal = tokio::select! {
            done = work => return done,
            () = self.hangup.recv() => Signal::Hangup,
            () = self.interrupt.recv() => Signal::Interrupt,
            () = self.terminate.recv() => Signal::Terminate,
        };
        Err(ToolError::Signal(signal))
    }
}
