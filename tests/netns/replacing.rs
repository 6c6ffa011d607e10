//! A file changes on the server. Versions never mix.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use harness::content::{Digest, Image, try_digest_of};
use harness::{Lab, SOON, digest_of, lab_or_skip, mib, wait_until};

const ESTALE: i32 = 116;

/// Bytes of a read.
pub(crate) const CHUNK: usize = 65_536;

/// Replaces `image` by other bytes of the same size, as `mv` does.
fn replace(lab: &Lab, image: &Image) -> Image {
    let new = lab.put("new-version", image.size);
    fs::rename(&new.path, &image.path).unwrap();
    new
}

/// Reads the file through an old descriptor. Each chunk must be that of the old version, or fail
/// with ESTALE.
pub(crate) fn assert_old_or_stale(file: &File, old: &[u8]) {
    for (number, expected) in old.chunks(CHUNK).enumerate() {
        let mut chunk = vec![0; expected.len()];
        let offset = u64::try_from(number * CHUNK).unwrap();
        match file.read_exact_at(&mut chunk, offset) {
            Ok(()) => assert!(chunk == expected, "other bytes at {offset} of the old version"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(ESTALE), "{error}"),
        }
    }
}

/// Opens and reads the whole file until it is the new version. Before that, each read must give the
/// old version, or ESTALE for missing pages. docs/SEMANTICS.md, "open again".
pub(crate) fn wait_new_version(path: &Path, old: Digest, new: Digest) {
    wait_until(SOON, "an open gives the new version", || match try_digest_of(path) {
        Ok(digest) => {
            assert!([old, new].contains(&digest), "neither the old nor the new file");
            digest == new
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(ESTALE), "{error}");
            false
        }
    });
}

#[test]
fn an_open_complete_file_keeps_its_version_and_a_new_open_gets_the_new_one() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(2));
    let old_bytes = fs::read(&image.path).unwrap();
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    let path = mount.join("image");
    assert_eq!(digest_of(&path), image.digest);
    let old = File::open(&path).unwrap();

    let new = replace(&lab, &image);
    wait_new_version(&path, image.digest, new.digest);
    let mut still = vec![0; old_bytes.len()];
    old.read_exact_at(&mut still, 0).unwrap();
    assert!(still == old_bytes, "the old descriptor reads other bytes");
}

#[test]
fn versions_of_a_file_that_is_replaced_during_its_cast_never_mix() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(4));
    let old_bytes = fs::read(&image.path).unwrap();
    let server = lab.server().option("--rate", "20mbit").start();
    let mount = lab.mount(1).option("unicast=never").start();
    let valve = lab.hold_multicast_after(mib(3));
    let path = mount.join("image");
    let old = File::open(&path).unwrap();
    old.read_exact_at(&mut vec![0; CHUNK], 0).unwrap();
    server.wait_cast("image", "the old version is being sent", |cast| {
        cast.pages_sent < u64::from(cast.pages)
    });

    let new = replace(&lab, &image);
    valve.open();
    wait_new_version(&path, image.digest, new.digest);
    assert_old_or_stale(&old, &old_bytes);
}

#[test]
fn overwriting_a_file_in_place_ends_its_cast_and_gives_a_new_version() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(4));
    let server = lab.server().option("--rate", "20mbit").start();
    let mount = lab.mount(1).option("unicast=never").start();
    let valve = lab.hold_multicast_after(mib(1));
    let path = mount.join("image");
    let old = File::open(&path).unwrap();
    server.wait_cast("image", "the old version is being sent", |cast| cast.pages_sent > 10);

    let other = lab.put("other", mib(3));
    fs::write(&image.path, fs::read(&other.path).unwrap()).unwrap();
    valve.open();
    wait_new_version(&path, image.digest, other.digest);
    drop(old);
    server.wait_no_members();
}
