//! One target of `tests/fuzz/targets/` under libFuzzer. `$BOOTCAST_FUZZ_TARGET` names it.
#![no_main]
#![expect(clippy::disallowed_methods, reason = "virtual clocks need a first moment")]

#[path = "../../targets/mod.rs"]
mod targets;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// The target that runs.
static RUN: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("BOOTCAST_FUZZ_TARGET").unwrap_or_default();
    let target = targets::TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("no target {name:?} in $BOOTCAST_FUZZ_TARGET")).run
});

fuzz_target!(|bytes: &[u8]| RUN(bytes));
