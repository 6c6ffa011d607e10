//! Leaf lists of a cast: who asked for them, and their place in the stream.

use std::sync::Arc;
use std::time::Instant;

use bootcast_proto::wire::LeafSpan;
use bootcast_proto::{Manifest, PageRange, Token};

use super::super::stream::Audience;
use super::{Cast, State};

impl Cast {
    /// Records that a member asked for leaf lists. Ignores members that know no repair channel.
    pub fn request_leaves(&mut self, token: &Token) {
        self.members.request_leaves(token);
    }

    /// Takes over the manifest of the file: its values go out from now on, and pages of zeros are
    /// left out for members that have the zero map.
    pub fn handle_manifest(&mut self, manifest: Arc<Manifest>, now: Instant) {
        if self.leaf_lists.handle_manifest(manifest, now) {
            self.stream.set_zeros(self.leaf_lists.zero_pages());
        }
    }

    /// Encodes the datagram of a list that this cast handed out.
    pub fn encode_leaf_list(&self, list: LeafSpan) -> Option<Vec<u8>> {
        self.leaf_lists.encode(list)
    }

    /// Returns since when urgent pages, or the lists ahead of them, have waited.
    pub(super) fn urgent_since(&self) -> Option<Instant> {
        let since = [self.leaf_lists.demanded_since(), self.demand.urgent_since()];
        since.into_iter().flatten().min().filter(|_| self.sends_demand())
    }

    /// Returns the next list that is queued. It goes before promised symbols: with these a member
    /// completes, and leaves.
    pub(super) fn poll_queued_leaf_list(&mut self) -> Option<LeafSpan> {
        if self.members.want_leaf_lists() { self.leaf_lists.poll_queued() } else { None }
    }

    /// Returns the next list that goes out with the stream.
    pub(super) fn poll_leaf_list(&mut self, audience: Audience, now: Instant) -> Option<LeafSpan> {
        if !self.members.want_leaf_lists() {
            return None;
        }
        let is_due = self.stream.poll_at(audience).is_some_and(|at| at <= now);
        let position = self.stream.position(audience);
        let position = Some(position).filter(|it| is_due && it.0 < self.pages);
        self.leaf_lists.poll_stream(position, now)
    }

    /// Returns how many pages of the stream may go out before the next list.
    pub(super) fn pages_until_leaf_list(&self, audience: Audience) -> u32 {
        if self.members.want_leaf_lists() {
            self.leaf_lists.pages_until_list(self.stream.position(audience))
        } else {
            u32::MAX
        }
    }

    /// Records pages that the stream handed out.
    pub(super) fn on_stream_pages(&mut self, pages: PageRange, audience: Audience, now: Instant) {
        if self.members.want_leaf_lists() {
            self.leaf_lists.on_pages(pages, self.stream.position(audience), now);
        }
    }

    /// Returns the earliest time at which lists wait for no page of the stream.
    pub(super) fn leaf_lists_at(&self) -> Option<Instant> {
        debug_assert!(self.state == State::Serving, "only then the stream runs");
        self.leaf_lists.poll_at().filter(|_| self.members.want_leaf_lists())
    }
}
