//! Destination and filter of log lines: standard error in the foreground, syslog in the background,
//! the kernel's log if the mount is a root file system.

use std::fs::File;
use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::warnings::WarningRecorder;

/// Filter without `log=`.
const DEFAULT_FILTER: &str = "info";

/// Log target of the FUSE library for replies that the kernel did not accept. The library logs them
/// as errors, and each reader that is killed while it waits causes one. They are logged only if the
/// filter names `fuser`.
const LOST_REPLIES: &str = "fuser::reply";

/// Parses a level such as `debug`, or a list of `level` and `module=level` separated by commas.
///
/// Returns `None` for any other word. `Targets` alone would take it for the name of a module, so
/// that a misspelt level would silence everything.
pub(crate) fn parse_filter(text: &str) -> Option<Targets> {
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_valid = |part: &str| part.contains('=') || is_level(part);
    if !text.split(',').all(|part| is_valid(part.trim())) {
        return None;
    }
    text.parse().ok()
}

/// Whether `text` is a valid filter for [`to_stderr`] and the system log.
pub fn is_filter(text: &str) -> bool {
    parse_filter(text).is_some()
}

/// Starts logging to standard error. `None` means the default filter.
///
/// If systemd reads it, lines begin with the priority in the form that the journal understands
/// (sd-daemon(3)), and leave the time and the level to the journal.
pub fn to_stderr(filter: Option<&str>) {
    if is_read_by_journal() {
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(PriorityPrefix)
            .with_ansi(false)
            .without_time()
            .with_level(false);
        return init(lines.with_filter(targets(filter)));
    }
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    init(stderr.with_filter(targets(filter)));
}

/// Whether standard error is the stream to the journal that systemd opened: `JOURNAL_STREAM` has
/// its device and inode (systemd.exec(5)).
fn is_read_by_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stderr = rustix::fs::fstat(io::stderr());
    stderr.is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// Writes each line to standard error after its priority, such as `<6>`.
#[derive(Clone, Copy, Debug)]
struct PriorityPrefix;

/// Destination of one line.
#[derive(Debug)]
struct PrefixedLine<W>(&'static str, W);

impl<'a> MakeWriter<'a> for PriorityPrefix {
    type Writer = PrefixedLine<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        PrefixedLine(priority(Level::INFO), io::stderr())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        PrefixedLine(priority(*metadata.level()), io::stderr())
    }
}

impl<W: io::Write> io::Write for PrefixedLine<W> {
    /// Takes a whole event. Lines in it get a prefix each, or the journal would take them for
    /// lines of its default priority.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut prefixed = Vec::with_capacity(event.len() + self.0.len());
        for line in event.split_inclusive(|byte| *byte == b'\n') {
            prefixed.extend_from_slice(self.0.as_bytes());
            prefixed.extend_from_slice(line);
        }
        self.1.write_all(&prefixed)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

/// Returns the prefix of sd-daemon(3) for a level.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// Starts logging to `/dev/log`, which syslogd or the systemd journal reads. Lines are dropped, and
/// no thread waits, if neither listens there.
fn to_syslog(filter: Option<&str>) {
    let options = syslog_tracing::Options::LOG_PID;
    // `None` only if this process has a syslog logger already.
    let Some(syslog) =
        syslog_tracing::Syslog::new(c"bootcastfs", options, syslog_tracing::Facility::Daemon)
    else {
        return;
    };
    // The journal and syslogd add the time and show the level themselves.
    let syslog = tracing_subscriber::fmt::layer()
        .with_writer(syslog)
        .with_ansi(false)
        .without_time()
        .with_level(false);
    init(syslog.with_filter(targets(filter)));
}

/// Starts logging of a process without a terminal: to the kernel's log for a root file system, and
/// otherwise to syslog.
pub fn in_background(is_root: bool, filter: Option<&str>) {
    if !(is_root && to_kernel_log(filter).is_ok()) {
        to_syslog(filter);
    }
}

/// Starts logging to the kernel's log, which is the console and later the journal. An initramfs has
/// no syslog, and what is below its `/dev` is out of reach after the switch to the new root.
fn to_kernel_log(filter: Option<&str>) -> io::Result<()> {
    let kernel_log = KernelLog(File::options().write(true).open("/dev/kmsg")?);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(kernel_log)
        .with_ansi(false)
        .without_time()
        .with_level(false);
    init(lines.with_filter(targets(filter)));
    Ok(())
}

/// Maximum number of bytes of a line in one record, which the kernel refuses from some 1,000 bytes
/// on (`devkmsg_write` in kernel/printk/printk.c).
const RECORD_BYTES: usize = 900;

/// Writes each event to the kernel's log.
#[derive(Debug)]
struct KernelLog(File);

/// Destination of one event in the kernel's log, with the event's priority.
#[derive(Debug)]
struct KernelLogRecord<'a, W>(&'a str, W);

impl<'a> MakeWriter<'a> for KernelLog {
    type Writer = KernelLogRecord<'a, &'a File>;

    fn make_writer(&'a self) -> Self::Writer {
        KernelLogRecord(kernel_priority(Level::INFO), &self.0)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        KernelLogRecord(kernel_priority(*metadata.level()), &self.0)
    }
}

impl<W: io::Write> io::Write for KernelLogRecord<'_, W> {
    /// Takes a whole event. The kernel makes a record of each write, so that each line is one; long
    /// lines are several.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        for line in event.split(|byte| *byte == b'\n') {
            for piece in line.chunks(RECORD_BYTES) {
                let name = format!("{}bootcastfs[{}]: ", self.0, std::process::id());
                self.1.write_all(&[name.as_bytes(), piece, b"\n"].concat())?;
            }
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

/// Returns the prefix of a record in the kernel's log: facility "daemon" and a level. Without a
/// facility, the journal would not take the name from the record.
fn kernel_priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<27>",
        Level::WARN => "<28>",
        Level::INFO => "<30>",
        _ => "<31>",
    }
}

/// Starts logging. Warnings are also remembered for the status of the mount.
fn init(lines: impl Layer<Registry> + Send + Sync) {
    let recorder = WarningRecorder.with_filter(LevelFilter::WARN);
    tracing_subscriber::registry().with(lines).with(recorder).init();
}

/// Returns the targets to log. An invalid filter is replaced by the default filter.
fn targets(filter: Option<&str>) -> Targets {
    let chosen = filter.and_then(parse_filter).or_else(|| parse_filter(DEFAULT_FILTER));
    let chosen = chosen.expect("the default filter is valid");
    if filter.is_some_and(|filter| filter.contains("fuser")) {
        return chosen;
    }
    chosen.with_target(LOST_REPLIES, LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn each_line_for_the_journal_begins_with_its_priority() {
        let mut written = Vec::new();
        PrefixedLine(priority(Level::WARN), &mut written).write_all(b"one\ntwo\n").unwrap();
        assert_eq!(written, b"<4>one\n<4>two\n");
        assert_eq!([Level::ERROR, Level::INFO, Level::TRACE].map(priority), ["<3>", "<6>", "<7>"]);
    }

    #[test]
    fn each_line_for_the_kernel_is_one_write_with_facility_level_and_name() {
        /// Collects each write by itself.
        struct Writes(Vec<String>);
        impl Write for Writes {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.push(String::from_utf8_lossy(bytes).into());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut record = KernelLogRecord(kernel_priority(Level::WARN), Writes(Vec::new()));
        let long = "x".repeat(RECORD_BYTES);
        record.write_all(format!("one\n{long}rest\ntwo\n").as_bytes()).unwrap();
        let id = std::process::id();
        let lines = ["one", &long, "rest", "two"];
        assert_eq!(record.1.0, lines.map(|line| format!("<28>bootcastfs[{id}]: {line}\n")));
        assert!(record.1.0.iter().all(|record| record.len() < 1000), "the kernel takes it");
    }

    #[test]
    fn a_filter_is_a_level_or_a_list_of_levels_and_modules() {
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
    fn lost_replies_are_logged_only_if_the_filter_names_fuser() {
        let is_logged = |filter| targets(filter).would_enable("fuser::reply", &Level::ERROR);
        assert!(!is_logged(None) && !is_logged(Some("debug")));
        assert!(is_logged(Some("info,fuser=debug")));
        assert!(targets(None).would_enable("fuser::session", &Level::ERROR));
    }
}
