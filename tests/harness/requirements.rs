//! Checks whether this machine has what a lab needs.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Programs that a lab uses, with their Debian packages.
const TOOLS: [(&str, &str); 8] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("sysctl", "procps"),
    ("tcpdump", "tcpdump"),
    ("python3", "python3"),
];

/// Returns the reason why no lab can be built on this machine; `None` if one can.
pub fn skip_reason() -> Option<String> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    REASON.get_or_init(find_skip_reason).clone()
}

/// Reports that this test did not run.
///
/// Prints a line past the test runner's capture, and adds the test to the list that
/// `tests/scripts/run-tests.sh` shows at the end.
pub fn report_skipped(reason: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("test");
    // If standard error is closed, there is no other place for the message.
    let _ = writeln!(std::io::stderr(), "skipped: {name}: {reason}");
    if let Some(list) = std::env::var_os("BOOTCAST_SKIPPED") {
        let list = File::options().append(true).create(true).open(list);
        // One write for the whole line, because other tests write to the list at the same time.
        list.and_then(|mut list| list.write_all(format!("{name}\t{reason}\n").as_bytes()))
            .expect("the list of skipped tests");
    }
}

/// Whether a program of this name is in `PATH`.
pub fn has_tool(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// Returns the reason why the head's interface cannot have a valve; `None` if it can.
pub(crate) fn valve_skip_reason() -> Option<String> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let find = || queue_skip_reason("htb").or_else(|| queue_skip_reason(TBF));
    REASON.get_or_init(find).clone()
}

/// Returns the reason why the rate of a link cannot be capped; `None` if it can.
pub(crate) fn cap_skip_reason() -> Option<String> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    REASON.get_or_init(|| queue_skip_reason(TBF)).clone()
}

/// The token bucket filter with the parameters that `tc` requires.
const TBF: &str = "tbf rate 1mbit burst 1600 limit 3000";

/// Returns the kernel's error if it has no queueing discipline of this kind, because a module such
/// as `sch_htb` is missing; `None` if it has one. Tries it in a namespace of its own.
fn queue_skip_reason(queue: &str) -> Option<String> {
    let add = ["--net", "tc", "qdisc", "add", "dev", "lo", "root"];
    let output = Command::new("unshare").args(add).args(queue.split(' ')).output();
    let output = output.expect("skip_reason() has run unshare and found tc");
    let kind = queue.split(' ').next().unwrap_or(queue);
    let error = String::from_utf8_lossy(&output.stderr);
    let error = error.trim_start_matches("Error: ").lines().next().unwrap_or("no reason given");
    let error = error.trim_end_matches('.');
    (!output.status.success()).then(|| format!("the kernel has no sch_{kind}: {error}"))
}

fn find_skip_reason() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root, so no network namespaces".into());
    }
    for (tool, package) in TOOLS {
        if !has_tool(tool) {
            return Some(format!("{tool} not found, install {package}"));
        }
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("no /dev/fuse".into());
    }
    let unshared = Command::new("unshare")
        .args(["--net", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match unshared {
        Ok(status) if status.success() => None,
        _ => Some("no network namespaces".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_queueing_discipline_is_a_reason_to_skip() {
        if let Some(reason) = skip_reason() {
            return report_skipped(&reason);
        }
        assert_eq!(queue_skip_reason("pfifo"), None);
        let reason = queue_skip_reason("slide").unwrap();
        assert!(reason.starts_with("the kernel has no sch_slide: "), "{reason}");
    }
}
