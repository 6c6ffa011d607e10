//! File handles, by which NFS servers find the files of a mount. docs/SEMANTICS.md, "NFS and file
//! handles".

use std::fs;

use harness::requirements::report_skipped;
use harness::{Host, Lab, MountProc, digest_of, lab_or_skip};

use crate::text;

/// Prints the file handle of each path, in hexadecimal. A `struct file_handle` has two integers
/// before its bytes, `open_by_handle_at(2)`.
const TELL: &str = r#"
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for path in sys.argv[1:]:
    handle, mount = ctypes.create_string_buffer(136), ctypes.c_int()
    handle[0] = 128
    if libc.name_to_handle_at(-100, path.encode(), handle, ctypes.byref(mount), 0):
        sys.exit(f"no handle of {path}: error {ctypes.get_errno()}")
    print(handle.raw.hex())
"#;

/// Opens a file handle of the mount of the first argument. Prints the names in a directory, or the
/// hash of a file, or the error.
const OPEN: &str = r#"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
mount = os.open(sys.argv[1], os.O_RDONLY)
opened = libc.open_by_handle_at(mount, bytes.fromhex(sys.argv[2]), os.O_RDONLY)
if opened < 0:
    print(errno.errorcode[ctypes.get_errno()])
elif os.path.isdir(f"/proc/self/fd/{opened}"):
    print(sorted(os.listdir(opened)))
else:
    print(os.pread(opened, 4096, 0).decode())
"#;

/// Returns what [`OPEN`] prints.
fn open(client: &Host, mount: &MountProc<'_>, handle: &str) -> String {
    client.run_ok("python3", ["-c", OPEN, text(mount.path()), handle]).trim().to_owned()
}

#[test]
fn a_handle_leads_to_its_version_when_the_kernel_has_forgotten_it() {
    let lab = lab_or_skip!(Lab::builder());
    fs::create_dir_all(lab.served().join("dir/below")).unwrap();
    fs::write(lab.served().join("dir/below/file"), "right").unwrap();
    fs::write(lab.served().join("dir/replaced"), "first").unwrap();
    let _server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=0s").start();
    let names = ["dir", "dir/below", "dir/below/file", "dir/replaced"].map(|name| mount.join(name));
    let told = lab
        .client(1)
        .run_ok("python3", ["-c", TELL].into_iter().chain(names.iter().map(|it| text(it))));
    let handles: Vec<_> = told.lines().collect();
    let [dir, below, file, replaced] = handles[..] else { panic!("{handles:?}") };

    if fs::write("/proc/sys/vm/drop_caches", "2").is_err() {
        return report_skipped("the kernel cannot be made to forget inodes");
    }
    let open = |handle| open(lab.client(1), &mount, handle);
    assert_eq!(open(file), "right");
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!([open(below), open(dir)], ["['file']", "['below', 'replaced']"]);

    let new = lab.directory().join("new");
    fs::write(&new, "other").unwrap();
    fs::rename(&new, lab.served().join("dir/replaced")).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(open(replaced), "ESTALE");
    assert_eq!(fs::read(mount.join("dir/replaced")).unwrap(), b"other");
    assert_eq!(
        digest_of(mount.join("dir/below/file")),
        digest_of(lab.served().join("dir/below/file"))
    );

    mount.umount();
    let again = lab.mount(1).start();
    let open = |handle| self::open(lab.client(1), &again, handle);
    assert_eq!(open(file), "ESTALE", "nobody looked it up in this mount");
    fs::metadata(again.join("dir/below/file")).unwrap();
    assert_eq!(open(file), "right");
}
