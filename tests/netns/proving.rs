//! Contents that are named by their hashes: `bootcast get --b3`, `bootcast ls --b3` and mounts with
//! `pins=`. docs/PROTOCOL.md, "Manifest"; docs/SEMANTICS.md, "Pinned files".

use std::fs;
use std::net::SocketAddrV4;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use bootcast_proto::wire::Layout;
use bootcast_proto::{JoinAnswer, Token};
use harness::binaries::binary;
use harness::content::Image;
use harness::lab::HEAD_ADDRESS;
use harness::{
    Forger, Lab, MountProc, SOON, ServerProc, digest_of, lab_or_skip, mib, sending_socket,
    wait_until,
};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::transfers::{Copy, Get};
use crate::{SetOnDrop, TRANSFER, keeping, readers, text};

pub(crate) fn b3(image: &Image) -> String {
    image.digest.to_hex().to_string()
}

/// Waits until the server knows the manifest of a file. The first request makes it hash the file.
pub(crate) fn wait_hashed(lab: &Lab, name: &str) {
    let url = lab.url(&format!("manifest/{name}"));
    wait_until(TRANSFER, "the file is hashed", || lab.client(1).get(&url).status == 200);
}

/// A member on client 2 that forges every page of a cast in the name of the server.
struct Impostor<'lab> {
    lab: &'lab Lab,
    forger: Forger,
    connect: SocketAddrV4,
    datagrams: Vec<Vec<u8>>,
    name: String,
    token: Token,
}

impl<'lab> Impostor<'lab> {
    /// Joins, which tells the key.
    fn join(lab: &'lab Lab, server: &ServerProc<'_>, image: &Image) -> Self {
        let (host, name) = (lab.client(2), text(&image.name).to_owned());
        let url = lab.url(&format!("join/{name}"));
        let answer = JoinAnswer::parse(&host.get_with(&url, &[("X-BOOTCAST", "1")]).body).unwrap();
        let key = answer.extensions.key.expect("a key");
        let geometry = answer.geometry().unwrap();
        let datagram = |page| {
            let payload = vec![0xee; geometry.page_len(page).unwrap() as usize];
            let header = Layout::Base.header(page, answer.pages, &payload);
            let mut datagram = [&header[..], &payload].concat();
            key.seal(&mut datagram);
            datagram
        };
        let datagrams = geometry.all().iter().map(datagram).collect();
        let forger = host.enter(|| Forger::new(sending_socket(server)));
        Self { lab, forger, connect: answer.connect, datagrams, name, token: answer.token }
    }

    /// Sends each page with wrong bytes and a right tag.
    fn forge(&self) {
        let send = |datagram: &Vec<u8>| self.forger.send(self.connect, datagram);
        self.lab.client(2).enter(|| self.datagrams.iter().for_each(send));
    }

    /// Starts a client with `start`, and forges until `is_over`. The cast is held back.
    fn forge_until<T>(self, start: impl FnOnce() -> T, is_over: impl Fn(&mut T) -> bool) -> T {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    self.forge();
                }
            });
            let _done = SetOnDrop(&done);
            let mut client = start();
            wait_until(TRANSFER, "the client heard the forger", || is_over(&mut client));
            client
        })
    }
}

impl Drop for Impostor<'_> {
    fn drop(&mut self) {
        let token = [("X-TOKEN", self.token.as_str())];
        self.lab.client(2).get_with(&self.lab.url(&format!("leave/{}", self.name)), &token);
    }
}

/// Waits until client 1 is a member and listens. Then client 2 forges every page once.
pub(crate) fn forge_all_pages(lab: &Lab, server: &ServerProc<'_>, image: &Image) {
    lab.wait_members(server, text(&image.name), 1..=1);
    wait_until(TRANSFER, "the client listens", || lab.client(1).is_in_a_group());
    Impostor::join(lab, server, image).forge();
}

/// Starts `bootcast get` of `image` with these options on client 1. Its cast is held back, and
/// client 2 forges every page of it, until `is_over`.
pub(crate) fn get_forged_pages(
    lab: &Lab,
    server: &ServerProc<'_>,
    image: &Image,
    options: &[&str],
    is_over: impl Fn(&mut Get) -> bool,
) -> Get {
    let _valve = lab.hold_multicast_after(0);
    let start = || Get::start_with(lab, 1, image, options);
    Impostor::join(lab, server, image).forge_until(start, is_over)
}

/// Like [`get_forged_pages`], but copies `image` from a mount on client 1, until the log shows that
/// it got wrong bytes.
pub(crate) fn copy_forged_pages<'lab>(
    lab: &'lab Lab,
    server: &ServerProc<'_>,
    image: &Image,
    mount: MountProc<'lab>,
) -> Copy<'lab> {
    let _valve = lab.hold_multicast_after(0);
    let start = || Copy::start_on(mount, image);
    let is_heard = |copy: &mut Copy<'_>| copy.mount.log().contains("with wrong bytes");
    Impostor::join(lab, server, image).forge_until(start, is_heard)
}

/// Whether a fetch logged that it got wrong bytes.
pub(crate) fn has_wrong_bytes(get: &mut Get) -> bool {
    get.proc.log().contains("with wrong bytes")
}

#[test]
fn a_member_that_forges_every_page_puts_no_wrong_byte_into_the_file() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "20mbit").start();
    let options = ["-v", "--b3", &b3(&image)];
    get_forged_pages(&lab, &server, &image, &options, has_wrong_bytes).finish(&image);
}

#[test]
fn a_member_that_forges_every_page_puts_no_wrong_byte_into_a_pipe() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "20mbit").start();
    let _valve = lab.hold_multicast_after(0);
    let host = lab.client(1);
    let copy = host.fresh_path("copy");
    let url = lab.url("image");
    let mut command = host.command(binary("bootcast"));
    command.args(["get", "--b3", &b3(&image), "-O", "-", "--interface", "eth0", &url]);
    let mut get = command.stdout(Stdio::from(fs::File::create(&copy).unwrap())).spawn().unwrap();
    forge_all_pages(&lab, &server, &image);
    wait_until(TRANSFER, "the transfer ends", || get.try_wait().unwrap().is_some());
    assert!(get.wait().unwrap().success());
    assert_eq!(digest_of(copy), image.digest);
}

#[test]
fn the_right_content_is_got_by_every_way() {
    let lab = lab_or_skip!(Lab::builder().loss(2.0));
    let _server = lab.server().start();
    for (name, size) in [("empty", 0), ("small", 1000), ("segments", mib(9) + 1)] {
        let image = lab.put(name, size);
        for options in [&[][..], &["--unicast"]] {
            let hash = b3(&image);
            let options = [&["--b3", hash.as_str()], options].concat();
            Get::start_with(&lab, 1, &image, &options).finish(&image);
        }
    }
}

#[test]
fn a_fetch_ends_with_the_hash_and_says_whether_it_is_proven() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let _server = lab.server().start();
    let log_of = |options: &[&str]| {
        let mut get = Get::start_with(&lab, 1, &image, options);
        get.finish(&image);
        get.proc.log()
    };
    let hash = b3(&image);
    let unverified = log_of(&["-v", "--verify", "tag"]);
    assert!(!unverified.contains(" b3 "), "the server has hashed nothing");
    let proven = log_of(&["-v", "--b3", &hash]);
    let last = proven.lines().last().unwrap_or_default();
    assert!(last.ends_with(&format!("b3 {hash}, proven")), "{proven}");
    let stated = log_of(&["-v"]);
    assert!(stated.contains(&format!("b3 {hash}, as the server states it")), "{stated}");
    assert!(!log_of(&["-v", "--unicast"]).contains(" b3 "), "nothing was joined");
    assert_eq!(log_of(&["-q", "--b3", &hash]), "");
}

#[test]
fn another_content_is_refused_before_anything_is_written() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let other = lab.put("other", mib(1));
    let server = lab.server().start();
    let mut get = Get::start_with(&lab, 1, &image, &["--b3", &b3(&other)]);
    assert_eq!(get.proc.wait(TRANSFER).code(), Some(8));
    let log = get.proc.log();
    let told =
        format!("not the content that --b3 names: the server has the content {}", b3(&image));
    assert!(log.contains(&told), "{log}");
    assert!(!get.target.exists());
    assert!(server.cast_of("image").is_none(), "no cast was started for it");
}

#[test]
fn a_listing_has_the_hashes_of_all_files_as_b3sum_prints_them() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, other) = (lab.put("images/b c", mib(5)), lab.put("images/a", 0));
    lab.put("images/below/c", 10);
    let _server = lab.server().start();
    let list = |path: &str| {
        let url = format!("{HEAD_ADDRESS}:/{path}");
        let mut ls = lab.client(1).spawn(binary("bootcast"), ["ls", "--b3", &url]);
        ls.wait_success(TRANSFER);
        ls.log()
    };
    assert_eq!(list("images"), format!("{}  a\n{}  b c\n", b3(&other), b3(&image)));
    assert_eq!(list("images/b c"), format!("{}  b c\n", b3(&image)));
}

/// Writes a pins file on client `k` with these names and contents.
fn pins_file(lab: &Lab, k: usize, pins: &[(&str, &Image)]) -> PathBuf {
    let path = lab.client(k).fresh_path("pins");
    let mut lines = String::new();
    for (name, image) in pins {
        lines += &[b3(image).as_str(), "  ", name, "\n"].concat();
    }
    fs::write(&path, lines).unwrap();
    path
}

#[test]
fn a_reader_of_a_pinned_file_gets_no_byte_of_a_member_that_forges_every_page() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "20mbit").start();
    let pins = pins_file(&lab, 1, &[("image", &image)]);
    let mount = lab.mount(1).option(&format!("pins={}", text(&pins))).start();
    let mut copy = copy_forged_pages(&lab, &server, &image, mount);
    copy.finish(&image);
    // The cache was corrected too, and each read is checked anew.
    assert_eq!(digest_of(copy.mount.join("image")), image.digest);
}

#[test]
fn a_cached_byte_that_changed_is_not_read_from_a_pinned_file() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let _server = lab.server().start();
    let pins = pins_file(&lab, 1, &[("image", &image)]);
    let cache = lab.client(1).fresh_path("kept");
    let options = format!("pins={},cache_dir={}", text(&pins), text(&cache));
    let mount = lab.mount(1).option(&options).start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    mount.umount();
    let data = keeping::only_object(&cache).join("data");
    let data = fs::OpenOptions::new().write(true).open(data).unwrap();
    data.write_all_at(b"!", 70_000).unwrap();

    let again = lab.mount(1).option(&options).start();
    assert_eq!(digest_of(again.join("image")), image.digest);
    assert!(again.log().contains("with wrong bytes"), "{}", again.log());
}

#[test]
fn only_pinned_files_with_their_contents_open() {
    let lab = lab_or_skip!(Lab::builder());
    let (right, other) = (lab.put("images/right", 40_000), lab.put("images/other", 40_000));
    lab.put("images/unlisted", 10);
    let server = lab.server().start();
    let pins = pins_file(&lab, 1, &[("right", &right), ("./other", &right)]);
    let source = format!("{HEAD_ADDRESS}:/images");
    let option = format!("pins={}", text(&pins));
    let mount = lab.mount(1).source(&source).option(&option).start();
    assert_eq!(digest_of(mount.join("right")), right.digest);
    let errno = |name: &str| Errno::from_io_error(&fs::read(mount.join(name)).unwrap_err());
    assert_eq!(errno("other"), Some(Errno::IO));
    assert!(mount.log().contains(&format!("the server has the content {}", b3(&other))));
    assert_eq!(errno("unlisted"), Some(Errno::ACCESS));
    assert!(server.status().casts.iter().all(|cast| cast.path != "images/unlisted"));
}

#[test]
fn a_pins_file_that_cannot_be_used_fails_the_mount_with_its_line() {
    let lab = lab_or_skip!(Lab::builder());
    let _server = lab.server().start();
    let pins = lab.client(1).fresh_path("pins");
    fs::write(&pins, "0123  image\n").unwrap();
    let dir = lab.client(1).fresh_path("mnt");
    fs::create_dir(&dir).unwrap();
    let options = format!("pins={}", text(&pins));
    let source = format!("{HEAD_ADDRESS}:/");
    let args = [source.as_str(), text(&dir), "-o", &options];
    let mut mount = lab.client(1).spawn(binary("bootcastfs"), args);
    assert_eq!(mount.wait(TRANSFER).code(), Some(32));
    assert!(mount.log().contains("line 1 is not a hash, two spaces and a path"), "{}", mount.log());
}

#[test]
fn a_reader_that_waits_for_the_proof_of_a_pinned_file_can_be_killed_and_the_mount_ended() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let mut server = lab.server().start();
    let pins = pins_file(&lab, 1, &[("image", &image)]);
    // The cache gets all pages, but no hashes of their leaves.
    let cache = format!("cache_dir={}", text(&lab.client(1).fresh_path("kept")));
    let first = lab.mount(1).option(&cache).option("verify=tag").start();
    assert_eq!(digest_of(first.join("image")), image.digest);
    first.umount();
    let mount = lab.mount(1).option(&cache).option(&format!("pins={}", text(&pins)));
    let mut mount = mount.option("attr_ttl=1h").start();
    assert!(mount.join("image").exists());
    server.kill();
    // Each read past the page cache is a request of its own, and dies only when it is answered.
    let read = || readers::read_direct_at(lab.client(1), &mount.join("image"), 0);
    let (mut killed, mut waiting) = (read(), read());
    mount.wait_parked(2);
    killed.kill_within(SOON);
    assert!(waiting.exited().is_none(), "{}", waiting.log());
    mount.proc().signal(Signal::TERM);
    mount.proc().wait_success(SOON);
    assert!(!waiting.wait(SOON).success());
}
