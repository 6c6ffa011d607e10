//! Destination of log lines: standard error in the foreground, syslog in the background.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Filter used when none is given.
const DEFAULT_FILTER: &str = "info";

/// Whether `text` is a valid filter for [`to_stderr`] and [`to_syslog`].
pub fn is_filter(text: &str) -> bool {
    text.parse::<EnvFilter>().is_ok()
}

/// Starts logging to standard error. `None` means the default filter.
pub fn to_stderr(filter: Option<&str>) {
    tracing_subscriber::fmt()
        .with_env_filter(env_filter(filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Starts logging to `/dev/log`, which the journal reads as well. If nothing listens there, lines
/// are lost and nothing waits.
pub fn to_syslog(filter: Option<&str>) {
    let options = syslog_tracing::Options::LOG_PID;
    // `None` only if the process already has such a logger.
    let Some(syslog) =
        syslog_tracing::Syslog::new(c"bootcastfs", options, syslog_tracing::Facility::Daemon)
    else {
        return;
    };
    // Journal and syslogd add the time and show the level themselves.
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
