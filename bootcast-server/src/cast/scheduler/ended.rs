//! Summary of a cast that ended, for the log.

use std::net::SocketAddrV4;
use std::time::Duration;

use bootcast_proto::RemotePath;

use super::{CastId, EndReason, Running};

/// Summary of a cast that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Identifier of the cast.
    pub cast: CastId,
    /// Path of its file.
    pub path: RemotePath,
    /// Group and port that its pages went to.
    pub group: SocketAddrV4,
    /// Reason of the end.
    pub reason: EndReason,
    /// Joins over the whole cast: the members that it served.
    pub joins: u64,
    /// Pages that were handed out for sending, demanded ones included.
    pub pages: u64,
    /// Repair symbols that were handed out for sending.
    pub symbols: u64,
    /// Completed passes.
    pub passes: u32,
    /// Time from the first join to the end.
    pub lasted: Duration,
}

impl Ended {
    pub(super) fn new(cast: CastId, running: Running, reason: EndReason, lasted: Duration) -> Self {
        Self {
            cast,
            reason,
            lasted,
            joins: running.cast.joins(),
            pages: running.cast.pages_sent(),
            symbols: running.cast.symbols_sent(),
            passes: running.cast.passes(),
            path: running.path,
            group: running.group,
        }
    }
}
