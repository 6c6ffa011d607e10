//! Every error of the table in docs/SEMANTICS.md, "Errors a reader sees", is one that readers get.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

use harness::{Lab, MountProc, SOON, lab_or_skip, mib, wait_until};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::text;

/// Returns the rows of the table: names of errors, and the cause.
fn rows() -> Vec<(String, String)> {
    let page = include_str!("../../docs/SEMANTICS.md");
    let (_, rest) = page.split_once("## Errors a reader sees").expect("the section");
    let (table, _) = rest.split_once("Causes of EIO").expect("the end of the table");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split_once(" | "));
    cells.skip(1).map(|(names, rest)| (names.to_owned(), rest.to_owned())).collect()
}

/// Errors by the names that the table has for them.
fn number(name: &str) -> Errno {
    match name {
        "ENOENT" => Errno::NOENT,
        "ENOTDIR" => Errno::NOTDIR,
        "EACCES" => Errno::ACCESS,
        "ENODATA" => Errno::NODATA,
        "ENXIO" => Errno::NXIO,
        "EROFS" => Errno::ROFS,
        "ESTALE" => Errno::STALE,
        "EIO" => Errno::IO,
        "EINTR" => Errno::INTR,
        "ENOTCONN" => Errno::NOTCONN,
        "ECONNABORTED" => Errno::CONNABORTED,
        other => panic!("the table has an error that no test causes: {other}"),
    }
}

fn errno<T>(result: io::Result<T>) -> Errno {
    let Err(error) = result else { panic!("it succeeds") };
    Errno::from_io_error(&error).unwrap_or_else(|| panic!("not of the kernel: {error}"))
}

/// Errors of a mount whose server answers.
fn with_a_server(lab: &Lab, mount: &MountProc<'_>) -> Vec<Errno> {
    let _socket = UnixListener::bind(lab.served().join("socket")).unwrap();
    let file = File::open(mount.join("image")).unwrap();
    let no_attribute = rustix::fs::getxattr(mount.join("image"), "user.none", &mut [0_u8; 9]);
    let behind = seek(&file, SeekFrom::Data(mib(1)));
    vec![
        errno(File::open(mount.join("none"))),
        errno(File::open(mount.join("image/none"))),
        no_attribute.unwrap_err(),
        errno(File::open(mount.join("socket"))),
        behind.unwrap_err(),
        errno(File::create(mount.join("new"))),
    ]
}

/// The error of a file that the mount's list of pinned files does not name.
fn of_an_unlisted_file(lab: &Lab) -> Errno {
    let pins = lab.client(1).fresh_path("pins");
    fs::write(&pins, format!("{}  other\n", "0".repeat(64))).unwrap();
    let mount = lab.mount(1).option(&format!("pins={}", text(&pins))).start();
    errno(File::open(mount.join("image")))
}

#[test]
fn every_error_of_the_table_occurs_and_no_other() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    lab.put("unread", mib(1));
    let large = lab.put("large", mib(64));
    let server = lab.server().option("--rate", "20mbit").start();
    let mut mount = lab.mount(1).option("unicast=never,attr_ttl=0").start();
    let soft = lab.mount(1).option("soft,timeo=1").start();
    let mut found = with_a_server(&lab, &mount);
    found.push(of_an_unlisted_file(&lab));

    let file = File::open(mount.join("large")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    fs::rename(lab.put("new", mib(1)).path, &large.path).unwrap();
    found.push(errno(file.read_exact_at(&mut byte, mib(63))));

    drop(server);
    found.push(errno(File::open(soft.join("unread"))));

    mount.proc().signal(Signal::KILL);
    wait_until(SOON, "the mount is dead", || mount.proc().exited().is_some());
    found.push(errno(fs::metadata(mount.path())));

    let found: BTreeSet<_> = found.into_iter().map(Errno::raw_os_error).collect();
    let rows = rows();
    let names = rows.iter().flat_map(|(names, _)| names.split(", "));
    // A reader that is killed sees none. Which error a dead mount gives depends on the call.
    let unseen = ["EINTR", "ECONNABORTED"];
    let told: BTreeSet<_> = names
        .filter(|name| !unseen.contains(name))
        .map(|name| number(name).raw_os_error())
        .collect();
    assert_eq!(found, told);
}
