//! mount(8), mount options and exit codes.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Output;

use harness::binaries::{binary, directory};
use harness::mount::is_mounted;
use harness::{Host, Lab, SOON, digest_of, lab_or_skip, wait_until};

use rustix::process::Signal;

use crate::text;

/// Creates a mount point and a cache directory. Returns the mount point and options that name the
/// cache.
pub(crate) fn place(host: &Host) -> (PathBuf, String) {
    let (path, cache) = (host.fresh_path("mnt"), host.fresh_path("cache"));
    fs::create_dir(&path).unwrap();
    (path, format!("ro,interface=eth0,cache_dir={}", text(&cache)))
}

/// Runs a shell script in which mount(8) finds the programs under test. `$1`, `$2` and `$3` are
/// source, mount point and options.
///
/// mount(8) looks for helpers only in the system's directories, whatever `PATH` is. The script
/// therefore has a mount namespace of its own, in which one of these contains our programs.
pub(crate) fn with_mount_8(
    host: &Host,
    script: &str,
    source: &str,
    path: &Path,
    options: &str,
) -> Output {
    let installed = format!("mount --bind {} /usr/local/sbin && {script}", directory().display());
    let mut command = host.command("unshare");
    command.args(["--mount", "sh", "-c", &installed, "sh", source, text(path), options]);
    command.output().unwrap()
}

const MOUNT: &str = "mount -t fuse.bootcastfs \"$1\" \"$2\" -o \"$3\"";

/// Asserts that a script succeeded, and that it printed a line of `/proc/self/mounts` with our
/// mount.
fn assert_was_mounted(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mount = String::from_utf8_lossy(&output.stdout);
    assert!(mount.starts_with("10.77.0.1:/ ") && mount.contains(" fuse.bootcastfs ro,"), "{mount}");
}

/// Asserts that standard error is one line.
pub(crate) fn assert_one_line(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors.trim_end().lines().count(), 1, "stderr:\n{errors}");
}

fn processes_on(host: &Host) -> String {
    let output =
        std::process::Command::new("ip").args(["netns", "pids", host.namespace()]).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn mount_8_mounts_and_umount_ends_the_daemon() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 100_000);
    let _server = lab.server().start();
    let (path, options) = place(lab.client(1));
    // Options as in a line of fstab.
    let options =
        format!("{options},_netdev,nofail,x-systemd.automount,noatime,nodev,nosuid,port=8888");
    let script = format!(
        "{MOUNT} && grep \" $2 \" /proc/self/mounts && cat \"$2/image\" >\"$2.copy\" \
         && umount \"$2\""
    );
    let output = with_mount_8(lab.client(1), &script, "10.77.0.1:/", &path, &options);
    assert_was_mounted(&output);
    assert_eq!(digest_of(path.with_extension("copy")), image.digest);
    wait_until(SOON, "the daemon has ended", || processes_on(lab.client(1)).is_empty());
}

#[test]
fn mount_8_mounts_the_type_bootcastfs_by_a_helper_of_that_name() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 100_000);
    let _server = lab.server().start();
    let (path, options) = place(lab.client(1));
    let options = format!("{options},_netdev,nofail,x-systemd.automount,noatime,nodev");
    // Helpers are looked for in /sbin alone. Only this script sees the link there.
    let install = format!(
        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/new /mnt/work \
         && ln -s {}/bootcastfs /mnt/new/mount.bootcastfs \
         && mount -t overlay overlay /sbin/ \
            -o lowerdir=/sbin/,upperdir=/mnt/new,workdir=/mnt/work",
        directory().display()
    );
    let script = format!(
        "{install} && mount -t bootcastfs \"$1\" \"$2\" -o \"$3\" \
         && grep \" $2 \" /proc/self/mounts && cat \"$2/image\" >\"$2.copy\" \
         && echo \"$1 $2 bootcastfs $3\" >/mnt/fstab && mount -T /mnt/fstab -a \
         && test $(grep -c \" $2 \" /proc/self/mounts) = 1 && umount \"$2\" \
         && mount -f -t bootcastfs \"$1\" \"$2\" -o \"$3\" \
         && mount -s -t bootcastfs \"$1\" \"$2\" -o \"$3,bogus\" && umount \"$2\""
    );
    let output = with_mount_8(lab.client(1), &script, "10.77.0.1:/", &path, &options);
    assert_was_mounted(&output);
    assert_eq!(digest_of(path.with_extension("copy")), image.digest);
    wait_until(SOON, "the daemon has ended", || processes_on(lab.client(1)).is_empty());
}

#[test]
fn the_server_of_a_root_is_marked_locked_in_memory_and_outlives_signals() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 100_000);
    let _server = lab.server().start();
    let mut mount = lab.mount(1).option("root_fs,cache=memory").start();
    let pid = mount.proc().pid();
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let name = read("cmdline");
    assert!(name.starts_with("@bootcastfs\0"), "{name}");
    assert_eq!(read("comm").trim(), "bootcastfs");
    // In a container even root may lack CAP_SYS_RESOURCE.
    let try_it = "echo -1000 >/proc/self/oom_score_adj";
    if lab.client(1).run("sh", ["-c", try_it]).status.success() {
        assert_eq!(read("oom_score_adj").trim(), "-1000");
    } else {
        assert!(mount.log().contains("the kernel may kill this process"), "{}", mount.log());
    }
    let status = read("status");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap().trim();
    let locked: u64 = locked.trim_end_matches(" kB").parse().unwrap();
    assert!(locked > 1000, "{locked} kB are locked");
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        mount.proc().signal(signal);
    }
    let ignored = || mount.log().matches("ignored: this process").count();
    wait_until(SOON, "three signals are ignored", || ignored() == 3);
    assert_eq!(digest_of(mount.join("image")), image.digest);
    mount.umount();
}

#[test]
fn started_in_an_initramfs_it_serves_a_root() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", 100_000);
    let _server = lab.server().start();
    let (path, options) = place(lab.client(1));
    let script = "mount -t tmpfs tmpfs /etc && touch /etc/initrd-release \
         && bootcastfs \"$1\" \"$2\" -o \"$3\" && cat \"$2/image\" | wc -c \
         && grep -lz \"^$2\\$\" /proc/[0-9]*/cmdline | xargs grep -lz '^@bootcastfs' \
         && umount \"$2\"";
    let output = with_mount_8(lab.client(1), script, "10.77.0.1:/", &path, &options);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = printed.lines().collect();
    assert!(lines.len() == 2 && lines[0] == "100000", "{printed}");
    wait_until(SOON, "the daemon has ended", || processes_on(lab.client(1)).is_empty());
}

#[test]
fn an_unreachable_server_gives_one_line_and_exit_code_32() {
    let lab = lab_or_skip!(Lab::builder());
    let (path, options) = place(lab.client(1));
    let options = format!("{options},retry=0");
    let output = with_mount_8(lab.client(1), MOUNT, "10.77.0.1:/", &path, &options);
    assert_eq!(output.status.code(), Some(32), "{output:?}");
    assert_one_line(&output);
}

#[test]
fn a_directory_that_the_server_does_not_have_gives_one_line_and_exit_code_32() {
    let lab = lab_or_skip!(Lab::builder());
    let _server = lab.server().start();
    let (path, options) = place(lab.client(1));
    let output = with_mount_8(lab.client(1), MOUNT, "10.77.0.1:/nowhere", &path, &options);
    assert_eq!(output.status.code(), Some(32), "{output:?}");
    assert_one_line(&output);
}

#[test]
fn an_unknown_or_invalid_option_gives_one_line_and_exit_code_1() {
    let lab = lab_or_skip!(Lab::builder());
    let _server = lab.server().start();
    for bad in ["cache_dri=/x", "port=none", "cache=tape", "linger=soon"] {
        let (path, options) = place(lab.client(1));
        let options = format!("{options},{bad}");
        let output =
            lab.client(1).run(binary("bootcastfs"), ["10.77.0.1:/", text(&path), "-o", &options]);
        assert_eq!(output.status.code(), Some(1), "{bad}: {output:?}");
        assert_one_line(&output);
        let named = bad.split('=').next().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains(named), "{output:?}");
        assert!(!is_mounted(&path), "{bad}");
    }
}

#[test]
fn rw_is_mounted_read_only_with_a_warning_and_every_write_gives_erofs() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", 10_000);
    let _server = lab.server().start();
    let mount = lab.mount(1).option("rw").start();
    let log = mount.log();
    let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains("read-only"));
    assert_eq!(warnings.count(), 1, "{log}");

    let image = mount.join("image");
    let attempts = [
        ("create", File::create(mount.join("new")).map(drop)),
        ("append", OpenOptions::new().append(true).open(&image).map(drop)),
        ("unlink", fs::remove_file(&image)),
        ("mkdir", fs::create_dir(mount.join("dir"))),
        ("rename", fs::rename(&image, mount.join("other"))),
        ("chmod", fs::set_permissions(&image, fs::metadata(&image).unwrap().permissions())),
    ];
    for (what, attempt) in attempts {
        let kind = attempt.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::ReadOnlyFilesystem), "{what}");
    }
}

#[test]
fn every_form_of_the_source_mounts_the_same_directory() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("images/image", 10_000);
    let _server = lab.server().start();
    for source in [
        "10.77.0.1:/images",
        "10.77.0.1:8888:/images/",
        "http://10.77.0.1:8888/images",
        "http://10.77.0.1:8888/images/",
    ] {
        let mount = lab.mount(1).source(source).start();
        assert_eq!(digest_of(mount.join("image")), image.digest, "{source}");
        mount.umount();
    }
}

#[test]
fn the_memory_cache_writes_nothing_to_disk() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 3_000_000);
    let _server = lab.server().start();
    let mount = lab.mount(1).option("cache=memory").start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    assert_eq!(fs::read_dir(mount.cache()).unwrap().count(), 0);
}

#[test]
fn df_and_find_work_on_a_mount() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("dir/image", 10_000);
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    let df = lab.client(1).run_ok("df", ["-k", text(mount.path())]);
    assert!(df.contains("10.77.0.1:/"), "{df}");
    let found = lab.client(1).run_ok("find", [text(mount.path()), "-type", "f"]);
    assert_eq!(found.trim(), text(&mount.join("dir/image")));
}
