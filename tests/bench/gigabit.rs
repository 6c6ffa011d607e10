//! Does a fleet get a gigabit per second, and how much CPU time does the server need for it?

use harness::{Lab, SOON, mib, wait_until};

use crate::{limit_seconds, median, read_all, rounds, timed, wait_all, warm_memory};

const RATE: &str = "1gbit";
const SIZE: u64 = mib(128);

struct Figures {
    seconds: f64,
    server_cpu_seconds: f64,
    /// Bytes that left the server, in files.
    sent: f64,
}

/// Measures mounts on a network of a gigabit, with and without loss.
pub(crate) fn measure() -> String {
    let mut text = format!(
        "\n## A fleet at {RATE}\n\n\
         128 MiB, all clients mount and `cat` at once, {} rounds. The limit is what one copy takes \
         at the full rate with its headers, {:.2} s. CPU time is that of the server, as a share \
         of the time until the last client is done.\n\n\
         | clients | loss | last one done, s | × limit | files sent | server CPU, s | share |\n\
         |---|---|---|---|---|---|---|\n",
        rounds(),
        limit_seconds(SIZE, RATE)
    );
    for (clients, loss) in [(8, 0.0), (8, 1.0), (16, 0.0)] {
        let runs: Vec<_> = (0..rounds()).map(|_| run(clients, loss)).collect();
        let middle = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure).collect());
        let (seconds, cpu) = (middle(|run| run.seconds), middle(|run| run.server_cpu_seconds));
        let row = format!(
            "| {clients} | {loss} % | {seconds:.2} | {:.2} | {:.3} | {cpu:.2} | {:.2} |",
            seconds / limit_seconds(SIZE, RATE),
            middle(|run| run.sent),
            middle(|run| run.server_cpu_seconds / run.seconds),
        );
        println!("{row}");
        text.push_str(&row);
        text.push('\n');
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn run(clients: u8, loss_percent: f64) -> Figures {
    let lab = Lab::builder().clients(clients).rate(RATE).memory_disk().loss(loss_percent).build();
    lab.put("image", SIZE);
    let server = lab.server().option("--rate", RATE).start();
    let mounts: Vec<_> = (1..=usize::from(clients)).map(|k| lab.mount(k).start()).collect();
    let cpu = || server.proc().cpu_time().as_secs_f64();
    let (cpu_before, sent) = (cpu(), lab.head().counters().tx_bytes);
    let read =
        || wait_all(mounts.iter().map(|it| read_all(it.host(), &it.join("image"))).collect());
    warm_memory(5);
    let seconds = timed(read).as_secs_f64();
    let server_cpu_seconds = cpu() - cpu_before;
    wait_until(SOON, "the cast has ended", || server.status().casts.is_empty());
    let sent = (lab.head().counters().tx_bytes - sent) as f64 / SIZE as f64;
    Figures { seconds, server_cpu_seconds, sent }
}
