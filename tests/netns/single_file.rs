//! Mounts of one file alone, pinned to its content. docs/SEMANTICS.md, "One file alone".

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use harness::binaries::binary;
use harness::content::Image;
use harness::lab::HEAD_ADDRESS;
use harness::mount::is_mounted;
use harness::requirements::report_skipped;
use harness::{Lab, MountProc, digest_of, lab_or_skip, mib};
use rustix::io::Errno;

use crate::mounting::{assert_one_line, place, with_mount_8};
use crate::text;

/// User `nobody`, who may mount only through fusermount3.
const NOBODY: u32 = 65_534;

fn source(path: &str) -> String {
    format!("{HEAD_ADDRESS}:/{path}")
}

fn pinned_to(image: &Image) -> String {
    format!("b3={}", image.digest.to_hex())
}

/// Mounts the served file `path` alone on client 1, pinned to the content of `image`.
fn mount_alone<'lab>(lab: &'lab Lab, path: &str, image: &Image) -> MountProc<'lab> {
    lab.mount(1).source(&source(path)).option(&pinned_to(image)).option("attr_ttl=0").start()
}

fn names_in(directory: &Path) -> Vec<OsString> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn the_mounted_directory_holds_exactly_the_file_that_the_source_names() {
    let lab = lab_or_skip!(Lab::builder().loss(2.0));
    let image = lab.put("images/root.erofs", mib(5) + 1);
    lab.put("images/other", 10);
    lab.put("images/below/file", 10);
    let top = lab.put("top", 10);
    let _server = lab.server().start();
    let mount = mount_alone(&lab, "images/root.erofs", &image);
    assert_eq!(names_in(mount.path()), ["root.erofs"]);
    assert_eq!(digest_of(mount.join("root.erofs")), image.digest);
    for absent in ["other", "below", "below/file", "images"] {
        let error = fs::metadata(mount.join(absent)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{absent}");
    }
    // A file in the served directory itself.
    let mount = mount_alone(&lab, "top", &top);
    assert_eq!(names_in(mount.path()), ["top"]);
    assert_eq!(digest_of(mount.join("top")), top.digest);
}

#[test]
fn another_content_under_the_name_does_not_open_and_the_right_one_does() {
    let lab = lab_or_skip!(Lab::builder());
    let right = lab.put("image", 40_000);
    let kept = lab.directory().join("right");
    fs::rename(lab.served().join("image"), &kept).unwrap();
    let wrong = lab.put("image", 50_000);
    let _server = lab.server().start();
    let mount = mount_alone(&lab, "image", &right);
    let error = fs::read(mount.join("image")).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
    let told = format!("the server has the content {}", wrong.digest.to_hex());
    assert!(mount.log().contains(&told), "{}", mount.log());
    fs::rename(&kept, lab.served().join("image")).unwrap();
    assert_eq!(digest_of(mount.join("image")), right.digest);
}

#[test]
fn without_a_hash_the_file_is_alone_too_and_its_new_version_opens() {
    let lab = lab_or_skip!(Lab::builder());
    let old = lab.put("images/root.erofs", mib(1));
    lab.put("images/other", 10);
    let _server = lab.server().start();
    let source = source("images/root.erofs");
    let mut mount = lab.mount(1).source(&source).option("file").option("attr_ttl=0").start();
    let name = mount.join("root.erofs");
    assert_eq!(digest_of(&name), old.digest);
    let new = lab.put("images/new", mib(1) + 1);
    fs::rename(new.path, old.path).unwrap();
    assert_eq!(digest_of(&name), new.digest);
    // Another process shows the same.
    mount.replace();
    assert_eq!(names_in(mount.path()), ["root.erofs"]);
    assert!(!mount.join("other").exists());
    assert_eq!(digest_of(&name), new.digest);
}

#[test]
fn a_name_that_leads_to_a_link_or_directory_by_now_is_not_shown() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 1000);
    lab.put("dir/image", 1000);
    let _server = lab.server().start();
    let mount = mount_alone(&lab, "image", &image);
    let served = lab.served().join("image");
    fs::remove_file(&served).unwrap();
    symlink("/etc/hostname", &served).unwrap();
    assert_eq!(fs::symlink_metadata(mount.join("image")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(names_in(mount.path()).is_empty());
    fs::remove_file(&served).unwrap();
    fs::rename(lab.served().join("dir"), &served).unwrap();
    assert!(!mount.join("image").exists() && !mount.join("image/image").exists());
    assert!(names_in(mount.path()).is_empty());
}

#[test]
fn a_source_that_does_not_fit_the_options_fails_the_mount_with_one_line() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("dir/image", 1000);
    symlink("image", lab.served().join("dir/link")).unwrap();
    let _server = lab.server().start();
    let b3 = pinned_to(&image);
    let both = format!("pins=/nowhere,{b3}");
    for (path, option, code, told) in [
        ("dir", b3.as_str(), 32, "/dir is a directory"),
        ("dir", "file", 32, "-o file need a file"),
        ("", &b3, 32, "/ is a directory"),
        ("dir/link", &b3, 32, "name the file that it leads to"),
        ("dir/none", &b3, 32, "no file /dir/none"),
        ("dir/image", "ro", 32, "the file alone with -o file"),
        ("dir/image", &both, 1, "give b3= if the source is a single file"),
        ("dir/image", "b3=0123", 1, "64 hexadecimal digits"),
    ] {
        let (place, options) = place(lab.client(1));
        let options = format!("{options},{option}");
        let args = [source(path), text(&place).into(), "-o".into(), options];
        let output = lab.client(1).run(binary("bootcastfs"), args);
        assert_eq!(output.status.code(), Some(code), "{path} {option}: {output:?}");
        assert_one_line(&output);
        assert!(String::from_utf8_lossy(&output.stderr).contains(told), "{output:?}");
        assert!(!is_mounted(&place), "{path} {option}");
    }
}

#[test]
fn mount_8_and_a_line_of_fstab_mount_a_file_alone() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("images/root.erofs", 100_000);
    let _server = lab.server().start();
    let source = source("images/root.erofs");
    let directly = "mount -t fuse.bootcastfs \"$1\" \"$2\" -o \"$3\"";
    // A second `mount -a` sees that the line is mounted.
    let by_fstab = "echo \"$1 $2 fuse.bootcastfs $3,_netdev,nofail 0 0\" >\"$2.fstab\" \
                    && mount -T \"$2.fstab\" -a && mount -T \"$2.fstab\" -a";
    for mount in [directly, by_fstab] {
        let (path, options) = place(lab.client(1));
        let options = format!("{options},{}", pinned_to(&image));
        let script = format!("{mount} && cat \"$2/root.erofs\" >\"$2.copy\" && umount \"$2\"");
        let output = with_mount_8(lab.client(1), &script, &source, &path, &options);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(digest_of(path.with_extension("copy")), image.digest, "{mount}");
    }
}

#[test]
fn a_user_mounts_a_file_alone_through_fusermount3() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 100_000);
    let _server = lab.server().start();
    // The user must reach the program, the mount point and the cache.
    fs::set_permissions(lab.directory(), Permissions::from_mode(0o755)).unwrap();
    let host = lab.client(1);
    let (program, place) = (host.fresh_path("bootcastfs"), host.fresh_path("mnt"));
    fs::copy(binary("bootcastfs"), &program).unwrap();
    let cache = host.fresh_path("cache");
    for directory in [&place, &cache] {
        fs::create_dir(directory).unwrap();
        chown(directory, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let options = format!("interface=eth0,cache_dir={},{}", text(&cache), pinned_to(&image));
    let copy = place.with_extension("copy");
    fs::write(&copy, "").unwrap();
    chown(&copy, Some(NOBODY), Some(NOBODY)).unwrap();
    // The device is open to all users, as it is on most machines.
    let as_root = "mknod -m 666 \"$3.dev\" c 10 229 && mount --bind \"$3.dev\" /dev/fuse \
                   && exec setpriv --reuid 65534 --regid 65534 --clear-groups \
                   sh -c \"$0\" sh \"$@\"";
    let as_user = "\"$1\" \"$2\" \"$3\" -o \"$4\" && cat \"$3/image\" >\"$5\"; code=$?; \
                   fusermount3 -u \"$3\"; exit $code";
    let source = source("image");
    let command = ["--mount", "sh", "-c", as_root, as_user, text(&program), &source, text(&place)];
    let output = host.run("unshare", [&command[..], &[&options, text(&copy)]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("fusermount3 is missing") {
        return report_skipped("fusermount3 is missing (Debian package fuse3)");
    }
    assert!(output.status.success(), "{errors}");
    assert_eq!(digest_of(copy), image.digest);
}
