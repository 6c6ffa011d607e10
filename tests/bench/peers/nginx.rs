//! `nginx` and `curl`: a copy for each client over TCP.

use harness::lab::HEAD_ADDRESS;
use harness::{Lab, Proc};

use super::Condition;
use super::race::{Race, Run, SIZE, copies};
use crate::fleet::start_nginx;

pub(super) fn run(lab: &Lab, _: &Condition) -> Run {
    let image = lab.put("image", SIZE);
    let mut nginx = start_nginx(lab);
    let copies = copies(lab);
    let race = Race::start(lab);
    let url = format!("http://{HEAD_ADDRESS}:8080/image");
    let fetch = |(host, copy): (&harness::Host, &std::path::PathBuf)| {
        host.spawn("curl", ["-sSf", &url, "-o", copy.to_str().unwrap()])
    };
    let mut clients: Vec<Proc> = lab.clients().iter().zip(&copies).map(fetch).collect();
    let finished = race.watch_programs(&mut clients, || nginx.exited().is_none());
    race.finish(&finished, &copies, &image)
}
