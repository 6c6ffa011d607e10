//! Metrics of a mount as Prometheus reads them, on request. docs/OPERATIONS.md, "Metrics".

mod responder;

use std::fmt::Write;

pub(crate) use responder::Listener;

use crate::status::{FileState, MountStatus};

/// Formats the metrics of a mount in version 0.0.4 of the text format.
pub(crate) fn text(status: &MountStatus) -> String {
    let mut text = Text::default();
    let labels = [("version", &status.version), ("server", &status.server), ("path", &status.path)];
    text.metric("info", "gauge", "Version of the program, server and mounted path.");
    text.line(&labels.map(|(name, value)| (name, value.as_str())), "1");
    text.gauge("uptime_seconds", "Time since the mount.", &status.uptime_s);
    text.gauge(
        "server_away_seconds",
        "Time since the server last answered; 0 while it answers.",
        &status.server_away_s.unwrap_or(0),
    );
    text.gauge(
        "multicast_lost_seconds",
        "Time for which files have come over HTTP for want of multicast; 0 if they do not.",
        &status.multicast_lost_s.unwrap_or(0),
    );
    text.gauge("waiting_reads", "Reads that wait.", &status.waiting);
    let oldest = std::time::Duration::from_millis(status.oldest_wait_ms.unwrap_or(0));
    text.gauge(
        "oldest_wait_seconds",
        "Time that the oldest waiting read has waited.",
        &oldest.as_secs_f64(),
    );
    text.metric("files", "gauge", "Files that are open or known, by state.");
    // Each has a line of its own, so that a state without files is shown as 0.
    for state in FileState::ALL {
        let count = status.files.iter().filter(|file| file.state == state).count();
        text.line(&[("state", &state.to_string())], &count);
    }
    counters(&mut text, status);
    text.text
}

fn counters(text: &mut Text, status: &MountStatus) {
    let totals = &status.totals;
    text.metric("received_bytes_total", "counter", "Bytes of files that were stored, by origin.");
    for (by, bytes) in [
        ("multicast", totals.multicast_bytes),
        ("rebuilt", totals.rebuilt_bytes),
        ("unicast", totals.unicast_bytes),
    ] {
        text.line(&[("by", by)], &bytes);
    }
    for (name, help, value) in [
        ("duplicate_pages_total", "Pages that arrived although held.", totals.duplicate_pages),
        ("symbols_total", "Repair symbols that arrived.", totals.symbols),
        ("rejected_datagrams_total", "Datagrams that did not fit.", totals.rejected_datagrams),
        ("dropped_datagrams_total", "Datagrams without room here.", totals.dropped_datagrams),
        ("reads_total", "Reads that the kernel passed on.", totals.reads),
        ("reads_waited_total", "Reads that had to wait.", totals.reads_waited),
        ("joins_total", "Joins that were answered.", totals.joins),
        ("failed_joins_total", "Joins that failed.", totals.failed_joins),
        ("unanswered_requests_total", "Requests without an answer.", totals.unanswered_requests),
    ] {
        text.metric(name, "counter", help);
        text.line(&[], &value);
    }
}

/// Text under construction. Writing to a string does not fail.
#[derive(Default)]
struct Text {
    text: String,
    name: String,
}

impl Text {
    /// Begins a metric.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        self.name = format!("bootcast_mount_{name}");
        let name = &self.name;
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Adds a value of the present metric.
    fn line(&mut self, labels: &[(&str, &str)], value: &(impl ToString + ?Sized)) {
        self.text.push_str(&self.name);
        for (at, (name, value)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{open}{name}=\"{value}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {}", value.to_string());
    }

    fn gauge(&mut self, name: &str, help: &str, value: &impl ToString) {
        self.metric(name, "gauge", help);
        self.line(&[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::FileStatus;

    #[test]
    fn metrics_are_those_of_the_document_and_each_line_is_valid() {
        let page = include_str!("../../docs/OPERATIONS.md");
        let status = MountStatus {
            path: "a \"b\"\\".into(),
            oldest_wait_ms: Some(1250),
            files: vec![FileStatus::of("x".into(), FileState::Away)],
            ..MountStatus::default()
        };
        let text = text(&status);
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(page.contains(&format!("| `{name}")), "{name}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            }
        }
        assert!(text.contains("path=\"a \\\"b\\\"\\\\\"} 1\n"), "{text}");
        assert!(text.contains("\nbootcast_mount_oldest_wait_seconds 1.25\n"), "{text}");
        assert!(text.contains("\nbootcast_mount_files{state=\"away\"} 1\n"), "{text}");
        assert!(text.contains("\nbootcast_mount_files{state=\"failed\"} 0\n"), "{text}");
        assert!(text.contains("\nbootcast_mount_received_bytes_total{by=\"rebuilt\"} 0\n"));
    }
}
