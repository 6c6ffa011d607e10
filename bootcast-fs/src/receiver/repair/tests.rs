#![expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]

use std::collections::BTreeSet;

use bootcast_proto::{PageRange, Share};
use proptest::prelude::*;

use super::*;

/// 400 pages in windows of 256: four blocks, of 128, 128, 72 and 72 pages.
const PAGES: u32 = 400;

fn layout() -> BlockLayout {
    BlockLayout::new(PAGES, 2).unwrap()
}

fn symbol(number: usize) -> RepairIndex {
    RepairIndex::new(number).unwrap()
}

/// A member that holds all pages but these.
fn lacking(missing: &[u32]) -> (Repair, PageSet) {
    let mut held = PageSet::new(PAGES);
    for page in (0..PAGES).filter(|page| !missing.contains(page)) {
        held.insert(PageIndex(page));
    }
    (Repair::new(layout(), PageSize::new(4).unwrap(), &held), held)
}

/// The beacon number `number`, with the same level for all blocks.
fn beacon(number: u32, position: u32, sent: u8, promised: u8) -> Beacon {
    let levels = vec![Level { sent, promised }; 2];
    Beacon {
        number,
        position: PageIndex(position),
        members: 1,
        permit: Share::ALL,
        spread_ms: 10,
        pace: bootcast_proto::wire::Pace::default(),
        windows: vec![(WindowIndex(0), levels.clone()), (WindowIndex(1), levels)],
    }
}

/// Has the stream pass all windows.
fn pass_all(repair: &mut Repair, sent: u8, promised: u8) {
    repair.page_seen(PageIndex(0), true);
    repair.beacon(&beacon(1, PAGES, sent, promised), Instant::now());
}

#[test]
fn a_new_member_misses_every_page_of_every_block() {
    let repair = Repair::new(layout(), PageSize::new(4).unwrap(), &PageSet::new(PAGES));
    let missing: Vec<_> = repair.blocks.iter().map(|block| block.missing).collect();
    assert_eq!(missing, [128, 128, 72, 72]);
}

#[test]
fn nothing_is_reported_of_a_window_that_is_not_closed() {
    let (mut repair, _) = lacking(&[0, 300]);
    let now = Instant::now();
    (0..128).for_each(|page| repair.page_seen(PageIndex(page), true));
    repair.beacon(&beacon(1, 255, 0, 0), now);
    assert!(!repair.is_short());
    repair.beacon(&beacon(2, 256, 0, 0), now);
    assert!(repair.is_short());
    assert_eq!(repair.report().needs, [(0, 1)]);
}

#[test]
fn a_report_is_answered_when_all_that_it_named_is_promised() {
    let (mut repair, _) = lacking(&[0, 1, 2, 4]);
    pass_all(&mut repair, 0, 0);
    let needs = repair.report().needs;
    assert_eq!(needs, [(0, 3), (1, 1)]);
    assert!(!repair.is_promised(&needs) && !repair.is_promised(&[]));
    repair.beacon(&beacon(2, PAGES, 2, 2), Instant::now());
    assert!(!repair.is_promised(&needs));
    repair.beacon(&beacon(3, PAGES, 3, 3), Instant::now());
    assert!(repair.is_promised(&needs) && repair.is_short(), "kept, and lost");
    assert!(!repair.is_promised(&[(99, 0)]), "no such block");
}

#[test]
fn what_is_promised_and_not_sent_takes_its_time() {
    let (mut repair, _) = lacking(&[0]);
    pass_all(&mut repair, 1, 3);
    let bits = PageSize::new(4).unwrap().wire_len() * 8;
    assert_eq!(repair.time_owed(1), Duration::from_millis(4 * 2 * bits));
    assert_eq!(repair.time_owed(0), Duration::ZERO, "of a server that tells no rate");
}

#[test]
fn a_need_counts_missing_pages_and_lost_symbols() {
    // Pages 0, 2 and 4 are in block 0, page 1 is in block 1.
    let (mut repair, _) = lacking(&[0, 1, 2, 4]);
    repair.symbol_seen(BlockIndex(0), symbol(3), 4);
    repair.symbol_stored(BlockIndex(0), symbol(3));
    pass_all(&mut repair, 4, 4);
    // Block 0: 3 missing + 3 lost of 4. Block 1: 1 missing + 4 lost.
    assert_eq!(repair.report().needs, [(0, 6), (1, 5)]);
}

#[test]
fn what_was_promised_is_not_reported() {
    let (mut repair, _) = lacking(&[0, 1, 2]);
    pass_all(&mut repair, 0, 1);
    assert_eq!(repair.report().needs, [(0, 2)]);
    repair.beacon(&beacon(2, PAGES, 0, 2), Instant::now());
    assert!(!repair.is_short());
    assert_eq!(repair.report(), Report::default());
    // The promise is kept, and the symbol is lost.
    repair.beacon(&beacon(3, PAGES, 2, 2), Instant::now());
    assert_eq!(repair.report().needs, [(0, 4), (1, 3)]);
}

#[test]
fn a_symbol_tells_of_promises_too() {
    let (mut repair, _) = lacking(&[1]);
    pass_all(&mut repair, 0, 0);
    assert!(repair.is_short());
    assert!(repair.symbol_seen(BlockIndex(1), symbol(0), 2).is_useful);
    assert!(!repair.is_short());
}

#[test]
fn a_window_that_lacks_a_quarter_of_its_pages_is_asked_for_as_a_whole() {
    // Window 1 has 144 pages. All that it lacks is in block 2, of which half is missing.
    let almost: Vec<u32> = (0..35).map(|page| 256 + 2 * page).chain([0]).collect();
    let (mut repair, _) = lacking(&almost);
    pass_all(&mut repair, 0, 0);
    let report = repair.report();
    assert_eq!((report.needs, report.bulk), (vec![(0, 1), (2, 35)], vec![]));
    let (mut repair, _) = lacking(&[&almost[..], &[257]].concat());
    pass_all(&mut repair, 0, 0);
    let report = repair.report();
    assert_eq!((report.needs, report.bulk.clone()), (vec![(0, 1)], vec![(1, 1)]));
    repair.reopen(&report.bulk);
    let report = repair.report();
    assert_eq!((report.needs, report.bulk), (vec![(0, 1)], vec![]));
}

#[test]
fn windows_asked_for_one_after_the_other_are_one_pair() {
    let mut repair = Repair::new(layout(), PageSize::new(4).unwrap(), &PageSet::new(PAGES));
    pass_all(&mut repair, 0, 0);
    assert_eq!(repair.report().bulk, [(0, 2)]);
}

#[test]
fn a_long_report_is_cut_and_its_lowest_blocks_remain() {
    let pages = 128 * 5000;
    let layout = BlockLayout::new(pages, 1).unwrap();
    let mut held = PageSet::new(pages);
    held.insert_range(PageRange::new(0, pages));
    let mut repair = Repair::new(layout, PageSize::new(4).unwrap(), &held);
    for block in &mut repair.blocks {
        block.missing = 1;
    }
    repair.page_seen(PageIndex(0), true);
    repair.beacon(&Beacon { windows: Vec::new(), ..beacon(1, pages, 0, 0) }, Instant::now());
    let needs = repair.report().needs;
    assert_eq!((needs.len(), needs[0], needs[4095]), (4096, (0, 1), (4095, 1)));
}

#[test]
fn a_block_is_decodable_exactly_when_enough_is_here() {
    let (mut repair, held) = lacking(&[0, 2]);
    let block = BlockIndex(0);
    repair.symbol_stored(block, symbol(7));
    assert_eq!(repair.poll_decodable(), None);
    assert_eq!(repair.decode_plan(block, &held), None);
    repair.symbol_stored(block, symbol(9));
    assert_eq!(repair.poll_decodable(), Some(block));
    assert_eq!(repair.poll_decodable(), None);
    let plan = repair.decode_plan(block, &held).unwrap();
    assert_eq!(plan.missing.iter().map(|(_, page)| page.0).collect::<Vec<_>>(), [0, 2]);
    assert_eq!((plan.present.len(), plan.symbols), (126, vec![symbol(7), symbol(9)]));
    // A page came meanwhile: there is something new to be said of the block.
    repair.page_stored(PageIndex(0));
    assert_eq!(repair.poll_decodable(), Some(block));
    repair.page_stored(PageIndex(2));
    assert_eq!(repair.poll_decodable(), None);
}

#[test]
fn a_symbol_that_is_held_or_that_a_block_can_do_without_is_of_no_use() {
    let (mut repair, _) = lacking(&[0, 2]);
    assert!(!repair.symbol_seen(BlockIndex(1), symbol(0), 1).is_useful);
    assert!(repair.symbol_seen(BlockIndex(0), symbol(0), 1).is_useful);
    repair.symbol_stored(BlockIndex(0), symbol(0));
    assert!(!repair.symbol_seen(BlockIndex(0), symbol(0), 1).is_useful);
    repair.symbol_stored(BlockIndex(0), symbol(1));
    assert!(!repair.symbol_seen(BlockIndex(0), symbol(2), 3).is_useful);
}

#[test]
fn symbols_that_cannot_be_used_are_asked_for_again() {
    let (mut repair, _) = lacking(&[0]);
    repair.symbol_seen(BlockIndex(0), symbol(0), 1);
    repair.symbol_stored(BlockIndex(0), symbol(0));
    pass_all(&mut repair, 1, 1);
    assert!(!repair.is_short());
    repair.symbols_lost(BlockIndex(0));
    assert_eq!(repair.poll_decodable(), None);
    assert_eq!(repair.report().needs, [(0, 2)]);
}

#[test]
fn another_cast_begins_with_the_symbols_and_without_the_promises() {
    let (mut repair, _) = lacking(&[0, 2, 4]);
    repair.symbol_seen(BlockIndex(0), symbol(0), 9);
    repair.symbol_stored(BlockIndex(0), symbol(0));
    pass_all(&mut repair, 1, 9);
    repair.begin_cast();
    assert_eq!(repair.report(), Report::default());
    pass_all(&mut repair, 0, 0);
    // Symbol 0 comes again first, which is held: two that are not make three in all.
    assert_eq!(repair.report().needs, [(0, 3)]);
}

#[test]
fn the_worked_examples_of_counting_hold() {
    // docs/PROTOCOL.md, "Counting symbols".
    let page = include_str!("../../../../docs/PROTOCOL.md").replace('\n', " ");
    let [first, second, third] =
        [(104, 105), (2, 140), (2, 40)].map(|(at, of)| count_at(symbol(at), of).unwrap());
    let counted = format!(
        "With 105 promised, symbol 104 is the {first}th; with 140 promised, symbol 2 is the \
         {second}st; with 40 promised, symbol 2 is the {third}rd."
    );
    assert!(page.contains(&counted), "{counted}");
    let need = need(130, !(1 << 5 | 1 << 9), 2);
    let needed = format!(
        "130 were sent, all numbers but 5 and 9 are held, and the block lacks two more symbols. \
         The next numbers are 2, 3, 4, 5, 6, 7, 8 and 9: the need is {need}."
    );
    assert!(page.contains(&needed), "{needed}");
}

#[test]
fn no_more_windows_are_asked_for_than_the_server_looks_at() {
    let layout = BlockLayout::new(128 * 600, 1).unwrap();
    let mut held = PageSet::new(128 * 600);
    // Every second window is here: no two runs of those that lack everything touch.
    for run in 0..300 {
        held.insert_range(PageRange::new(run * 256, run * 256 + 128));
    }
    let mut repair = Repair::new(layout, PageSize::new(4).unwrap(), &held);
    repair.close_all();
    let Report { needs, bulk, .. } = repair.report();
    assert_eq!((needs.len(), bulk.len(), bulk[255]), (0, REPORT_RUNS, (511, 1)));
    repair.reopen(&bulk);
    assert_eq!(repair.report().bulk[0], (513, 1));
}

#[test]
fn a_report_holds_as_much_as_the_protocol_says() {
    let page = include_str!("../../../../docs/PROTOCOL.md");
    let told = format!("names at most {REPORT_NEEDS} blocks and {REPORT_RUNS} runs of windows");
    assert!(page.contains(&told), "{told}");
}

#[test]
fn the_number_of_a_symbol_and_its_promise_tell_the_count() {
    for (number, promised, expected) in [
        (0, 1, Some(1)),
        (0, 0, None),
        (5, 5, None),
        (127, 128, Some(128)),
        (0, 128, Some(1)),
        (0, 129, Some(129)),
        (127, 254, Some(128)),
        (126, 255, Some(255)),
        (127, 255, Some(128)),
    ] {
        assert_eq!(count_at(symbol(number), promised), expected, "{number} of {promised}");
    }
}

#[test]
fn a_symbol_that_is_sent_again_moves_nothing() {
    let (mut repair, _) = lacking(&[0, 2, 4]);
    let first = repair.symbol_seen(BlockIndex(0), symbol(0), 1);
    assert_eq!(first, SymbolArrival { is_useful: true, is_new: true });
    repair.symbol_stored(BlockIndex(0), symbol(0));
    pass_all(&mut repair, 100, 100);
    let before = repair.report();
    let again = repair.symbol_seen(BlockIndex(0), symbol(0), 1);
    assert_eq!(again, SymbolArrival { is_useful: false, is_new: false });
    assert_eq!(repair.report(), before, "100 were sent, and not 129");
    // The 129th has the same number.
    assert!(repair.symbol_seen(BlockIndex(0), symbol(0), 129).is_new);
    assert_eq!(repair.report().needs[0], (0, 131));
}

proptest! {
    /// Whatever a server sends, and in which order it comes.
    #[test]
    fn symbols_never_tell_of_more_than_was_sent(
        sent in 1u32..600,
        unsent in 0u32..128,
    ) {
        let saturated = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
        let number = symbol(usize::try_from((sent - 1) % 128).unwrap());
        let counted = count_at(number, saturated(sent + unsent)).unwrap();
        prop_assert!(counted <= saturated(sent));
        prop_assert!(counted == saturated(sent) || sent + unsent >= 255);
    }
}

proptest! {
    /// Against the slow and obvious way to say the same.
    #[test]
    fn needs_and_decodable_blocks_are_those_of_the_protocol(
        missing in proptest::collection::btree_set(0..PAGES, 0..60),
        arrivals in proptest::collection::vec((0u32..4, 0usize..12, any::<bool>()), 0..60),
        (sent, more) in (0u8..12, 0u8..8),
    ) {
        let missing: Vec<u32> = missing.into_iter().collect();
        let (mut repair, mut held) = lacking(&missing);
        let mut symbols = vec![BTreeSet::new(); 4];
        let mut seen = [sent; 4];
        for (block, number, is_page) in arrivals {
            if is_page {
                let page = missing.iter().find(|page| {
                    !held.contains(PageIndex(**page))
                        && layout().place(PageIndex(**page)).0 == BlockIndex(block)
                });
                if let Some(page) = page {
                    held.insert(PageIndex(*page));
                    repair.page_stored(PageIndex(*page));
                }
            } else {
                seen[block as usize] = seen[block as usize].max(u8::try_from(number + 1).unwrap());
                let promised = u8::try_from(number + 1).unwrap();
                if repair.symbol_seen(BlockIndex(block), symbol(number), promised).is_useful {
                    symbols[block as usize].insert(number);
                    repair.symbol_stored(BlockIndex(block), symbol(number));
                }
            }
        }
        pass_all(&mut repair, sent, sent + more);
        let offered: BTreeSet<_> = std::iter::from_fn(|| repair.poll_decodable()).collect();
        let report = repair.report();
        for block in 0..4u32 {
            let pages: Vec<_> = layout().pages_in(BlockIndex(block)).collect();
            let missing = pages.iter().filter(|(_, page)| !held.contains(*page)).count();
            let here = symbols[block as usize].len();
            // The beacon's, or as far as a later symbol shows.
            let promised = usize::from(seen[block as usize].max(sent + more));
            let sent = usize::from(seen[block as usize]);
            let is_decodable = missing > 0 && here >= missing;
            prop_assert_eq!(offered.contains(&BlockIndex(block)), is_decodable);
            let plan = repair.decode_plan(BlockIndex(block), &held);
            prop_assert_eq!(plan.is_some(), is_decodable);
            let need = missing + (sent - here);
            let is_short = missing > here && need > promised;
            let window = layout().window_of_block(BlockIndex(block)).0;
            if report.bulk.iter().any(|(first, count)| (*first..first + count).contains(&window)) {
                continue;
            }
            let reported = report.needs.iter().find(|(number, _)| *number == block);
            prop_assert_eq!(reported.map(|(_, need)| usize::from(*need)), is_short.then_some(need));
        }
    }
}
