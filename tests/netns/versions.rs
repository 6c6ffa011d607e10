//! A version is its content: other attributes are not another version, other bytes are.
//! docs/SEMANTICS.md, "What counts as a change".

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::content::{Content, Image};
use harness::requirements::report_skipped;
use harness::{Lab, SOON, ServerProc, digest_of, lab_or_skip, mib, wait_until};

use crate::proving::wait_hashed;
use crate::replacing::{CHUNK, assert_old_or_stale, wait_new_version};
use crate::text;

/// Writes each byte of the file `argv[1]` through a mapping, and says so by the file `argv[3]`.
/// Then waits until the file `argv[2]` has the same size, and writes its bytes.
///
/// The kernel sets times when a page of the mapping is first written to, and not again.
const WRITE_BY_MMAP: &str = "
import mmap, os, sys, time
with open(sys.argv[1], 'r+b') as file:
    mapped = mmap.mmap(file.fileno(), 0)
    mapped[:] = mapped[:]
    open(sys.argv[3], 'w').close()
    while not os.path.exists(sys.argv[2]) or os.path.getsize(sys.argv[2]) < len(mapped):
        time.sleep(0.01)
    with open(sys.argv[2], 'rb') as new:
        mapped[:] = new.read()
";

type Change = fn(&Path);

/// Gives a file other attributes, but no other content.
const CHANGES: [(&str, Change); 6] = [
    ("chmod", |file| {
        let mode = file.metadata().unwrap().mode();
        fs::set_permissions(file, Permissions::from_mode(mode ^ 0o020)).unwrap();
    }),
    ("chown", |file| std::os::unix::fs::chown(file, Some(1), Some(1)).unwrap()),
    ("ln", |file| {
        let link = file.with_extension("link");
        fs::hard_link(file, &link).unwrap();
        fs::remove_file(&link).unwrap();
    }),
    ("touch", |file| {
        let later = file.metadata().unwrap().modified().unwrap() + Duration::from_secs(1);
        File::open(file).unwrap().set_modified(later).unwrap();
    }),
    ("mv there and back", |file| {
        let there = file.with_extension("there");
        fs::rename(file, &there).unwrap();
        fs::rename(&there, file).unwrap();
    }),
    ("a copy in its place", |file| {
        let copy = file.with_extension("copy");
        fs::copy(file, &copy).unwrap();
        fs::rename(&copy, file).unwrap();
    }),
];

/// `ETAG` that the server shows for a file.
pub(crate) fn etag(lab: &Lab, name: &str) -> String {
    let answer = lab.client(1).get(&lab.url(&format!("meta/{name}")));
    let meta: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    meta["etag"].as_str().unwrap().to_owned()
}

/// Waits until the server has checked the path of each cast at least twice: it does so once a
/// second, and ends the cast if the version is another one.
fn wait_checks(server: &ServerProc<'_>) {
    let began = server.status().uptime_s;
    wait_until(SOON, "three more seconds of the server", || server.status().uptime_s > began + 3);
}

#[test]
fn readers_and_casts_do_not_notice_other_attributes_of_the_same_content() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(4));
    let bytes = fs::read(&image.path).unwrap();
    // The cast takes 8 s, and lingers afterwards.
    let server = lab.server().option("--rate", "4mbit").option("--linger", "60s").start();
    wait_hashed(&lab, "image");
    let first = etag(&lab, "image");
    let mount = lab.mount(1).option("unicast=never").start();
    let old = File::open(mount.join("image")).unwrap();
    old.read_exact_at(&mut vec![0; CHUNK], 0).unwrap();

    for (what, change) in CHANGES {
        change(&image.path);
        wait_until(SOON, what, || etag(&lab, "image") == first);
    }
    wait_checks(&server);
    let cast = server.cast_of("image").expect("the cast goes on");
    assert_eq!(cast.etag.as_str(), first);
    let mut read = vec![0; bytes.len()];
    old.read_exact_at(&mut read, 0).unwrap();
    assert!(read == bytes, "the open descriptor reads other bytes");
    let totals = server.status().totals;
    assert_eq!((totals.casts, totals.joins), (1, 1), "the reader was disturbed");

    // An open afterwards reads from the cache.
    server.wait_no_members();
    let sent = server.status().totals.pages_sent;
    for (what, change) in CHANGES {
        change(&image.path);
        assert_eq!(digest_of(mount.join("image")), image.digest, "{what}");
    }
    let totals = server.status().totals;
    assert_eq!((totals.joins, totals.pages_sent), (1, sent), "the file was fetched again");
}

/// Starts to read the file `image` in a mount, of which only the first three quarters arrive. Then
/// lets `rewrite` change its bytes, and checks that the versions do not mix.
fn rewrite_in_mid_cast(lab: &Lab, image: &Image, rewrite: impl FnOnce(Content)) {
    let bytes = fs::read(&image.path).unwrap();
    let server = lab.server().option("--rate", "20mbit").start();
    let name = text(&image.name);
    wait_hashed(lab, name);
    let mount = lab.mount(1).option("unicast=never").start();
    let valve = lab.hold_multicast_after(mib(3));
    let old = File::open(mount.join(name)).unwrap();
    old.read_exact_at(&mut vec![0; CHUNK], 0).unwrap();
    server.wait_cast(name, "the old version is being sent", |cast| {
        cast.pages_sent < u64::from(cast.pages)
    });

    let new = Content::new(image.size, 77);
    rewrite(new);
    valve.open();
    assert_old_or_stale(&old, &bytes);
    wait_new_version(&mount.join(name), image.digest, new.digest());
}

#[test]
fn a_rewrite_with_the_old_modification_time_is_noticed() {
    let lab = lab_or_skip!(Lab::builder().valve());
    let image = lab.put("image", mib(4));
    rewrite_in_mid_cast(&lab, &image, |new| {
        let modified = image.path.metadata().unwrap().modified().unwrap();
        let file = File::options().write(true).open(&image.path).unwrap();
        file.write_all_at(&new.bytes(), 0).unwrap();
        file.set_times(FileTimes::new().set_modified(modified)).unwrap();
    });
}

#[test]
fn a_rewrite_through_mmap_that_changes_no_attribute_is_noticed() {
    let lab = lab_or_skip!(Lab::builder().valve());
    // There is no write-back on tmpfs, after which the kernel would set times again. Without large
    // pages it does not map the file anew either.
    let mounted = lab.served().join("disk");
    fs::create_dir_all(&mounted).unwrap();
    let mount = ["-t", "tmpfs", "-o", "huge=never", "none", text(&mounted)];
    assert!(Command::new("mount").args(mount).status().is_ok_and(|it| it.success()));
    let image = lab.put("disk/image", mib(4));
    let [other, ready] = ["other", "ready"].map(|name| lab.directory().join(name));
    let paths = [&image.path, &other, &ready].map(|path| text(path));
    let mut writer = lab.head().spawn("python3", [&["-c", WRITE_BY_MMAP], &paths[..]].concat());
    wait_until(SOON, "the file is mapped", || ready.exists());
    rewrite_in_mid_cast(&lab, &image, |new| {
        let attributes = || {
            let it = image.path.metadata().unwrap();
            (it.ino(), it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec())
        };
        let before = attributes();
        new.write_to(&other);
        writer.wait_success(SOON);
        assert_eq!(attributes(), before, "this file system notices the write");
    });
}

/// Composes an EROFS image of one file, `image`. All times are 0. Source of the format: Linux
/// `fs/erofs/erofs_fs.h`.
fn erofs(content: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 4096;
    let mut image = vec![0; 3 * BLOCK];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let number = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    // Superblock: magic, block size 2^12, root inode 0, 2 inodes, blocks, inodes from block 1 on.
    put(1024, &0xe0f5_e1e2_u32.to_le_bytes());
    put(1036, &[12]);
    put(1040, &2_u64.to_le_bytes());
    put(1060, &number(3 + content.len().div_ceil(BLOCK)));
    put(1064, &number(1));
    // Compact inodes: mode, links, size, first block, number.
    let names = b"...image";
    let inodes = [(0o040_755_u16, 3 * 12 + names.len(), 2), (0o100_644, content.len(), 3)];
    for (inode, (mode, size, block)) in inodes.into_iter().enumerate() {
        let at = BLOCK + 32 * inode;
        put(at + 4, &mode.to_le_bytes());
        put(at + 6, &2_u16.to_le_bytes());
        put(at + 8, &number(size));
        put(at + 16, &number(block));
        put(at + 20, &number(inode + 1));
    }
    // Directory: inode, offset of the name, type.
    for (entry, (inode, name, kind)) in
        [(0_u64, 0, 2), (0, 1, 2), (1, 3, 1)].into_iter().enumerate()
    {
        let at = 2 * BLOCK + 12 * entry;
        put(at, &inode.to_le_bytes());
        put(at + 8, &u16::try_from(36 + name).unwrap().to_le_bytes());
        put(at + 10, &[kind]);
    }
    put(2 * BLOCK + 36, names);
    image.extend_from_slice(content);
    image.resize(image.len().next_multiple_of(BLOCK), 0);
    image
}

/// Mounts an image of this content on the served directory `disk`, over earlier ones. Returns
/// `false` if this machine cannot do that.
fn mount_image(lab: &Lab, number: usize, content: Content) -> bool {
    let file = lab.directory().join(format!("disk-{number}.img"));
    let mounted = lab.served().join("disk");
    fs::write(&file, erofs(&content.bytes())).unwrap();
    fs::create_dir_all(&mounted).unwrap();
    let mount = ["-t", "erofs", "-o", "loop,ro", text(&file), text(&mounted)];
    Command::new("mount").args(mount).status().is_ok_and(|it| it.success())
}

#[test]
fn an_image_that_is_rebuilt_with_equal_size_and_times_is_another_version() {
    let lab = lab_or_skip!(Lab::builder());
    let [old, new] = [1, 2].map(|seed| Content::new(mib(1) + 1, seed));
    if !mount_image(&lab, 0, old) {
        report_skipped("no erofs, or no loop device");
        return;
    }
    let stat = || {
        let it = lab.served().join("disk/image").metadata().unwrap();
        (it.ino(), it.size(), it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec())
    };
    let attributes = stat();
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    assert_eq!(digest_of(mount.join("disk/image")), old.digest());
    let mut etags = vec![etag(&lab, "disk/image")];
    for (number, before, content) in [(1, old, new), (2, new, old), (3, old, new)] {
        // The first image need not be hashed for that.
        if number > 1 {
            wait_hashed(&lab, "disk/image");
        }
        assert!(mount_image(&lab, number, content));
        assert_eq!(stat(), attributes, "the images differ in more than the bytes");
        wait_new_version(&mount.join("disk/image"), before.digest(), content.digest());
        etags.push(etag(&lab, "disk/image"));
    }
    etags.sort_unstable();
    etags.dedup();
    assert_eq!(etags.len(), 4, "each mount of other bytes is another version");
}

/// Mounts a file system that stores whole seconds on the served directory `disk`. Returns `false`
/// if this machine cannot do that.
fn mount_whole_seconds(lab: &Lab, size: u64) -> bool {
    let (file, mounted) = (lab.directory().join("disk.img"), lab.served().join("disk"));
    File::create(&file).unwrap().set_len(size).unwrap();
    fs::create_dir_all(&mounted).unwrap();
    // Inodes of 128 bytes have no room for nanoseconds.
    let make = Command::new("mkfs.ext4").args(["-q", "-I", "128", text(&file)]).output();
    let mount = ["-o", "loop", text(&file), text(&mounted)];
    make.is_ok_and(|it| it.status.success())
        && Command::new("mount").args(mount).status().is_ok_and(|it| it.success())
}

#[test]
fn a_file_that_is_written_twice_within_a_whole_second_is_never_mixed() {
    write_twice_within_a_second("verify=leaf");
}

#[test]
fn a_file_without_a_manifest_that_is_written_twice_within_a_whole_second_is_never_mixed() {
    // Nobody has the server hash the file. So only the wait before a join keeps versions apart.
    write_twice_within_a_second("verify=tag");
}

fn write_twice_within_a_second(option: &str) {
    let lab = lab_or_skip!(Lab::builder());
    if !mount_whole_seconds(&lab, mib(32)) {
        report_skipped("no mkfs.ext4, or no loop device");
        return;
    }
    let _server = lab.server().option("--rate", "20mbit").start();
    let mount = lab.mount(1).option("unicast=never").option(option).start();
    // The server must not answer a join in the second of the write, however fast the test is.
    let probe = lab.directory().join("probe");
    wait_until(SOON, "a second begins", || {
        fs::write(&probe, "").unwrap();
        (20_000_000..200_000_000).contains(&probe.metadata().unwrap().mtime_nsec())
    });
    let image = lab.put("disk/image", mib(2));
    assert_eq!(image.path.metadata().unwrap().mtime_nsec(), 0, "times are not whole seconds");
    let bytes = fs::read(&image.path).unwrap();
    let old = File::open(mount.join("disk/image")).unwrap();
    old.read_exact_at(&mut vec![0; CHUNK], 0).unwrap();

    let new = Content::new(image.size, 77);
    File::options().write(true).open(&image.path).unwrap().write_all_at(&new.bytes(), 0).unwrap();
    assert_old_or_stale(&old, &bytes);
    wait_new_version(&mount.join("disk/image"), image.digest, new.digest());
}
