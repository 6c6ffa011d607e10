//! Pages that consist of zeros by the zero map: they arrive without a byte on the way.

use std::time::{Duration, Instant};

use bootcast_proto::{Geometry, PageIndex, PageRange, ZeroMap};

use super::{Inner, Object, Ready};
use crate::cache::is_no_room;
use crate::receiver::{Assembly, Epoch};

/// Maximum number of pages that are marked under one lock, which takes half a millisecond, or
/// written before other writers go on.
const PIECE_PAGES: u32 = 4096;

/// Why taking the pages of a zero map ends early.
enum Stop {
    /// Another membership began, whose pages may have other borders.
    Rejoined,
    /// The object needs no more pages.
    Over,
}

impl Object {
    /// Takes the missing pages that lie wholly in leaves of the zero map: they become zeros in the
    /// store, and then count as arrived. Calls `answer` with the reads that this completes. Waits
    /// for the disk. The receive thread must attend to the object afterwards.
    pub fn take_zeros(
        &self,
        map: &ZeroMap,
        mut answer: impl FnMut(Vec<Ready>),
        now: impl Fn() -> Instant,
    ) {
        loop {
            let Some((geometry, epoch)) = self.begin_zeros(map) else { return };
            match self.take_zeros_of(map, &geometry, epoch, &mut answer) {
                Ok(()) => return self.lock().receiver.handle_zeros_taken(now()),
                Err(Stop::Rejoined) => {}
                Err(Stop::Over) => return answer(self.take_answerable(&mut self.lock())),
            }
        }
    }

    /// Handles a request for the zero map that brought none.
    pub fn handle_no_zeros(&self, after: Duration, now: Instant) {
        self.lock().receiver.handle_no_zeros(after, now);
    }

    /// Returns the geometry of the file and the present membership.
    fn begin_zeros(&self, map: &ZeroMap) -> Option<(Geometry, Epoch)> {
        let mut inner = self.lock();
        // Otherwise a hole at the end of the file could not be read.
        self.set_final_size(&mut inner);
        inner.receiver.begin_zeros(map);
        let geometry = *inner.receiver.assembly()?.geometry();
        Some((geometry, inner.receiver.epoch()))
    }

    fn take_zeros_of(
        &self,
        map: &ZeroMap,
        geometry: &Geometry,
        epoch: Epoch,
        answer: &mut impl FnMut(Vec<Ready>),
    ) -> Result<(), Stop> {
        for run in map.runs() {
            let mut rest = map.pages_in(&run, geometry);
            while !rest.is_empty() {
                let end = rest.end.0.min(rest.start.0.saturating_add(PIECE_PAGES));
                let piece = PageRange::new(rest.start.0, end);
                rest.start = PageIndex(end);
                let _alone = self.begin_writing();
                let missing = self.lock().missing_runs(piece, epoch)?;
                for run in missing {
                    answer(self.take_zero_pages(run, geometry, epoch));
                }
            }
        }
        Ok(())
    }

    fn take_zero_pages(&self, pages: PageRange, geometry: &Geometry, epoch: Epoch) -> Vec<Ready> {
        let written = self.store().write_zeros(geometry.byte_range(pages));
        let mut inner = self.lock();
        match written {
            Ok(()) => inner.receiver.handle_zeros_stored(pages, epoch),
            // They stay missing, and are asked for when somebody reads them.
            Err(error) if is_no_room(&error) && self.store().may_drop() => {
                self.stop_filling(&mut inner);
            }
            Err(error) => self.store_failed(&mut inner, error.to_string()),
        }
        self.take_answerable(&mut inner)
    }
}

impl Inner {
    /// Returns the runs of missing pages among these, as long as they can still arrive.
    fn missing_runs(&self, pages: PageRange, epoch: Epoch) -> Result<Vec<PageRange>, Stop> {
        let receiver = &self.receiver;
        let is_over = self.is_shut_down || receiver.failure().is_some();
        if is_over || receiver.has_all_pages() {
            return Err(Stop::Over);
        }
        let assembly = receiver.assembly().filter(|_| receiver.epoch() == epoch);
        let arrived = assembly.map(Assembly::arrived).ok_or(Stop::Rejoined)?;
        let (mut rest, mut runs) = (pages, Vec::new());
        while let Some(start) = arrived.first_missing(rest) {
            let end = (start.0..rest.end.0).find(|page| arrived.contains(PageIndex(*page)));
            let run = PageRange::new(start.0, end.unwrap_or(rest.end.0));
            rest.start = run.end;
            runs.push(run);
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests;
