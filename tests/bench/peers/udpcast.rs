//! udpcast: `udp-sender` and `udp-receiver`.

use harness::{Lab, Proc};

use super::race::{Race, Run, SIZE, copies};
use super::{CLIENTS, Condition};

/// Options other than the defaults.
#[derive(Clone, Copy)]
pub(super) enum Setting {
    /// The sender announces itself often, so that receivers find it at once.
    Hello,
    /// The sender adds redundant packets from the start.
    Fec,
}

impl Setting {
    fn options(self) -> [&'static str; 2] {
        match self {
            Self::Hello => ["--rexmit-hello-interval", "200"],
            Self::Fec => ["--fec", "8x8/128"],
        }
    }
}

pub(super) fn run(lab: &Lab, condition: &Condition) -> Run {
    let image = lab.put("image", SIZE);
    let copies = copies(lab);
    let (file, clients) = (image.path.to_str().unwrap(), CLIENTS.to_string());
    let race = Race::start(lab);
    let fixed = ["--nokbd", "--interface", "eth0", "--file", file, "--min-receivers", &clients];
    let mut sender =
        lab.head().spawn("udp-sender", [&fixed[..], &condition.udpcast.options()].concat());
    let receive = |(host, copy): (&harness::Host, &std::path::PathBuf)| {
        let copy = copy.to_str().unwrap();
        host.spawn("udp-receiver", ["--nokbd", "--interface", "eth0", "--file", copy])
    };
    let mut receivers: Vec<Proc> = lab.clients().iter().zip(&copies).map(receive).collect();
    let finished = race.watch_programs(&mut receivers, || sender.exited().is_none());
    race.finish(&finished, &copies, &image)
}
