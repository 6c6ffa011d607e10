//! Destination of fetched bytes: a stream that takes bytes in order, a device that takes them in
//! any order, or a file that appears in one step. Each is synced before the command succeeds.

use std::fs::{self, File, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd};
use tempfile::{NamedTempFile, TempPath};

use super::error::ToolError;
use crate::cache::holes::{self, is_zeros};

/// Most bytes of the final name that the name of a partial file repeats. With the other parts the
/// name stays below 255 bytes, the limit of Linux file systems.
const MAX_STEM_LEN: usize = 200;

/// Bytes of a piece of zeros that can be left out, at least.
const BLOCK: usize = 4096;

/// How zeros become part of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeros {
    /// They are written.
    Written,
    /// They are left out of a new file, which then has a hole there.
    LeftOut,
    /// The blocks of a device are freed. This many bytes at its start were freed before anything was
    /// written, and read as zeros.
    Freed(u64),
}

/// Destination of fetched bytes.
#[derive(Debug)]
pub(super) enum Output {
    /// Standard output, a pipe or a terminal. It takes bytes in order.
    Stream(Sink),
    /// A block device. Each page is written in place when it arrives.
    Device(Sink),
    /// A file with this path. An existing file is replaced at the end.
    File(PathBuf),
}

impl Output {
    /// Opens standard output.
    pub(super) fn stdout() -> Result<Self, ToolError> {
        let name = "standard output".to_owned();
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.map_err(|error| ToolError::writing(&name, &error))?;
        Ok(Self::Stream(Sink { file: Arc::new(stdout.into()), name }))
    }

    /// Takes over a descriptor that the caller opened. Bytes go where it stands, in order, because
    /// the caller may use it before and after.
    fn already_open(number: RawFd, path: &Path) -> Result<Self, ToolError> {
        let this = rustix::process::pidfd_open(getpid(), PidfdFlags::empty());
        let file = this.and_then(|this| pidfd_getfd(this, number, PidfdGetfdFlags::empty()));
        let file = file.map_err(|error| ToolError::local(path, &error.into()))?;
        Ok(Self::Stream(Sink { file: Arc::new(file.into()), name: path.display().to_string() }))
    }

    /// Opens the device or pipe at `path`. Any other path becomes an [`Output::File`].
    pub(super) fn at(path: &Path) -> Result<Self, ToolError> {
        if let Some(number) = open_descriptor(path) {
            return Self::already_open(number, path);
        }
        // Follows symbolic links: the target is replaced, not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                Err(ToolError::Local(format!("{} is a directory", path.display())))
            }
            // Opened for reading too, because repair reads pages that were written before.
            Ok(found) if found.file_type().is_block_device() => {
                Sink::open(&path, File::options().read(true).write(true)).map(Self::Device)
            }
            // Written in place, because a rename would replace the special file itself.
            Ok(found) if !found.is_file() => {
                Sink::open(&path, File::options().write(true)).map(Self::Stream)
            }
            _ => Ok(Self::File(path)),
        }
    }
}

/// Returns the number of the descriptor that a path such as `/dev/fd/3` names.
fn open_descriptor(path: &Path) -> Option<RawFd> {
    let path = path.to_str()?;
    match path {
        "/dev/stdout" => return Some(1),
        "/dev/stderr" => return Some(2),
        _ => {}
    }
    let number = ["/dev/fd/", "/proc/self/fd/"].iter().find_map(|dir| path.strip_prefix(dir))?;
    number.parse().ok().filter(|number| *number >= 0)
}

/// An open stream, device or partial file.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    file: Arc<File>,
    /// Name for messages.
    name: String,
}

impl Sink {
    /// Creates a sink for a pipe of this program.
    pub(super) fn pipe(file: File) -> Self {
        Self { file: Arc::new(file), name: "a pipe".into() }
    }

    fn open(path: &Path, options: &fs::OpenOptions) -> Result<Self, ToolError> {
        let file = options.open(path).map_err(|error| ToolError::local(path, &error))?;
        Ok(Self { file: Arc::new(file), name: path.display().to_string() })
    }

    /// Opens the file a second time.
    ///
    /// The kernel reports a failed write-back once for each open file description. A duplicate
    /// shares the description, so a sync of it could consume the error that [`Self::sync`] must
    /// see.
    pub(super) fn reopen(&self) -> Result<File, ToolError> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let opened = fs::OpenOptions::new().read(true).write(true).open(path);
        // There may be no /proc in an early initramfs.
        opened.or_else(|_| self.file.try_clone()).map_err(|error| self.write_error(&error))
    }

    /// Writes all of `bytes`. Blocks while a pipe is full, even if the pipe is in non-blocking mode,
    /// as one may be that other programs share.
    pub(super) fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&*self.file).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut writable = [PollFd::new(&*self.file, PollFlags::OUT)];
                    rustix::io::retry_on_intr(|| rustix::event::poll(&mut writable, None))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Goes back to the first byte of a device.
    pub(super) fn rewind(&self) -> Result<(), ToolError> {
        (&*self.file).rewind().map_err(|error| self.write_error(&error))
    }

    /// Frees all blocks of a device. Returns the number of bytes at its start that then read as
    /// zeros: 0 if the device cannot free blocks.
    pub(super) fn free_all(&self) -> io::Result<u64> {
        let end = (&*self.file).seek(SeekFrom::End(0))?;
        self.file.as_ref().rewind()?;
        Ok(holes::free(&self.file, &(0..end)).end)
    }

    /// Returns a writer of bytes from the first to the last.
    pub(super) fn in_order(&self, zeros: Zeros) -> InOrder {
        InOrder { sink: self.clone(), zeros, written: 0 }
    }

    /// Creates the error of a failed write.
    pub(super) fn write_error(&self, error: &io::Error) -> ToolError {
        ToolError::writing(&self.name, error)
    }

    /// Creates the error of pages that cannot be written for this reason.
    pub(super) fn write_error_because(&self, reason: &str) -> ToolError {
        ToolError::Local(format!("cannot write {}: {reason}", self.name))
    }

    /// Waits until all written bytes are on the disk. Succeeds for a pipe or a terminal, which has
    /// no disk.
    pub(super) async fn sync(&self) -> Result<(), ToolError> {
        let file = self.file.clone();
        let synced = blocking(move || ignore_unsyncable(file.sync_data())).await;
        synced.map_err(|error| self.write_error(&error))
    }
}

/// Writes bytes from the first to the last, and treats zeros as the output permits.
#[derive(Clone, Debug)]
pub(super) struct InOrder {
    sink: Sink,
    zeros: Zeros,
    /// Number of bytes that were written, or were zeros and left out.
    written: u64,
}

impl InOrder {
    /// Writes the next bytes. Zeros are found in whole blocks from the start of `bytes` on.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let are_zeros = is_zeros(&rest[..BLOCK.min(rest.len())]);
            let run = rest.chunks(BLOCK).take_while(|block| is_zeros(block) == are_zeros);
            let (run, others) = rest.split_at(run.map(<[u8]>::len).sum());
            if are_zeros {
                self.write_zeros(run)?;
            } else {
                self.write_run(run, self.written)?;
            }
            self.written += run.len() as u64;
            rest = others;
        }
        Ok(())
    }

    /// Ends the output. Returns the number of bytes.
    pub(super) fn finish(&self) -> io::Result<u64> {
        if self.zeros == Zeros::LeftOut {
            // The last bytes may be zeros.
            self.sink.file.set_len(self.written)?;
        }
        Ok(self.written)
    }

    /// Creates the error of a failed write.
    pub(super) fn error(&self, error: &io::Error) -> ToolError {
        self.sink.write_error(error)
    }

    fn write_run(&self, run: &[u8], position: u64) -> io::Result<()> {
        match self.zeros {
            Zeros::Written => self.sink.write_all(run),
            Zeros::LeftOut | Zeros::Freed(_) => self.sink.file.write_all_at(run, position),
        }
    }

    fn write_zeros(&self, run: &[u8]) -> io::Result<()> {
        let end = self.written + run.len() as u64;
        let present = match self.zeros {
            Zeros::Written => self.written,
            Zeros::LeftOut => end,
            Zeros::Freed(freed) => freed.clamp(self.written, end),
        };
        let absent = usize::try_from(end - present).map_err(io::Error::other)?;
        self.write_run(&run[..absent], present)
    }
}

/// Ignores the sync errors of files that cannot be synced, such as a pipe or a terminal.
///
/// `EROFS` is not ignored: ext4 returns it after it aborted its journal, and then bytes are lost
/// (fs/ext4/fsync.c, `ext4_sync_file`).
fn ignore_unsyncable(synced: io::Result<()>) -> io::Result<()> {
    let is_unsyncable = |error: &io::Error| {
        let errno = Errno::from_io_error(error);
        matches!(errno, Some(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS))
    };
    synced.or_else(|error| if is_unsyncable(&error) { Ok(()) } else { Err(error) })
}

/// Runs a system call on another thread. It may block on a disk or a reader, and signals must still
/// end the command.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(call).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Steps that give a complete file its final name, in the order of their use.
///
/// If the rename reached the disk before the bytes, a power failure could leave an empty file.
pub(super) trait Publish: Send + Sync + 'static {
    /// Waits until the bytes of `file` are on the disk.
    fn sync_file(&self, file: &File) -> io::Result<()>;
    /// Renames `part` to its final name, replacing any file there.
    fn rename(&self, part: NamedTempFile, target: &Path) -> io::Result<()>;
    /// Waits until the names in `directory` are on the disk.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// The steps as system calls. Tests replace them by a recorder.
pub(super) struct OnDisk;

impl Publish for OnDisk {
    fn sync_file(&self, file: &File) -> io::Result<()> {
        ignore_unsyncable(file.sync_all())
    }

    fn rename(&self, part: NamedTempFile, target: &Path) -> io::Result<()> {
        part.persist(target).map(drop).map_err(|error| error.error)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        match File::open(directory) {
            Ok(directory) => ignore_unsyncable(directory.sync_all()),
            // A directory may permit writing but not reading.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A partial file, `.NAME.part-XXXXXX` in the directory of the final name. Dropping it deletes the
/// file.
#[derive(Debug)]
pub(super) struct PartialFile {
    file: NamedTempFile,
    /// Final path.
    target: PathBuf,
}

impl PartialFile {
    /// Creates an empty partial file.
    pub(super) fn create(target: &Path) -> Result<Self, ToolError> {
        let fail = |error: io::Error| ToolError::local(target, &error.kind().into());
        let file = new_file(&hidden_beside(target)?, directory_of(target)).map_err(fail)?;
        Ok(Self { file, target: target.to_path_buf() })
    }

    /// Takes over a file with another name on the same file system. It gets the permissions of a
    /// new file.
    pub(super) fn of(path: &Path, target: &Path) -> Result<Self, ToolError> {
        let fail = |error: io::Error| ToolError::local(path, &error);
        let file = File::options().read(true).write(true).open(path).map_err(fail)?;
        let new = new_file(Path::new("permissions"), directory_of(path)).map_err(fail)?;
        let permissions = new.as_file().metadata().map_err(fail)?.permissions();
        file.set_permissions(permissions).map_err(fail)?;
        let path = TempPath::try_from_path(path).map_err(fail)?;
        let file = NamedTempFile::from_parts(file, path);
        Ok(Self { file, target: target.to_path_buf() })
    }

    /// Duplicates the descriptor.
    fn duplicate(&self) -> Result<File, ToolError> {
        self.file.as_file().try_clone().map_err(|error| self.write_error(&error))
    }

    /// Returns a sink for the file. Messages show its final name.
    pub(super) fn sink(&self) -> Result<Sink, ToolError> {
        Ok(Sink { file: Arc::new(self.duplicate()?), name: self.target.display().to_string() })
    }

    /// Syncs the partial file, renames it to the final name, and syncs the directory. A file with
    /// the final name is replaced only after all bytes are on the disk.
    pub(super) async fn publish(self, publish: impl Publish) -> Result<(), ToolError> {
        let target = self.target.clone();
        let failed = |error: io::Error| ToolError::writing(&target.display().to_string(), &error);
        let publish = Arc::new(publish);
        let (file, steps) = (self.duplicate()?, publish.clone());
        blocking(move || steps.sync_file(&file)).await.map_err(failed)?;
        let Self { file, target: path } = self;
        publish.rename(file, &path).map_err(failed)?;
        blocking(move || publish.sync_directory(directory_of(&path))).await.map_err(failed)
    }

    fn write_error(&self, error: &io::Error) -> ToolError {
        ToolError::writing(&self.target.display().to_string(), error)
    }
}

/// Creates a file in `directory` whose name begins like that of `path`.
fn new_file(path: &Path, directory: &Path) -> io::Result<NamedTempFile> {
    let mut prefix = path.file_name().unwrap_or_default().to_owned();
    prefix.push("-");
    tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(Permissions::from_mode(0o666)) // less the umask
        .tempfile_in(directory)
}

/// Returns the path `.NAME.part` beside `target`. Fails if that has no directory or no name.
pub(super) fn hidden_beside(target: &Path) -> Result<PathBuf, ToolError> {
    let directory = directory_of(target);
    let no_file = || ToolError::local(target, &io::ErrorKind::IsADirectory.into());
    let name = target.file_name().ok_or_else(no_file)?;
    let name = &name.as_bytes()[..name.len().min(MAX_STEM_LEN)];
    // Reports a missing directory by its name, not by that of what is created there.
    fs::metadata(directory).map_err(|error| ToolError::local(directory, &error))?;
    let hidden = [b".", name, b".part"].concat();
    Ok(directory.join(std::ffi::OsStr::from_bytes(&hidden)))
}

/// Returns the directory of `path`.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn publish(part: PartialFile, steps: impl Publish) -> Result<(), ToolError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(part.publish(steps))
    }

    /// Records the steps and takes them, but fails at one of them.
    #[derive(Clone, Default)]
    struct Recorder {
        steps: Arc<Mutex<Vec<&'static str>>>,
        fails_at: &'static str,
    }

    impl Recorder {
        fn step(&self, step: &'static str) -> io::Result<()> {
            self.steps.lock().unwrap().push(step);
            let failed = || Err(Errno::IO.into());
            if step == self.fails_at { failed() } else { Ok(()) }
        }
    }

    impl Publish for Recorder {
        fn sync_file(&self, file: &File) -> io::Result<()> {
            self.step("sync file")?;
            OnDisk.sync_file(file)
        }

        fn rename(&self, part: NamedTempFile, target: &Path) -> io::Result<()> {
            self.step("rename")?;
            OnDisk.rename(part, target)
        }

        fn sync_directory(&self, directory: &Path) -> io::Result<()> {
            self.step("sync directory")?;
            OnDisk.sync_directory(directory)
        }
    }

    #[test]
    fn the_file_is_synced_before_the_rename_and_the_directory_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::default();
        let part = PartialFile::create(&dir.path().join("image")).unwrap();
        publish(part, recorder.clone()).unwrap();
        assert_eq!(*recorder.steps.lock().unwrap(), ["sync file", "rename", "sync directory"]);
    }

    #[test]
    fn a_failed_sync_of_the_file_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image");
        fs::write(&target, "old").unwrap();
        let recorder = Recorder { fails_at: "sync file", ..Recorder::default() };
        let part = PartialFile::create(&target).unwrap();
        part.sink().unwrap().write_all(b"new").unwrap();
        let error = publish(part, recorder.clone()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        let expected = format!("cannot write {}: Input/output error", target.display());
        assert!(text.starts_with(&expected), "{text}");
        assert_eq!(*recorder.steps.lock().unwrap(), ["sync file"]);
        assert_eq!(names(dir.path()), ["image"]);
        assert_eq!(fs::read(&target).unwrap(), b"old");
    }

    #[test]
    fn a_failed_sync_of_the_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder { fails_at: "sync directory", ..Recorder::default() };
        let part = PartialFile::create(&dir.path().join("image")).unwrap();
        assert_eq!(publish(part, recorder).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_pipe_or_a_null_device_has_nothing_to_sync() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (_reader, writer) = io::pipe().unwrap();
        let file = Arc::new(File::from(std::os::fd::OwnedFd::from(writer)));
        runtime.block_on(Sink { file, name: "a pipe".into() }.sync()).unwrap();
        let Ok(Output::Stream(null)) = Output::at(Path::new("/dev/null")) else { panic!() };
        runtime.block_on(null.sync()).unwrap();
        assert!(ignore_unsyncable(Err(Errno::IO.into())).is_err());
        assert!(ignore_unsyncable(Err(Errno::NOSPC.into())).is_err());
        assert!(ignore_unsyncable(Err(Errno::ROFS.into())).is_err());
    }

    #[test]
    fn a_partial_file_has_a_hidden_name_until_it_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let part = PartialFile::create(&dir.path().join("image")).unwrap();
        assert!(names(dir.path())[0].starts_with(".image.part-"));
        part.sink().unwrap().write_all(b"new").unwrap();
        publish(part, OnDisk).unwrap();
        assert_eq!(names(dir.path()), ["image"]);
        assert_eq!(fs::read(dir.path().join("image")).unwrap(), b"new");
    }

    #[test]
    fn a_dropped_partial_file_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image");
        fs::write(&target, "old").unwrap();
        drop(PartialFile::create(&target).unwrap());
        assert_eq!(names(dir.path()), ["image"]);
        assert_eq!(fs::read(&target).unwrap(), b"old");
    }

    #[test]
    fn the_longest_file_name_gets_a_partial_file() {
        let dir = tempfile::tempdir().unwrap();
        let part = PartialFile::create(&dir.path().join("n".repeat(255))).unwrap();
        publish(part, OnDisk).unwrap();
        assert_eq!(names(dir.path()), ["n".repeat(255)]);
    }

    #[test]
    fn the_target_of_a_symbolic_link_is_replaced() {
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
        let error = PartialFile::create(&dir.path().join("missing/image")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(!error.to_string().contains(".part-"), "{error}");
    }
}
