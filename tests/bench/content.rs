//! What does it cost that a version is its content, and what does it save?

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::binaries::binary;
use harness::content::Content;
use harness::{Lab, MountProc, SOON, ServerProc, digest_of, mib, wait_until};
use rustix::process::Signal;

use crate::{RUN_DEADLINE, limit_seconds, median, read_all, rounds, timed, wait_all, warm_memory};

const RATE: &str = "1gbit";
const MODES: [&str; 2] = ["tag", "leaf"];

/// Bytes in a GiB.
const GIB: f64 = 1_073_741_824.0;

/// Compares mounts and fetches that verify leaves with those that believe tags, by turns.
pub(crate) fn measure_verified() -> String {
    let mut text = format!(
        "\n## Verified reads\n\n\
         512 MiB at {RATE}, `verify=tag` and `verify=leaf` by turns, {} rounds. The server has \
         hashed the file. CPU is user and system time of the client, for each GiB.\n\n\
         | client | tag, s | leaf, s | rate of leaf / rate of tag | tag, CPU s/GiB | leaf, CPU \
         s/GiB |\n|---|---|---|---|---|---|\n",
        rounds()
    );
    for (name, run) in
        [("mount, `cat`", mounted as fn(&Lab, &str) -> (f64, f64)), ("`bootcast get`", fetched)]
    {
        let runs: Vec<_> = (0..rounds()).map(|_| MODES.map(|mode| verified(mode, run))).collect();
        let middle = |mode: usize, figure: fn(&(f64, f64)) -> f64| {
            median(runs.iter().map(|modes| figure(&modes[mode])).collect())
        };
        let [tag, leaf] = [0, 1].map(|mode| (middle(mode, |it| it.0), middle(mode, |it| it.1)));
        let row = format!(
            "| {name} | {:.2} | {:.2} | {:.3} | {:.2} | {:.2} |",
            tag.0,
            leaf.0,
            tag.0 / leaf.0,
            tag.1,
            leaf.1
        );
        println!("{row}");
        text.push_str(&row);
        text.push('\n');
    }
    text.push_str("\nGoal: a ratio of 0.95, and at most 0.5 s of CPU a GiB more.\n");
    text
}

/// Returns the seconds and the CPU seconds a GiB that a client takes.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn verified(mode: &str, run: fn(&Lab, &str) -> (f64, f64)) -> (f64, f64) {
    let lab = Lab::builder().memory_disk().build();
    lab.put("image", mib(512));
    let _server = lab.server().option("--rate", RATE).start();
    hash(&lab, "image");
    warm_memory(2);
    let (seconds, cpu) = run(&lab, mode);
    (seconds, cpu * GIB / mib(512) as f64)
}

fn mounted(lab: &Lab, mode: &str) -> (f64, f64) {
    let mut mount = lab.mount(1).option(&format!("verify={mode}")).start();
    let path = mount.join("image");
    let seconds = timed(|| wait_all(vec![read_all(lab.client(1), &path)])).as_secs_f64();
    (seconds, mount.proc().cpu_time().as_secs_f64())
}

fn fetched(lab: &Lab, mode: &str) -> (f64, f64) {
    let (host, url) = (lab.client(1), lab.url("image"));
    let output = host.fresh_path("out").display().to_string();
    let arguments = ["get", "-q", "--verify", mode, "--interface", "eth0", "-O", &output, &url];
    let mut cpu = Duration::ZERO;
    let seconds = timed(|| {
        let mut get = host.spawn(binary("bootcast"), arguments);
        while get.exited().is_none() {
            cpu = get.cpu_time();
            std::thread::sleep(Duration::from_millis(5));
        }
        get.wait_success(RUN_DEADLINE);
    });
    (seconds.as_secs_f64(), cpu.as_secs_f64())
}

/// Waits until the server has hashed a file.
fn hash(lab: &Lab, name: &str) {
    let url = lab.url(&format!("manifest/{name}"));
    wait_until(RUN_DEADLINE, "the file is hashed", || lab.client(1).get(&url).status == 200);
}

/// Measures the first byte of what the cache has: in a second mount, and under another name.
pub(crate) fn measure_cached() -> String {
    let runs: Vec<_> = (0..rounds()).map(|_| cached()).collect();
    let middle = |at: usize| median(runs.iter().map(|times: &[f64; 3]| times[at]).collect());
    let [again, other, touched] = [0, 1, 2].map(middle);
    format!(
        "\n## What the cache has\n\n\
         4 GiB in the cache in `/var/tmp`. `open` and a `pread` of 4 KiB in the middle, {} rounds: \
         in a second mount after the page cache was dropped, of a copy with another name on the \
         server, and after `touch` there. No page was sent.\n\n\
         | second mount, ms | other name, ms | after `touch`, ms |\n|---|---|---|\n\
         | {again:.1} | {other:.1} | {touched:.1} |\n\nGoal: 50 ms.\n",
        rounds()
    )
}

fn cached() -> [f64; 3] {
    let lab = Lab::builder().build();
    let image = lab.put("image", mib(4096));
    let state = format!("{}", lab.directory().join("state").display());
    let server = lab.server().option("--rate", "5gbit").option("--state-dir", &state).start();
    hash(&lab, "image");
    let kept = tempfile::tempdir_in("/var/tmp").unwrap();
    let cache = format!("cache_dir={}", kept.path().display());
    let mount = lab.mount(1).option(&cache).start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    server.wait_no_members();
    mount.umount();
    let copied = Command::new("cp")
        .arg("--reflink=auto")
        .args([&image.path, &lab.served().join("copy")])
        .status()
        .unwrap();
    assert!(copied.success());
    hash(&lab, "copy");
    let sent = server.status().totals.pages_sent;
    drop_page_cache();
    let mount = lab.mount(1).option(&cache).start();
    let first = |name: &str| {
        let path = mount.join(name);
        let mut buffer = [0; 4096];
        let read = || File::open(&path).unwrap().read_exact_at(&mut buffer, mib(2048)).unwrap();
        timed(read).as_secs_f64() * 1000.0
    };
    let (again, other) = (first("image"), first("copy"));
    File::open(&image.path).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    let touched = first("image");
    assert_eq!(server.status().totals.pages_sent, sent);
    [again, other, touched]
}

fn drop_page_cache() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Measures what is sent and stored of a sparse file.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn measure_sparse() -> String {
    let lab = Lab::builder().build();
    let path = lab.served().join("image");
    let file = File::create(&path).unwrap();
    file.set_len(mib(10_240)).unwrap();
    let mut piece = vec![0; 1 << 20];
    // Each tenth MiB is data.
    for k in 0..1024_u64 {
        blake3::Hasher::new().update(&k.to_le_bytes()).finalize_xof().fill(&mut piece);
        file.write_all_at(&piece, mib(10 * k)).unwrap();
    }
    let server = lab.server().option("--rate", RATE).start();
    hash(&lab, "image");
    let sent = lab.head().counters().tx_bytes;
    let mount = lab.mount(1).start();
    let seconds = timed(|| wait_all(vec![read_all(lab.client(1), &mount.join("image"))]));
    server.wait_no_members();
    let sent = (lab.head().counters().tx_bytes - sent) as f64 / GIB;
    let stored = disk_bytes(mount.cache()) as f64 / GIB;
    format!(
        "\n## A sparse image\n\n\
         10 GiB of which 1 GiB is data, in pieces of 1 MiB, {RATE}, `cat` on a mount.\n\n\
         | sent, GiB | stored, GiB | s |\n|---|---|---|\n\
         | {sent:.2} | {stored:.2} | {:.1} |\n\n\
         Goal: 1.1 GiB sent (with headers: {:.2}) and stored.\n",
        seconds.as_secs_f64(),
        1.1 * 1538.0 / 1456.0
    )
}

/// Returns the bytes that all files below a directory take on their disk.
fn disk_bytes(path: &Path) -> u64 {
    let attributes = fs::symlink_metadata(path).unwrap();
    if !attributes.is_dir() {
        return attributes.blocks() * 512;
    }
    let entries = fs::read_dir(path).unwrap();
    entries.map(|entry| disk_bytes(&entry.unwrap().path())).sum()
}

/// Measures what is sent of a new version of which one leaf in a hundred is another.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn measure_new_version() -> String {
    let lab = Lab::builder().build();
    let image = lab.put("image", mib(1024));
    let server = lab.server().option("--rate", RATE).start();
    hash(&lab, "image");
    let mount = lab.mount(1).start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    wait_until(SOON, "the cast has ended", || server.status().casts.is_empty());
    let next = lab.served().join("next");
    fs::copy(&image.path, &next).unwrap();
    let file = File::options().write(true).open(&next).unwrap();
    // A prime, so that the leaves lie here and there.
    let leaves = mib(1024) / 16_384;
    for k in 0..leaves / 100 {
        file.write_all_at(b"other", k * 40_009 % leaves * 16_384 + 77).unwrap();
    }
    drop(file);
    fs::rename(&next, &image.path).unwrap();
    hash(&lab, "image");
    let expected = digest_of(&image.path);
    let (pages, sent) = (server.status().totals, lab.head().counters().tx_bytes);
    let mut seconds = Duration::ZERO;
    wait_until(RUN_DEADLINE, "the mount shows the new version", || {
        let mut digest = None;
        seconds = timed(|| digest = harness::content::try_digest_of(&mount.join("image")).ok());
        digest == Some(expected)
    });
    server.wait_no_members();
    let totals = server.status().totals;
    let datagrams = totals.pages_sent + totals.symbols_sent - pages.pages_sent - pages.symbols_sent;
    let sent = lab.head().counters().tx_bytes - sent;
    let share = |bytes: u64| bytes as f64 * 100.0 / mib(1024) as f64;
    format!(
        "\n## A new version\n\n\
         1 GiB of which 1 % of the leaves changed, here and there; the mount has the old version. \
         `b3sum` of the new one.\n\n\
         | pages and symbols sent, % of the file | all bytes that left the server, % | s |\n\
         |---|---|---|\n| {:.2} | {:.2} | {:.1} |\n\nGoal: 3 %.\n",
        share(datagrams * 1456),
        share(sent),
        seconds.as_secs_f64()
    )
}

/// Measures a cast beside one whose file hangs, and beside one whose file is read slowly.
pub(crate) fn measure_slow_source() -> String {
    let runs: Vec<_> =
        (0..rounds()).map(|_| [Source::None, Source::Hangs, Source::Slow].map(beside)).collect();
    let middle = |at: usize| median(runs.iter().map(|times: &[f64; 3]| times[at]).collect());
    let [alone, hanging, slow] = [0, 1, 2].map(middle);
    format!(
        "\n## Beside a slow source\n\n\
         256 MiB at {RATE} to one mount, while another file is cast whose file system hangs, or is \
         read at {SLOW_RATE}; {} rounds by turns. The limit is {:.2} s.\n\n\
         | alone, s | beside one that hangs, s | ratio | beside a slow one, s | ratio |\n\
         |---|---|---|---|---|\n\
         | {alone:.2} | {hanging:.2} | {:.3} | {slow:.2} | {:.3} |\n\nGoal: 1.02.\n",
        rounds(),
        limit_seconds(mib(256), RATE),
        hanging / alone,
        slow / alone
    )
}

/// Rate of a source that is read slowly.
const SLOW_RATE: &str = "20mbit";

/// State of the file system of the other file that is cast.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// No other file is cast.
    None,
    Hangs,
    Slow,
}

/// Returns the seconds that a cast takes beside another one. The other one's file comes from
/// another server through a mount in the served directory.
fn beside(source: Source) -> f64 {
    let lab = Lab::builder().clients(4).build();
    lab.put("image", mib(256));
    let inner = lab.directory().join("inner");
    fs::create_dir(&inner).unwrap();
    Content::new(mib(256), 99).write_to(&inner.join("large"));
    let arguments =
        ["--dir", &inner.display().to_string(), "--rate", SLOW_RATE, "--interface", "eth0"];
    let state = lab.directory().join("state").display().to_string();
    let groups = ["--groups", "239.254.0.0/24", "--state-dir", &state];
    let mut inner_server =
        lab.client(4).spawn(binary("bootcast-server"), arguments.into_iter().chain(groups));
    let server = lab.server().option("--rate", RATE).start();
    let mut hung = mount_in_the_served_directory(&lab);
    let reader = (source != Source::None).then(|| start_large(&lab, &server));
    if source == Source::Hangs {
        hung.proc().signal(Signal::STOP);
    }
    let mount = lab.mount(3).start();
    let path = mount.join("image");
    let seconds = timed(|| wait_all(vec![read_all(lab.client(3), &path)]));
    hung.proc().signal(Signal::CONT);
    drop(reader);
    inner_server.kill_within(SOON);
    seconds.as_secs_f64()
}

/// Mounts what the server on client 4 serves on client 1, and binds it to `hung` in the served
/// directory.
fn mount_in_the_served_directory(lab: &Lab) -> MountProc<'_> {
    let source = format!("{}:/", lab.client(4).address());
    let address = (lab.client(4).address(), bootcast_proto::DEFAULT_PORT);
    wait_until(SOON, "the other server answers", || {
        lab.client(1).enter(|| TcpStream::connect(address).is_ok())
    });
    let mount = lab.mount(1).source(&source).start();
    let hung = lab.served().join("hung");
    fs::create_dir(&hung).unwrap();
    let bound = Command::new("mount").arg("--bind").args([mount.path(), &hung]).status().unwrap();
    assert!(bound.success());
    mount
}

/// Starts to read the file that will hang on client 2.
fn start_large<'lab>(lab: &'lab Lab, server: &ServerProc<'_>) -> (MountProc<'lab>, harness::Proc) {
    let mount = lab.mount(2).option("unicast=never").start();
    let reader = read_all(lab.client(2), &mount.join("hung/large"));
    server.wait_cast("hung/large", "has sent pages", |cast| cast.pages_sent > 0);
    (mount, reader)
}
