//! `bootcast get`, `ls`, `status`, `cache`: fetches and lists files of a bootcast server without a
//! mount, and shows what mounts keep on this machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The command prints the description itself, in its only line.
    bootcast_fs::panics::end_on_panic(|_| ());
    bootcast_fs::tool::run(std::env::args_os())
}
