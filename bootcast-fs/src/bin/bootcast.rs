//! `bootcast get`, `ls`, `status`, `cache`: fetches and lists files of a bootcast server without a
//! mount, and shows what mounts keep on this machine. Under the name `bootcastfs` it mounts: in an
//! initramfs one program is both.

use std::process::ExitCode;

use bootcast_fs::{mount_command, panics, tool};

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|program| mount_command::is_named(&program)) {
        return mount_command::run_process();
    }
    // The command prints the description itself, in its only line.
    panics::end_on_panic(|_| ());
    tool::run(std::env::args_os())
}
