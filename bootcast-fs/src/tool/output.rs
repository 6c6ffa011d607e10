//! Destination of fetched bytes: a stream that takes them in order, or a file that appears in one
//! step.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;
use tempfile::NamedTempFile;
use tracing::info;

use super::error::ToolError;
use crate::cache::nameless_file;

/// Most bytes of the final name in the name of a partial file. With the other parts it stays below
/// 255.
const NAME_LEN: usize = 200;

/// Destination of fetched bytes.
#[derive(Debug)]
pub(super) enum Output {
    /// Standard output, a pipe or a device: takes bytes in order and gives none back.
    Stream(File),
    /// A file with this path, replaced if it exists.
    File(PathBuf),
}

impl Output {
    /// Writes to standard output.
    pub(super) fn stdout() -> Result<Self, ToolError> {
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        Ok(Self::Stream(stdout.map_err(|error| ToolError::streaming(&error))?.into()))
    }

    /// Writes to `path`, whether it exists or not.
    pub(super) fn at(path: &Path) -> Result<Self, ToolError> {
        // Follows links: replaces the target, not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                Err(ToolError::Local(format!("{} is a directory", path.display())))
            }
            // A rename would replace the device itself.
            Ok(found) if !found.is_file() => {
                let device = File::options().write(true).open(&path);
                device.map(Self::Stream).map_err(|error| ToolError::local(&path, &error))
            }
            _ => Ok(Self::File(path)),
        }
    }
}

/// A partial file, `.NAME.part-XXXXXX` beside the final name. Deleted unless it is kept.
#[derive(Debug)]
pub(super) struct Part {
    file: NamedTempFile,
    target: PathBuf,
}

impl Part {
    /// Creates an empty partial file.
    pub(super) fn begin(target: &Path) -> Result<Self, ToolError> {
        let fail = |error| ToolError::local(target, &error);
        let dir = match target.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let name = target.file_name().ok_or_else(|| fail(io::ErrorKind::IsADirectory.into()))?;
        let name = &name.as_bytes()[..name.len().min(NAME_LEN)];
        // Reports a missing directory by its own name, not by the name of the partial file.
        fs::metadata(dir).map_err(|error| ToolError::local(dir, &error))?;
        let prefix = [b".", name, b".part-"].concat();
        let file = tempfile::Builder::new()
            .prefix(std::ffi::OsStr::from_bytes(&prefix))
            .permissions(Permissions::from_mode(0o666)) // less the umask
            .tempfile_in(dir)
            .map_err(|error| fail(error.kind().into()))?;
        Ok(Self { file, target: target.to_path_buf() })
    }

    /// Opens a second descriptor.
    pub(super) fn open(&self) -> Result<File, ToolError> {
        self.file.as_file().try_clone().map_err(|error| ToolError::local(&self.target, &error))
    }

    /// Renames the partial file to the final name, replacing any file there.
    pub(super) fn keep(self) -> Result<(), ToolError> {
        let Self { file, target } = self;
        file.persist(&target).map(drop).map_err(|error| ToolError::local(&target, &error.error))
    }
}

/// Creates a nameless file for bytes that arrive out of order: on disk, or in memory if no disk
/// accepts it.
pub(super) fn spool() -> Result<File, ToolError> {
    let dir = std::env::temp_dir();
    nameless_file(&dir)
        .or_else(|error| {
            info!(dir = %dir.display(), %error, "cannot spool there, taking memory");
            let memory = rustix::fs::memfd_create("bootcast", MemfdFlags::CLOEXEC)?;
            Ok(memory.into())
        })
        .map_err(|error: io::Error| ToolError::local(&dir, &error))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_part_has_a_hidden_name_until_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let part = Part::begin(&dir.path().join("image")).unwrap();
        assert!(names(dir.path())[0].starts_with(".image.part-"));
        part.open().unwrap().write_all(b"new").unwrap();
        part.keep().unwrap();
        assert_eq!(names(dir.path()), ["image"]);
        assert_eq!(fs::read(dir.path().join("image")).unwrap(), b"new");
    }

    #[test]
    fn a_part_that_is_not_kept_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image");
        fs::write(&target, "old").unwrap();
        drop(Part::begin(&target).unwrap());
        assert_eq!(names(dir.path()), ["image"]);
        assert_eq!(fs::read(&target).unwrap(), b"old");
    }

    #[test]
    fn the_longest_name_has_a_part() {
        let dir = tempfile::tempdir().unwrap();
        let part = Part::begin(&dir.path().join("n".repeat(255))).unwrap();
        part.keep().unwrap();
        assert_eq!(names(dir.path()), ["n".repeat(255)]);
    }

    #[test]
    fn a_link_stays_and_what_it_points_to_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let Output::File(path) = Output::at(&link).unwrap() else { panic!("not a file") };
        assert_eq!(path, fs::canonicalize(real).unwrap());
    }

    #[test]
    fn a_device_is_written_to_and_never_replaced() {
        assert!(matches!(Output::at(Path::new("/dev/null")), Ok(Output::Stream(_))));
    }

    #[test]
    fn a_directory_or_a_missing_one_is_a_file_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Output::at(dir.path()).unwrap_err().exit_code(), 2);
        let error = Part::begin(&dir.path().join("missing/image")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(!error.to_string().contains(".part-"), "{error}");
    }
}
