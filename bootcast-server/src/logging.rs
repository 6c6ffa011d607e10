//! Logging to standard error. No thread ever waits for it.
//!
//! A terminal that was paused or a pipe that nobody reads blocks whoever writes to it. Therefore a
//! thread of its own writes the lines. If it cannot keep up, lines are dropped and counted.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::io::threads;

/// Maximum number of lines that wait to be written: about 1 MiB.
const MAX_LINES: usize = 8192;

/// Time between two looks at the number of dropped lines.
const DROPPED_INTERVAL: Duration = Duration::from_secs(10);

/// Keeps the writing thread alive. When dropped, it waits a moment for the last lines.
#[must_use]
#[derive(Debug)]
pub struct Logging {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
}

impl Logging {
    /// Sets up logging of what the filter lets through, and of panics.
    pub fn start(filter: Targets) -> Self {
        let (lines, writer) = NonBlockingBuilder::default()
            .buffered_lines_limit(MAX_LINES)
            .lossy(true)
            .thread_name("log")
            .finish(std::io::stderr());
        let dropped = lines.error_counter();
        let is_terminal = std::io::stderr().is_terminal();
        let layer = tracing_subscriber::fmt::layer().with_writer(lines).with_ansi(is_terminal);
        tracing_subscriber::registry().with(layer).with(filter).init();
        std::panic::set_hook(Box::new(log_panic));
        Self { _writer: writer, dropped }
    }

    /// Returns a task that warns about lines that were dropped. It never ends.
    pub fn warn_of_dropped(&self) -> impl Future<Output = ()> + Send + use<> {
        let dropped = self.dropped.clone();
        async move {
            let mut known = 0;
            loop {
                tokio::time::sleep(DROPPED_INTERVAL).await;
                let lines = dropped.dropped_lines();
                if lines > known {
                    let since = lines - known;
                    tracing::warn!(lines = since, "standard error was blocked: lines were dropped");
                    known = lines;
                }
            }
        }
    }
}

/// Logs a panic. The usual hook would write to standard error itself, and might wait for it.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let reason = threads::reason_of(panic.payload());
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(thread, place, "panicked: {reason}");
}
