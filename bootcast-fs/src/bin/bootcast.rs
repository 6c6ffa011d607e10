//! `bootcast get`, `ls`, `status`: fetches and lists files of a bootcast server without a mount.

use std::process::ExitCode;

fn main() -> ExitCode {
    bootcast_fs::mount::logging::abort_on_panic();
    bootcast_fs::tool::run(std::env::args_os())
}
