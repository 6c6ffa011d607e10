//! Permissions and inode numbers of files in a mount.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use harness::requirements::report_skipped;
use harness::{Lab, digest_of, lab_or_skip};

use crate::text;

/// User `nobody`, who owns the program on the server and runs it on the client.
const NOBODY: u32 = 65_534;

#[test]
fn a_setuid_program_does_not_run_with_the_rights_of_the_mounts_owner() {
    let lab = lab_or_skip!(Lab::builder());
    let modes = [("id", 0o4755), ("group", 0o2755), ("both", 0o6755), ("sticky", 0o1755)];
    for (name, mode) in modes {
        let program = lab.served().join(name);
        fs::copy("/usr/bin/id", &program).unwrap();
        std::os::unix::fs::chown(&program, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(lab.served().join("dir")).unwrap();
    fs::set_permissions(lab.served().join("dir"), Permissions::from_mode(0o3777)).unwrap();
    let _server = lab.server().start();
    // The options are those that mount(8) passes for root. Every user can reach the mount point.
    let mount = lab.mount(1).option("rw,allow_other,dev,suid").start();
    fs::set_permissions(lab.directory(), Permissions::from_mode(0o755)).unwrap();

    for (name, _) in modes {
        let (uid, program) = (NOBODY.to_string(), mount.join(name));
        let as_nobody = ["--reuid", &uid, "--regid", &uid, "--clear-groups", text(&program)];
        let id = lab.client(1).run_ok("setpriv", as_nobody);
        assert!(id.contains(&format!("uid={uid}")) && !id.contains("=0("), "{name}: {id}");
        assert!(!id.contains("euid") && !id.contains("egid"), "{name}: {id}");
    }
    let shown = |name: &str| fs::metadata(mount.join(name)).unwrap().mode() & 0o7777;
    assert_eq!([shown("id"), shown("group"), shown("both")], [0o755; 3]);
    assert_eq!([shown("sticky"), shown("dir")], [0o1755, 0o1777]);
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(text(mount.path()))).unwrap();
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
}

/// Returns the inode numbers that `readdir` gives for the names in a directory.
fn listed(directory: &Path) -> BTreeMap<OsString, u64> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name(), entry.ino())).collect()
}

/// Returns the inode numbers that `stat` gives for these names.
fn shown<'a>(
    directory: &Path,
    names: impl IntoIterator<Item = &'a OsString>,
) -> BTreeMap<OsString, u64> {
    let number = |name: &OsString| fs::symlink_metadata(directory.join(name)).unwrap().ino();
    names.into_iter().map(|name| (name.clone(), number(name))).collect()
}

#[test]
fn inode_numbers_agree_in_readdir_and_stat_and_outlive_inodes_and_mounts() {
    let lab = lab_or_skip!(Lab::builder());
    for k in 0..2000 {
        fs::write(lab.served().join(format!("file-{k}")), "x").unwrap();
    }
    fs::create_dir_all(lab.served().join("dir/below")).unwrap();
    symlink("file-1", lab.served().join("link")).unwrap();
    let _server = lab.server().start();
    let mount = lab.mount(1).start();

    // This comes before any lookup, so most names come from `getdents64` alone.
    let before = listed(mount.path());
    assert_eq!(before.len(), 2002);
    let after = shown(mount.path(), before.keys());
    assert_eq!(before, after, "readdir and stat disagree");
    let different: HashSet<_> = after.values().collect();
    assert_eq!(different.len(), after.len());
    assert!(after.values().all(|number| *number < 1 << 32), "too large for a 32-bit ino_t");
    let dir = fs::read_dir(mount.join("dir")).unwrap().map(|entry| entry.unwrap().ino());
    let below = fs::metadata(mount.join("dir/below")).unwrap();
    assert_eq!(dir.collect::<Vec<_>>(), [below.ino()]);
    let above = fs::metadata(mount.join("dir/below/..")).unwrap().ino();
    assert_eq!(above, after[&OsString::from("dir")]);

    if fs::write("/proc/sys/vm/drop_caches", "2").is_err() {
        report_skipped("the kernel cannot be made to forget inodes");
    }
    assert_eq!(shown(mount.path(), before.keys()), after, "numbers of forgotten inodes changed");
    mount.umount();
    let again = lab.mount(1).start();
    assert_eq!(shown(again.path(), before.keys()), after, "the next mount has other numbers");
}

#[test]
fn a_new_version_of_a_file_has_a_new_inode_number() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 5000);
    let _server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=0s").start();
    let first = fs::metadata(mount.join("image")).unwrap().ino();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    let image = lab.put("image", 6000);
    assert_ne!(fs::metadata(mount.join("image")).unwrap().ino(), first);
    assert_eq!(digest_of(mount.join("image")), image.digest);
}

#[test]
fn the_absence_of_a_name_is_cached_for_attr_ttl() {
    let lab = lab_or_skip!(Lab::builder());
    let _server = lab.server().start();
    let (slow, quick) = (lab.mount(1).option("attr_ttl=1h"), lab.mount(1).option("attr_ttl=0s"));
    let (slow, quick) = (slow.start(), quick.start());
    let exists = |directory: &Path| directory.join("image").exists();
    assert!(!exists(slow.path()) && !exists(quick.path()));
    lab.put("image", 1000);
    assert!(!exists(slow.path()), "the client looked the name up again");
    assert!(exists(quick.path()));
}
