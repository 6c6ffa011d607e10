//! UFTP: `uftp` at a fixed rate, and `uftpd`.

use std::fs;
use std::path::PathBuf;

use bootcast_proto::BitRate;
use harness::{Lab, Proc, SOON, wait_until};

use super::race::{Race, Run, SIZE, State};
use super::{Condition, RATE};

pub(super) fn run(lab: &Lab, _: &Condition) -> Run {
    let image = lab.put("image", SIZE);
    let kilobits = RATE.parse::<BitRate>().unwrap().bits_per_second() / 1000;
    let kilobits = kilobits.to_string();
    let directories: Vec<_> = lab.clients().iter().map(|host| host.fresh_path("uftp")).collect();
    // uftpd gives a file its final name when it is complete.
    let receive = |(host, directory): (&harness::Host, &PathBuf)| {
        fs::create_dir(directory).unwrap();
        let directory = directory.to_str().unwrap();
        host.spawn("uftpd", ["-d", "-t", "-D", directory, "-I", "eth0"])
    };
    let _receivers: Vec<Proc> = lab.clients().iter().zip(&directories).map(receive).collect();
    wait_until(SOON, "every uftpd listens", || {
        lab.clients().iter().all(harness::Host::is_in_a_group)
    });
    let race = Race::start(lab);
    let file = image.path.to_str().unwrap();
    let mut sender = lab.head().spawn("uftp", ["-R", &kilobits, "-I", "eth0", file]);
    let copies: Vec<_> = directories.iter().map(|directory| directory.join("image")).collect();
    let state = |client: usize| {
        if copies[client].exists() { State::Finished } else { State::Running }
    };
    let finished = race.watch(state, || sender.exited().is_none());
    race.finish(&finished, &copies, &image)
}
