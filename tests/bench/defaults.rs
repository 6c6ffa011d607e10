//! How much time does a cast lose if it must find its rate? Compares servers without `--rate` and
//! servers with the rate of the link.

use std::fs;

use harness::{Lab, mib};

use crate::{limit_seconds, median, read_all, rounds, timed, wait_all, warm_memory};

/// A network: its name in the table, its rate, and whether the rate cap is behind the switch's
/// port, where it does not block the head.
type Network = (&'static str, &'static str, bool);

const NETWORKS: [Network; 3] = [
    ("100mbit", "100mbit", false),
    ("1gbit", "1gbit", false),
    ("100mbit, cap at the switch", "100mbit", true),
];

/// Goal for the time until the last client is done, in multiples of the limit.
const GOAL: f64 = 1.15;

/// Measures files of 32 and 128 MiB with one client and with eight. `ROWS=1gbit` or `ROWS='1gbit,
/// 8'` selects rows.
pub(crate) fn measure() -> String {
    let mut text = format!(
        "\n## Default options\n\n\
         No `--rate`: the speed of the interface is unknown, and the server's ceiling is 0.97 of \
         1 Gbit/s. All clients mount and `cat` at once; medians of {} runs, each with a fresh \
         server that remembers no rate. The last columns are those of a server with the rate of \
         the link. The limit is what one copy takes at the full rate with its headers.\n\n\
         | network | clients | MiB | last one done, s | × limit | goal | with `--rate`, s \
         | × that |\n\
         |---|---|---|---|---|---|---|---|\n",
        rounds()
    );
    let selected = std::env::var("ROWS").unwrap_or_default();
    for (name, rate, is_behind) in NETWORKS {
        for clients in [1, 8] {
            if !format!("{name}, {clients}").contains(&selected) {
                continue;
            }
            let lab = Lab::builder().clients(clients).rate(rate).memory_disk();
            let lab = if is_behind { lab.cap_at_switch() } else { lab }.build();
            for size in [mib(32), mib(128)] {
                let (default, with_rate) = compare(&lab, size, rate);
                let row = format!(
                    "| {name} | {clients} | {} | {default:.2} | {:.2} | {GOAL} | {with_rate:.2} \
                     | {:.2} |",
                    size / mib(1),
                    default / limit_seconds(size, rate),
                    default / with_rate,
                );
                println!("{row}");
                text.push_str(&row);
                text.push('\n');
            }
        }
    }
    text
}

/// Measures without and with `--rate`, by turns, and returns the medians.
fn compare(lab: &Lab, size: u64, rate: &str) -> (f64, f64) {
    let (mut default, mut with_rate) = (Vec::new(), Vec::new());
    for _ in 0..rounds() {
        default.push(run(lab, size, None));
        with_rate.push(run(lab, size, Some(rate)));
    }
    (median(default), median(with_rate))
}

/// Returns the seconds until the last client has the file.
fn run(lab: &Lab, size: u64, rate: Option<&str>) -> f64 {
    let image = lab.put("image", size);
    let server = lab.server();
    let server = rate.into_iter().fold(server, |server, rate| server.option("--rate", rate));
    let _server = server.start();
    let mounts: Vec<_> = (1..=lab.clients().len()).map(|k| lab.mount(k).start()).collect();
    warm_memory(5);
    let read = || {
        wait_all(mounts.iter().map(|it| read_all(it.host(), &it.join("image"))).collect());
    };
    let seconds = timed(read).as_secs_f64();
    let caches: Vec<_> = mounts.iter().map(|it| it.cache().to_owned()).collect();
    drop(mounts);
    for cache in caches {
        fs::remove_dir_all(cache).unwrap();
    }
    fs::remove_file(image.path).unwrap();
    seconds
}
