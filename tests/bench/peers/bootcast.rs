//! bootcast: each client reads the whole file from a mount.

use std::path::PathBuf;
use std::time::Duration;

use harness::wait::try_wait_for;
use harness::{Lab, Proc};

use super::race::{Race, Run, SIZE};
use super::{Condition, RATE};
use crate::read_all;

/// Upper bound of the time until a cast without members ends.
const MAX_LINGER: Duration = Duration::from_secs(5);

pub(super) fn run(lab: &Lab, _: &Condition) -> Run {
    let image = lab.put("image", SIZE);
    let server = lab.server().option("--rate", RATE).start();
    let mounts: Vec<_> = (1..=lab.clients().len()).map(|k| lab.mount(k).start()).collect();
    let race = Race::start(lab);
    let mut readers: Vec<Proc> =
        mounts.iter().map(|mount| read_all(mount.host(), &mount.join("image"))).collect();
    let finished = race.watch_programs(&mut readers, || true);
    // Waits for the end of the cast, because all bytes that are sent count. The cast may not end if
    // a member remains.
    let _ = try_wait_for(MAX_LINGER, || server.status().casts.is_empty().then_some(()));
    // `race.finish` reads only the copies of clients that finished, so it does not wait for others.
    let copies: Vec<PathBuf> = mounts.iter().map(|mount| mount.join("image")).collect();
    race.finish(&finished, &copies, &image)
}
