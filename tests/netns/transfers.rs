//! Transfers that run in the background: `bootcast get`, and copies from a mount.

use std::path::PathBuf;

use harness::binaries::binary;
use harness::content::Image;
use harness::{Lab, MountProc, Proc, digest_of};

use crate::{TRANSFER, readers, text};

/// A running `bootcast get`.
pub(crate) struct Get {
    pub(crate) proc: Proc,
    pub(crate) target: PathBuf,
}

impl Get {
    /// Starts `bootcast get` of `image` on client `k`.
    pub(crate) fn start(lab: &Lab, k: usize, image: &Image) -> Self {
        Self::start_with(lab, k, image, &[])
    }

    /// Like [`Get::start`], with more options.
    pub(crate) fn start_with(lab: &Lab, k: usize, image: &Image, options: &[&str]) -> Self {
        Self::start_of(lab, k, &lab.url(text(&image.name)), options)
    }

    /// Starts `bootcast get` of a URL on client `k`.
    pub(crate) fn start_of(lab: &Lab, k: usize, url: &str, options: &[&str]) -> Self {
        let host = lab.client(k);
        let target = host.fresh_path("got");
        let args = ["get", "--interface", "eth0", url, "-O", text(&target)];
        Self { proc: host.spawn(binary("bootcast"), [&args[..], options].concat()), target }
    }

    /// Waits until it ends, and requires that the file equals `image`.
    #[track_caller]
    pub(crate) fn finish(&mut self, image: &Image) {
        self.proc.wait_success(TRANSFER);
        assert_eq!(digest_of(&self.target), image.digest, "{}", self.target.display());
    }
}

/// A mount, and a running program that copies a file from it.
pub(crate) struct Copy<'lab> {
    pub(crate) mount: MountProc<'lab>,
    pub(crate) proc: Proc,
    pub(crate) target: PathBuf,
}

impl<'lab> Copy<'lab> {
    /// Mounts on client `k` with the default options, and starts to copy `image`.
    pub(crate) fn start(lab: &'lab Lab, k: usize, image: &Image) -> Self {
        Self::start_on(lab.mount(k).start(), image)
    }

    /// Starts to copy `image` from a mount.
    pub(crate) fn start_on(mount: MountProc<'lab>, image: &Image) -> Self {
        let target = mount.host().fresh_path("copy");
        let proc = readers::copy(mount.host(), &mount.join(&image.name), &target);
        Self { mount, proc, target }
    }

    /// Waits until it ends, and requires that the copy equals `image`.
    #[track_caller]
    pub(crate) fn finish(&mut self, image: &Image) {
        let status = self.proc.wait(TRANSFER);
        assert!(status.success(), "{}\n{}", self.proc.log(), self.mount.log());
        assert_eq!(digest_of(&self.target), image.digest, "{}", self.target.display());
    }
}
