//! How fast is the whole path from disk to reader, and how much CPU time does a GiB take?

use std::fs;

use harness::{Lab, SOON, mib, wait_until};

use crate::{RUNS, median, read_all, timed, wait_all, warm_memory};

const SIZE: u64 = mib(1024);

/// Values of `--rate`, with the loss in percent. The best rate is not the highest: above the rate
/// that the client can receive, pages are dropped and must be sent again.
const RATES: [(&str, f64); 6] = [
    ("3gbit", 0.0),
    ("5gbit", 0.0),
    ("6gbit", 0.0),
    ("100gbit", 0.0),
    ("2gbit", 1.0),
    ("3gbit", 1.0),
];

struct Figures {
    gbit_per_second: f64,
    files_sent: f64,
    server_cpu_seconds: f64,
    client_cpu_seconds: f64,
}

/// Measures one client on a link without a cap, at several rates.
pub(crate) fn measure() -> String {
    let mut text = "\n## One client, no cap\n\n\
         1 GiB through the mount, first byte to last. CPU time is that of the server and of \
         `bootcastfs`, per GiB.\n\n\
         | --rate | loss | Gbit/s | files sent | server CPU, s | client CPU, s |\n\
         |---|---|---|---|---|---|\n"
        .to_owned();
    for (rate, loss) in RATES {
        let figures = at_rate(rate, loss);
        let row = format!(
            "| {rate} | {loss} % | {:.2} | {:.2} | {:.2} | {:.2} |",
            figures.gbit_per_second,
            figures.files_sent,
            figures.server_cpu_seconds,
            figures.client_cpu_seconds,
        );
        println!("{row}");
        text.push_str(&row);
        text.push('\n');
    }
    text.push_str("\nGoal: 5 Gbit/s.\n");
    text
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn at_rate(rate: &str, loss_percent: f64) -> Figures {
    let lab = Lab::builder().memory_disk().loss(loss_percent).build();
    let server = lab.server().option("--rate", rate).start();
    let mut runs = Vec::new();
    for run in 0..RUNS {
        // Each run has its own mount, whose cache is removed after the run.
        let mut mount = lab.mount(1).start();
        let name = format!("image-{run}");
        let image = lab.put(&name, SIZE);
        warm_memory(4);
        let before =
            (server.proc().cpu_time().as_secs_f64(), mount.proc().cpu_time().as_secs_f64());
        let sent_before = server.status().totals.bytes_sent;
        let time = timed(|| wait_all(vec![read_all(lab.client(1), &mount.join(&name))]));
        wait_until(SOON, "the cast has ended", || server.status().casts.is_empty());
        let cache = mount.cache().to_owned();
        runs.push(Figures {
            gbit_per_second: SIZE as f64 * 8.0 / 1e9 / time.as_secs_f64(),
            files_sent: (server.status().totals.bytes_sent - sent_before) as f64 / SIZE as f64,
            server_cpu_seconds: server.proc().cpu_time().as_secs_f64() - before.0,
            client_cpu_seconds: mount.proc().cpu_time().as_secs_f64() - before.1,
        });
        mount.umount();
        fs::remove_dir_all(cache).unwrap();
        fs::remove_file(image.path).unwrap();
    }
    let middle = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure).collect());
    Figures {
        gbit_per_second: middle(|run| run.gbit_per_second),
        files_sent: middle(|run| run.files_sent),
        server_cpu_seconds: middle(|run| run.server_cpu_seconds),
        client_cpu_seconds: middle(|run| run.client_cpu_seconds),
    }
}
