//! When a file is filled: at once, or when its readers have shown that they mean to read much of
//! it. docs/SEMANTICS.md, "Filling".

use std::time::{Duration, Instant};

use bootcast_proto::wire::RepairDatagram;
use bootcast_proto::{BlockLayout, JoinAnswer};

use super::{Fill, Receiver, Reuse};

/// Bytes that programs read to learn what a file is, at most; who reads more wants the file. `file`
/// reads 7 MiB at the start and as much at the end.
const MUCH: u64 = 16 << 20;
/// The same of bytes that are read one after another.
const MUCH_IN_A_ROW: u64 = 8 << 20;
/// The same where others are members of the cast, too: many machines do the same, such as to boot.
const MUCH_OF_MANY: u64 = 1 << 20;
/// Number of members that are many.
const MANY: u64 = 4;
/// 1 / this is the share of a smaller file that has the same meaning.
const SHARE_DIVISOR: u64 = 2;
/// A stream begins while a sequential reader is in this part of a window, 1 / this or some pages.
const WINDOW_DIVISOR: u32 = 8;
const WINDOW_PAGES: u32 = 256;
/// A file that is open for this long since it was first read is wanted, too.
const LONG: Duration = Duration::from_secs(30);

/// When all pages of an open file arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FillPolicy {
    /// After its readers have shown that they want the file.
    #[default]
    AfterIntent,
    /// From its open on.
    AtOpen,
    /// Only pages that readers wait for arrive.
    Never,
}

/// Intent of the readers of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Intent {
    /// Nobody waits for it: the file is filled at once, or never.
    #[default]
    Settled,
    /// Readers have not shown that they want the file.
    Awaited {
        /// When the file was first read since it was opened.
        since: Option<Instant>,
        /// Windows of the present cast.
        layout: Option<BlockLayout>,
        /// Whether many were members of the cast when this one joined.
        is_of_many: bool,
    },
}

impl Intent {
    /// Whether the file is filled later, perhaps.
    pub(super) fn is_awaited(self) -> bool {
        matches!(self, Self::Awaited { .. })
    }

    /// Handles a read.
    fn read(&mut self, now: Instant) {
        if let Self::Awaited { since, .. } = self {
            since.get_or_insert(now);
        }
    }

    /// Handles that nobody has the file open any more.
    fn closed(&mut self) {
        if let Self::Awaited { since, .. } = self {
            *since = None;
        }
    }

    /// When the time for which the file is open shows intent.
    fn due(self) -> Option<Instant> {
        match self {
            Self::Awaited { since, .. } => since.map(|since| since + LONG),
            Self::Settled => None,
        }
    }
}

impl Receiver {
    /// Fills the file only after its readers have shown that they want it. Until then pages arrive
    /// as with [`Fill::Demand`]. Call it before the first open.
    pub fn await_intent(&mut self) {
        if self.fill() == Fill::Full {
            self.intent = Intent::Awaited { since: None, layout: None, is_of_many: false };
            self.demand.set_fill(Fill::Demand);
        }
    }

    /// Whether all pages are wanted, now or perhaps later.
    pub(super) fn may_fill(&self) -> bool {
        self.fill() == Fill::Full || self.intent.is_awaited()
    }

    /// Handles a read that was recorded, and fills the file if it shows intent.
    pub(super) fn record_intent(&mut self, now: Instant) {
        self.intent.read(now);
        if self.intent.is_awaited() && self.shows_intent(now) {
            self.show_intent(now);
        }
    }

    /// Handles a close.
    pub(super) fn close_intent(&mut self) {
        if self.session.readers() == 0 {
            self.intent.closed();
        }
    }

    /// Fills the file if it has been open for long.
    pub(super) fn fill_if_due(&mut self, now: Instant) {
        if self.intent.due().is_some_and(|due| due <= now) {
            self.show_intent(now);
        }
    }

    /// When [`Self::fill_if_due`] is due.
    pub(super) fn intent_timeout(&self) -> Option<Instant> {
        self.intent.due()
    }

    /// Whether what was read so far shows intent.
    fn shows_intent(&self, now: Instant) -> bool {
        let run = self.demand.newest_run();
        let length = run.end - run.start;
        if self.is_of_many() && length >= MUCH_OF_MANY {
            return true;
        }
        let follows = length >= MUCH_IN_A_ROW;
        let share = self.content.size().map(|size| size.div_ceil(SHARE_DIVISOR));
        let is_much = self.demand.bytes_read() >= share.map_or(MUCH, |share| share.min(MUCH));
        (follows || is_much)
            && (!follows
                || self.begins_window(run.end)
                || self.lacks_at_most(MUCH) && !self.demand.is_streaming(now))
    }

    /// Handles a beacon that this member hears only to know where the stream of others is.
    pub(super) fn handle_awaited_beacon(&mut self, bytes: &[u8], now: Instant) {
        let Intent::Awaited { layout: Some(layout), is_of_many, .. } = &mut self.intent else {
            return;
        };
        let (layout, Some(geometry)) = (*layout, self.content.geometry()) else { return };
        let decoded = RepairDatagram::decode(bytes, layout, geometry.page_size().get());
        if let Ok(RepairDatagram::Beacon(beacon)) = decoded {
            *is_of_many |= u64::from(beacon.members) + 1 >= MANY;
            self.demand.handle_beacon(beacon.position, now);
        }
    }

    /// Whether many read this file at the same time, as far as known.
    fn is_of_many(&self) -> bool {
        matches!(self.intent, Intent::Awaited { is_of_many: true, .. })
    }

    /// Whether hardly anything of the window is before this position. The stream brings whole
    /// windows, also what a sequential reader has of one.
    fn begins_window(&self, position: u64) -> bool {
        let Intent::Awaited { layout: Some(layout), .. } = self.intent else { return true };
        let Some(geometry) = self.content.geometry() else { return true };
        let ahead = geometry.pages_covering(position..position + 1);
        if ahead.is_empty() {
            return false;
        }
        let page = ahead.start;
        let window = layout.pages_of(layout.window_of(page));
        page.0 - window.start.0 <= (window.len() / WINDOW_DIVISOR).max(WINDOW_PAGES)
    }

    fn lacks_at_most(&self, bytes: u64) -> bool {
        self.content.missing_pages().zip(self.content.geometry()).is_some_and(
            |(missing, geometry)| {
                u64::from(missing) * u64::from(geometry.page_size().get()) <= bytes
            },
        )
    }

    /// Fills the file from now on. What is not much is demanded, the rest comes with the stream.
    pub(super) fn show_intent(&mut self, now: Instant) {
        let little = if self.is_of_many() { MUCH_OF_MANY } else { MUCH };
        self.intent = Intent::Settled;
        // If leaves are copied, the end of that decides what to ask for.
        if self.reuse == Reuse::Off {
            self.content.check_all();
            self.fill_rest(self.lacks_at_most(little), now);
        }
    }

    /// Keeps what the answer to a join says about the cast.
    pub(super) fn adopt_cast(&mut self, answer: &JoinAnswer) {
        if let Intent::Awaited { layout, is_of_many, .. } = &mut self.intent {
            *layout = answer.block_layout();
            *is_of_many = answer.extensions.members.is_some_and(|members| members >= MANY);
        }
    }

    /// Gives up filling: not all pages can come.
    pub(super) fn drop_intent(&mut self) {
        self.intent = Intent::Settled;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_page_are_these() {
        // docs/SEMANTICS.md, "Filling".
        let page = include_str!("../../../docs/SEMANTICS.md");
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(SHARE_DIVISOR, 2);
        for told in [
            format!(
                "half of the file, or {} MiB, were read, or {} MiB one after another",
                MUCH >> 20,
                MUCH_IN_A_ROW >> 20
            ),
            format!("no more than {} MiB are missing", MUCH >> 20),
            format!("is still open {} s after it was first read", LONG.as_secs()),
        ] {
            assert!(page.contains(&told), "{told}");
        }
    }
}
