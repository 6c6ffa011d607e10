//! Pages in the cache are kept for the next mount, after a crash, and while the server is away.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use harness::content::Image;
use harness::{Lab, MountProc, SOON, ServerProc, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::verifying::wait_recorded;
use crate::{TRANSFER, readers};

/// Serves a file of 4 MiB. Returns it, the server, and the path of a cache on client 1.
pub(crate) fn serve(lab: &Lab) -> (Image, ServerProc<'_>, PathBuf) {
    (lab.put("image", mib(4)), lab.server().start(), lab.client(1).fresh_path("kept"))
}

/// Mounts with a cache directory that outlives the mount.
fn mount<'lab>(lab: &'lab Lab, cache: &Path) -> MountProc<'lab> {
    mount_with(lab, cache, "attr_ttl=0s")
}

/// Like [`mount`], with another option instead of `attr_ttl=0s`.
fn mount_with<'lab>(lab: &'lab Lab, cache: &Path, option: &str) -> MountProc<'lab> {
    let dir = format!("cache_dir={}", cache.display());
    lab.mount(1).option(&dir).option(option).start()
}

/// Returns the directory of the only object in the cache. Stores that nobody shares have an
/// extension.
pub(crate) fn only_object(cache: &Path) -> PathBuf {
    let entries = fs::read_dir(cache.join("objects")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut objects = paths.filter(|path| path.extension().is_none());
    let object = objects.next().expect("an object");
    assert!(objects.next().is_none(), "the cache has more than one object");
    object
}

/// Whether an object in the cache has a checkpoint.
fn has_checkpoint(cache: &Path) -> bool {
    let objects = fs::read_dir(cache.join("objects")).unwrap();
    objects.into_iter().any(|object| object.unwrap().path().join("state").exists())
}

#[test]
fn the_next_mount_reads_a_complete_file_without_a_join() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, server, cache) = serve(&lab);
    for _ in 0..2 {
        let mount = mount(&lab, &cache);
        assert_eq!(digest_of(mount.join("image")), image.digest);
        mount.umount();
    }
    assert_eq!(server.status().totals.joins, 1);
}

#[test]
fn a_complete_file_can_be_opened_while_the_server_is_away() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, mut server, cache) = serve(&lab);
    let mount = mount(&lab, &cache);
    assert_eq!(digest_of(mount.join("image")), image.digest);
    wait_until(SOON, "the file has a checkpoint", || has_checkpoint(&cache));
    server.kill();
    for _ in 0..3 {
        assert_eq!(digest_of(mount.join("image")), image.digest);
    }
}

#[test]
fn a_complete_file_is_kept_with_what_was_verified_of_it_until_it_is_opened_again() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, _server, cache) = serve(&lab);
    lab.put("other", mib(4));
    let dir = format!("cache_dir={}", cache.display());
    let options = [dir.as_str(), "fill=demand", "linger=1s"];
    let mut mount = options.iter().fold(lab.mount(1), |mount, it| mount.option(it)).start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    wait_recorded(&cache, 1);
    let kept = only_object(&cache).join("data");
    let descriptors = format!("/proc/{}/fd", mount.proc().pid());
    let open = || {
        let open = fs::read_dir(&descriptors).unwrap();
        let files = open.filter_map(|it| fs::read_link(it.ok()?.path()).ok());
        files.filter(|file| file.ends_with("data")).collect::<Vec<_>>()
    };
    let other = File::open(mount.join("other")).unwrap();
    assert_eq!(open().len(), 2);
    drop(other);
    // Nothing is kept of it: it is not complete, and was closed later.
    wait_until(SOON, "the other file is dropped", || !open().iter().any(|file| *file != kept));
    assert_eq!(open(), [kept]);
    assert_eq!(digest_of(mount.join("image")), image.digest);
}

#[test]
fn pages_of_a_checkpoint_survive_a_crash_of_the_client() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "8mbit").start();
    let cache = lab.client(1).fresh_path("kept");
    let mut crashed = mount(&lab, &cache);
    let _reader = readers::read_at(lab.client(1), &crashed.join("image"), mib(16) - 4096);
    wait_until(TRANSFER, "the file has a checkpoint", || has_checkpoint(&cache));
    crashed.proc().signal(Signal::KILL);
    wait_until(SOON, "the daemon is gone", || crashed.proc().exited().is_some());
    drop(crashed);
    drop(server);

    // At this rate the stream would take minutes to this offset, so the pages read here come from
    // the checkpoint. Checkpoints are written every ten seconds, when far more has arrived.
    let server = lab.server().option("--rate", "100kbit").start();
    let mount = mount(&lab, &cache);
    readers::read_at(lab.client(1), &mount.join("image"), mib(1)).wait_success(SOON);
    drop(server);
    let _server = lab.server().option("--rate", "400mbit").start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
}

#[test]
fn what_arrived_since_the_last_checkpoint_survives_a_kill() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(16));
    let mut server = lab.server().option("--rate", "40mbit").start();
    let cache = lab.client(1).fresh_path("kept");
    let mut killed = mount_with(&lab, &cache, "unicast=never");
    let valve = lab.hold_multicast_after(mib(13));
    let reader = readers::read_at(lab.client(1), &killed.join("image"), mib(16) - 4096);
    wait_until(TRANSFER, "a part of the file is there", || held_bytes(&cache) > mib(6));
    killed.proc().signal(Signal::KILL);
    wait_until(SOON, "the daemon is gone", || killed.proc().exited().is_some());
    drop((reader, killed));
    let lacking = (image.size - held_bytes(&cache)).div_ceil(1456);
    // The state is written after ten seconds. It may have been, on a slow machine.
    server.stop();
    valve.open();

    server.start();
    let again = mount(&lab, &cache);
    assert_eq!(digest_of(again.join("image")), image.digest);
    let totals = server.status().totals;
    let sent = totals.pages_sent + totals.symbols_sent;
    assert!(sent < lacking * 3 / 2, "{sent} datagrams for {lacking} pages; {}", again.log());
}

#[test]
fn pages_that_damage_of_the_state_marks_as_held_are_not_read_as_zeros() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, _server, cache) = serve(&lab);
    let first = mount_with(&lab, &cache, "fill=demand");
    readers::read_at(lab.client(1), &first.join("image"), 0).wait_success(SOON);
    first.umount();

    let path = only_object(&cache).join("state");
    let mut state = fs::read(&path).unwrap();
    // After the block of the header.
    let bitmap = 4096;
    let middle = bitmap + usize::try_from(image.size / 2 / 1456 / 8).unwrap();
    assert_eq!((state[bitmap], state[middle]), (0xff, 0), "only the start is held");
    state[middle] = !state[middle];
    fs::write(&path, state).unwrap();

    let mount = mount(&lab, &cache);
    assert_eq!(digest_of(mount.join("image")), image.digest);
    let log = mount.log();
    assert_eq!(log.matches("cannot use the stored pages").count(), 1, "{log}");
}

/// Returns the number of bytes that the only object in the cache occupies; 0 before there is one.
pub(crate) fn held_bytes(cache: &Path) -> u64 {
    let mut objects = fs::read_dir(cache.join("objects")).into_iter().flatten();
    let object = objects.next().map(|object| object.unwrap().path());
    let data = object.and_then(|object| fs::metadata(object.join("data")).ok());
    data.map_or(0, |data| data.blocks() * 512)
}

#[test]
fn a_client_that_returns_with_most_of_a_file_is_sent_only_the_rest() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "40mbit").start();
    let cache = lab.client(1).fresh_path("kept");
    let first = mount_with(&lab, &cache, "unicast=never");
    let valve = lab.hold_multicast_after(mib(13));
    let file = File::open(first.join("image")).unwrap();
    wait_until(TRANSFER, "a part of the file is held", || held_bytes(&cache) > mib(6));
    drop(file);
    first.umount();
    valve.open();
    wait_until(TRANSFER, "the cast has ended", || server.status().casts.is_empty());
    let (held, before) = (held_bytes(&cache), server.status().totals);
    assert!(held < image.size);

    let bytes_before = lab.head().counters().tx_bytes;
    let again = mount(&lab, &cache);
    // The file is opened but not read, so no page is demanded.
    let _file = File::open(again.join("image")).unwrap();
    server.wait_no_members();
    let totals = server.status().totals;
    let sent = totals.pages_sent + totals.symbols_sent - before.pages_sent - before.symbols_sent;
    let lacking = (image.size - held).div_ceil(1456);
    assert!(sent < lacking * 3 / 2, "{sent} datagrams for {lacking} pages");
    let bytes = lab.head().counters().tx_bytes - bytes_before;
    assert!(bytes < (image.size - held) * 2, "{bytes} bytes left the head");
    assert_eq!(digest_of(again.join("image")), image.digest);
}

#[test]
fn two_files_do_not_mix_when_the_server_restarts_during_their_casts() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let images = [lab.put("one", mib(6)), lab.put("two", mib(6))];
    // The server has so few groups that after the restart one file may be sent to the group of the
    // other, whose client still listens.
    let mut server =
        lab.server().option("--rate", "12mbit").option("--groups", "239.255.7.0/31").start();
    let mounts: Vec<_> = (1..=2).map(|k| lab.mount(k).start()).collect();
    let mut readers: Vec<_> = Vec::new();
    let mut copies = Vec::new();
    for (mount, image) in mounts.iter().zip(&images) {
        let copy = mount.host().fresh_path("copy");
        readers.push(readers::copy(mount.host(), &mount.join(&image.name), &copy));
        copies.push(copy);
    }
    wait_until(SOON, "pages of both were sent", || {
        let casts = server.status().casts;
        casts.len() == 2 && casts.iter().all(|cast| cast.pages_sent > 100)
    });
    server.kill();
    server.start();
    for ((reader, copy), image) in readers.iter_mut().zip(copies).zip(&images) {
        reader.wait_success(TRANSFER);
        assert_eq!(digest_of(copy), image.digest);
    }
}
