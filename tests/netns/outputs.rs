//! Outputs of `bootcast get`: write errors are reported, and a device is written in place.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use harness::binaries::binary;
use harness::requirements::report_skipped;
use harness::{Host, Lab, digest_of, lab_or_skip, mib};

use crate::text;

/// Mounts a tmpfs of `size_mib` MiB on a new directory.
pub(crate) fn small_disk(host: &Host, size_mib: u32) -> PathBuf {
    let directory = host.fresh_path("disk");
    mount_tmpfs(&directory, &format!("size={size_mib}m"));
    directory
}

/// Creates a directory and mounts a tmpfs on it. The lab unmounts it.
pub(crate) fn mount_tmpfs(directory: &Path, options: &str) {
    fs::create_dir(directory).unwrap();
    let mount = ["-t", "tmpfs", "-o", options, "tmpfs", text(directory)];
    let output = Command::new("mount").args(mount).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A block device over a sparse file.
pub(crate) struct LoopDevice(pub(crate) PathBuf);

impl LoopDevice {
    /// The file whose bytes are those of a device that was attached in `directory`.
    pub(crate) fn backing(directory: &Path) -> PathBuf {
        directory.join("backing")
    }

    /// Creates a device of `size_mib` MiB over a file in `directory`. If the machine has no loop
    /// device, reports the test as skipped and returns `None`.
    pub(crate) fn attach(directory: &Path, size_mib: u64) -> Option<Self> {
        let backing = Self::backing(directory);
        File::create(&backing).unwrap().set_len(mib(size_mib)).unwrap();
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(&backing).output();
        match attached {
            Ok(output) if output.status.success() => {
                let name = String::from_utf8(output.stdout).unwrap();
                Some(Self(name.trim().into()))
            }
            Ok(output) => {
                let error = String::from_utf8_lossy(&output.stderr);
                report_skipped(&format!("no loop device: {}", error.trim()));
                None
            }
            Err(error) => {
                report_skipped(&format!("no losetup: {error}"));
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn get(host: &Host, args: &[&str], tmpdir: &Path) -> Output {
    let mut command = host.command(binary("bootcast"));
    command.args(["get", "--interface", "eth0"]).args(args).env("TMPDIR", tmpdir);
    command.output().unwrap()
}

/// Options that select how a file is transferred: by multicast, over HTTP, by demand.
const MODES: [&[&str]; 3] = [&[], &["--unicast"], &["--range", "0-"]];

/// Gets the file `image` on client 1, requires that writing it fails, and returns standard error.
#[track_caller]
fn fail_to_write(lab: &Lab, mode: &[&str], target: &Path) -> String {
    let url = lab.url("image");
    let args = [mode, &[&url, "-O", text(target)]].concat();
    let output = get(lab.client(1), &args, lab.directory());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{mode:?}: {errors}");
    errors
}

/// Whether `device` begins with the bytes of `image`.
fn begins_with(device: &Path, image: &Path) -> bool {
    let image = fs::read(image).unwrap();
    let mut bytes = vec![0; image.len()];
    File::open(device).unwrap().read_exact(&mut bytes).unwrap();
    bytes == image
}

#[test]
fn a_device_that_loses_written_bytes_is_an_error_in_every_mode() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(40));
    let _server = lab.server().start();
    let client = lab.client(1);
    for mode in MODES {
        let disk = small_disk(client, 8);
        let Some(device) = LoopDevice::attach(&disk, 100) else { return };
        let errors = fail_to_write(&lab, mode, &device.0);
        let expected = format!("bootcast: cannot write {}: ", device.0.display());
        assert!(errors.starts_with(&expected), "{mode:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{mode:?}: {errors}");
    }
}

#[test]
fn a_device_is_written_in_place_and_needs_no_spool() {
    let lab = lab_or_skip!(Lab::builder().loss(2.0));
    let image = lab.put("image", mib(24) + 5);
    let server = lab.server().option("--rate", "200mbit").start();
    let client = lab.client(1);
    let Some(device) = LoopDevice::attach(lab.directory(), 32) else { return };
    let nowhere = client.fresh_path("no-such-directory");
    let output = get(client, &[&lab.url("image"), "-O", text(&device.0)], &nowhere);
    assert!(output.status.success(), "{output:?}");
    assert!(begins_with(&device.0, &image.path));
    server.wait_no_members();
}

#[test]
fn a_device_that_is_too_small_is_an_error_with_both_sizes() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let _server = lab.server().start();
    let Some(device) = LoopDevice::attach(lab.directory(), 4) else { return };
    let errors = fail_to_write(&lab, &[], &device.0);
    assert!(errors.contains("16777216") && errors.contains("4194304"), "{errors}");
}

#[test]
fn a_file_that_does_not_fit_leaves_the_old_file_and_no_partial_one() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(16));
    let _server = lab.server().start();
    let client = lab.client(1);
    for mode in MODES {
        let disk = small_disk(client, 8);
        let target = disk.join("image");
        fs::write(&target, "what was here before").unwrap();
        let errors = fail_to_write(&lab, mode, &target);
        assert!(errors.contains(text(&target)), "{mode:?}: {errors}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "what was here before");
        assert_eq!(fs::read_dir(&disk).unwrap().count(), 1, "{mode:?}: a partial file is left");
    }
}

#[test]
fn a_get_replaces_an_existing_file_on_a_small_disk() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(8) + 77);
    let _server = lab.server().start();
    let disk = small_disk(lab.client(1), 16);
    let target = disk.join("image");
    fs::write(&target, "what was here before").unwrap();
    let output = get(lab.client(1), &[&lab.url("image"), "-O", text(&target)], lab.directory());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(digest_of(&target), image.digest);
    assert_eq!(fs::read_dir(&disk).unwrap().count(), 1);
}
