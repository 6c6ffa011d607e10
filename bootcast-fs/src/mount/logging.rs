//! Where log lines go: to standard error in the foreground, to syslog in the background.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// What is logged when nobody says.
const DEFAULT_FILTER: &str = "info";

/// Whether `text` can be given to [`to_stderr`] and [`to_syslog`].
pub fn is_filter(text: &str) -> bool {
    text.parse::<EnvFilter>().is_ok()
}

/// Logs to standard error from now on. `None` means the default.
pub fn to_stderr(filter: Option<&str>) {
    tracing_subscriber::fmt()
        .with_env_filter(env_filter(filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Logs to `/dev/log` from now on, which the journal reads as well. Where nobody listens there,
/// lines are lost and nothing waits.
pub fn to_syslog(filter: Option<&str>) {
    let options = syslog_tracing::Options::LOG_PID;
    // `None` only if a second logger is made in one process.
    let Some(syslog) =
        syslog_tracing::Syslog::new(c"bootcastfs", options, syslog_tracing::Facility::Daemon)
    else {
        return;
    };
    // The journal and syslogd set the time and show the level themselves.
    tracing_subscriber::fmt()
        .with_env_filter(env_filter(filter))
        .with_writer(syslog)
        .with_ansi(false)
        .without_time()
        .with_level(false)
        .init();
}

fn env_filter(filter: Option<&str>) -> EnvFilter {
    EnvFilter::new(filter.unwrap_or(DEFAULT_FILTER))
}
