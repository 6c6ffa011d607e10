//! `bootcast get`, `ls`, `status`: fetches and lists files of a bootcast server without a mount.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The command prints the description itself, in its only line.
    bootcast_fs::panics::end_on_panic(|_| ());
    bootcast_fs::tool::run(std::env::args_os())
}
