//! Destination of log lines: standard error in the foreground, syslog in the background.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Filter used when none is given.
const DEFAULT_FILTER: &str = "info";

/// Where the FUSE library logs that nobody took a reply. It calls that an error, and each reader
/// that is killed while it waits would be a line. Logged only if the filter names `fuser`.
const LOST_REPLIES: &str = "fuser::reply";

/// Parses a level such as `debug`, or several of `level` and `module=level` with commas between.
///
/// A word that is neither is refused. `Targets` alone would take it for the name of a module, and a
/// misspelt level would silence everything.
pub(crate) fn parse_filter(text: &str) -> Option<Targets> {
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_known = |part: &str| part.contains('=') || is_level(part);
    if !text.split(',').all(|part| is_known(part.trim())) {
        return None;
    }
    text.parse().ok()
}

/// Whether `text` can be given to [`to_stderr`] and [`to_syslog`].
pub fn is_filter(text: &str) -> bool {
    parse_filter(text).is_some()
}

/// Starts logging to standard error. `None` means the default filter.
pub fn to_stderr(filter: Option<&str>) {
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(stderr).with(targets(filter)).init();
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
    let syslog = tracing_subscriber::fmt::layer()
        .with_writer(syslog)
        .with_ansi(false)
        .without_time()
        .with_level(false);
    tracing_subscriber::registry().with(syslog).with(targets(filter)).init();
}

/// Ends the process when any of its threads panics, and says so in the log. A thread that is gone
/// would leave readers waiting for ever, while everything looks well.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        tracing::error!("{}", panic.to_string().replace('\n', " "));
        std::process::abort();
    }));
}

fn targets(filter: Option<&str>) -> Targets {
    let chosen = filter.and_then(parse_filter).or_else(|| parse_filter(DEFAULT_FILTER));
    let chosen = chosen.expect("the default is a filter");
    if filter.is_some_and(|filter| filter.contains("fuser")) {
        return chosen;
    }
    chosen.with_target(LOST_REPLIES, LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use tracing::Level;

    use super::*;

    #[test]
    fn a_filter_is_a_level_or_levels_of_modules() {
        for (text, module, level, is_logged) in [
            ("info", "any", Level::INFO, true),
            ("info", "any", Level::DEBUG, false),
            ("OFF", "any", Level::ERROR, false),
            ("info,bootcast_fs=debug", "bootcast_fs::io", Level::DEBUG, true),
            ("info, bootcast_fs=debug", "hyper", Level::DEBUG, false),
            ("bootcast_fs=trace", "hyper", Level::ERROR, false),
        ] {
            let targets = parse_filter(text).expect(text);
            assert_eq!(targets.would_enable(module, &level), is_logged, "{text}: {module} {level}");
        }
        for text in ["", "inof", "info,hyper", "hyper=loud", "==[", "info,,debug"] {
            assert!(!is_filter(text), "{text:?}");
        }
    }

    #[test]
    fn a_thread_that_panics_ends_the_process() {
        const IS_CHILD: &str = "BOOTCAST_TEST_PANIC";
        const NAME: &str = "mount::logging::tests::a_thread_that_panics_ends_the_process";
        if std::env::var_os(IS_CHILD).is_some() {
            abort_on_panic();
            let _ = std::thread::spawn(|| panic!("out of pages")).join();
            // Reached only where the panic ended nothing but its thread.
            std::process::exit(0);
        }
        let this = std::env::current_exe().unwrap();
        let child = std::process::Command::new(this)
            .args(["--exact", NAME, "--nocapture"])
            .env(IS_CHILD, "1")
            .output()
            .unwrap();
        assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{child:?}");
        assert!(String::from_utf8_lossy(&child.stderr).contains("out of pages"), "{child:?}");
    }

    #[test]
    fn replies_that_nobody_takes_are_logged_only_where_a_filter_asks_for_them() {
        let is_logged = |filter| targets(filter).would_enable("fuser::reply", &Level::ERROR);
        assert!(!is_logged(None) && !is_logged(Some("debug")));
        assert!(is_logged(Some("info,fuser=debug")));
        assert!(targets(None).would_enable("fuser::session", &Level::ERROR));
    }
}
