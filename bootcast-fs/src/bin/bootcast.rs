//! `bootcast get`, `ls`, `status`, `cache`: fetches and lists files of a bootcast server without a
//! mount, and shows what mounts keep on this machine. Under the names `bootcastfs` and
//! `bootcast-urlmount` it mounts: in an initramfs one program is all of them.

use std::ffi::OsString;
use std::process::ExitCode;

use bootcast_fs::{mount_command, panics, tool, urlmount_command};

fn main() -> ExitCode {
    let program: Option<OsString> = std::env::args_os().next();
    let program = program.unwrap_or_default();
    if mount_command::is_named(&program) {
        return mount_command::run_process();
    }
    if urlmount_command::is_named(&program) {
        return urlmount_command::run_process();
    }
    // The command prints the description itself, in its only line.
    panics::end_on_panic(|_| ());
    tool::run(std::env::args_os())
}
