//! The front of the mount: what was typed, the kernel's side of mounting, and life in the
//! background.
//!
//! | module | holds |
//! |---|---|
//! | [`source`] | `head:/images`: which server, which directory |
//! | [`options`] | everything behind `-o` |
//! | [`kernel`] | mount(2), umount2(2), fusermount3 |
//! | [`daemon`] | fork, and the verdict that the waiting parent passes on |
//! | [`logging`] | where log lines go |
//!
//! What is mounted, the file system itself, is not known here.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

pub mod daemon;
pub mod kernel;
pub mod logging;
pub mod options;
pub mod source;
mod sys;

pub use options::MountOptions;
pub use source::Source;

/// A request to mount a source on a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// Server and directory to mount.
    pub source: Source,
    /// Absolute path of the mount point.
    pub mountpoint: PathBuf,
    /// Mount options.
    pub options: MountOptions,
    /// Source as shown in `/proc/mounts`: exactly as typed, because `mount -a` looks there for the
    /// text of `/etc/fstab` to see what is mounted.
    pub shown_source: OsString,
}

impl MountRequest {
    /// Parses the arguments of the command line. Relative paths start at the working directory.
    pub fn parse(
        source: &OsStr,
        mountpoint: &Path,
        option_lists: &[OsString],
    ) -> Result<Self, MountError> {
        let mut options =
            MountOptions::parse(option_lists).map_err(|error| MountError::usage(&error))?;
        options.cache_dir = options.cache_dir.as_deref().map(absolute).transpose()?;
        let shown_source = options.fsname.clone().unwrap_or_else(|| source.to_owned());
        let source =
            Source::parse(source, options.port).map_err(|error| MountError::usage(&error))?;
        Ok(Self { source, mountpoint: absolute(mountpoint)?, options, shown_source })
    }
}

fn absolute(path: &Path) -> Result<PathBuf, MountError> {
    std::path::absolute(path)
        .map_err(|error| MountError::usage(&format!("{}: {error}", path.display())))
}

/// Why nothing was mounted: one line for the user and an exit code of mount(8).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// The arguments are wrong; the same command will never work.
    #[error("{0}")]
    Usage(String),
    /// The mount failed; it may work later.
    #[error("{0}")]
    Failed(String),
}

impl MountError {
    /// Creates an error about the arguments.
    pub fn usage(reason: &impl ToString) -> Self {
        Self::Usage(one_line(&reason.to_string()))
    }

    /// Creates an error about the mount.
    pub fn failed(reason: &impl ToString) -> Self {
        Self::Failed(one_line(&reason.to_string()))
    }

    /// Exit code that mount(8) expects of its helpers and passes on.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 1,
            Self::Failed(_) => 32,
        }
    }
}

impl From<kernel::KernelError> for MountError {
    fn from(error: kernel::KernelError) -> Self {
        Self::failed(&error)
    }
}

/// Folds a message of other programs into one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(source: &str, options: &str) -> Result<MountRequest, MountError> {
        MountRequest::parse(OsStr::new(source), Path::new("mnt"), &[OsString::from(options)])
    }

    #[test]
    fn relative_paths_outlive_a_change_of_directory() {
        let request = request("head:/images", "cache_dir=spool").unwrap();
        assert!(request.mountpoint.is_absolute());
        assert!(request.options.cache_dir.unwrap().is_absolute());
    }

    #[test]
    fn the_mount_table_shows_what_was_typed_unless_told_otherwise() {
        let typed = request("http://head/images", "").unwrap();
        assert_eq!(typed.shown_source, "http://head/images");
        let named = request("head:/images", "fsname=images").unwrap();
        assert_eq!(named.shown_source, "images");
    }

    #[test]
    fn a_wrong_command_line_exits_1_and_a_failed_mount_32() {
        assert_eq!(request("head", "").unwrap_err().exit_code(), 1);
        assert_eq!(request("head:/", "bogus").unwrap_err().exit_code(), 1);
        assert_eq!(MountError::failed(&"no\nserver\n").exit_code(), 32);
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(MountError::failed(&"no\n server\n").to_string(), "no server");
    }
}
