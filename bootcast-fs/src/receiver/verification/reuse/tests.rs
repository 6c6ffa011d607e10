use bootcast_proto::manifest::{LEAF_BYTES, SEGMENT_BYTES};

use super::super::ListRequest;
use super::super::tests::{File, check, range};
use super::*;

/// Leaf values of an older version of three segments, of which the newer one lacks these leaves.
fn versions(changed: &[u64]) -> (File, File) {
    let older = File::new(3 * SEGMENT_BYTES);
    let mut bytes = older.bytes.clone();
    for leaf in changed {
        bytes[index(leaf * LEAF_BYTES)] ^= 1;
    }
    (older, File::of(bytes))
}

/// Does what the rest of the client does with one segment. Returns it.
fn step(verification: &mut Verification, older: &File, stored: &[u8], now: Instant) -> Option<u64> {
    let piece = verification.poll_piece()?;
    let segment = piece.segment();
    let segments = older.manifest.tree().segments();
    let values =
        if segment < segments { older.leaves(&(segment..segment + 1)) } else { Default::default() };
    if piece.values().is_some() {
        for run in piece.equal_leaves(values) {
            let wrong = run.wrong_leaves(&stored[range(&run.bytes())]);
            for leaves in verification.handle_reused(&run, &wrong) {
                let bytes = verification.bytes_of(&leaves);
                verification.handle_arrived(&bytes, |_| true);
                verification.handle_right(&leaves, |_| false);
            }
        }
        verification.handle_piece_over(segment, now);
    } else {
        let equal = Some(values).filter(|values| piece.is_equal(values));
        verification.handle_compared(segment, equal, now);
    }
    Some(segment)
}

/// Takes what there is from the older version, whose bytes are `stored`.
fn reuse(verification: &mut Verification, older: &File, new: &File, stored: &[u8], now: Instant) {
    verification.begin_reuse(now);
    loop {
        new.answer(verification, now);
        while step(verification, older, stored, now).is_some() {}
        if verification.is_reuse_over(now) {
            break;
        }
    }
}

/// Returns the leaves that are verified.
fn verified(verification: &Verification) -> Vec<u64> {
    let tree = *verification.tree();
    (0..tree.leaves()).filter(|leaf| verification.has_verified(&tree.leaf(*leaf))).collect()
}

#[test]
fn every_leaf_that_is_equal_is_taken_and_no_other() {
    let changed = [3, 255, 600];
    let ((older, new), now) = (versions(&changed), Instant::now());
    let mut verification = new.verification(true);
    reuse(&mut verification, &older, &new, &older.bytes, now);
    assert_eq!(check(&mut verification, &new.bytes, now), 0, "nothing is hashed twice");
    let expected: Vec<_> = (0..768).filter(|leaf| !changed.contains(leaf)).collect();
    assert_eq!(verified(&verification), expected);
    assert_eq!(verification.end_reuse(), 765);
}

#[test]
fn the_list_of_a_segment_that_did_not_change_is_not_requested() {
    let ((older, new), now) = (versions(&[300]), Instant::now());
    let mut verification = new.verification(true);
    verification.begin_reuse(now);
    assert!(!verification.has_piece(), "the values of the segments are not known");
    new.answer(&mut verification, now);
    while step(&mut verification, &older, &older.bytes, now).is_some() {}
    assert_eq!(verification.poll_request(now), Some(ListRequest::Leaves(1..2)));
    assert_eq!(verified(&verification).len(), 512);
    assert!(!verification.is_reuse_over(now));
}

#[test]
fn leaves_that_are_damaged_in_the_older_version_are_not_taken() {
    let ((older, new), now) = (versions(&[]), Instant::now());
    let mut damaged = older.bytes.clone();
    for leaf in [0, 256, 767] {
        damaged[index(leaf * LEAF_BYTES) + 5] ^= 1;
    }
    let mut verification = new.verification(true);
    reuse(&mut verification, &older, &new, &damaged, now);
    let expected: Vec<_> = (0..768).filter(|leaf| ![0, 256, 767].contains(leaf)).collect();
    assert_eq!(verified(&verification), expected);
    assert_eq!(verification.wrong_total(), 0, "they never arrived");
}

#[test]
fn segments_that_readers_wait_for_come_first() {
    let ((older, new), now) = (versions(&[10, 300, 700]), Instant::now());
    let mut verification = new.verification(true);
    verification.begin_reuse(now);
    new.answer(&mut verification, now);
    verification.handle_read(&(2 * SEGMENT_BYTES + 7..2 * SEGMENT_BYTES + 8));
    let steps = std::iter::from_fn(|| step(&mut verification, &older, &older.bytes, now));
    assert_eq!(steps.take(3).collect::<Vec<_>>(), [2, 0, 1]);
}

#[test]
fn while_the_server_hashes_the_file_leaves_are_compared_by_what_it_states() {
    let ((older, new), now) = (versions(&[300]), Instant::now());
    let mut verification = new.verification(false);
    verification.begin_reuse(now);
    let segments = verification.poll_request(now).unwrap();
    verification.handle_lists(&segments, &[], now).unwrap();
    assert_eq!(verification.poll_piece(), None, "without lists nothing can be compared");
    let request = verification.poll_request(now).unwrap();
    assert_eq!(request, ListRequest::Leaves(0..3));
    verification.handle_lists(&request, new.leaves(&(0..2)), now).unwrap();
    while step(&mut verification, &older, &older.bytes, now).is_some() {}
    assert_eq!(verified(&verification).len(), 511);
    assert!(!verification.is_reuse_over(now), "a list is missing");
    let late = verification.reuse_timeout().unwrap();
    assert!(verification.is_reuse_over(late), "nobody waits for it for ever");
}

#[test]
fn leaves_that_may_have_been_overwritten_meanwhile_are_checked_again() {
    let ((older, new), now) = (versions(&[300]), Instant::now());
    let mut verification = new.verification(true);
    verification.begin_reuse(now);
    new.answer(&mut verification, now);
    assert_eq!(step(&mut verification, &older, &older.bytes, now), Some(0), "it is compared");
    let piece = verification.poll_piece().unwrap();
    let runs = piece.equal_leaves(older.leaves(&(0..1)));
    verification.record_stored(&(5 * LEAF_BYTES + 3..5 * LEAF_BYTES + 4));
    for leaves in verification.handle_reused(&runs[0], &[]) {
        verification.handle_arrived(&(0..64 * LEAF_BYTES), |_| true);
        verification.handle_right(&leaves, |bytes| bytes.contains(&(9 * LEAF_BYTES)));
    }
    let expected: Vec<_> = (0..64).filter(|leaf| ![5, 9].contains(leaf)).collect();
    assert_eq!(verified(&verification), expected);
    check(&mut verification, &new.bytes, now);
    assert_eq!(verified(&verification), (0..64).collect::<Vec<_>>());
}

#[test]
fn a_shorter_older_version_has_the_leaves_that_both_have() {
    let (short, now) = (File::new(SEGMENT_BYTES + 40_000), Instant::now());
    let new = File::of([&short.bytes[..], &vec![7; 500_000]].concat());
    let mut verification = new.verification(true);
    reuse(&mut verification, &short, &new, &short.bytes, now);
    assert_eq!(verified(&verification), (0..258).collect::<Vec<_>>());
}
