//! The disk of a client's cache fails. docs/SEMANTICS.md, "Caching".

use std::fs::{self, File};
use std::path::Path;

use harness::content::{Image, try_digest_of};
use harness::{Lab, MountProc, SOON, digest_of, lab_or_skip, wait_until};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{TRANSFER, keeping, text};

/// Mounts on client 1 with this cache. `failing` is a system call that fails.
fn mount<'lab>(lab: &'lab Lab, cache: &Path, failing: Option<&str>) -> MountProc<'lab> {
    // Kernel caches of attributes would have the test wait for opens that ask the server.
    let builder = lab.mount(1).option(&format!("cache_dir={},attr_ttl=0", text(cache)));
    match failing {
        Some(call) => builder.failing(call).start(),
        None => builder.start(),
    }
}

/// Reads the file, waits until what came is to be saved, and returns the warning about that.
fn read_until_the_disk_fails(mount: &MountProc<'_>, image: &Image) -> String {
    match try_digest_of(&mount.join(&image.name)) {
        Ok(digest) => assert_eq!(digest, image.digest),
        // The disk was faster than the reader.
        Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::IO)),
    }
    let warning = "cannot save which pages are held";
    wait_until(TRANSFER, "the pages are to be saved", || mount.log().contains(warning));
    let log = mount.log();
    log.lines().find(|line| line.contains(warning)).unwrap().to_owned()
}

/// Names of the files of the only object in the cache, and of the links to contents.
fn names(cache: &Path) -> Vec<String> {
    let directories = [keeping::only_object(cache), cache.join("contents")];
    let entries = directories.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn after_a_sync_of_data_that_failed_readers_get_eio_and_nothing_of_the_file_is_believed_later() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, server, cache) = keeping::serve(&lab);
    let failing = mount(&lab, &cache, Some("fdatasync"));
    let open =
        rustix::fs::open(failing.join("image"), OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())
            .unwrap();
    let warning = read_until_the_disk_fails(&failing, &image);
    assert!(warning.contains("the data did not reach the disk"), "{warning}");
    let mut buffer = vec![0; 4096];
    assert_eq!(rustix::io::pread(&open, &mut buffer[..], 0), Err(Errno::IO));
    // An open afterwards begins anew, and so does the kernel not read the cache file itself.
    let joins = server.status().totals.joins;
    let other =
        rustix::fs::open(failing.join("image"), OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())
            .unwrap();
    match rustix::io::pread(&other, &mut buffer[..], 0) {
        Ok(len) => assert!(buffer[..len] == fs::read(&image.path).unwrap()[..len]),
        Err(error) => assert_eq!(error, Errno::IO, "the disk fails again"),
    }
    assert_eq!(server.status().totals.joins, joins + 1, "lost bytes were read");
    assert_eq!(rustix::io::pread(&open, &mut buffer[..], 0), Err(Errno::IO));
    // Symbols are there if datagrams were lost.
    let is_unsaved = |name: &String| ["data", "leaves", "share", "symbols"].contains(&&**name);
    assert!(names(&cache).iter().all(is_unsaved), "{:?}", names(&cache));
    drop((open, other));
    failing.umount();
    assert!(names(&cache).iter().all(is_unsaved), "{:?}", names(&cache));

    let joins = server.status().totals.joins;
    let again = mount(&lab, &cache, None);
    assert_eq!(digest_of(again.join("image")), image.digest);
    assert_eq!(server.status().totals.joins, joins + 1, "pages of the lost object were believed");
    server.wait_no_members();
    wait_until(SOON, "the file is saved", || names(&cache).iter().any(|name| name == "state"));
}

#[test]
fn a_file_whose_state_cannot_be_saved_stays_readable_and_is_fetched_again_by_the_next_mount() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, server, cache) = keeping::serve(&lab);
    let failing = mount(&lab, &cache, Some("fsync"));
    let open = File::open(failing.join("image")).unwrap();
    let warning = read_until_the_disk_fails(&failing, &image);
    assert!(!warning.contains("the data did not reach the disk"), "{warning}");
    for _ in 0..2 {
        assert_eq!(digest_of(failing.join("image")), image.digest);
    }
    drop(open);
    assert_eq!(server.status().totals.joins, 1, "{}", failing.log());
    failing.umount();

    let again = mount(&lab, &cache, None);
    assert_eq!(digest_of(again.join("image")), image.digest);
    assert_eq!(server.status().totals.joins, 2, "a state that was not saved was believed");
}
