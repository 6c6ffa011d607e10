//! How long does it take to read a whole file in order with `fill=demand`, and how many pages are
//! sent?

use harness::{Lab, mib};

use crate::{median, read_all, rounds, timed, wait_all, warm_memory};

const RATE: &str = "200mbit";
const SIZE: u64 = mib(64);

/// Returns the seconds that one copy takes at the full rate with its headers. 1456 bytes of the
/// file occupy 1538 bytes of the wire: 16 of the page's header, 8 of UDP, 20 of IPv4 and 38 of
/// Ethernet are added.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn limit_seconds() -> f64 {
    SIZE as f64 * 8.0 * 1538.0 / 1456.0 / 200e6
}

struct Figures {
    seconds: f64,
    /// Bytes on the wire, in files.
    sent: f64,
    /// Pages sent for each page of the file.
    pages: f64,
}

/// Measures demand mounts that all read one file from its beginning, over a link whose rate is that
/// of the server.
pub(crate) fn measure() -> String {
    let mut text = format!(
        "\n## A whole file by demand\n\n\
         64 MiB, `cat` on mounts with `fill=demand`, all from the beginning at once, over a link \
         of {RATE} that the server fills, {} rounds. The limit is what one copy takes at that \
         rate with its headers, {:.2} s.\n\n\
         | clients | loss | last one done, s | × limit | files sent | pages sent for each |\n\
         |---|---|---|---|---|---|\n",
        rounds(),
        limit_seconds()
    );
    for (clients, loss) in [(1, 0.0), (8, 0.0), (1, 1.0)] {
        let runs: Vec<_> = (0..rounds()).map(|_| run(clients, loss)).collect();
        let middle = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure).collect());
        let seconds = middle(|run| run.seconds);
        let row = format!(
            "| {clients} | {loss} % | {seconds:.2} | {:.2} | {:.3} | {:.3} |",
            seconds / limit_seconds(),
            middle(|run| run.sent),
            middle(|run| run.pages),
        );
        println!("{row}");
        text.push_str(&row);
        text.push('\n');
    }
    text.push_str("\nGoal: 1.04 files and 1.05 × limit, without loss.\n");
    text
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn run(clients: u8, loss_percent: f64) -> Figures {
    let lab = Lab::builder().clients(clients).rate(RATE).memory_disk().loss(loss_percent).build();
    let image = lab.put("image", SIZE);
    let server = lab.server().option("--rate", RATE).start();
    let mounts: Vec<_> = (1..=usize::from(clients))
        .map(|k| lab.mount(k).option("fill=demand").option("linger=0s").start())
        .collect();
    let read =
        || wait_all(mounts.iter().map(|it| read_all(it.host(), &it.join("image"))).collect());
    warm_memory(2);
    let seconds = timed(read).as_secs_f64();
    let totals = server.status().totals;
    let sent = totals.bytes_sent as f64 / SIZE as f64;
    let pages = totals.pages_sent as f64 / image.size.div_ceil(1456) as f64;
    Figures { seconds, sent, pages }
}
