//! Bytes that the cache has no room for: they are in memory until others need its place.
//! docs/SEMANTICS.md, "When there is no room".

use std::ops::Range;
use std::sync::{Arc, Mutex};

use tracing::{info, warn};

use super::storing::Saved;
use super::{Inner, Object};
use crate::cache::{CheckpointError, Settled};
use crate::io::now;
use crate::receiver::{Assembly, Fill};
use crate::{log_limit, panics};

/// Bytes of one object that are about to be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Answering(Arc<Mutex<Vec<Range<u64>>>>);

/// Keeps some bytes from being dropped.
#[derive(Debug)]
pub(super) struct Kept {
    bytes: Range<u64>,
    answering: Answering,
}

impl Answering {
    fn keep(&self, bytes: &Range<u64>) -> Kept {
        panics::lock(&self.0).push(bytes.clone());
        Kept { bytes: bytes.clone(), answering: self.clone() }
    }

    fn overlaps(&self, bytes: &Range<u64>) -> bool {
        panics::lock(&self.0).iter().any(|own| overlap(own, bytes))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut all = panics::lock(&self.answering.0);
        if let Some(own) = all.iter().position(|bytes| *bytes == self.bytes) {
            all.swap_remove(own);
        }
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Object {
    /// Keeps bytes that may be read now until the result is dropped. Needs the lock under which
    /// they were found to be here. `None`: they are where nothing is dropped.
    pub(super) fn keep(&self, bytes: &Range<u64>) -> Option<Kept> {
        self.store().may_drop().then(|| self.answering.keep(bytes))
    }

    /// Drops bytes in memory so that `len` others fit, those that were not read for longest first.
    /// Needs [`Object::begin_writing`].
    pub(super) fn drop_oldest(&self, len: u64) {
        let mut inner = self.lock();
        self.stop_filling(&mut inner);
        let waited: Vec<_> = inner.parked.iter().map(|parked| parked.bytes.clone()).collect();
        let oldest = self.store().oldest_in_window();
        let is_waited = |bytes: &Range<u64>| waited.iter().any(|own| overlap(own, bytes));
        let (last, first): (Vec<_>, Vec<_>) = oldest.into_iter().partition(is_waited);
        for bytes in first.into_iter().chain(last) {
            if self.store().window_excess(len) == 0 {
                break;
            }
            self.drop_bytes(&mut inner, &bytes);
        }
    }

    /// Drops all pages with some of these bytes, unless somebody reads or checks them.
    fn drop_bytes(&self, inner: &mut Inner, bytes: &Range<u64>) {
        let Some(geometry) = inner.receiver.assembly().map(|it| *it.geometry()) else { return };
        let pages = geometry.pages_covering(bytes.clone());
        let whole = geometry.byte_range(pages);
        if !self.answering.overlaps(&whole) && inner.receiver.drop_pages(pages, now()) {
            self.store().drop_from_window(&whole);
            inner.contiguous = super::ContiguousPages::default();
        }
    }

    /// Whether only what is read arrives, because the cache has no room for the file.
    pub fn is_past_cache(&self) -> bool {
        self.lock().is_past_cache
    }

    /// Drops what is too much in memory since other files need a part of it.
    pub fn trim_window(&self) {
        if self.store().may_drop() && self.store().window_excess(0) > 0 {
            let _alone = self.begin_writing();
            self.drop_oldest(0);
        }
    }

    /// Stops filling the file if the cache has no room for it.
    pub(super) fn stop_filling(&self, inner: &mut Inner) {
        if inner.is_past_cache || inner.receiver.failure().is_some() {
            return;
        }
        inner.is_past_cache = true;
        if let Some(more) = log_limit::allow("no room in the cache", "") {
            warn!(
                path = %self.key.path,
                "the cache has no room: reading past it until there is some; see cache_size=, \
                 cache_min_free= and the free space of its disk{more}"
            );
        }
        inner.receiver.stop_filling();
    }

    /// Moves bytes from memory to the cache if there are some and it has room by now.
    pub fn settle_window(&self) {
        if self.store().has_window() {
            let _alone = panics::lock(&self.saving);
            if let Err(error) = self.settle()
                && let Some(more) = log_limit::allow("cannot move bytes to the cache", &error)
            {
                warn!(path = %self.key.path, %error, "cannot move bytes to the cache{more}");
            }
        }
    }

    /// Moves bytes from memory to the cache if that has room by now, and fills the file again if
    /// all of it has. Nobody else does so at the same time.
    pub(super) fn settle(&self) -> Result<(), CheckpointError> {
        if !self.store().may_drop() {
            return Ok(());
        }
        let some = self.store().in_window(&(0..u64::MAX));
        let settled = loop {
            // In pieces, so that what arrives meanwhile is stored.
            let _alone = self.begin_writing();
            match self.store().settle_window().map_err(CheckpointError::State)? {
                Settled::Some => {}
                settled => break settled,
            }
        };
        let is_settled = settled == Settled::All;
        let missing = {
            let mut inner = self.lock();
            if !some.is_empty() {
                inner.saved = Saved::default();
            }
            if let Some(geometry) = inner.receiver.assembly().map(|it| *it.geometry()) {
                for bytes in &some {
                    inner.receiver.mark_changed(geometry.pages_covering(bytes.clone()));
                }
            }
            let missing = inner.receiver.assembly().map(Assembly::missing_bytes);
            missing.filter(|_| is_settled && inner.is_past_cache)
        };
        if let Some(missing) = missing
            && self.store().has_room(missing)
        {
            let mut inner = self.lock();
            inner.is_past_cache = false;
            if inner.fill == Fill::Full && inner.receiver.failure().is_none() {
                info!(path = %self.key.path, "the cache has room again: filling the file");
                inner.receiver.resume_filling();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
