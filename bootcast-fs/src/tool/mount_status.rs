//! `bootcast status MOUNTPOINT`: shows what a mount does. The mount tells it as an extended
//! attribute; docs/SEMANTICS.md, "What a mount tells of itself".

use std::ffi::OsStr;
use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use bootcast_proto::RemotePath;
use indicatif::BinaryBytes;
use rustix::io::Errno;

use super::error::ToolError;
use super::status::{counted, rate, write_columns};
use super::stdout;
use super::url::printable;
use crate::cache;
use crate::io::Control;
use crate::status::{FileState, FileStatus, MountStatus, STATUS_ATTRIBUTE, STATUS_MAX};

/// Time between two displays on a terminal.
const REFRESH: Duration = Duration::from_secs(1);
/// Longest wait for the server, which is asked for the numbers of members.
const SERVER_PATIENCE: Duration = Duration::from_millis(500);
/// Time from which a read that waits counts as a problem. Every reader of a stream waits a little.
const LONG_WAIT_MS: u64 = 1000;
/// Number of characters in a full progress bar.
const BAR_LEN: usize = 20;
/// Most warnings that are shown.
const MAX_WARNINGS: usize = 5;
/// Control sequences: cursor to the upper left corner; clear from there.
const HOME: &str = "\x1b[H";
const CLEAR_REST: &str = "\x1b[J";
const CLEAR_LINE: &str = "\x1b[K";

/// Whether an argument names a mount point and not a server.
pub(super) fn is_mountpoint(text: &OsStr) -> bool {
    let bytes = text.as_bytes();
    bytes.starts_with(b"/") || bytes.starts_with(b".") || !bytes.contains(&b':')
}

/// Prints the status once, or again and again on a terminal unless `once`.
pub(super) async fn run(mountpoint: &Path, json: bool, once: bool) -> Result<(), ToolError> {
    if json {
        return stdout::print_json(&complete_status(mountpoint).await?);
    }
    if once || !io::stdout().is_terminal() {
        return stdout::print(screen(&complete_status(mountpoint).await?).as_bytes());
    }
    let mut is_first = true;
    loop {
        let text = screen(&complete_status(mountpoint).await?);
        let clear = if std::mem::take(&mut is_first) { CLEAR_REST } else { "" };
        let text = format!("{HOME}{clear}{}{CLEAR_REST}", fitted(&text, window()));
        stdout::print(text.as_bytes())?;
        tokio::time::sleep(REFRESH).await;
    }
}

/// Returns the status of the mount, with what this program can add: the use of the cache, and the
/// numbers of members, which the server knows.
async fn complete_status(mountpoint: &Path) -> Result<MountStatus, ToolError> {
    let mut status = ask(mountpoint)?;
    if let Some(dir) = &status.cache_dir {
        let dir = Path::new(dir);
        let bytes = |kept: Vec<cache::Kept>| kept.iter().map(|object| object.allocated).sum();
        // Only the owner of the cache may look.
        status.cache_bytes = cache::list(dir).ok().map(bytes);
        status.cache_free_bytes =
            rustix::fs::statvfs(dir).ok().map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    }
    if status.server_away_s.is_none() && status.files.iter().any(is_arriving) {
        add_members(&mut status).await;
    }
    Ok(status)
}

fn is_arriving(file: &FileStatus) -> bool {
    matches!(file.state, FileState::Joined | FileState::Multicast | FileState::Unicast)
}

/// Adds the number of members to each file. From another network, the server may be out of reach.
async fn add_members(status: &mut MountStatus) {
    let Ok(control) = Control::new(&format!("http://{}", status.server)) else { return };
    let answer = tokio::time::timeout(SERVER_PATIENCE, control.status()).await;
    let Ok(Ok(server)) = answer else { return };
    for file in &mut status.files {
        let is_of = |cast: &&bootcast_proto::api::CastStatus| {
            cast.path == file.path && Some(cast.etag.as_str()) == file.etag.as_deref()
        };
        file.members = server.casts.iter().find(is_of).map(|cast| u64::from(cast.members));
    }
}

/// Reads the attribute of the mount point.
fn ask(mountpoint: &Path) -> Result<MountStatus, ToolError> {
    let shown = printable(mountpoint.as_os_str().as_bytes());
    let mut value = vec![0; STATUS_MAX];
    let len =
        rustix::fs::getxattr(mountpoint, STATUS_ATTRIBUTE, &mut value[..]).map_err(|errno| {
            ToolError::Local(match errno {
                Errno::NOTCONN | Errno::CONNABORTED => format!(
                    "{shown}: the mount is dead, because its process has ended: run umount -l \
                     {shown}, then mount again"
                ),
                Errno::NODATA | Errno::NOTSUP => {
                    format!("{shown} is not the top directory of a bootcast mount")
                }
                errno => format!("{shown}: {}", io::Error::from(errno)),
            })
        })?;
    serde_json::from_slice(&value[..len])
        .map_err(|error| ToolError::Local(format!("{shown}: not a status: {error}")))
}

/// Formats the whole display.
fn screen(status: &MountStatus) -> String {
    let mut text = head(status);
    for problem in problems(status) {
        let _ = writeln!(text, "! {}", printable(problem.as_bytes()));
    }
    text.push('\n');
    if !status.files.is_empty() {
        write_columns(&mut text, &table(&status.files));
        text.push('\n');
    }
    if status.files_left_out > 0 {
        let _ = writeln!(text, "and {}", counted(status.files_left_out, "more file"));
    }
    text.push_str(&totals(status));
    text
}

fn head(status: &MountStatus) -> String {
    let path = RemotePath::decode(&status.path);
    let path = path.as_ref().map_or(status.path.as_bytes(), RemotePath::as_bytes);
    let server = printable(status.server.as_bytes());
    let (path, up) = (printable(path), seconds(status.uptime_s));
    let mut text = format!("{server}:/{path}, version {}, up {up}\n", status.version);
    let _ = write!(
        text,
        "fill={} verify={} unicast={}{}, cache: ",
        status.fill,
        status.verify,
        status.unicast,
        if status.pinned { ", pinned" } else { "" }
    );
    match &status.cache_dir {
        Some(dir) => text.push_str(&printable(dir.as_bytes())),
        None => text.push_str("memory"),
    }
    if let Some(bytes) = status.cache_bytes {
        let _ = write!(text, ", {} used", BinaryBytes(bytes));
    }
    if let Some(bytes) = status.cache_free_bytes {
        let _ = write!(text, ", {} free on its disk", BinaryBytes(bytes));
    }
    text.push('\n');
    text
}

/// Returns what is wrong, the most important first.
fn problems(status: &MountStatus) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(since) = status.server_away_s {
        problems.push(format!("the server has not answered for {}", seconds(since)));
    }
    if let (Some(since), Some(why)) = (status.multicast_lost_s, &status.multicast_lost) {
        problems.push(format!("for {}: {why}", seconds(since)));
    }
    if let Some(oldest) = status.oldest_wait_ms.filter(|oldest| *oldest >= LONG_WAIT_MS) {
        let reads = counted(status.waiting, "waiting read");
        problems.push(format!("{reads}, the oldest since {}", milliseconds(oldest)));
    }
    for file in &status.files {
        if let Some(failure) = &file.failure {
            problems.push(format!("/{}: {failure}", file.path));
        }
    }
    for warning in status.warnings.iter().take(MAX_WARNINGS) {
        problems.push(format!("{} ago: {}", seconds(warning.age_s), warning.text));
    }
    problems
}

fn table(files: &[FileStatus]) -> Vec<[String; 9]> {
    let header =
        ["PATH", "STATE", "HELD", "SIZE", "RATE", "CAST RATE", "LOSS", "MEMBERS", "WAITING"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(files.iter().map(row));
    rows
}

fn row(file: &FileStatus) -> [String; 9] {
    let path = RemotePath::decode(&file.path);
    let path = path.as_ref().map_or(file.path.as_bytes(), RemotePath::as_bytes);
    let unknown = || "-".to_owned();
    let waiting = match file.oldest_wait_ms {
        Some(oldest) => format!("{} for {}", file.waiting, milliseconds(oldest)),
        None => unknown(),
    };
    [
        printable(path),
        file.state.to_string(),
        bar(file),
        file.size.map_or_else(unknown, |size| BinaryBytes(size).to_string()),
        if file.rate_bps > 0 { rate(file.rate_bps) } else { unknown() },
        file.cast_bps.map_or_else(unknown, rate),
        file.loss_ppm
            .map_or_else(unknown, |ppm| format!("{}.{:02}%", ppm / 10_000, ppm % 10_000 / 100)),
        file.members.map_or_else(unknown, |members| members.to_string()),
        waiting,
    ]
}

/// Returns a bar with the part of the file that is held.
fn bar(file: &FileStatus) -> String {
    let Some(size) = file.size else { return BinaryBytes(file.held).to_string() };
    let part = |of: u64| {
        let part = u128::from(file.held.min(size)) * u128::from(of);
        part.checked_div(size.into()).map_or(of, |part| u64::try_from(part).unwrap_or(of))
    };
    let full = usize::try_from(part(BAR_LEN as u64)).unwrap_or(BAR_LEN);
    format!("[{}{}] {:>3}%", "=".repeat(full), " ".repeat(BAR_LEN - full), part(100))
}

fn totals(status: &MountStatus) -> String {
    let totals = &status.totals;
    format!(
        "in all {} by multicast, {} rebuilt, {} over HTTP; {}, {} of them waited\n",
        BinaryBytes(totals.multicast_bytes),
        BinaryBytes(totals.rebuilt_bytes),
        BinaryBytes(totals.unicast_bytes),
        counted(totals.reads, "read"),
        totals.reads_waited,
    )
}

fn seconds(count: u64) -> String {
    humantime::format_duration(Duration::from_secs(count)).to_string()
}

/// Formats a time with tenths of a second, and without them from a minute on.
fn milliseconds(count: u64) -> String {
    if count >= 60_000 {
        return seconds(count / 1000);
    }
    format!("{}.{} s", count / 1000, count % 1000 / 100)
}

/// Returns the lines and columns of the terminal.
fn window() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let size = size.filter(|size| size.ws_row > 1 && size.ws_col > 1);
    size.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()))
}

/// Cuts a text to the size of a terminal, so that it does not scroll.
fn fitted(text: &str, (rows, columns): (usize, usize)) -> String {
    let cut = |line: &str| line.chars().take(columns).collect::<String>();
    let lines: Vec<_> = text.lines().take(rows.saturating_sub(1)).map(cut).collect();
    lines.join(&format!("{CLEAR_LINE}\n")) + CLEAR_LINE + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Warning;

    fn file() -> FileStatus {
        FileStatus {
            size: Some(200 << 20),
            held: 100 << 20,
            opens: 1,
            waiting: 2,
            oldest_wait_ms: Some(1_250),
            rate_bps: 199_400_000,
            cast_bps: Some(450_000_000),
            loss_ppm: Some(5_100),
            members: Some(12),
            ..FileStatus::of("images/a%20b.img".into(), FileState::Multicast)
        }
    }

    #[test]
    fn a_file_is_a_row_with_a_bar_under_its_headings() {
        let status = MountStatus {
            server: "head:8888".into(),
            path: "images".into(),
            version: "0.1.0".into(),
            uptime_s: 61,
            fill: "full".into(),
            verify: "leaf".into(),
            unicast: "auto".into(),
            waiting: 2,
            oldest_wait_ms: Some(1_250),
            files: vec![file()],
            files_left_out: 1,
            warnings: vec![Warning { age_s: 5, text: "bad\nnews".into() }],
            ..MountStatus::default()
        };
        let lines: Vec<_> = screen(&status).lines().map(str::to_owned).collect();
        let cells = |line: usize| lines[line].split("  ").map(str::trim).collect::<Vec<_>>();
        let filled = |line: usize| cells(line).into_iter().filter(|cell| !cell.is_empty());
        assert_eq!(
            lines[..5],
            [
                "head:8888:/images, version 0.1.0, up 1m 1s",
                "fill=full verify=leaf unicast=auto, cache: memory",
                "! 2 waiting reads, the oldest since 1.2 s",
                "! 5s ago: bad\\nnews",
                "",
            ]
        );
        assert_eq!(filled(5).count(), 9, "{}", lines[5]);
        let row: Vec<_> = filled(6).collect();
        assert_eq!(row[..3], ["images/a b.img", "multicast", "[=========="], "{row:?}");
        assert_eq!(row[3..6], ["]", "50%", "200.00 MiB"], "{row:?}");
        assert_eq!(row[6..], ["199mbit", "450mbit", "0.51%", "12", "2 for 1.2 s"], "{row:?}");
        assert_eq!(lines[8], "and 1 more file");
        assert!(lines[9].starts_with("in all 0 B by multicast"), "{}", lines[9]);
    }

    #[test]
    fn what_is_unknown_is_a_dash_and_an_empty_file_is_whole() {
        let row = row(&FileStatus::of("a".into(), FileState::Closed));
        assert_eq!(row[2..], ["0 B", "-", "-", "-", "-", "-", "-"].map(str::to_owned));
        let empty = FileStatus { size: Some(0), ..FileStatus::of("a".into(), FileState::Complete) };
        assert!(bar(&empty).ends_with("100%"));
    }

    #[test]
    fn the_server_away_comes_first() {
        let status = MountStatus {
            server_away_s: Some(7),
            multicast_lost_s: Some(9),
            multicast_lost: Some("no multicast".into()),
            ..MountStatus::default()
        };
        let lines = ["the server has not answered for 7s", "for 9s: no multicast"];
        assert_eq!(problems(&status), lines);
    }

    #[test]
    fn a_directory_is_a_mount_point_and_a_url_is_not() {
        for (text, is_mount) in [
            ("/mnt", true),
            ("./a:b", true),
            ("mnt", true),
            ("..", true),
            ("/a:/b", true),
            ("http://head", false),
            ("head:/", false),
            ("[::1]:99:/", false),
        ] {
            assert_eq!(is_mountpoint(OsStr::new(text)), is_mount, "{text}");
        }
    }

    #[test]
    fn a_display_is_cut_to_the_terminal() {
        let cut = fitted("long line\nb\nc\n", (3, 4)).replace(CLEAR_LINE, "");
        assert_eq!(cut, "long\nb\n");
    }
}
