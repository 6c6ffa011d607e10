//! Rebuilds lost pages from repair symbols.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bootcast_proto::fec::{self, Engine, SOURCES, SourceIndex};
use bootcast_proto::{BlockIndex, BlockLayout, Geometry, PageIndex, PageRange};
use rustix::fs::FallocateFlags;
use tracing::debug;

use super::storing::count_datagrams;
use super::{Object, Ready, with_buffer};
use crate::receiver::{DecodePlan, RepairArrival};
use crate::totals::TOTALS;

/// Most bytes of pages read together, if that is more than one block.
const SPAN_BYTES: usize = 3 << 20;

/// Most unneeded blocks that are read along with their neighbours. That takes no longer than one
/// more system call per row.
const GAP_BLOCKS: u32 = 4;

/// Rebuilding of the blocks of one object. Each object has at most one at a time.
///
/// Dropping it, also by a panic, lets another one begin.
#[derive(Debug)]
pub struct Rebuilding {
    object: Arc<Object>,
    /// Whether [`Self::step`] found nothing more to rebuild, so that another one may have begun.
    is_over: bool,
}

impl Rebuilding {
    /// Whether all missing pages can be rebuilt, so that nothing else needs to arrive.
    pub fn lacks_nothing_else(&self) -> bool {
        self.object.lock().receiver.lacks_only_decodable()
    }

    /// Rebuilds the blocks that can be rebuilt at present. Calls `answer` with the reads that they
    /// complete. Returns `false` if there were none.
    pub fn step(&mut self, answer: impl FnMut(Vec<Ready>)) -> bool {
        if self.is_over {
            return false;
        }
        match self.object.next_task() {
            Some(task) => self.object.rebuild(&task, answer),
            None => self.is_over = true,
        }
        !self.is_over
    }
}

impl Drop for Rebuilding {
    fn drop(&mut self) {
        if !self.is_over {
            self.object.lock().in_background.is_rebuilding = false;
        }
    }
}

/// The missing pages of a block.
type Built<'a> = (&'a DecodePlan, Vec<Vec<u8>>);

/// Blocks that can be rebuilt, and where their pages lie.
struct Task {
    /// Plans in the order of their blocks.
    plans: Vec<DecodePlan>,
    geometry: Geometry,
    layout: BlockLayout,
}

impl Task {
    /// Groups of plans whose blocks are close to each other.
    fn spans(&self) -> impl Iterator<Item = &[DecodePlan]> {
        let most = u32::try_from(SPAN_BYTES / (SOURCES * self.page_size())).unwrap_or(u32::MAX);
        let mut rest = &self.plans[..];
        std::iter::from_fn(move || {
            let first = rest.first()?.block;
            let window = self.layout.window_of_block(first);
            let goes_on = |before: BlockIndex, next: BlockIndex| {
                next.0 <= before.0 + GAP_BLOCKS
                    && next.0 - first.0 < most
                    && self.layout.window_of_block(next) == window
            };
            let end = rest.windows(2).position(|pair| !goes_on(pair[0].block, pair[1].block));
            let (span, others) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
            rest = others;
            Some(span)
        })
    }

    fn page_size(&self) -> usize {
        self.geometry.page_size().get() as usize
    }
}

impl Object {
    /// Stores the useful symbols of a batch of datagrams of the repair channel.
    pub fn receive_repair(&self, datagrams: &[(SocketAddr, &[u8])], now: Instant) {
        let mut symbols = Vec::new();
        {
            let checked = self.check(datagrams);
            let mut inner = self.lock();
            let before = inner.receiver.counters();
            for datagram in &checked {
                let arrival = inner.receiver.handle_checked_repair(datagram, now);
                if let RepairArrival::Symbol { block, number, round, payload } = arrival {
                    symbols.push((block, number, round, payload));
                }
            }
            count_datagrams(&before, &inner.receiver.counters());
        }
        // A symbol that cannot be stored counts as lost.
        symbols.retain(|(block, number, _, payload)| {
            let kept = self.store().symbols().write(*block, *number, payload);
            kept.inspect_err(|error| debug!(%error, "cannot keep a repair symbol")).is_ok()
        });
        if !symbols.is_empty() {
            let mut inner = self.lock();
            for (block, number, round, _) in symbols {
                inner.receiver.handle_symbol_stored(block, number, round);
            }
        }
    }

    /// Begins rebuilding if there are blocks to rebuild and nothing rebuilds them already.
    #[must_use]
    pub fn begin_rebuilding(self: &Arc<Self>) -> Option<Rebuilding> {
        let mut inner = self.lock();
        if inner.in_background.is_rebuilding || !inner.receiver.has_decodable() {
            return None;
        }
        inner.in_background.is_rebuilding = true;
        Some(Rebuilding { object: self.clone(), is_over: false })
    }

    /// Rebuilds the blocks of `task`, neighbours together. Calls `answer` with the reads that they
    /// complete.
    fn rebuild(&self, task: &Task, mut answer: impl FnMut(Vec<Ready>)) {
        for span in task.spans() {
            answer(match self.decode_span(span, task) {
                Ok(built) => self.store_rebuilt(&built, &task.geometry),
                Err(error) => {
                    let mut inner = self.lock();
                    self.store_failed(&mut inner, error.to_string());
                    self.take_answerable(&mut inner)
                }
            });
        }
    }

    /// Returns the blocks that can be rebuilt. If there are none, rebuilding is over.
    fn next_task(&self) -> Option<Task> {
        let mut inner = self.lock();
        let receiver = &mut inner.receiver;
        let geometry = receiver.assembly().map(|assembly| *assembly.geometry());
        let mut plans = Vec::new();
        while let Some(block) = receiver.poll_decodable() {
            plans.extend(receiver.decode_plan(block));
        }
        let task = geometry.zip(receiver.block_layout()).filter(|_| !plans.is_empty());
        inner.in_background.is_rebuilding = task.is_some();
        task.map(|(geometry, layout)| Task { plans, geometry, layout })
    }

    /// Reads the pages of neighbouring blocks, row by row. Returns the missing pages of each block,
    /// padded to full pages. Blocks that are absent from the result have unusable symbols.
    fn decode_span<'a>(&self, span: &'a [DecodePlan], task: &Task) -> io::Result<Vec<Built<'a>>> {
        let (geometry, page_size) = (&task.geometry, task.page_size());
        let blocks = blocks_of(span);
        let row_len = blocks.len() * page_size;
        let column = |block: BlockIndex| (block.0 - blocks.start) as usize * page_size;
        let missing = span.iter().map(|plan| plan.missing.len()).max().unwrap_or(0);
        with_buffer(SOURCES * row_len + missing * page_size, |buffer| {
            let (rows, symbols) = buffer.split_at_mut(SOURCES * row_len);
            for (row, needed) in rows.chunks_exact_mut(row_len).zip(rows_of(span)) {
                let Some((first, pages)) = needed else { continue };
                let bytes = geometry.byte_range(pages);
                let len = usize::try_from(bytes.end - bytes.start).expect("a row fits memory");
                self.store().read_exact_at(&mut row[column(first)..][..len], bytes.start)?;
            }
            let mut built = Vec::with_capacity(span.len());
            for plan in span {
                let column = column(plan.block);
                let present: Vec<_> = plan
                    .present
                    .iter()
                    .map(|(source, page)| {
                        let start = source.get() * row_len + column;
                        (*source, &rows[start..start + page_len(geometry, *page)])
                    })
                    .collect();
                match self.decode(plan, &present, symbols, page_size) {
                    Ok(pages) => built.push((plan, pages)),
                    Err(reason) => {
                        debug!(block = %plan.block, reason, "repair symbols are of no use");
                        self.lock().receiver.handle_symbols_lost(plan);
                    }
                }
            }
            Ok(built)
        })
    }

    fn decode(
        &self,
        plan: &DecodePlan,
        present: &[(SourceIndex, &[u8])],
        symbols: &mut [u8],
        page_size: usize,
    ) -> Result<Vec<Vec<u8>>, String> {
        let mut repairs = Vec::with_capacity(plan.symbols.len());
        for (number, symbol) in plan.symbols.iter().zip(symbols.chunks_exact_mut(page_size)) {
            let read = self.store().symbols().read(plan.block, *number, symbol);
            read.map_err(|error| error.to_string())?;
            repairs.push((*number, &*symbol));
        }
        let missing: Vec<_> = plan.missing.iter().map(|(source, _)| *source).collect();
        fec::decode(Engine::best(), page_size, &missing, present, &repairs)
            .map_err(|error| error.to_string())
    }

    fn store_rebuilt(&self, built: &[Built<'_>], geometry: &Geometry) -> Vec<Ready> {
        let mut rebuilt = Vec::new();
        let _alone = self.begin_writing();
        let epoch = {
            let mut inner = self.lock();
            let is_right = |plan: &DecodePlan| {
                let lowest = plan.present.iter().map(|(_, page)| geometry.offset(*page)).min();
                lowest.is_none_or(|lowest| lowest >= inner.freed_until)
                    && inner.receiver.confirms(plan)
            };
            let current: Vec<_> = built.iter().filter(|(plan, _)| is_right(plan)).collect();
            for (plan, pages) in current {
                let pages = plan.missing.iter().zip(pages);
                let pages =
                    pages.map(|((_, page), bytes)| (*page, &bytes[..page_len(geometry, *page)]));
                if inner.receiver.admits_rebuilt(plan, pages.clone().map(|(_, bytes)| bytes)) {
                    rebuilt.extend(pages.map(|(page, bytes)| (page, IoSlice::new(bytes))));
                }
            }
            for (page, _) in &rebuilt {
                inner.receiver.record_other_pages(PageRange::single(*page), true);
            }
            inner.receiver.epoch()
        };
        rebuilt.sort_unstable_by_key(|(page, _)| *page);
        let written = self.write(&mut rebuilt, geometry.page_size());
        TOTALS.rebuilt_bytes.add(written.bytes(geometry.page_size()));
        self.mark_held(written, epoch)
    }

    /// Frees the space of the bytes before `end`, except where a block may be rebuilt from them.
    /// They cannot be read again.
    pub fn free_before(&self, end: u64) {
        let piece = {
            let mut inner = self.lock();
            let end = end.min(inner.receiver.settled());
            let start = inner.freed_until;
            inner.freed_until = end.max(start);
            start..end
        };
        if !piece.is_empty() {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let len = piece.end - piece.start;
            // If the file system cannot do this, the space is freed at the end.
            let _ = rustix::fs::fallocate(self.store(), hole, piece.start, len);
        }
    }
}

/// Range from the first block of the plans to the last.
fn blocks_of(span: &[DecodePlan]) -> Range<u32> {
    match span {
        [first, .., last] => first.block.0..last.block.0 + 1,
        [only] => only.block.0..only.block.0 + 1,
        [] => 0..0,
    }
}

/// For each position in a block: the present pages, from the first block that has one to the last,
/// and that first block. Later pages may lie beyond the end of the store, whose final size is not
/// always known.
fn rows_of(span: &[DecodePlan]) -> Vec<Option<(BlockIndex, PageRange)>> {
    let mut rows = vec![None; SOURCES];
    for plan in span {
        for (source, page) in &plan.present {
            let (_, pages) =
                rows[source.get()].get_or_insert((plan.block, PageRange::single(*page)));
            pages.end = PageRange::single(*page).end;
        }
    }
    rows
}

fn page_len(geometry: &Geometry, page: PageIndex) -> usize {
    geometry.page_len(page).unwrap_or_default() as usize
}

#[cfg(test)]
mod tests;
