//! What a process must be that serves the root file system: nothing it needs may lie on its own
//! mount, and nothing may kill it before the system is down.
//! docs/SEMANTICS.md, "A root file system".

use std::ffi::{CStr, OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::mm::MlockAllFlags;

use super::MountError;

/// File that an initramfs has, and no other system (systemd, "The initrd Interface").
const INITRD_MARK: &str = "/etc/initrd-release";

/// First byte of the name of a process that systemd does not kill at shutdown (systemd, "Storage
/// Daemons for the Root File System").
const KEEP_MARK: u8 = b'@';

/// Whether the program runs in an initramfs, so that the mount is likely to become the root.
pub fn is_in_initrd() -> bool {
    Path::new(INITRD_MARK).exists()
}

/// Executes this program anew with a mark before its name, which systemd looks for. Returns at once
/// if it has the mark.
///
/// Must be called before any thread is started and any descriptor is opened that must not leak.
pub fn mark(args: &[OsString]) -> Result<(), MountError> {
    let name = args.first().map(OsString::as_os_str).unwrap_or_default();
    let Some(marked) = marked(name) else { return Ok(()) };
    let error = Command::new("/proc/self/exe").arg0(marked).args(args.iter().skip(1)).exec();
    Err(MountError::failed(&format!("cannot run again as the server of a root: {error}")))
}

/// Returns the name with the mark; `None` if it has it.
fn marked(name: &OsStr) -> Option<OsString> {
    if name.as_bytes().first() == Some(&KEEP_MARK) {
        return None;
    }
    // The path would make the mark part of a directory.
    let name = Path::new(name).file_name().unwrap_or(name);
    Some(OsString::from_vec([&[KEEP_MARK], name.as_bytes()].concat()))
}

/// Name of the process for `ps` and `pgrep`. A process that was started from `/proc/self/exe` would
/// be called `exe`.
const PROCESS_NAME: &CStr = c"bootcastfs";

/// Keeps this process in memory, and out of reach of the kernel's OOM killer. Must be called in the
/// main thread of the process that serves: a fork undoes it.
pub fn settle() -> Result<(), MountError> {
    if let Err(error) = rustix::thread::set_name(PROCESS_NAME) {
        tracing::debug!(%error, "the process keeps its name");
    }
    lock_memory().map_err(|error| {
        MountError::failed(&format!(
            "cannot lock memory for a root file system: {error}; run as root, or raise \
             RLIMIT_MEMLOCK"
        ))
    })?;
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!(%error, "the kernel may kill this process when memory is short");
    }
    Ok(())
}

/// Loads and locks what is mapped: code, data and libraries. What is mapped later is locked page by
/// page as it is used: a thread uses little of its stack.
fn lock_memory() -> io::Result<()> {
    rustix::mm::mlockall(MlockAllFlags::CURRENT)?;
    rustix::mm::mlockall(MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_precedes_the_name_and_is_set_once() {
        for (name, expected) in [
            ("/usr/bin/bootcastfs", Some("@bootcastfs")),
            ("mount.bootcastfs", Some("@mount.bootcastfs")),
            ("@bootcastfs", None),
        ] {
            assert_eq!(marked(OsStr::new(name)), expected.map(OsString::from), "{name}");
        }
    }
}
