//! Ways to share an image with several hosts.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bootcast_fs::status::Totals;
use clap::ValueEnum;
use harness::binaries::binary;
use harness::lab::HEAD_ADDRESS;
use harness::{Lab, MountProc, Proc, SOON, ServerProc, wait_until};

/// Name of the image that is shared.
pub(crate) const IMAGE: &str = "root.img";

/// A way to share an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// Mounts of bootcast with fill=demand
    Demand,
    /// Mounts of bootcast with fill=full
    Full,
    /// NBD: nbdkit on the head, and QEMU's own client
    Nbd,
    /// HTTP: rclone on the head, and its mount on the hosts
    Rclone,
}

/// An image that is being shared, until this is dropped.
#[expect(dead_code, reason = "programs run as long as they are here")]
pub(crate) struct Sharing<'lab> {
    lab: &'lab Lab,
    /// The option `fill=` of mounts of bootcast.
    fill: &'static str,
    image: Vec<String>,
    /// Caches of the hosts; empty where they keep none.
    caches: Vec<PathBuf>,
    mounts: Vec<MountProc<'lab>>,
    server: Option<ServerProc<'lab>>,
    programs: Vec<Proc>,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Demand => "bootcast, fill=demand",
            Self::Full => "bootcast, fill=full",
            Self::Nbd => "NBD (nbdkit)",
            Self::Rclone => "HTTP (rclone mount)",
        })
    }
}

impl<'lab> Sharing<'lab> {
    /// Shares the served root.img of a lab with its clients.
    pub(crate) fn start(lab: &'lab Lab, way: Way, rate: &str) -> Self {
        match way {
            Way::Demand => Self::bootcast(lab, rate, "fill=demand"),
            Way::Full => Self::bootcast(lab, rate, "fill=full"),
            Way::Nbd => Self::nbd(lab),
            Way::Rclone => Self::rclone(lab),
        }
    }

    /// Returns the image as QEMU on client `k` names it.
    pub(crate) fn image(&self, k: usize) -> String {
        self.image[k - 1].clone()
    }

    /// Restarts the server of bootcast, and replaces its mounts by mounts with empty caches, like
    /// those of other hosts.
    pub(crate) fn renew(&mut self) {
        for mount in self.mounts.drain(..) {
            mount.umount();
        }
        if let Some(server) = &mut self.server {
            server.stop();
            server.start();
        }
        let profile = self.lab.client(1).run(binary("bootcast"), ["profile", &self.lab.url(IMAGE)]);
        println!("{}", String::from_utf8_lossy(&profile.stdout));
        self.mount();
    }

    /// Returns how many reads the mounts of bootcast got from the kernel, and how many of them had
    /// to wait; `None` for other ways than bootcast.
    pub(crate) fn reads(&self) -> Option<(u64, u64)> {
        let totals = self.mounts.iter().map(|mount| mount.status().totals);
        let add = |sum: (u64, u64), one: Totals| (sum.0 + one.reads, sum.1 + one.reads_waited);
        (!self.mounts.is_empty()).then(|| totals.fold((0, 0), add))
    }

    /// Returns the bytes in the caches of all hosts together; `None` if they keep none.
    pub(crate) fn fetched(&self) -> Option<u64> {
        let bytes = || self.caches.iter().map(|cache| allocated(cache)).sum();
        (!self.caches.is_empty()).then(bytes)
    }

    fn bootcast(lab: &'lab Lab, rate: &str, fill: &'static str) -> Self {
        let server = lab.server().option("--rate", rate).start();
        let mut sharing = Self { server: Some(server), fill, ..Self::nothing(lab) };
        sharing.mount();
        sharing
    }

    fn mount(&mut self) {
        let clients = 1..=self.lab.clients().len();
        self.mounts = clients.map(|k| self.lab.mount(k).option(self.fill).start()).collect();
        self.image = self.mounts.iter().map(|mount| text(&mount.join(IMAGE))).collect();
        self.caches = self.mounts.iter().map(|mount| mount.cache().to_owned()).collect();
    }

    fn nothing(lab: &'lab Lab) -> Self {
        Self {
            lab,
            fill: "",
            image: Vec::new(),
            caches: Vec::new(),
            mounts: Vec::new(),
            server: None,
            programs: Vec::new(),
        }
    }

    fn nbd(lab: &'lab Lab) -> Self {
        let image = text(&lab.served().join(IMAGE));
        let nbdkit = lab.head().spawn("nbdkit", ["-f", "-r", "-p", "10809", "file", &image]);
        let url = format!("nbd://{HEAD_ADDRESS}:10809");
        let client = lab.client(1);
        wait_until(SOON, "nbdkit answers", || {
            client.run("qemu-img", ["info", &url]).status.success()
        });
        let image = vec![url; lab.clients().len()];
        Self { image, programs: vec![nbdkit], ..Self::nothing(lab) }
    }

    fn rclone(lab: &'lab Lab) -> Self {
        let served = text(&lab.served());
        let address = format!("{HEAD_ADDRESS}:8080");
        let serve = ["serve", "http", "--addr", &address, "--read-only", &served];
        let mut programs = vec![lab.head().spawn("rclone", serve)];
        let url = format!("http://{address}/");
        wait_until(SOON, "rclone answers", || {
            lab.client(1).run("curl", ["-sf", "-o", "/dev/null", &url]).status.success()
        });
        let (mut image, mut caches) = (Vec::new(), Vec::new());
        for client in lab.clients() {
            let (mount, cache) = (client.fresh_path("mnt"), client.fresh_path("cache"));
            fs::create_dir(&mount).expect("a mount point");
            let options = ["--read-only", "--vfs-cache-mode", "full", "--cache-dir"];
            let args = ["mount", ":http:", &text(&mount), "--http-url", &url];
            let args = args.into_iter().chain(options).map(str::to_owned).chain([text(&cache)]);
            programs.push(client.spawn("rclone", args));
            let file = mount.join(IMAGE);
            wait_until(SOON, "rclone has mounted", || file.exists());
            image.push(text(&file));
            caches.push(cache);
        }
        Self { image, caches, programs, ..Self::nothing(lab) }
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of the lab is UTF-8").to_owned()
}

/// Returns what the files below a directory take up.
fn allocated(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512);
    };
    entries.flatten().map(|entry| allocated(&entry.path())).sum()
}
