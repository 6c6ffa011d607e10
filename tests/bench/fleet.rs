//! When is the last of N clients done, and how many bytes did the server send for all of them?
//! Compares bootcast with nginx.

use std::fs;

use harness::binaries::binary;
use harness::lab::HEAD_ADDRESS;
use harness::{Host, Lab, Proc, SOON, mib, wait_until};

use crate::{RUNS, limit_seconds, median, read_all, timed, wait_all, warm_memory};

const RATE: &str = "200mbit";
const SIZE: u64 = mib(128);

/// Median results of one way to transfer the file to N clients.
struct Figures {
    /// Time until the last client is done, in multiples of the limit.
    time: f64,
    /// Bytes that left the server, in files.
    sent: f64,
}

/// Measures one, four and eight clients, with bootcast and with nginx.
pub(crate) fn measure() -> String {
    let mut text = format!(
        "\n## A fleet at {RATE}\n\n\
         128 MiB, no loss, all clients mount and `cat` at once; beside it nginx and `curl` on the \
         same network.\n\n\
         | clients | bootcast: last one done, s | × limit | files sent | nginx: last one done, s \
         | × limit | files sent |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for clients in [1, 4, 8] {
        let cast = cast(clients, 0.0);
        let tcp = tcp(clients);
        let seconds = |figures: &Figures| figures.time * limit_seconds(SIZE, RATE);
        let row = format!(
            "| {clients} | {:.2} | {:.3} | {:.3} | {:.2} | {:.3} | {:.3} |",
            seconds(&cast),
            cast.time,
            cast.sent,
            seconds(&tcp),
            tcp.time,
            tcp.sent,
        );
        println!("{row}");
        text.push_str(&row);
        text.push('\n');
    }
    text.push_str("\nGoal: the last client within 1.10 of the limit, at most 1.10 files sent.\n");
    text
}

/// Measures eight clients on networks that lose packets.
pub(crate) fn measure_lossy() -> String {
    let mut text = format!(
        "\n## A fleet at {RATE} that loses packets\n\n\
         128 MiB, eight clients mount and `cat` at once; each loses packets at random, for \
         itself.\n\n\
         | loss | last one done, s | × limit | files sent |\n|---|---|---|---|\n"
    );
    for loss in [0.1, 1.0, 5.0] {
        let cast = cast(8, loss);
        let seconds = cast.time * limit_seconds(SIZE, RATE);
        let row = format!("| {loss} % | {seconds:.2} | {:.3} | {:.3} |", cast.time, cast.sent);
        println!("{row}");
        text.push_str(&row);
        text.push('\n');
    }
    let gets = gets(8, 5.0);
    let seconds = gets.time * limit_seconds(SIZE, RATE);
    let row =
        format!("| 5 %, `bootcast get` | {seconds:.2} | {:.3} | {:.3} |", gets.time, gets.sent);
    println!("{row}");
    text.push_str(&row);
    text.push_str(
        "\n\nGoal: 1.15 files for `get` as well. Its clients join one after the other, and each \
         packet that opens a connection may get lost; a client that joins late misses the pages \
         sent before.\n",
    );
    text
}

/// Measures `bootcast get`. Unlike mounts, its clients start during the measurement, so they join
/// one after the other.
fn gets(clients: u8, loss_percent: f64) -> Figures {
    let lab = Lab::builder().clients(clients).rate(RATE).memory_disk().loss(loss_percent).build();
    let server = lab.server().option("--rate", RATE).start();
    let fetch = |name: &str| {
        let url = lab.url(name);
        let get = |host: &Host| {
            let target = lab.directory().join(format!("copy-{host}"));
            let _ = fs::remove_file(&target);
            let target = target.to_str().unwrap();
            host.spawn(binary("bootcast"), ["get", "--interface", "eth0", "-q", &url, "-O", target])
        };
        wait_all(lab.clients().iter().map(get).collect());
    };
    let wait_end = || wait_until(SOON, "the cast has ended", || server.status().casts.is_empty());
    repeat(&lab, fetch, wait_end)
}

/// Measures mounts.
fn cast(clients: u8, loss_percent: f64) -> Figures {
    let lab = Lab::builder().clients(clients).rate(RATE).memory_disk().loss(loss_percent).build();
    let server = lab.server().option("--rate", RATE).start();
    let mounts: Vec<_> = (1..=usize::from(clients)).map(|k| lab.mount(k).start()).collect();
    let read = |name: &str| {
        wait_all(mounts.iter().map(|mount| read_all(mount.host(), &mount.join(name))).collect());
    };
    let wait_end = || wait_until(SOON, "the cast has ended", || server.status().casts.is_empty());
    repeat(&lab, read, wait_end)
}

/// Measures nginx and `curl`.
fn tcp(clients: u8) -> Figures {
    let lab = Lab::builder().clients(clients).rate(RATE).memory_disk().build();
    let _nginx = start_nginx(&lab);
    let head = format!("http://{HEAD_ADDRESS}:8080/");
    let fetch = |name: &str| {
        let url = format!("{head}{name}");
        let fetch = |host: &Host| host.spawn("curl", ["-sSf", &url, "-o", "/dev/null"]);
        wait_all(lab.clients().iter().map(fetch).collect());
    };
    repeat(&lab, fetch, || ())
}

/// Starts nginx on the head, port 8080, for the served directory.
pub(crate) fn start_nginx(lab: &Lab) -> Proc {
    let configuration = lab.directory().join("nginx.conf");
    fs::write(
        &configuration,
        format!(
            "daemon off; master_process off; user root; pid {0}/nginx.pid; error_log stderr; \
             events {{}}\n\
             http {{ access_log off; sendfile on; server {{ listen 8080; root {0}/served; }} }}\n",
            lab.directory().display()
        ),
    )
    .unwrap();
    let nginx = lab.head().spawn("nginx", ["-c", configuration.to_str().unwrap()]);
    let head = format!("http://{HEAD_ADDRESS}:8080/");
    wait_until(SOON, "nginx answers", || lab.client(1).run("curl", ["-s", &head]).status.success());
    nginx
}

/// Measures the transfer of a new file [`RUNS`] times. `wait_end` waits for the end of the cast,
/// because bytes that are sent until then count as well.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn repeat(lab: &Lab, transfer: impl Fn(&str), wait_end: impl Fn()) -> Figures {
    let (mut times, mut sent) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let name = format!("image-{run}");
        let image = lab.put(&name, SIZE);
        let before = lab.head().counters().tx_bytes;
        warm_memory(2);
        times.push(timed(|| transfer(&name)).as_secs_f64() / limit_seconds(SIZE, RATE));
        wait_end();
        sent.push((lab.head().counters().tx_bytes - before) as f64 / SIZE as f64);
        fs::remove_file(image.path).unwrap();
    }
    Figures { time: median(times), sent: median(sent) }
}
