//! Names, directories, links and attributes in a mount are those of the server.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use harness::binaries::binary;
use harness::requirements::report_skipped;
use harness::{Lab, SOON, digest_of, lab_or_skip, wait_until};

use crate::outputs::mount_tmpfs;
use crate::transfers::Get;

fn names_in(directory: &Path) -> BTreeSet<OsString> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn names_of_any_bytes_are_listed_and_read() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("plain", 5000);
    let names: [&[u8]; 9] = [
        b"with space",
        b"line\nbreak",
        b"100%25",
        b"%2e%2e",
        b"latin1-\xe9\xff",
        b"q?a=b&c#d",
        b"semi;colon+plus",
        "schön".as_bytes(),
        b"-rf",
    ];
    for name in names {
        fs::copy(&image.path, lab.served().join(OsStr::from_bytes(name))).unwrap();
    }
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    assert_eq!(names_in(mount.path()), names_in(&lab.served()));
    for name in names {
        let path = mount.join(OsStr::from_bytes(name));
        assert_eq!(digest_of(&path), image.digest, "{}", path.display());
    }
}

#[test]
fn nested_directories_and_links_work_as_on_the_server() {
    let lab = lab_or_skip!(Lab::builder());
    let deep = lab.put("a/b/c/deep", 5000);
    symlink("a/b/c/deep", lab.served().join("to-file")).unwrap();
    symlink("a/b", lab.served().join("to-directory")).unwrap();
    symlink("nowhere", lab.served().join("dangling")).unwrap();
    fs::create_dir(lab.served().join("empty")).unwrap();
    let _server = lab.server().start();
    let mount = lab.mount(1).start();

    assert_eq!(digest_of(mount.join("a/b/c/deep")), deep.digest);
    assert_eq!(digest_of(mount.join("to-file")), deep.digest);
    assert_eq!(digest_of(mount.join("to-directory/c/deep")), deep.digest);
    assert_eq!(fs::read_link(mount.join("dangling")).unwrap(), Path::new("nowhere"));
    assert_eq!(names_in(&mount.join("empty")), BTreeSet::new());
    assert!(fs::metadata(mount.join("nothing")).is_err());
}

#[test]
fn attributes_are_those_of_the_file_on_the_server() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 12_345);
    let modified = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    let file = fs::File::options().append(true).open(&image.path).unwrap();
    file.set_modified(modified).unwrap();
    fs::set_permissions(&image.path, fs::Permissions::from_mode(0o754)).unwrap();
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    let here = fs::metadata(mount.join("image")).unwrap();
    assert_eq!(here.len(), 12_345);
    assert_eq!(here.modified().unwrap(), modified);
    // Write permission has no meaning in a mount.
    assert_eq!(here.mode() & 0o7777 & !0o222, 0o754 & !0o222);
}

/// Times that some formats or types cannot represent, in seconds since 1970: in the years 1, 1969,
/// 10,000, 36,812 and 300,000,000,000.
const STRANGE_TIMES: [i64; 5] = [-62_135_596_800, -1, 253_402_300_800, 1 << 40, i64::MAX];

#[test]
fn files_of_any_date_can_be_listed_and_read_in_every_way() {
    let lab = lab_or_skip!(Lab::builder());
    let host = lab.client(1);
    // Most file systems on disks cannot store such times.
    let disk = lab.served().join("disk");
    mount_tmpfs(&disk, "size=16m");
    let images = STRANGE_TIMES.map(|time| (time, lab.put(&format!("disk/{time}"), 20_000)));
    for (time, image) in &images {
        let distance = Duration::from_secs(time.unsigned_abs());
        let past = SystemTime::UNIX_EPOCH.checked_sub(distance);
        let date = if *time < 0 { past } else { SystemTime::UNIX_EPOCH.checked_add(distance) };
        let file = fs::File::options().append(true).open(&image.path).unwrap();
        file.set_modified(date.unwrap()).unwrap();
        if fs::metadata(&image.path).unwrap().mtime() != *time {
            return report_skipped("the file system for temporary files has no such dates");
        }
    }
    let server = lab.server().start();
    let mount = lab.mount(1).start();
    let listing = host.get(&lab.url("meta/disk/"));
    let listed = host.run_ok(binary("bootcast"), ["ls", "-l", &lab.url("disk")]);
    assert_eq!(names_in(&mount.join("disk")).len(), images.len());
    for (time, image) in &images {
        let name = format!("disk/{time}");
        assert!(listing.body.contains(&format!(r#""mtime":{time},"#)), "{time}: {listing:?}");
        assert!(listed.contains(&time.to_string()), "{time}: {listed}");
        for endpoint in ["join", "meta", "file"] {
            let status = host.get(&lab.url(&format!("{endpoint}/{name}"))).status;
            assert_eq!(status, 200, "{endpoint}/{name}");
        }
        assert_eq!(fs::metadata(mount.join(&name)).unwrap().mtime(), *time);
        assert_eq!(digest_of(mount.join(&name)), image.digest, "{time}");
        Get::start(&lab, 1, image).finish(image);
        Get::start_with(&lab, 1, image, &["--unicast"]).finish(image);
    }
    for log in [server.log(), mount.log()] {
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn a_directory_of_thousands_of_names_is_listed_in_full() {
    let lab = lab_or_skip!(Lab::builder());
    for k in 0..3000 {
        fs::write(lab.served().join(format!("file-{k:05}-{}", "x".repeat(100))), "").unwrap();
    }
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    assert_eq!(names_in(mount.path()), names_in(&lab.served()));
}

#[test]
fn a_name_that_appears_on_the_server_appears_in_the_mount() {
    let lab = lab_or_skip!(Lab::builder());
    let _server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=1s").start();
    assert_eq!(names_in(mount.path()), BTreeSet::new());
    assert!(fs::metadata(mount.join("image")).is_err());
    let image = lab.put("image", 1000);
    wait_until(SOON, "the name is there", || fs::metadata(mount.join("image")).is_ok());
    wait_until(SOON, "the listing has it", || !names_in(mount.path()).is_empty());
    assert_eq!(digest_of(mount.join("image")), image.digest);
}
