//! Random steps of a reader, a cache, a network and a server, against a simple model of what a
//! reader may see.
//!
//! `BOOTCAST_STEPS` is the number of steps, some dozens by default; `BOOTCAST_SEED` repeats a run.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use harness::binaries::binary;
use harness::{Lab, MountProc, Random, SOON, ServerProc, lab_or_skip, mib, wait_until};
use rustix::io::Errno;

use crate::text;

/// Steps where the environment names no other number.
const STEPS: u64 = 60;

/// Largest file, in bytes.
const MAX_SIZE: u64 = mib(4);

/// Files of the server.
const FILES: u64 = 3;

/// Share of the datagrams that get lost while there is loss.
const LOSS: &str = "udp dport { 9000, 9001 } numgen random mod 100 < 10";

/// A file in the model: all contents that it had, the present one last.
struct Model {
    contents: Vec<Vec<u8>>,
}

impl Model {
    fn present(&self) -> usize {
        self.contents.len() - 1
    }
}

/// An open descriptor, and what it may show.
struct Open {
    file: File,
    /// Number of the file.
    number: usize,
    /// Content that it was opened on.
    content: usize,
}

struct World<'lab> {
    lab: &'lab Lab,
    server: ServerProc<'lab>,
    /// `None` only while it is replaced.
    mount: Option<MountProc<'lab>>,
    cache: PathBuf,
    models: Vec<Model>,
    open: Vec<Open>,
    is_lossy: bool,
}

fn mount<'lab>(lab: &'lab Lab, cache: &Path) -> MountProc<'lab> {
    let dir = format!("cache_dir={}", cache.display());
    // Each open asks for the present version.
    lab.mount(1).option(&dir).option("attr_ttl=0s").option("linger=1s").start()
}

impl World<'_> {
    fn path(&self, number: usize) -> PathBuf {
        self.mount.as_ref().unwrap().join(number.to_string())
    }

    /// Opens a file. It shows the present content, because nothing changes meanwhile.
    fn open(&mut self, number: usize) {
        let path = self.path(number);
        let content = self.models[number].present();
        let file = File::open(&path).unwrap();
        let size = self.models[number].contents[content].len() as u64;
        assert_eq!(file.metadata().unwrap().len(), size, "{}", path.display());
        self.open.push(Open { file, number, content });
    }

    /// Reads from an open file. It shows the bytes that it had at its open; or the file has other
    /// content since, and these bytes, or the rest of them, did not arrive before.
    fn read(&self, random: &mut Random) {
        let Some(open) = pick(&self.open, random) else { return };
        let model = &self.models[open.number];
        let expected = &model.contents[open.content];
        let offset = random.below(expected.len() as u64 + 1);
        let mut bytes = vec![0; usize::try_from(random.below(mib(1)) + 1).unwrap()];
        let start = usize::try_from(offset).unwrap();
        match open.file.read_at(&mut bytes, offset) {
            Ok(len) => {
                let is_short = len < bytes.len().min(expected.len() - start);
                assert!(!is_short || open.content != model.present(), "{len} bytes at {offset}");
                assert!(bytes[..len] == expected[start..start + len], "wrong bytes at {offset}");
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(Errno::STALE.raw_os_error()), "{error}");
                assert_ne!(open.content, model.present(), "its content is still there");
            }
        }
    }

    fn close(&mut self, random: &mut Random) {
        if !self.open.is_empty() {
            let position = random.below(self.open.len() as u64);
            self.open.swap_remove(usize::try_from(position).unwrap());
        }
    }

    /// Gives a file other content, under the same name.
    fn change(&mut self, number: usize, random: &mut Random) {
        let image = self.lab.put(&format!("new-{number}"), random.below(MAX_SIZE) + 1);
        self.models[number].contents.push(std::fs::read(&image.path).unwrap());
        std::fs::rename(&image.path, self.lab.served().join(number.to_string())).unwrap();
    }

    /// Removes everything from the cache that nobody uses.
    fn evict(&self) {
        let args = ["cache", "prune", "--all", "--cache-dir", text(&self.cache)];
        self.lab.client(1).run_ok(binary("bootcast"), args);
    }

    fn crash_mount(&mut self) {
        self.open.clear();
        let mut mounted = self.mount.take().unwrap();
        mounted.proc().kill_within(SOON);
        drop(mounted);
        self.mount = Some(mount(self.lab, &self.cache));
    }

    fn crash_server(&mut self) {
        self.server.kill();
        self.server.start();
    }

    fn toggle_loss(&mut self) {
        if self.is_lossy {
            self.lab.pass_toward(1);
        } else {
            self.lab.drop_toward(1, LOSS);
        }
        self.is_lossy = !self.is_lossy;
    }

    fn step(&mut self, random: &mut Random) {
        let number = usize::try_from(random.below(FILES)).unwrap();
        match random.below(100) {
            0..25 => self.open(number),
            25..70 => self.read(random),
            70..80 => self.close(random),
            80..86 => self.evict(),
            86..90 => self.crash_mount(),
            90..92 => self.crash_server(),
            92..96 => self.change(number, random),
            _ => self.toggle_loss(),
        }
    }
}

fn pick<'a, T>(all: &'a [T], random: &mut Random) -> Option<&'a T> {
    let len = all.len() as u64;
    (len > 0).then(|| &all[usize::try_from(random.below(len)).unwrap()])
}

#[test]
fn a_reader_sees_one_version_per_open_whatever_happens_around_it() {
    let lab = lab_or_skip!(Lab::builder().loss(0.1));
    let steps = std::env::var("BOOTCAST_STEPS").map_or(STEPS, |text| text.parse().unwrap());
    let mut random = Random::new();
    let server = lab.server().option("--rate", "100mbit").start();
    let cache = lab.client(1).fresh_path("kept");
    let mounted = Some(mount(&lab, &cache));
    let models = (0..FILES).map(|_| Model { contents: Vec::new() }).collect();
    let (open, is_lossy) = (Vec::new(), false);
    let mut world = World { lab: &lab, server, mount: mounted, cache, models, open, is_lossy };
    for number in 0..world.models.len() {
        world.change(number, &mut random);
    }
    for _ in 0..steps {
        world.step(&mut random);
    }
    // Whatever happened, all files can be read to their ends.
    for number in 0..world.models.len() {
        let model = &world.models[number];
        assert!(std::fs::read(world.path(number)).unwrap() == model.contents[model.present()]);
    }
    world.open.clear();
    let mounted = world.mount.take().unwrap();
    wait_until(SOON, "no request waits", || mounted.parked_requests() == 0);
    assert!(!mounted.log().contains("wrong bytes"), "{}", mounted.log());
    mounted.umount();
}
