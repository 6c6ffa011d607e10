//! JSON bodies of the HTTP interface. docs/PROTOCOL.md, "Meta", "Status", "Report" and "Demand".

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{Etag, PageRange};

/// Type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A regular file, which clients can join.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe, which is listed but cannot be opened.
    Other,
}

/// Attributes of a path, known without reading the file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Type of the entry.
    pub kind: Kind,
    /// Bytes in a file or in a link's target; 0 for other types.
    pub size: u64,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Last modification, seconds since 1970 (negative before).
    pub mtime: i64,
    /// Nanoseconds of the last modification, in addition to `mtime`.
    #[serde(default)]
    pub mtime_ns: u32,
    /// Version of the file. For a directory, version of this answer; see docs/PROTOCOL.md, "Meta".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<Etag>,
    /// A link's target, percent-encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Bytes that a file takes on the server's disk, if these are fewer than its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated: Option<u64>,
}

/// One name in a directory, with its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name, percent-encoded as in a URL, because JSON cannot carry names of any bytes.
    pub name: String,
    /// Attributes of this name.
    #[serde(flatten)]
    pub attributes: Attributes,
}

/// Answer to `GET /meta/<path>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Attributes of the path itself; a symbolic link is not followed.
    #[serde(flatten)]
    pub attributes: Attributes,
    /// All names of a directory except `.` and `..`, in no particular order. `None` for other
    /// types, and if the request says `entries=0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<Entry>>,
}

/// Body of `POST /report/<path>`: symbols and windows that a member lacks, and its counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Pairs of a block and the number of repair symbols that it must have got in all before this
    /// member can rebuild it. docs/PROTOCOL.md, "Report".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<(u32, u8)>,
    /// Runs of windows that the stream must send again, because too many of their pages are
    /// missing. Pairs of a first window and a number of windows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bulk: Vec<(u32, u32)>,
    /// Datagrams that the server sent from the first beacon of this membership to the newest, as
    /// counted by the beacons.
    #[serde(default)]
    pub sent: u64,
    /// Datagrams received between the same two beacons: pages and repair symbols, useful or not.
    #[serde(default)]
    pub received: u64,
    /// Datagrams between the same two beacons that the member's own socket buffer had no room for.
    #[serde(default)]
    pub drops: u64,
    /// Datagrams of the cast that the server had sent when it sent the newest of these beacons, as
    /// the beacon states; 0 if the member does not state it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub seen: u64,
    /// Whether this member receives no datagrams and fetches the file over HTTP. The server then
    /// sends nothing for it.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub unicast: bool,
    /// Pages and repair symbols that were of use to this member since its join.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub useful: u64,
    /// Whether this member receives pages, but nothing of the repair channel. The server then sends
    /// no symbols for it.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub stream_only: bool,
    /// Whether this member has the zero map of the version that it joined. The stream then leaves
    /// out pages of zeros for it. docs/PROTOCOL.md, "Pages of zeros".
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub zeros: bool,
}

/// Demanded pages, which go out before everything else. docs/PROTOCOL.md, "Demand".
///
/// Both lists contain runs of pages; see [`PageRange`] for their form in a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Pages that a reader waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub now: Vec<PageRange>,
    /// Pages that a reader will probably read next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later: Vec<PageRange>,
    /// Page that arrived last, or 0 if none did. Demanded pages that the server sent before it and
    /// that are demanded again were lost.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub came: u32,
    /// Microseconds from a want to the arrival of its page, usually, without the time in the
    /// server's queue; 0 while unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub delay_us: u32,
    /// Whether no page has arrived for so long that pages of `now` are taken for lost.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub late: bool,
    /// Whether pages were lost lately. The server may then send the last page of `now` twice.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub lossy: bool,
}

/// Body of `POST /want/<path>`: a [`Want`] and the progress of its member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantBody {
    /// Pages that the member demands.
    #[serde(flatten)]
    pub want: Want,
    /// Pages and symbols that were of use to this member since its join; see [`Report::useful`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub useful: Option<u64>,
}

/// Answer to `GET /status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the server program.
    pub version: String,
    /// Seconds since the server started.
    pub uptime_s: u64,
    /// Upper bound of the sending rate, all casts together, in bits per second on the wire.
    pub rate_bps: u64,
    /// Running casts.
    pub casts: Vec<CastStatus>,
    /// Sums since the server started.
    pub totals: Totals,
    /// How often the budgets of hosts were used up since the server started.
    #[serde(default)]
    pub budgets: Budgets,
}

/// State of one running cast.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CastStatus {
    /// Path of the file, percent-encoded, without a leading slash.
    pub path: String,
    /// Version of the file that is being sent.
    pub etag: Etag,
    /// Group and port, `239.255.0.1:9000`.
    pub group: String,
    /// Bytes in the file.
    pub size: u64,
    /// Pages in the file.
    pub pages: u32,
    /// Bytes of a full page.
    pub page_size: u32,
    /// Number of members.
    pub members: u32,
    /// Members that fetch the file over HTTP because they receive no datagrams.
    #[serde(default)]
    pub unicast: u32,
    /// Joins since the cast started.
    pub joins: u64,
    /// Pages sent since the cast started.
    pub pages_sent: u64,
    /// Pages sent on demand, a part of `pages_sent`.
    #[serde(default)]
    pub demanded: u64,
    /// Pages of zeros that the stream left out since the cast started.
    #[serde(default)]
    pub zero_pages: u64,
    /// Repair symbols sent since the cast started.
    #[serde(default)]
    pub symbols_sent: u64,
    /// Redundancy at present: repair symbols that every block gets without a report.
    #[serde(default)]
    pub repair_level: u32,
    /// Sending rate at present, in bits per second on the wire.
    #[serde(default)]
    pub rate_bps: u64,
    /// Completed passes over the file.
    pub passes: u32,
    /// Seconds since the first join.
    pub age_s: u64,
}

/// Sums since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Casts started.
    pub casts: u64,
    /// Joins that were answered with a membership.
    pub joins: u64,
    /// Leaves with a known token.
    pub leaves: u64,
    /// Pages sent.
    pub pages_sent: u64,
    /// Pages sent on demand, a part of `pages_sent`.
    #[serde(default)]
    pub demanded: u64,
    /// Repair symbols sent.
    #[serde(default)]
    pub symbols_sent: u64,
    /// Bytes sent on the wire, Ethernet framing included. For each frame this is 24 bytes more than
    /// an interface counts.
    pub bytes_sent: u64,
    /// Bytes read from files for casts.
    pub bytes_read: u64,
}

/// How often the budgets of hosts were used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budgets {
    /// Plain members that were forgotten, after their passes or because the budget was used up.
    #[serde(default)]
    pub plain: u64,
    /// Plain joins that were refused, and joins with extensions that asked for nothing.
    #[serde(default)]
    pub joins: u64,
    /// Symbols and demanded pages that did not go before what others need.
    #[serde(default)]
    pub deferred: u64,
    /// Requests that were refused, because a host sent too many a second.
    #[serde(default)]
    pub requests: RefusedRequests,
}

/// Requests that were refused, because a host sent too many a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusedRequests {
    /// Joins and leaves.
    pub joins: u64,
    /// Reports.
    pub reports: u64,
    /// Demands.
    pub wants: u64,
    /// Requests for names and attributes.
    pub meta: u64,
    /// All other requests.
    pub others: u64,
}

/// Whether a number is 0. Such a field is left out of the JSON.
fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    /// docs/PROTOCOL.md, "Meta", the worked example.
    const EXAMPLE: &str = concat!(
        r#"{"kind":"directory","size":0,"mode":493,"mtime":1700000000,"mtime_ns":5,"etag":"5-1","#,
        r#""entries":[{"name":"a%20b.img","kind":"file","size":4000,"mode":420,"#,
        r#""mtime":1700000000,"mtime_ns":0,"etag":"2a-fa0"},"#,
        r#"{"name":"now","kind":"symlink","size":7,"mode":511,"#,
        r#""mtime":1700000000,"mtime_ns":0,"target":"a%20b.img"}]}"#,
    );

    #[test]
    fn the_worked_example_of_the_protocol_reads_and_writes_back() {
        let meta: Meta = serde_json::from_str(EXAMPLE).unwrap();
        assert_eq!(meta.entries.as_ref().unwrap()[0].attributes.size, 4000);
        assert_eq!(serde_json::to_string(&meta).unwrap(), EXAMPLE);
    }

    #[test]
    fn a_want_reads_and_writes_as_the_protocol_shows_it() {
        let text = r#"{"now":[[17,3],[4001,16]],"later":[[4017,64]]}"#;
        let now = vec![PageRange::new(16, 19), PageRange::new(4000, 4016)];
        let want = Want { now, later: vec![PageRange::new(4016, 4080)], ..Want::default() };
        assert_eq!(serde_json::from_str::<Want>(text).unwrap(), want);
        assert_eq!(serde_json::to_string(&want).unwrap(), text);
        assert_eq!(serde_json::from_str::<Want>("{}").unwrap(), Want::default());
        let text = r#"{"now":[[17,3]],"came":16,"delay_us":900,"lossy":true}"#;
        let now = vec![PageRange::new(16, 19)];
        let want = Want { now, came: 16, delay_us: 900, lossy: true, ..Want::default() };
        assert_eq!(serde_json::from_str::<Want>(text).unwrap(), want);
        assert_eq!(serde_json::to_string(&want).unwrap(), text);
    }

    #[test]
    fn a_report_reads_and_writes_as_the_protocol_shows_it() {
        let text =
            r#"{"needs":[[3,7],[12,5]],"bulk":[[0,2]],"sent":104190,"received":103412,"drops":0}"#;
        let report = Report {
            needs: vec![(3, 7), (12, 5)],
            bulk: vec![(0, 2)],
            sent: 104_190,
            received: 103_412,
            ..Report::default()
        };
        assert_eq!(serde_json::from_str::<Report>(text).unwrap(), report);
        assert_eq!(serde_json::to_string(&report).unwrap(), text);
        assert_eq!(serde_json::from_str::<Report>("{}").unwrap(), Report::default());
    }

    #[test]
    fn fields_of_a_later_version_are_ignored() {
        let later = r#"{"kind":"file","size":1,"mode":420,"mtime":-1,"colour":"blue"}"#;
        let meta: Meta = serde_json::from_str(later).unwrap();
        assert_eq!((meta.attributes.mtime, meta.entries), (-1, None));
    }
}
