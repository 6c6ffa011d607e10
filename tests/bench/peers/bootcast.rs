//! Peer: bootcast mounts, each read whole.

use std::path::PathBuf;
use std::time::Duration;

use harness::wait::try_wait_for;
use harness::{Lab, Proc};

use super::race::{Race, Run, SIZE};
use super::{Condition, RATE};
use crate::read_all;

/// Time within which a cast without members ends.
const SETTLING: Duration = Duration::from_secs(5);

pub(super) fn run(lab: &Lab, _: &Condition) -> Run {
    let image = lab.put("image", SIZE);
    let server = lab.server().option("--rate", RATE).start();
    let mounts: Vec<_> = (1..=lab.clients().len()).map(|k| lab.mount(k).start()).collect();
    let race = Race::start(lab);
    let mut readers: Vec<Proc> =
        mounts.iter().map(|mount| read_all(mount.host(), &mount.join("image"))).collect();
    let finished = race.watch_programs(&mut readers, || true);
    // Waits for the end of the cast, because all that is sent counts. If a member remains, it may
    // never end.
    let _ = try_wait_for(SETTLING, || server.status().casts.is_empty().then_some(()));
    // A client whose read did not finish in time must not be waited for.
    let copies: Vec<PathBuf> = mounts.iter().map(|mount| mount.join("image")).collect();
    race.finish(&finished, &copies, &image)
}
