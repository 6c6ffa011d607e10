//! Detects sequential reads: which reads continue others.

use std::collections::VecDeque;
use std::ops::Range;

/// Most runs that are remembered: this many readers of one file can be told apart.
const MAX_RUNS: usize = 16;

/// Relation of a read to the reads before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It begins at the start of the file, as a sequential reader does, or repeats bytes that were
    /// read before.
    Following,
    /// It continues where another read ended.
    Continuing,
    /// None of these.
    Random,
}

/// Recent runs of reads.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// Runs, the most recently continued one last.
    runs: VecDeque<Run>,
    /// Bytes that were read so far, each once while its run is remembered.
    total: u64,
}

/// Bytes that were read one after another.
#[derive(Debug)]
struct Run {
    bytes: Range<u64>,
    /// End of the bytes that were announced already.
    ahead: u64,
}

impl Runs {
    /// Records a read and classifies it.
    pub(super) fn record(&mut self, bytes: &Range<u64>) -> Access {
        debug_assert!(bytes.start <= bytes.end, "a read of {bytes:?}");
        // Requests of one reader may arrive out of order, so one or two in between may still be
        // missing.
        let reach = 2 * (bytes.end - bytes.start);
        let touches = |run: &Run| {
            run.bytes.start <= bytes.end && bytes.start <= run.bytes.end.saturating_add(reach)
        };
        let found = self.runs.iter().rposition(touches).and_then(|at| self.runs.remove(at));
        let known = found.as_ref().map(|run| run.bytes.clone());
        let mut run = found.unwrap_or(Run { bytes: bytes.clone(), ahead: bytes.end });
        run.bytes = run.bytes.start.min(bytes.start)..run.bytes.end.max(bytes.end);
        let known_len = known.as_ref().map_or(0, |known| known.end - known.start);
        let growth = (run.bytes.end - run.bytes.start) - known_len;
        self.total = self.total.saturating_add(growth.min(bytes.end - bytes.start));
        if self.runs.len() == MAX_RUNS {
            self.runs.pop_front();
        }
        self.runs.push_back(run);
        debug_assert!(self.runs.len() <= MAX_RUNS, "{} runs are remembered", self.runs.len());
        match known {
            Some(known) if known.start <= bytes.start && bytes.end <= known.end => {
                Access::Following
            }
            Some(_) => Access::Continuing,
            None if bytes.start == 0 => Access::Following,
            None => Access::Random,
        }
    }

    /// Bytes that were read so far. A repeated read counts once.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that the last reader has read one after another.
    pub(super) fn newest(&self) -> Range<u64> {
        self.runs.back().map_or(0..0, |run| run.bytes.clone())
    }

    /// Bytes that the last reader will probably read next: up to `window` bytes after its read, but
    /// no more than it has read, without those announced before. Empty if that is less than half
    /// of the window.
    pub(super) fn announce(&mut self, window: u64) -> Range<u64> {
        let Some(run) = self.runs.back_mut() else { return 0..0 };
        let window = window.min(run.bytes.end - run.bytes.start);
        let (start, end) = (run.ahead.max(run.bytes.end), run.bytes.end.saturating_add(window));
        if end.saturating_sub(start) < window / 2 {
            return 0..0;
        }
        run.ahead = end;
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readers_of_one_file_each_go_on_where_they_were() {
        let mut runs = Runs::default();
        assert_eq!(runs.record(&(0..100)), Access::Following);
        assert_eq!(runs.record(&(5000..5100)), Access::Random);
        assert_eq!(runs.record(&(5000..5100)), Access::Following);
        assert_eq!(runs.record(&(100..200)), Access::Continuing);
        assert_eq!(runs.record(&(5100..5200)), Access::Continuing);
        assert_eq!(runs.record(&(401..500)), Access::Random);
    }

    #[test]
    fn what_is_read_twice_counts_once() {
        let mut runs = Runs::default();
        for bytes in [0..100, 100..200, 50..150, 5000..5100, 5000..5050] {
            runs.record(&bytes);
        }
        assert_eq!(runs.total(), 300);
        // The gap is bridged, but was not read.
        runs.record(&(300..400));
        assert_eq!(runs.total(), 400);
    }

    #[test]
    fn requests_that_overtook_each_other_are_one_run() {
        let mut runs = Runs::default();
        assert_eq!(runs.record(&(100..200)), Access::Random);
        assert_eq!(runs.record(&(0..100)), Access::Continuing);
        assert_eq!(runs.record(&(300..400)), Access::Continuing);
        assert_eq!(runs.record(&(200..300)), Access::Following);
        assert_eq!(runs.record(&(409..410)), Access::Random, "a short one must be nearer");
    }

    #[test]
    fn a_reader_that_was_not_heard_of_for_many_others_begins_anew() {
        let mut runs = Runs::default();
        for k in 0..=16 {
            assert_eq!(runs.record(&(1000 + k * 100..1010 + k * 100)), Access::Random);
        }
        assert_eq!(runs.record(&(1010..1020)), Access::Random);
        assert_eq!(runs.record(&(2610..2620)), Access::Continuing);
    }

    #[test]
    fn what_comes_next_is_said_once_and_in_pieces_worth_saying() {
        let mut runs = Runs::default();
        runs.record(&(0..100));
        assert_eq!(runs.announce(100), 100..200);
        runs.record(&(100..110));
        assert_eq!(runs.announce(100), 0..0);
        runs.record(&(110..160));
        assert_eq!(runs.announce(100), 200..260);
    }

    #[test]
    fn no_more_is_said_than_was_read() {
        let mut runs = Runs::default();
        runs.record(&(0..10));
        assert_eq!(runs.announce(100), 10..20);
        runs.record(&(10..20));
        assert_eq!(runs.announce(100), 20..40);
    }
}
