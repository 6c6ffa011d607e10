//! Takes leaves from an older version of the file in the cache, and then asks for the rest.
//! docs/SEMANTICS.md, "New versions of a cached file".

use std::time::Instant;

use bootcast_proto::Geometry;
use bootcast_proto::manifest::Value;

use super::{Check, Fill, Piece, Receiver, Verification, Verify};

/// 1 / this is the largest share of the file that is demanded page by page. What misses more joins
/// the stream again.
const REMAINDER_DIVISOR: u32 = 16;

/// Progress with an older version.
///
/// ```text
/// Off --older version found--> Copying --little is missing--> Asking
///  ^                              |                              |
///  '------- more is missing ------'           all arrived -------'
/// ```
///
/// Until it is known what the older version has, the member is one that only demands: readers are
/// served, and no stream runs for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reuse {
    /// There is no older version, or it is of no more use.
    #[default]
    Off,
    /// Leaves are copied from the older version.
    Copying,
    /// All that the older version lacks is demanded.
    Asking,
}

impl Reuse {
    pub(super) fn is_asking(self) -> bool {
        self == Self::Asking
    }
}

impl Receiver {
    /// Sets that an older version of the file is at hand. Has an effect only before the first join,
    /// with verification, and if all pages should arrive.
    pub fn handle_older(&mut self) {
        let may_reuse = self.content.verify() == Verify::Leaf && self.may_fill();
        if may_reuse && !self.session.is_member() && !self.content.has_all_pages() {
            self.reuse = Reuse::Copying;
            self.demand.set_fill(Fill::Demand);
        }
    }

    /// Whether leaves are copied from the older version.
    pub fn is_reusing(&self) -> bool {
        self.reuse == Reuse::Copying
    }

    /// Begins to copy once the server has confirmed the version. Joins again if the last join asked
    /// for too little.
    pub(super) fn begin_reuse(&mut self, now: Instant) {
        if self.is_reusing()
            && let Some(verification) = self.content.verification_mut()
            && !verification.is_reusing()
        {
            verification.begin_reuse(now);
        }
        self.end_reuse_if_over(now);
        let joined_too_little = self.session.joined_fill() == Fill::Demand;
        if joined_too_little && self.fill() == Fill::Full && self.demand.is_supported() {
            self.session.join_again(now);
        }
    }

    /// Whether [`Self::poll_piece`] has something to do.
    pub fn has_piece(&self) -> bool {
        let verification = self.content.verification();
        self.is_reusing() && self.may_verify() && verification.is_some_and(Verification::has_piece)
    }

    /// Returns the next segment to compare with the older version. Answer with
    /// [`Self::handle_compared`] if it has no values, else with [`Self::handle_piece_over`].
    pub fn poll_piece(&mut self) -> Option<Piece> {
        if !self.has_piece() {
            return None;
        }
        self.content.verification_mut()?.poll_piece()
    }

    /// Handles the comparison of a segment without values: those of the older version, if they are
    /// right.
    pub fn handle_compared(&mut self, piece: &Piece, values: Option<&[Value]>, now: Instant) {
        if let Some(verification) = self.content.verification_mut() {
            verification.handle_compared(piece.segment(), values, now);
        }
    }

    /// Handles leaves that the older version has and that were stored, except those that are wrong
    /// there.
    pub fn handle_reused(&mut self, check: &Check, wrong: &[u64]) {
        let in_flight = |pages| self.in_flight.may_have(pages);
        for pages in self.content.handle_reused(check, wrong, in_flight) {
            assert!(
                self.repair.blocks().is_none(),
                "a repaired block would count pages as missing"
            );
            self.demand.handle_stored(pages);
        }
        self.end_if_complete();
        self.rest_if_nothing_can_come();
        self.assert_invariants();
    }

    /// Handles that all is stored that the older version has of a segment.
    pub fn handle_piece_over(&mut self, piece: &Piece, now: Instant) {
        if let Some(verification) = self.content.verification_mut() {
            verification.handle_piece_over(piece.segment(), now);
        }
    }

    /// Decides how the rest is to come, once the older version has nothing more.
    pub(super) fn end_reuse_if_over(&mut self, now: Instant) {
        let verification = self.content.verification();
        let has_begun = self.content.assembly().is_some();
        if !self.is_reusing() || !has_begun || verification.is_some_and(|it| !it.is_reuse_over(now))
        {
            return;
        }
        self.counters.reused_leaves += self.content.end_reuse();
        self.reuse = Reuse::Off;
        if !self.intent.is_awaited() {
            self.fill_rest(self.lacks_little(), now);
        }
    }

    /// Whether so little is missing, in whatever places, that it should be demanded.
    fn lacks_little(&self) -> bool {
        let pages = self.content.geometry().map_or(0, Geometry::pages);
        self.content.missing_pages().unwrap_or(0) <= pages / REMAINDER_DIVISOR
    }

    /// Fills the file: little is demanded, more comes with the stream.
    pub(super) fn fill_rest(&mut self, is_little: bool, now: Instant) {
        let is_complete = self.content.has_all_pages();
        if is_complete || self.session.failure().is_some() {
            self.demand.set_fill(Fill::Full);
        } else if is_little && self.demand.is_supported() {
            self.reuse = Reuse::Asking;
            self.demand.begin_remainder();
            self.want_if_due(now);
        } else {
            self.demand.set_fill(Fill::Full);
            self.session.join_again(now);
        }
    }

    /// When [`Self::end_reuse_if_over`] is due.
    pub(super) fn reuse_timeout(&self) -> Option<Instant> {
        let verification = self.content.verification().filter(|_| self.is_reusing())?;
        if self.may_verify() { verification.reuse_timeout() } else { None }
    }
}
