//! Rebuilding lost pages from repair symbols.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::Instant;

use bootcast_proto::fec::{self, Engine};
use bootcast_proto::{Geometry, PageIndex};
use rustix::fs::FallocateFlags;
use tracing::debug;

use super::{Object, Ready, Stored, with_buffer};
use crate::receiver::{DecodePlan, RepairArrival};

/// Why a block was not rebuilt.
enum Unbuilt {
    /// Pages that are here cannot be read.
    Store(io::Error),
    /// Its symbols cannot be used; others may come.
    Symbols(String),
}

impl Object {
    /// Takes a batch of datagrams of the repair channel, and keeps the symbols that are of use.
    pub fn receive_repair(&self, datagrams: &[(SocketAddr, &[u8])], now: Instant) {
        let mut symbols = Vec::new();
        {
            let checked = self.check(datagrams);
            let mut inner = self.lock();
            for datagram in &checked {
                let arrival = inner.receiver.handle_checked_repair(datagram, now);
                if let RepairArrival::Symbol { block, number, payload } = arrival {
                    symbols.push((block, number, payload));
                }
            }
        }
        // One that cannot be kept counts as lost.
        symbols.retain(|(block, number, payload)| {
            let kept = self.store.symbols().write(*block, *number, payload);
            kept.inspect_err(|error| debug!(%error, "cannot keep a repair symbol")).is_ok()
        });
        if !symbols.is_empty() {
            let mut inner = self.lock();
            for (block, number, _) in symbols {
                inner.receiver.handle_symbol_stored(block, number);
            }
        }
    }

    /// Whether there are blocks to be rebuilt and nobody is at it. Who is told so calls [`Self::rebuild`] until nothing is left.
    #[must_use]
    pub fn begin_rebuilding(&self) -> bool {
        let mut inner = self.lock();
        let begins = inner.receiver.has_decodable() && !inner.is_rebuilding;
        inner.is_rebuilding |= begins;
        begins
    }

    /// Rebuilds a block, and hands out the reads that this serves. `None`: nothing is left to be rebuilt.
    pub fn rebuild(&self) -> Option<Vec<Ready>> {
        let (plan, geometry) = self.next_plan()?;
        match self.decode(&plan, &geometry) {
            Ok(pages) => Some(self.store_rebuilt(&plan, &geometry, &pages)),
            Err(Unbuilt::Store(error)) => {
                let mut inner = self.lock();
                inner.receiver.handle_store_error(error.to_string());
                Some(self.settle(&mut inner))
            }
            Err(Unbuilt::Symbols(reason)) => {
                debug!(block = %plan.block, reason, "repair symbols are of no use");
                self.lock().receiver.handle_symbols_lost(plan.block);
                Some(Vec::new())
            }
        }
    }

    fn next_plan(&self) -> Option<(DecodePlan, Geometry)> {
        let mut inner = self.lock();
        while let Some(block) = inner.receiver.poll_decodable() {
            let geometry = inner.receiver.assembly().map(|assembly| *assembly.geometry());
            if let Some(plan) = inner.receiver.decode_plan(block).zip(geometry) {
                return Some(plan);
            }
        }
        inner.is_rebuilding = false;
        None
    }

    /// The missing pages of the plan, each padded to the size of a full one.
    fn decode(&self, plan: &DecodePlan, geometry: &Geometry) -> Result<Vec<Vec<u8>>, Unbuilt> {
        let page_size = geometry.page_size().get() as usize;
        let len = (plan.present.len() + plan.symbols.len()) * page_size;
        with_buffer(len, |buffer| {
            let (pages, symbols) = buffer.split_at_mut(plan.present.len() * page_size);
            let mut present = Vec::with_capacity(plan.present.len());
            for ((source, page), slot) in plan.present.iter().zip(pages.chunks_mut(page_size)) {
                let bytes = &mut slot[..page_len(geometry, *page)];
                let offset = geometry.offset(*page);
                self.store.read_exact_at(bytes, offset).map_err(Unbuilt::Store)?;
                present.push((*source, &*bytes));
            }
            let mut repairs = Vec::with_capacity(plan.symbols.len());
            for (number, slot) in plan.symbols.iter().zip(symbols.chunks_mut(page_size)) {
                let read = self.store.symbols().read(plan.block, *number, slot);
                read.map_err(|error| Unbuilt::Symbols(error.to_string()))?;
                repairs.push((*number, &*slot));
            }
            let missing: Vec<_> = plan.missing.iter().map(|(source, _)| *source).collect();
            fec::decode(Engine::best(), page_size, &missing, &present, &repairs)
                .map_err(|error| Unbuilt::Symbols(error.to_string()))
        })
    }

    fn store_rebuilt(
        &self,
        plan: &DecodePlan,
        geometry: &Geometry,
        pages: &[Vec<u8>],
    ) -> Vec<Ready> {
        let epoch = {
            let inner = self.lock();
            let lowest = plan.present.iter().map(|(_, page)| geometry.offset(*page)).min();
            let is_whole = lowest.is_none_or(|lowest| lowest >= inner.given_back);
            if !is_whole || !inner.receiver.confirms(plan) {
                return Vec::new();
            }
            inner.receiver.epoch()
        };
        let mut slices: Vec<_> = plan
            .missing
            .iter()
            .zip(pages)
            .map(|((_, page), bytes)| (*page, IoSlice::new(&bytes[..page_len(geometry, *page)])))
            .collect();
        let stored = self.write(&mut slices, geometry.page_size());
        self.note(stored, epoch)
    }

    /// Counts what was written as held, unless a join since `epoch` may have brought another page size: then the bytes
    /// are right, but their page numbers are not.
    pub(super) fn note(&self, stored: Stored, epoch: u32) -> Vec<Ready> {
        let mut inner = self.lock();
        if inner.receiver.epoch() == epoch {
            for run in stored.runs {
                inner.receiver.handle_stored(run);
            }
        }
        if let Some(error) = stored.error {
            inner.receiver.handle_store_error(error);
        }
        self.settle(&mut inner)
    }

    /// Gives the room of the bytes before `end` back, as far as nothing will be rebuilt from them. They can be read no more.
    pub fn give_back(&self, end: u64) {
        let piece = {
            let mut inner = self.lock();
            let end = end.min(inner.receiver.settled());
            let start = inner.given_back;
            inner.given_back = end.max(start);
            start..end
        };
        if !piece.is_empty() {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let len = piece.end - piece.start;
            // Where the file system cannot, the room is free again at the end.
            let _ = rustix::fs::fallocate(&self.store, hole, piece.start, len);
        }
    }
}

fn page_len(geometry: &Geometry, page: PageIndex) -> usize {
    geometry.page_len(page).unwrap_or_default() as usize
}

#[cfg(test)]
mod tests;
