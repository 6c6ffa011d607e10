//! Which reads go on where others ended.

use std::collections::VecDeque;
use std::ops::Range;

/// Runs that are remembered: so many readers of one file are told apart.
const MAX_RUNS: usize = 16;

/// How a read relates to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It begins at the beginning of the file, as one who reads all of it does, or asks again for what was read before.
    Following,
    /// It goes on where another ended.
    Continuing,
    /// Neither.
    Random,
}

/// What was read lately.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// The one that was continued last stands last.
    runs: VecDeque<Run>,
}

/// Bytes that were read one after the other.
#[derive(Debug)]
struct Run {
    bytes: Range<u64>,
    /// Bytes before this were announced already.
    ahead: u64,
}

impl Runs {
    /// Takes note of a read.
    pub(super) fn note(&mut self, bytes: &Range<u64>) -> Access {
        // Requests of one reader may come in another order than they were made in, so that one is missing in between, or two.
        let reach = 2 * (bytes.end - bytes.start);
        let touches = |run: &Run| {
            run.bytes.start <= bytes.end && bytes.start <= run.bytes.end.saturating_add(reach)
        };
        let found = self.runs.iter().rposition(touches).and_then(|at| self.runs.remove(at));
        let known = found.as_ref().map(|run| run.bytes.clone());
        let mut run = found.unwrap_or(Run { bytes: bytes.clone(), ahead: bytes.end });
        run.bytes = run.bytes.start.min(bytes.start)..run.bytes.end.max(bytes.end);
        if self.runs.len() == MAX_RUNS {
            self.runs.pop_front();
        }
        self.runs.push_back(run);
        match known {
            Some(known) if known.start <= bytes.start && bytes.end <= known.end => {
                Access::Following
            }
            Some(_) => Access::Continuing,
            None if bytes.start == 0 => Access::Following,
            None => Access::Random,
        }
    }

    /// What the reader of the last read will want next: up to `window` bytes behind it, as far as that was not said before.
    /// Nothing while that is less than half of the window.
    pub(super) fn announce(&mut self, window: u64) -> Range<u64> {
        let Some(run) = self.runs.back_mut() else { return 0..0 };
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
        assert_eq!(runs.note(&(0..100)), Access::Following);
        assert_eq!(runs.note(&(5000..5100)), Access::Random);
        assert_eq!(runs.note(&(5000..5100)), Access::Following);
        assert_eq!(runs.note(&(100..200)), Access::Continuing);
        assert_eq!(runs.note(&(5100..5200)), Access::Continuing);
        assert_eq!(runs.note(&(401..500)), Access::Random);
    }

    #[test]
    fn requests_that_overtook_each_other_are_one_run() {
        let mut runs = Runs::default();
        assert_eq!(runs.note(&(100..200)), Access::Random);
        assert_eq!(runs.note(&(0..100)), Access::Continuing);
        assert_eq!(runs.note(&(300..400)), Access::Continuing);
        assert_eq!(runs.note(&(200..300)), Access::Following);
        assert_eq!(runs.note(&(409..410)), Access::Random, "a short one must be nearer");
    }

    #[test]
    fn a_reader_that_was_not_heard_of_for_many_others_begins_anew() {
        let mut runs = Runs::default();
        for k in 0..=16 {
            assert_eq!(runs.note(&(1000 + k * 100..1010 + k * 100)), Access::Random);
        }
        assert_eq!(runs.note(&(1010..1020)), Access::Random);
        assert_eq!(runs.note(&(2610..2620)), Access::Continuing);
    }

    #[test]
    fn what_comes_next_is_said_once_and_in_pieces_worth_saying() {
        let mut runs = Runs::default();
        runs.note(&(0..10));
        assert_eq!(runs.announce(100), 10..110);
        runs.note(&(10..20));
        assert_eq!(runs.announce(100), 0..0);
        runs.note(&(20..70));
        assert_eq!(runs.announce(100), 110..170);
    }
}
