//! Progress bar, notices and log lines of a fetch, on one terminal.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use bootcast_proto::ContentId;
use indicatif::{
    BinaryBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use tracing::info;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::io::now;

const KNOWN_SIZE: &str =
    "{prefix} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {mean_rate} eta {eta}";
const UNKNOWN_SIZE: &str = "{prefix} {spinner} {binary_bytes} {mean_rate} {elapsed}";

/// Standard error, shared by the progress bar, notices and log lines.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    bars: MultiProgress,
    /// Whether a user watches the terminal and wants notices.
    is_interactive: bool,
}

impl Screen {
    /// Creates the screen. Bars and notices are shown only on a terminal to which no file contents
    /// go, and not if `quiet`.
    pub(super) fn new(quiet: bool, contents_to_stdout: bool) -> Self {
        let is_interactive = !quiet
            && io::stderr().is_terminal()
            && !(contents_to_stdout && io::stdout().is_terminal());
        let target = if is_interactive {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self { bars: MultiProgress::with_draw_target(target), is_interactive }
    }

    /// Starts logging to the screen. Without `-v` a terminal gets warnings, and other outputs get
    /// only errors.
    pub(super) fn start_logging(&self, quiet: bool, verbose: u8) {
        let (all, ours) = match (quiet, verbose) {
            (true, _) => (LevelFilter::OFF, LevelFilter::OFF),
            (false, 0) if self.is_interactive => (LevelFilter::WARN, LevelFilter::WARN),
            (false, 0) => (LevelFilter::ERROR, LevelFilter::ERROR),
            (false, 1) => (LevelFilter::WARN, LevelFilter::INFO),
            (false, _) => (LevelFilter::INFO, LevelFilter::DEBUG),
        };
        let filter = Targets::new().with_default(all).with_target("bootcast_fs", ours);
        let screen = self.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || screen.clone())
            .with_ansi(self.is_interactive)
            .with_target(false)
            .without_time();
        tracing_subscriber::registry().with(lines).with(filter).init();
    }

    /// Shows a line if a user watches the terminal.
    pub(super) fn notify(&self, line: &str) {
        if self.is_interactive {
            // The terminal may be closed.
            let _ = writeln!(self.clone(), "{line}");
        }
    }

    /// Creates the bar for one file.
    pub(super) fn progress(&self, name: &str) -> Progress {
        let bar = self.bars.add(ProgressBar::no_length());
        bar.set_style(style(UNKNOWN_SIZE));
        bar.set_prefix(name.to_owned());
        Progress { screen: self.clone(), bar, name: name.to_owned(), started: now() }
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Content id of a fetched file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hash {
    /// All bytes were checked against it.
    Proven(ContentId),
    /// The server stated it.
    Stated(ContentId),
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Proven(id) => write!(f, "b3 {id}, proven"),
            Self::Stated(id) => write!(f, "b3 {id}, as the server states it (--b3 proves it)"),
        }
    }
}

/// Progress bar of one file.
#[derive(Debug)]
pub(super) struct Progress {
    screen: Screen,
    bar: ProgressBar,
    name: String,
    started: Instant,
}

impl Progress {
    /// Shows that `received` of `total` bytes have arrived.
    pub(super) fn show(&self, received: u64, total: Option<u64>) {
        if let Some(total) = total
            && self.bar.length() != Some(total)
        {
            self.bar.set_style(style(KNOWN_SIZE));
            self.bar.set_length(total);
        }
        self.bar.set_position(received);
        self.bar.tick();
    }

    /// Shows a notice if a user watches the terminal.
    pub(super) fn notify(&self, notice: &str) {
        self.screen.notify(&format!("bootcast: {notice}"));
    }

    /// Sets the bar back to zero and shows the reason.
    pub(super) fn restart(&self, reason: &str) {
        self.notify(&format!("{reason}, starting again"));
        self.bar.set_position(0);
        self.bar.reset_eta();
    }

    /// Removes the bar, and shows the size of the file, the mean rate and the hash if it is known.
    /// Without a user who watches, these are log lines.
    pub(super) fn finish(self, size: u64, hash: Option<&Hash>) {
        self.bar.finish_and_clear();
        let seconds = now().duration_since(self.started).as_secs_f64();
        let Self { screen, name, .. } = &self;
        let (bytes, rate) = (BinaryBytes(size), mean_rate(size, seconds));
        let summary = format!("{name}  {bytes} in {seconds:.1} s, {rate}");
        for line in std::iter::once(summary).chain(hash.map(Hash::to_string)) {
            if screen.is_interactive {
                screen.notify(&line);
            } else {
                info!("{line}");
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates in this file are valid")
        .with_key("mean_rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}/s", BinaryBytes(whole(state.per_sec())));
        })
        .progress_chars("=> ")
}

fn mean_rate(bytes: u64, seconds: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let rate = bytes as f64 / seconds.max(0.001);
    format!("{}/s", BinaryBytes(whole(rate)))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate for display; the cast saturates"
)]
fn whole(rate: f64) -> u64 {
    rate as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid() {
        style(KNOWN_SIZE);
        style(UNKNOWN_SIZE);
    }

    #[test]
    fn a_fetch_that_took_no_time_has_a_rate() {
        assert_eq!(mean_rate(0, 0.0), "0 B/s");
        assert_eq!(mean_rate(1 << 20, 2.0), "512.00 KiB/s");
    }
}
