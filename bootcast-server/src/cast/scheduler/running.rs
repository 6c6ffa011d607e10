//! One running cast as the scheduler sees it.

use std::net::SocketAddrV4;
use std::time::Instant;

use bootcast_proto::{Etag, Geometry, RemotePath};

use super::taken::Strangers;
use super::{CastId, CastView};
use crate::cast::Cast;
use crate::cast::Principal;
use crate::cast::rate::{Allowance, RateControl};

/// A running cast, with its rate and its place in the round robin.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) path: RemotePath,
    pub(super) etag: Etag,
    pub(super) geometry: Geometry,
    pub(super) group: SocketAddrV4,
    pub(super) started_at: Instant,
    /// Whose join started it.
    pub(super) started_by: Principal,
    pub(super) cast: Cast,
    pub(super) control: RateControl,
    pub(super) allowance: Allowance,
    /// Bytes on the wire that the cast may still send in its turn. Deficit round robin (Shreedhar
    /// and Varghese, 1995).
    pub(super) deficit: u64,
    /// Other senders that were heard in the group.
    pub(super) strangers: Option<Strangers>,
}

impl Running {
    /// Returns the weight of the cast for sharing the rate. It grows with the logarithm of the
    /// number of hosts with members: a cast with 1024 of them gets eleven times the rate of a cast
    /// with one.
    pub(super) fn weight(&self) -> u64 {
        u64::from(1 + self.cast.principals().max(1).ilog2())
    }

    /// Whether at least as many pages were sent as the file has.
    pub(super) fn is_sent(&self) -> bool {
        self.cast.pages_sent() >= u64::from(self.geometry.pages())
    }

    /// Returns the allowance that limits urgent pages, or `None` if only the ceiling limits them.
    /// While no member reports counters, the rate of the cast says nothing about the network.
    pub(super) fn urgent_allowance(&self) -> Option<&Allowance> {
        Some(&self.allowance).filter(|_| self.cast.reporting_members() > 0)
    }

    /// Returns the maximum number of pages in a run of urgent pages.
    pub(super) fn urgent_budget(&self, batch_pages: u32) -> u32 {
        self.urgent_allowance().map_or(batch_pages, |own| own.batch_pages().min(batch_pages))
    }

    /// Ends the opening of the cast if its time is over.
    pub(super) fn end_opening(&mut self, now: Instant) {
        if !self.control.is_opening() {
            return;
        }
        let is_changed = self.control.end_opening(self.cast.reporting_members(), now);
        self.apply_rate(is_changed, now);
    }

    /// Applies the rate that the rate control has chosen.
    pub(super) fn apply_rate(&mut self, is_changed: bool, now: Instant) {
        if is_changed {
            self.allowance.set_rate(self.control.rate(), now);
        }
        self.cast.set_pace(self.control.is_opening(), self.control.datagram_time());
    }

    pub(super) fn view(&self, id: CastId) -> CastView<'_> {
        let Self { path, etag, geometry, group, started_at, cast, control, .. } = self;
        let rate = control.rate();
        let (geometry, group, started_at) = (*geometry, *group, *started_at);
        CastView { id, path, etag, geometry, group, started_at, cast, rate }
    }
}
