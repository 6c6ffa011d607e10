use bootcast_proto::PageSize;

use super::*;

const PAGE: u32 = 1000;
/// Bytes in a leaf: the pages 0 to 3, the half of page 4, and so on.
const LEAF: usize = 4500;

const SERVER: u8 = 0;
const FORGER: u8 = 1;

fn address(port: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], u16::from(port)))
}

/// Senders of a cast, and the bytes that a member stored.
struct Cast {
    senders: Senders,
    table: SenderTable,
    geometry: Geometry,
    stored: Vec<u8>,
}

impl Cast {
    fn new() -> Self {
        let geometry = Geometry::new(90_000, PageSize::new(PAGE.into()).unwrap()).unwrap();
        let (senders, table) = (Senders::default(), SenderTable::default());
        Self { senders, table, geometry, stored: vec![0; 90_000] }
    }

    /// Stores a page of a sender. The right bytes are 1.
    fn page(&mut self, from: u8, page: u32, byte: u8) {
        let sender = self.table.learn(address(from));
        self.senders.record_page(sender, PageIndex(page));
        self.stored[page as usize * 1000..][..1000].fill(byte);
    }

    fn bytes(leaf: usize) -> Range<usize> {
        leaf * LEAF..(leaf + 1) * LEAF
    }

    /// Checks a leaf, and replaces it if it is wrong. Returns the senders that are ignored now.
    fn check(&mut self, leaf: usize) -> Vec<Option<SocketAddr>> {
        let (number, start) = (leaf as u64, (leaf * LEAF) as u64);
        let stored = &self.stored[Self::bytes(leaf)];
        if stored.contains(&2) {
            self.senders.handle_wrong(number, start, stored, &self.geometry, None);
            self.senders.handle_replaced(number, &[1; LEAF], &self.geometry);
        } else {
            self.senders.handle_right(number, start, stored, &self.geometry);
        }
        let ignored = std::iter::from_fn(|| self.senders.poll_ignored());
        let ignored: Vec<_> = ignored.collect();
        for id in &ignored {
            self.table.ignore(*id);
        }
        ignored.into_iter().map(|id| self.table.address(id)).collect()
    }

    /// Stores a wrong page of a leaf that was rebuilt from symbols of these senders. Then the right
    /// bytes of the leaf come.
    fn rebuild_wrong(&mut self, leaf: usize, layout: BlockLayout, senders: &[u8]) {
        let page = PageIndex(u32::try_from(leaf * 9 / 2 + 1).unwrap());
        for sender in senders {
            let sender = self.table.learn(address(*sender));
            self.senders.record_symbol(sender, layout.place(page).0);
        }
        self.senders.record_other(PageRange::single(page), true);
        self.stored[page.0 as usize * 1000..][..1000].fill(2);
        let (number, stored) = (leaf as u64, &self.stored[Self::bytes(leaf)]);
        let start = (leaf * LEAF) as u64;
        self.senders.handle_wrong(number, start, stored, &self.geometry, Some(layout));
        self.senders.handle_replaced(number, &[1; LEAF], &self.geometry);
    }
}

/// Stores the pages of `leaves` leaves, one of each by `forger`, and checks these.
fn forged(cast: &mut Cast, leaves: Range<usize>, forger: impl Fn(usize) -> u8) -> Vec<usize> {
    let mut ignored = Vec::new();
    for leaf in leaves {
        // The last page lies in the next leaf as well.
        let pages = cast.geometry.pages_covering((leaf * LEAF) as u64..(leaf * LEAF + LEAF) as u64);
        for page in pages.iter() {
            let is_forged = page.0 == pages.start.0 + 1;
            cast.page(
                if is_forged { forger(leaf) } else { SERVER },
                page.0,
                1 + u8::from(is_forged),
            );
        }
        ignored.extend(cast.check(leaf).iter().map(|_| leaf));
    }
    ignored
}

#[test]
fn a_sender_of_which_a_page_in_each_leaf_is_wrong_is_ignored_after_three_leaves() {
    let mut cast = Cast::new();
    assert_eq!(forged(&mut cast, 0..5, |_| FORGER), [2]);
    assert!(cast.table.is_ignored(address(FORGER)) && !cast.table.is_ignored(address(SERVER)));
    assert!(!cast.table.is_ignored(address(99)), "a sender that did nothing");
}

#[test]
fn the_only_sender_is_never_ignored() {
    let mut cast = Cast::new();
    assert!(forged(&mut cast, 0..2, |_| SERVER).is_empty());
    assert!(!cast.senders.is_nobody_to_blame());
    assert!(forged(&mut cast, 2..10, |_| SERVER).is_empty());
    assert_eq!(cast.senders.standing(SenderId(0)).strikes, 10);
    assert!(cast.senders.is_nobody_to_blame());
}

#[test]
fn a_sender_is_not_ignored_while_no_other_one_brought_a_right_page() {
    let mut cast = Cast::new();
    for leaf in 0..5 {
        for page in leaf * 9 / 2..leaf * 9 / 2 + 6 {
            cast.page(u8::from(page % 2 == 0), u32::try_from(page).unwrap(), 2);
        }
        assert_eq!(cast.check(leaf), []);
    }
    (45..90).for_each(|page| cast.page(2, page, 1));
    assert_eq!([10, 11, 12].map(|leaf| cast.check(leaf).len()), [0, 0, 2]);
    assert!(!cast.table.is_ignored(address(2)));
}

#[test]
fn a_forger_that_changes_its_port_each_time_is_ignored_as_one() {
    let mut cast = Cast::new();
    let ignored = forged(&mut cast, 0..10, |leaf| 1 + u8::try_from(leaf).unwrap());
    assert_eq!(ignored, [KNOWN - 1 + 2]);
    assert!(cast.table.is_ignored(address(99)) && !cast.table.is_ignored(address(SERVER)));
}

#[test]
fn a_sender_of_symbols_only_gets_the_blame_for_rebuilt_pages() {
    let mut cast = Cast::new();
    let layout = BlockLayout::new(90, 1).unwrap();
    (0..90).for_each(|page| cast.page(SERVER, page, 1));
    (0..3).for_each(|leaf| assert_eq!(cast.check(leaf), []));
    cast.table.learn(address(SERVER));
    for leaf in [3, 5, 7] {
        cast.rebuild_wrong(leaf, layout, &[9, SERVER]);
    }
    assert!(!cast.senders.is_nobody_to_blame());
    assert_eq!(cast.senders.poll_ignored(), Some(SenderId(1)));
}

#[test]
fn wrong_rebuilt_pages_of_proven_senders_are_nobodys_fault() {
    let mut cast = Cast::new();
    let layout = BlockLayout::new(90, 1).unwrap();
    (0..90).for_each(|page| cast.page(u8::from(page % 2 == 0), page, 1));
    (0..3).for_each(|leaf| assert_eq!(cast.check(leaf), []));
    for (count, leaf) in [3, 5, 7].into_iter().enumerate() {
        assert!(!cast.senders.is_nobody_to_blame(), "after {count} leaves");
        cast.rebuild_wrong(leaf, layout, &[SERVER]);
    }
    assert!(cast.senders.is_nobody_to_blame());
    assert_eq!(cast.senders.poll_ignored(), None);
}

/// Forges whole leaves before their right pages come again.
fn forged_ahead(cast: &mut Cast, repeats_before_verdict: bool) -> Vec<usize> {
    let mut ignored = Vec::new();
    for leaf in (0..10).map(|number| 2 * number) {
        let (first, end) = (leaf * LEAF / 1000, ((leaf + 1) * LEAF).div_ceil(1000));
        let pages = u32::try_from(first).unwrap()..u32::try_from(end).unwrap();
        pages.clone().for_each(|page| cast.page(FORGER, page, 2));
        if !repeats_before_verdict {
            ignored.extend(cast.check(leaf).iter().map(|_| leaf));
        }
        let server = cast.table.learn(address(SERVER));
        if cast.senders.wants_repeats() {
            for page in pages {
                cast.senders.record_repeat(server, PageIndex(page), &[1; 1000]);
            }
        }
        if repeats_before_verdict {
            ignored.extend(cast.check(leaf).iter().map(|_| leaf));
        } else if let Some(id) = cast.senders.poll_ignored() {
            cast.table.ignore(id);
            ignored.push(leaf);
        }
    }
    ignored
}

#[test]
fn a_forger_that_is_always_first_is_ignored_because_the_right_pages_come_again() {
    for (repeats_before_verdict, at) in [(true, 4), (false, 4)] {
        let mut cast = Cast::new();
        assert_eq!(forged_ahead(&mut cast, repeats_before_verdict), [at]);
        assert!(cast.table.is_ignored(address(FORGER)) && !cast.table.is_ignored(address(SERVER)));
    }
}
