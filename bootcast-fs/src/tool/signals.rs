//! Ends a command on a signal, after it left its cast and deleted partial files.

use std::fmt;
use std::io;

use tokio::signal::unix::SignalKind;

use super::error::ToolError;
use bootcast_host::signals::EndSignal;

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
    /// Returns the exit code that a shell reports for a death by this signal.
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

/// Handlers of the signals that end a command. Signals that were ignored at the start stay ignored.
#[derive(Debug)]
pub(super) struct Signals {
    hangup: EndSignal,
    interrupt: EndSignal,
    terminate: EndSignal,
}

impl Signals {
    /// Replaces the default action of the signals. Needs the tokio runtime.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: EndSignal::listen(SignalKind::hangup())?,
            interrupt: EndSignal::listen(SignalKind::interrupt())?,
            terminate: EndSignal::listen(SignalKind::terminate())?,
        })
    }

    /// Runs `work`. If a signal arrives first, drops `work` and fails.
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
