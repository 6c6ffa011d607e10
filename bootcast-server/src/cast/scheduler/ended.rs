//! Final counters of a cast, for the log.

use std::net::SocketAddrV4;
use std::time::Duration;

use bootcast_proto::RemotePath;

use super::{CastId, EndReason, Running};

/// A cast that ended, with its final counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Identifier of the cast.
    pub cast: CastId,
    /// Path of its file.
    pub path: RemotePath,
    /// Group and port that its pages went to.
    pub group: SocketAddrV4,
    /// Why it ended.
    pub reason: EndReason,
    /// Number of joins.
    pub joins: u64,
    /// Number of pages that were sent, demanded ones included.
    pub pages: u64,
    /// Number of repair symbols that were handed out for sending.
    pub symbols: u64,
    /// Number of completed passes.
    pub passes: u32,
    /// Time from the first join to the end.
    pub duration: Duration,
}

impl Ended {
    pub(super) fn new(
        cast: CastId,
        running: Running,
        reason: EndReason,
        duration: Duration,
    ) -> Self {
        Self {
            cast,
            reason,
            duration,
            joins: running.cast.joins(),
            pages: running.cast.pages_sent(),
            symbols: running.cast.symbols_sent(),
            passes: running.cast.passes(),
            path: running.path,
            group: running.group,
        }
    }
}
