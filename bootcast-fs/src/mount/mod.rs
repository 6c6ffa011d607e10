//! Command line, mount(2) and daemon mode of `bootcastfs`.
//!
//! | module | holds |
//! |---|---|
//! | [`source`] | the source: `head:/images` names a server and a directory, or a file |
//! | [`options`] | the mount options behind `-o` |
//! | [`kernel`] | mount(2), umount2(2), fusermount3 |
//! | `mount_table` | what is mounted where |
//! | [`daemon`] | fork; the parent exits with the start-up status of the child |
//! | [`helper`] | command line of a helper of mount(8) |
//! | [`logging`] | destination and filter of log lines |
//! | [`root_fs`] | what a process must be that serves a root file system |
//!
//! These modules do not know the file system that is mounted.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use bootcast_host::signals::EndSignal;

use crate::journal::MountRecord;

pub mod daemon;
pub mod helper;
pub mod kernel;
pub mod logging;
mod mount_table;
pub mod options;
pub mod root_fs;
pub mod source;
mod sys;

pub use options::MountOptions;
pub use source::Source;
pub(crate) use sys::limit_arenas;

/// Request to mount a source on a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// Server, and directory or file to mount.
    pub source: Source,
    /// Absolute path of the mount point.
    pub mountpoint: PathBuf,
    /// Mount options.
    pub options: MountOptions,
    /// Source as shown in `/proc/mounts`: exactly as typed, unless `fsname=` replaces it. `mount
    /// -a` compares this text with `/etc/fstab` to see what is already mounted.
    pub shown_source: OsString,
    /// Command line as typed.
    pub typed: MountRecord,
}

impl MountRequest {
    /// Like [`Self::parse`], but ignores unknown options, as mount(8) -s asks for.
    pub fn parse_sloppy(
        source: &OsStr,
        mountpoint: &Path,
        option_lists: &[OsString],
    ) -> Result<Self, MountError> {
        Self::typed(record(source, mountpoint, option_lists, true))
    }

    /// Parses the arguments of the command line. Makes relative paths absolute, because the
    /// daemon changes its working directory to `/`.
    pub fn parse(
        source: &OsStr,
        mountpoint: &Path,
        option_lists: &[OsString],
    ) -> Result<Self, MountError> {
        Self::typed(record(source, mountpoint, option_lists, false))
    }

    /// Parses a command line as it was typed in the current directory.
    pub fn typed(typed: MountRecord) -> Result<Self, MountError> {
        let MountRecord { source, mountpoint, options, is_sloppy, .. } = &typed;
        let options = if *is_sloppy {
            MountOptions::parse_sloppy(options)
        } else {
            MountOptions::parse(options)
        };
        let mut options = options.map_err(|error| MountError::usage(&error))?;
        for path in [&mut options.cache_dir, &mut options.pins] {
            *path = path.as_deref().map(absolute).transpose()?;
        }
        let shown_source = options.fsname.clone().unwrap_or_else(|| source.clone());
        let source =
            Source::parse(source, options.port).map_err(|error| MountError::usage(&error))?;
        let mountpoint = absolute(Path::new(mountpoint))?;
        Ok(Self { source, mountpoint, options, shown_source, typed })
    }
}

fn record(source: &OsStr, mountpoint: &Path, options: &[OsString], is_sloppy: bool) -> MountRecord {
    MountRecord {
        source: source.to_owned(),
        mountpoint: mountpoint.as_os_str().to_owned(),
        options: options.to_vec(),
        is_sloppy,
        // Only relative paths need it, and they fail without.
        directory: std::env::current_dir().unwrap_or_default().into(),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, MountError> {
    std::path::absolute(path)
        .map_err(|error| MountError::usage(&format!("{}: {error}", path.display())))
}

/// Reason why the mount failed: one line for the user and an exit code of mount(8).
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

    /// Returns the exit code, as mount(8) expects it of its helpers and passes it on.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 1,
            Self::Failed(_) => 32,
        }
    }
}

impl From<EndSignal> for MountError {
    fn from(signal: EndSignal) -> Self {
        Self::Failed(format!("{signal} before anything was mounted"))
    }
}

impl From<kernel::KernelError> for MountError {
    fn from(error: kernel::KernelError) -> Self {
        Self::failed(&error)
    }
}

/// Replaces each run of white space by one space. Messages of other programs may have line breaks.
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
    fn relative_paths_are_made_absolute() {
        let request = request("head:/images", "cache_dir=spool,pins=sums").unwrap();
        assert!(request.mountpoint.is_absolute());
        assert!(request.options.cache_dir.unwrap().is_absolute());
        assert!(request.options.pins.unwrap().is_absolute());
    }

    #[test]
    fn the_mount_table_shows_the_source_as_typed_unless_fsname_is_given() {
        let typed = request("http://head/images", "").unwrap();
        assert_eq!(typed.shown_source, "http://head/images");
        let named = request("head:/images", "fsname=images").unwrap();
        assert_eq!(named.shown_source, "images");
    }

    #[test]
    fn usage_errors_exit_with_1_and_failed_mounts_with_32() {
        assert_eq!(request("head", "").unwrap_err().exit_code(), 1);
        assert_eq!(request("head:/", "bogus").unwrap_err().exit_code(), 1);
        assert_eq!(MountError::failed(&"no\nserver\n").exit_code(), 32);
    }

    #[test]
    fn line_breaks_in_a_message_become_spaces() {
        assert_eq!(MountError::failed(&"no\n server\n").to_string(), "no server");
    }
}
