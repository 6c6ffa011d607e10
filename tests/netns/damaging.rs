//! Bits of the cache flip at random places, while it is in use and between mounts, and clients
//! crash at random moments. docs/SEMANTICS.md, "Verification", "Pinned files" and "Caching".

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use harness::content::Image;
use harness::{Lab, MountProc, Random, SOON, digest_of, lab_or_skip, mib, wait_until};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

use crate::proving::b3;
use crate::transfers::Copy;
use crate::withholding::HashGate;
use crate::{TRANSFER, keeping, readers, text};

/// Files of an object in the cache.
const FILES: [&str; 3] = ["data", "state", "leaves"];

/// Bytes of a read past the page cache.
const READ_LEN: usize = 65_536;

fn mount<'lab>(lab: &'lab Lab, cache: &Path, option: &str) -> MountProc<'lab> {
    lab.mount(1).option(&format!("cache_dir={}", text(cache))).option(option).start()
}

/// Flips a bit of a file at a random place. Does nothing if the file does not exist or is empty.
fn flip_a_bit(file: &Path, random: &mut Random) {
    let Ok(opened) = File::options().read(true).write(true).open(file) else { return };
    let len = opened.metadata().unwrap().len();
    if len > 0 {
        let (at, bit) = (random.below(len), random.below(8));
        let mut byte = [0];
        // The file may have become shorter.
        if opened.read_at(&mut byte, at).unwrap() == 1 {
            opened.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
        }
    }
}

fn flip_bits(file: &Path, bits: u32, random: &mut Random) {
    for _ in 0..bits {
        flip_a_bit(file, random);
    }
}

/// Damages one of the files of the only object in the cache. Mostly flips bits of its data, so many
/// that any part of the file has some.
fn damage(cache: &Path, random: &mut Random) {
    match random.below(10) {
        0 => _ = fs::remove_file(part(cache, "leaves")),
        1 => flip_bits(&part(cache, "leaves"), 1, random),
        2 => flip_bits(&part(cache, "state"), 1, random),
        3 => {
            let data = File::options().write(true).open(part(cache, "data")).unwrap();
            data.set_len(random.below(data.metadata().unwrap().len() + 1)).unwrap();
        }
        _ => flip_bits(&part(cache, "data"), 100, random),
    }
}

/// Returns the path of a file of the only object in the cache.
fn part(cache: &Path, name: &str) -> PathBuf {
    keeping::only_object(cache).join(name)
}

/// Requires that all of the file is in the cache, with the right bytes.
fn assert_whole(cache: &Path, image: &Image) {
    assert_eq!(digest_of(part(cache, "data")), image.digest, "the cached file is not whole");
}

/// Reads the file from its beginning until a random part of it is in the cache, or all was read.
/// All that was read must be right.
fn read_a_part(mount: &MountProc<'_>, cache: &Path, content: &[u8], random: &mut Random) {
    let until = random.below(content.len() as u64);
    let copy = mount.host().fresh_path("copy");
    let mut reader = readers::copy(mount.host(), &mount.join("image"), &copy);
    wait_until(TRANSFER, "a part is held", || {
        reader.exited().is_some() || (copy.exists() && keeping::held_bytes(cache) > until)
    });
    match reader.exited() {
        Some(status) => assert!(status.success(), "{}\n{}", reader.log(), mount.log()),
        None => reader.kill_within(SOON),
    }
    let copied = fs::read(copy).unwrap_or_default();
    assert!(copied == content[..copied.len()], "wrong bytes were read\n{}", mount.log());
}

#[test]
fn crashes_and_damage_of_the_cache_between_mounts_put_no_wrong_byte_before_a_reader() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(9) + 77);
    let content = fs::read(&image.path).unwrap();
    let _server = lab.server().option("--rate", "100mbit").start();
    let cache = lab.client(1).fresh_path("kept");
    let mut random = Random::new();
    for _ in 0..8 {
        let mut mount = mount(&lab, &cache, "linger=1s");
        read_a_part(&mount, &cache, &content, &mut random);
        if random.below(3) == 0 {
            mount.proc().signal(Signal::KILL);
            wait_until(SOON, "the daemon is gone", || mount.proc().exited().is_some());
            drop(mount);
        } else {
            mount.umount();
        }
        damage(&cache, &mut random);
    }
    let mount = mount(&lab, &cache, "linger=1s");
    assert_eq!(digest_of(mount.join("image")), image.digest, "{}", mount.log());
    mount.umount();
    assert_whole(&cache, &image);
}

/// Reads past the page cache at random places, and flips a bit before each read. Requires that no
/// wrong byte is read.
fn read_while_bits_flip(mount: &MountProc<'_>, cache: &Path, content: &[u8], random: &mut Random) {
    let file =
        rustix::fs::open(mount.join("image"), OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())
            .unwrap();
    for _ in 0..60 {
        let name = FILES[usize::try_from(random.below(FILES.len() as u64)).unwrap()];
        flip_a_bit(&part(cache, name), random);
        // Any bit of the cache is soon hit by a read that follows.
        flip_a_bit(&part(cache, "data"), random);
        let at = usize::try_from(random.below((content.len() - READ_LEN) as u64)).unwrap();
        let mut buffer = vec![0; READ_LEN];
        let len = rustix::io::pread(&file, &mut buffer[..], at as u64);
        let len = len.unwrap_or_else(|error| panic!("at {at}: {error}\n{}", mount.log()));
        assert!(buffer[..len] == content[at..at + len], "wrong bytes at {at}\n{}", mount.log());
    }
}

#[test]
fn bits_that_flip_while_a_pinned_file_arrives_and_while_it_is_complete_are_never_read() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(6) + 77);
    let content = fs::read(&image.path).unwrap();
    let server = lab.server().option("--rate", "20mbit").start();
    let (cache, pins) = (lab.client(1).fresh_path("kept"), lab.client(1).fresh_path("pins"));
    fs::write(&pins, format!("{}  image\n", b3(&image))).unwrap();
    let option = format!("pins={}", text(&pins));
    let mut random = Random::new();
    let first = mount(&lab, &cache, &option);
    let open = File::open(first.join("image")).unwrap();
    read_while_bits_flip(&first, &cache, &content, &mut random);
    server.wait_no_members();
    read_while_bits_flip(&first, &cache, &content, &mut random);
    // A read of everything replaces what is wrong.
    drop(open);
    assert_eq!(digest_of(first.join("image")), image.digest);
    first.umount();
    let again = mount(&lab, &cache, &option);
    assert_eq!(digest_of(again.join("image")), image.digest, "{}", again.log());
    again.umount();
    assert_whole(&cache, &image);
}

#[test]
fn bits_that_flip_before_their_leaf_is_verified_are_not_read() {
    let lab = lab_or_skip!(Lab::builder());
    // Two segments: the value of the only one of a smaller file is its content id.
    let image = lab.put("image", mib(6) + 77);
    let _server = lab.server().option("--rate", "50mbit").start();
    let gate = HashGate::start(&lab);
    let cache = lab.client(1).fresh_path("kept");
    let dir = format!("cache_dir={}", text(&cache));
    let mount = lab.mount(1).source(&HashGate::source()).option(&dir).option("unicast=never");
    let mut copy = Copy::start_on(mount.start(), &image);
    wait_until(TRANSFER, "all pages are stored", || keeping::held_bytes(&cache) >= image.size);
    flip_bits(&part(&cache, "data"), 20, &mut Random::new());
    gate.open();
    copy.finish(&image);
    assert!(copy.mount.log().contains("wrong bytes"), "{}", copy.mount.log());
    copy.mount.umount();
    assert_whole(&cache, &image);
}

#[test]
fn bits_of_a_complete_file_that_flip_before_its_first_open_in_a_mount_are_not_read() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(6) + 77);
    let _server = lab.server().start();
    let cache = lab.client(1).fresh_path("kept");
    let mut random = Random::new();
    let first = mount(&lab, &cache, "linger=1s");
    assert_eq!(digest_of(first.join("image")), image.digest);
    first.umount();
    for name in FILES {
        let again = mount(&lab, &cache, "linger=1s");
        flip_bits(&part(&cache, name), 20, &mut random);
        assert_eq!(digest_of(again.join("image")), image.digest, "{name}: {}", again.log());
        again.umount();
        assert_whole(&cache, &image);
    }
}
