//! The JSON of the HTTP interface. docs/PROTOCOL.md, "Meta", "Status", "Report" and "Demand".

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::Etag;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A regular file: it can be joined.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe: it can be seen, not opened.
    Other,
}

/// What is known of a name without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// What it is.
    pub kind: Kind,
    /// Bytes in a file or in a link's target; 0 for the rest.
    pub size: u64,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Last modification, seconds since 1970 (negative before).
    pub mtime: i64,
    /// Nanoseconds of it.
    #[serde(default)]
    pub mtime_ns: u32,
    /// Version of the file, or of the directory's listing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<Etag>,
    /// A link's target, percent-encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Percent-encoded as in a URL, so that a name of any bytes fits JSON.
    pub name: String,
    /// Its attributes.
    #[serde(flatten)]
    pub attributes: Attributes,
}

/// Answer of `GET /meta/<path>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Of the path itself; a symbolic link is not followed.
    #[serde(flatten)]
    pub attributes: Attributes,
    /// Of a directory: every name in it but `.` and `..`, in no promised order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<Entry>>,
}

/// Body of `POST /report/<path>`: what a member lacks that was not promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Block and the number of repair symbols that it must have got in all; docs/PROTOCOL.md, "Report".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<(u32, u8)>,
    /// Windows of which so much is missing that the stream must bring them again: first, and how many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bulk: Vec<(u32, u32)>,
    /// Datagrams that the server sent, by its beacons, from the first beacon of this membership to the newest.
    #[serde(default)]
    pub sent: u64,
    /// How many of these came: pages and repair symbols between the same two beacons, of use or not.
    #[serde(default)]
    pub received: u64,
    /// Datagrams between the same two that the member's own socket had no room for.
    #[serde(default)]
    pub drops: u64,
    /// This member hears no datagrams and fetches the file itself: nothing need be sent for it.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub unicast: bool,
}

/// Body of `POST /want/<path>`: pages that go out before everything else. docs/PROTOCOL.md, "Demand".
///
/// Both are pairs of the first page, counted from 1 as in datagrams, and how many pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// A reader waits for these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub now: Vec<(u32, u32)>,
    /// A reader will probably want these next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later: Vec<(u32, u32)>,
}

/// Answer of `GET /status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the server program.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Ceiling of the sending rate over all casts, bits per second on the wire.
    pub rate_bps: u64,
    /// Running casts.
    pub casts: Vec<CastStatus>,
    /// Sums over the server's life.
    pub totals: Totals,
}

/// One running cast.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CastStatus {
    /// Percent-encoded, without a slash in front.
    pub path: String,
    /// Version that is being sent.
    pub etag: Etag,
    /// Group and port, `239.255.0.1:9000`.
    pub group: String,
    /// Bytes in the file.
    pub size: u64,
    /// Pages in the file.
    pub pages: u32,
    /// Bytes of a full page.
    pub page_size: u32,
    /// Clients that joined and did not leave.
    pub members: u32,
    /// Those of them that fetch the file themselves, over HTTP.
    #[serde(default)]
    pub unicast: u32,
    /// Joins since the cast began.
    pub joins: u64,
    /// Pages sent since the cast began.
    pub pages_sent: u64,
    /// Of these, pages that were asked for.
    #[serde(default)]
    pub demanded: u64,
    /// Repair symbols sent since the cast began.
    #[serde(default)]
    pub symbols_sent: u64,
    /// Repair symbols that each block gets unasked at present.
    #[serde(default)]
    pub repair_level: u32,
    /// Present rate, bits per second on the wire.
    #[serde(default)]
    pub rate_bps: u64,
    /// Whole passes over the file.
    pub passes: u32,
    /// Seconds since the first join.
    pub age_s: u64,
}

/// Sums over the server's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Casts begun.
    pub casts: u64,
    /// Joins answered.
    pub joins: u64,
    /// Leaves of known members.
    pub leaves: u64,
    /// Pages sent.
    pub pages_sent: u64,
    /// Of these, pages that were asked for.
    #[serde(default)]
    pub demanded: u64,
    /// Repair symbols sent.
    #[serde(default)]
    pub symbols_sent: u64,
    /// Bytes sent on the wire, headers included.
    pub bytes_sent: u64,
    /// Bytes read from files for casts.
    pub bytes_read: u64,
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    /// docs/PROTOCOL.md, "Meta", the worked example.
    const EXAMPLE: &str = r#"{"kind":"directory","size":0,"mode":493,"mtime":1700000000,"mtime_ns":5,"etag":"5-1","entries":[{"name":"a%20b.img","kind":"file","size":4000,"mode":420,"mtime":1700000000,"mtime_ns":0,"etag":"2a-fa0"},{"name":"now","kind":"symlink","size":7,"mode":511,"mtime":1700000000,"mtime_ns":0,"target":"a%20b.img"}]}"#;

    #[test]
    fn the_worked_example_reads_and_writes_back() {
        let meta: Meta = serde_json::from_str(EXAMPLE).unwrap();
        assert_eq!(meta.entries.as_ref().unwrap()[0].attributes.size, 4000);
        assert_eq!(serde_json::to_string(&meta).unwrap(), EXAMPLE);
    }

    #[test]
    fn a_want_reads_and_writes_as_the_protocol_shows_it() {
        let text = r#"{"now":[[17,3],[4001,16]],"later":[[4017,64]]}"#;
        let want = Want { now: vec![(17, 3), (4001, 16)], later: vec![(4017, 64)] };
        assert_eq!(serde_json::from_str::<Want>(text).unwrap(), want);
        assert_eq!(serde_json::to_string(&want).unwrap(), text);
        assert_eq!(serde_json::from_str::<Want>("{}").unwrap(), Want::default());
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
