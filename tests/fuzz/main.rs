//! Runs every fuzz target for a moment: with the inputs in `corpus/`, and with changes of them.
//! `make fuzz` does so for minutes, and looks for inputs that reach other code.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::disallowed_methods, reason = "virtual clocks need a first moment")]

mod mutate;
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use harness::Random;
use targets::{TARGETS, Target};

/// Number of changed inputs of each target.
const RUNS: u32 = 2000;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// Returns the inputs of a target, in the order of their names.
fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let dir = fs::read_dir(corpus().join(target.name)).unwrap();
    let mut paths: Vec<_> = dir.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Runs a target. Prints an input that fails, as an argument of `printf`.
fn run(target: &Target, input: &[u8]) {
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    assert!(result.is_ok(), "{} fails with this input: \"{}\"", target.name, input.escape_ascii());
}

#[test]
fn no_input_of_the_corpus_and_no_change_of_one_makes_a_target_panic() {
    let runs = std::env::var("BOOTCAST_FUZZ_RUNS").map_or(RUNS, |runs| runs.parse().unwrap());
    for target in &TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{} has no input", target.name);
        for input in &inputs {
            run(target, input);
        }
        let mut random = Random::seeded(1);
        for _ in 0..runs {
            run(target, &mutate::mutated(&inputs, &mut random));
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_no_other_has() {
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names.len(), TARGETS.len(), "two targets have one name");
    let dirs = fs::read_dir(corpus()).unwrap();
    let dirs: BTreeSet<_> =
        dirs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, dirs);
}
