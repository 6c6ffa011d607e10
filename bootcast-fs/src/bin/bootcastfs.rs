//! `bootcastfs SOURCE MOUNTPOINT`: mounts a directory of a bootcast server.

use std::process::ExitCode;

fn main() -> ExitCode {
    bootcast_fs::mount_command::run_process()
}
