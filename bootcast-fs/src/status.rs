//! What a mount tells of itself: the JSON of `user.bootcast.status`, which `bootcast status` reads.
//! docs/SEMANTICS.md, "What a mount tells of itself".

use std::fmt;

use serde::{Deserialize, Serialize};

/// Name of the extended attribute of a mounted directory that has the status.
pub const STATUS_ATTRIBUTE: &str = "user.bootcast.status";

/// Largest value of an extended attribute, in bytes: `XATTR_SIZE_MAX` of linux/limits.h.
pub const STATUS_MAX: usize = 64 << 10;

/// What a mount does with a file at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// Nothing.
    Closed,
    /// It asks the server to join.
    Joining,
    /// It is a member of the cast and has heard nothing of it yet.
    Joined,
    /// It receives the file by multicast.
    Multicast,
    /// It fetches the file over HTTP.
    Unicast,
    /// It waits for a server that does not answer.
    Away,
    /// Another process of this machine receives it into the same cache.
    Shared,
    /// It checks hashes of a file of which every page is held.
    Verifying,
    /// Nothing more: every byte may be read.
    Complete,
    /// Nothing more: the rest can never arrive.
    Failed,
}

impl FileState {
    /// All states, in the order of a file's life.
    pub(crate) const ALL: [Self; 10] = [
        Self::Closed,
        Self::Joining,
        Self::Joined,
        Self::Multicast,
        Self::Unicast,
        Self::Away,
        Self::Shared,
        Self::Verifying,
        Self::Complete,
        Self::Failed,
    ];
}

impl fmt::Display for FileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Joining => "joining",
            Self::Joined => "joined",
            Self::Multicast => "multicast",
            Self::Unicast => "unicast",
            Self::Away => "away",
            Self::Shared => "shared",
            Self::Verifying => "verifying",
            Self::Complete => "complete",
            Self::Failed => "failed",
        })
    }
}

/// State of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountStatus {
    /// Version of the program that serves the mount.
    pub version: String,
    /// Server as `host:port`.
    pub server: String,
    /// Mounted path on the server, percent-encoded.
    pub path: String,
    /// Seconds since the mount.
    pub uptime_s: u64,
    /// Kind of the cache: `disk` or `memory`.
    pub cache: String,
    /// Directory of the cache on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<String>,
    /// Bytes that the files of the cache take up. `bootcast status` adds it, where it may look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
    /// Free bytes on the disk of the cache. `bootcast status` adds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_free_bytes: Option<u64>,
    /// Value of the option `fill=`.
    pub fill: String,
    /// Value of the option `verify=`.
    pub verify: String,
    /// Value of the option `unicast=`.
    pub unicast: String,
    /// Whether only pinned contents can be read.
    pub pinned: bool,
    /// Seconds since the server last answered, if the last request had no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_away_s: Option<u64>,
    /// Seconds since files are fetched over HTTP because no multicast arrives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multicast_lost_s: Option<u64>,
    /// Cause of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multicast_lost: Option<String>,
    /// Number of reads that wait.
    pub waiting: u64,
    /// Milliseconds that the oldest of them has waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_wait_ms: Option<u64>,
    /// Counters since the mount.
    pub totals: Totals,
    /// Warnings of the last minutes, the newest first.
    pub warnings: Vec<Warning>,
    /// Files that are open or known, those with waiting readers first.
    pub files: Vec<FileStatus>,
    /// Number of files that are not in `files`.
    pub files_left_out: u64,
}

/// A warning in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Warning {
    /// Seconds since it was logged.
    pub age_s: u64,
    /// The message with its details.
    pub text: String,
}

/// State of one version of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    /// Path on the server, percent-encoded.
    pub path: String,
    /// Version, where the server names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// What the mount does with the file.
    pub state: FileState,
    /// Exact size in bytes, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Number of held bytes.
    #[serde(default)]
    pub held: u64,
    /// Number of bytes whose hash was found right, where hashes are checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<u64>,
    /// Number of opens.
    #[serde(default)]
    pub opens: u64,
    /// Number of reads that wait.
    #[serde(default)]
    pub waiting: u64,
    /// Milliseconds that the oldest of them has waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_wait_ms: Option<u64>,
    /// Bits of the file that arrived in a second, on average over some seconds.
    #[serde(default)]
    pub rate_bps: u64,
    /// Rate at which the server sends, in bit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cast_bps: Option<u64>,
    /// Datagrams that did not arrive, of a million that were sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_ppm: Option<u64>,
    /// Members of the cast. `bootcast status` adds it, where it reaches the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u64>,
    /// Why the rest can never arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Counters since the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Bytes that were stored from datagrams.
    pub multicast_bytes: u64,
    /// Bytes that were rebuilt from repair symbols.
    pub rebuilt_bytes: u64,
    /// Bytes that were fetched over HTTP.
    pub unicast_bytes: u64,
    /// Pages that arrived although they were held.
    pub duplicate_pages: u64,
    /// Repair symbols that arrived.
    pub symbols: u64,
    /// Datagrams that did not fit the cast, had a wrong tag or another sender.
    pub rejected_datagrams: u64,
    /// Datagrams that the sockets of this machine had no room for.
    pub dropped_datagrams: u64,
    /// Reads that the kernel asked this program for.
    pub reads: u64,
    /// Reads of these that had to wait.
    pub reads_waited: u64,
    /// Joins that the server answered.
    pub joins: u64,
    /// Joins that failed.
    pub failed_joins: u64,
    /// Requests that the server did not answer.
    pub unanswered_requests: u64,
}

impl FileStatus {
    /// Returns the state of a file of which nothing else is known.
    pub fn of(path: String, state: FileState) -> Self {
        Self {
            path,
            etag: None,
            state,
            size: None,
            held: 0,
            verified: None,
            opens: 0,
            waiting: 0,
            oldest_wait_ms: None,
            rate_bps: 0,
            cast_bps: None,
            loss_ppm: None,
            members: None,
            failure: None,
        }
    }
}

impl MountStatus {
    /// Returns the status as JSON of at most [`STATUS_MAX`] bytes. Leaves out the last files, and
    /// then the oldest warnings, until the rest fits.
    pub fn to_bounded_json(mut self) -> Vec<u8> {
        loop {
            let json = serde_json::to_vec(&self).unwrap_or_default();
            if json.len() <= STATUS_MAX {
                return json;
            }
            if self.files.is_empty() && self.warnings.pop().is_none() {
                return b"{}".to_vec();
            }
            // An eighth at a time: about as many steps as there are digits in the excess.
            let kept = self.files.len() * 7 / 8;
            self.files_left_out += (self.files.len() - kept) as u64;
            self.files.truncate(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: String) -> FileStatus {
        FileStatus { size: Some(9), held: 3, ..FileStatus::of(path, FileState::Multicast) }
    }

    #[test]
    fn a_status_of_any_size_fits_an_attribute() {
        let files: Vec<_> = (0..3000).map(|at| file(format!("dir/{at}"))).collect();
        let status = MountStatus { files, ..MountStatus::default() };
        let json = status.to_bounded_json();
        assert!((STATUS_MAX * 3 / 4..=STATUS_MAX).contains(&json.len()), "{}", json.len());
        let read: MountStatus = serde_json::from_slice(&json).unwrap();
        assert_eq!(read.files.len() as u64 + read.files_left_out, 3000);
        assert_eq!(read.files[0].path, "dir/0");
        let long = file("x".repeat(STATUS_MAX));
        let status = MountStatus { files: vec![long], ..MountStatus::default() };
        let read: MountStatus = serde_json::from_slice(&status.to_bounded_json()).unwrap();
        assert_eq!((read.files.len(), read.files_left_out), (0, 1));
    }

    #[test]
    fn states_are_the_words_of_the_document() {
        let page = include_str!("../../docs/SEMANTICS.md");
        for state in FileState::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
            assert!(page.contains(&format!("\n| `{state}` | ")), "{state}");
        }
    }

    #[test]
    fn fields_are_those_of_the_document() {
        let page = include_str!("../../docs/SEMANTICS.md");
        let all = MountStatus {
            cache_dir: Some(String::new()),
            cache_bytes: Some(1),
            cache_free_bytes: Some(1),
            server_away_s: Some(1),
            multicast_lost_s: Some(1),
            multicast_lost: Some(String::new()),
            oldest_wait_ms: Some(1),
            ..MountStatus::default()
        };
        let fields = serde_json::to_value(all).unwrap();
        for name in fields.as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
        let fields = serde_json::to_value(FileStatus {
            etag: Some(String::new()),
            verified: Some(1),
            oldest_wait_ms: Some(1),
            cast_bps: Some(1),
            loss_ppm: Some(1),
            members: Some(1),
            failure: Some(String::new()),
            ..file(String::new())
        });
        for name in fields.unwrap().as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }
}
