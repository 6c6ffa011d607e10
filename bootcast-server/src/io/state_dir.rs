//! State directory: keeps manifests and profiles across restarts of the server.
//!
//! Each manifest is a file, named by the key of its version. Numbers are little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | `bcmanif`, and the version of this format: 2 |
//! | 8..40 | key of the version |
//! | 40..48 | size of the served file in bytes |
//! | 48..48+32n | values of the n leaves |
//! | the next ceil(n/8) | zero map: a bit for each leaf |
//! | the last 32 | BLAKE3 hash of all bytes before |
//!
//! An alias says which version is announced for attributes that began with another content. It is
//! a file, too, named by the key of these attributes:
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | `bcalias`, and the version of this format: 1 |
//! | 8..40 | key of the attributes |
//! | 40..96 | the announced version: see `Version::to_bytes` |
//! | 96..128 | BLAKE3 hash of all bytes before |
//!
//! A profile is a text, named by the content id: see docs/PROTOCOL.md, "Profile".
//!
//! A file with other content counts as absent. Several processes may use one directory, because
//! files are only added, replaced and removed as a whole.

mod profiles;

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bootcast_proto::manifest::{ContentTree, UNKNOWN};
use bootcast_proto::{Manifest, ZeroMap};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::source::{VERSION_LEN, Version, VersionKey};

/// Upper bound of the disk space that all files take: 256 MiB, for 128 GiB of served files.
const MAX_BYTES: u64 = 256 << 20;

/// Unit in which most file systems allocate disk space, in bytes.
const DISK_BLOCK: u64 = 4096;

const MAGIC: &[u8; 8] = b"bcmanif\x02";
const HEADER_LEN: usize = 8 + 32 + 8;
const CHECKSUM_LEN: usize = 32;

/// Suffix of the files' names.
const SUFFIX: &str = ".manifest";

/// Suffix of the names of aliases.
const ALIAS_SUFFIX: &str = ".alias";

const ALIAS_MAGIC: &[u8; 8] = b"bcalias\x01";
const ALIAS_LEN: usize = 8 + 32 + VERSION_LEN + CHECKSUM_LEN;

/// Prefix of the names of files that are being written.
const TEMPORARY_PREFIX: &str = ".new-";

/// Age after which a file that is being written counts as left behind by a crash.
const TEMPORARY_MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// Permissions of a manifest: the server may run as another user than `bootcast-server hash`.
const MODE: u32 = 0o644;

/// A directory that keeps manifests. All its methods may block on the disk.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    max_bytes: u64,
    /// Bytes that may be added before the directory is listed again. 0 at first.
    room: Mutex<u64>,
}

/// A manifest in the directory.
struct Kept {
    used: SystemTime,
    disk_bytes: u64,
    path: PathBuf,
}

impl StateDir {
    /// Creates the directory if there is none. Fails if files cannot be created in it.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let state = Self { path: path.to_owned(), max_bytes: MAX_BYTES, room: Mutex::new(0) };
        state.temporary_file()?.close()?;
        Ok(state)
    }

    /// Returns the manifest of a version. A damaged one is removed, and counts as absent.
    pub fn load(&self, version: &Version) -> Option<Manifest> {
        let path = self.path_of(version.key());
        match self.read(&path, version) {
            Ok(manifest) => Some(manifest),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(file = %path.display(), %error, "removing a kept manifest");
                if let Err(error) = fs::remove_file(&path) {
                    tracing::debug!(file = %path.display(), %error, "cannot remove it");
                }
                None
            }
            Err(error) => {
                tracing::debug!(file = %path.display(), %error, "cannot read a kept manifest");
                None
            }
        }
    }

    /// Returns whether there is a manifest of this version. It may be damaged, and does not count
    /// as used.
    pub fn contains(&self, version: &Version) -> bool {
        self.path_of(version.key()).is_file()
    }

    /// Keeps a manifest durably. Removes those that were not used for longest if the directory is
    /// full.
    pub fn store(&self, version: &Version, manifest: &Manifest) -> io::Result<()> {
        self.write(&self.path_of(version.key()), &encode(version.key(), manifest))
    }

    /// Removes the manifest of a version, if there is one: its content is another one by now.
    pub fn remove(&self, version: &Version) -> io::Result<()> {
        ignore_missing(fs::remove_file(self.path_of(version.key())))
    }

    /// Keeps an alias durably: the version that is announced for files with these attributes.
    pub fn store_alias(&self, present: VersionKey, announced: &Version) -> io::Result<()> {
        let path = self.path.join(format!("{present}{ALIAS_SUFFIX}"));
        self.write(&path, &encode_alias(present, announced))
    }

    /// Loads all aliases. Ignores damaged ones.
    pub fn aliases(&self) -> io::Result<Vec<(VersionKey, Version)>> {
        let mut aliases = Vec::new();
        for Kept { path, .. } in self.list()? {
            if path.extension().is_some_and(|it| it == "alias")
                && path.symlink_metadata().is_ok_and(|it| it.is_file() && it.len() < DISK_BLOCK)
                && let Ok(bytes) = fs::read(&path)
                && let Some(alias) = decode_alias(&bytes)
            {
                aliases.push(alias);
            }
        }
        Ok(aliases)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.make_room(disk_bytes(bytes.len() as u64))?;
        let mut file = self.temporary_file()?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(&self.path)?.sync_all()
    }

    fn path_of(&self, key: VersionKey) -> PathBuf {
        self.path.join(format!("{key}{SUFFIX}"))
    }

    fn temporary_file(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(&self.path)
    }

    /// Reads a manifest, and marks it as used now.
    fn read(&self, path: &Path, version: &Version) -> io::Result<Manifest> {
        let file = open(path)?;
        let tree = ContentTree::new(version.size());
        let (metadata, expected) = (file.metadata()?, encoded_len(tree));
        if !metadata.is_file() || metadata.len() != expected || expected > self.max_bytes {
            return Err(invalid("it has a wrong length"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(expected).map_err(io::Error::other)?);
        (&file).take(expected).read_to_end(&mut bytes)?;
        let manifest =
            decode(&bytes, version.key(), tree).ok_or_else(|| invalid("it is damaged"))?;
        mark_used(&file, path);
        Ok(manifest)
    }

    /// Makes room for a file. Files that other processes add count when the directory is listed
    /// next.
    fn make_room(&self, disk_bytes: u64) -> io::Result<()> {
        if disk_bytes > self.max_bytes {
            let max = self.max_bytes >> 20;
            return Err(io::Error::other(format!("it takes more than {max} MiB")));
        }
        // A panic cannot leave the number half changed.
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if *room < disk_bytes {
            let mut kept = self.list()?;
            let mut total: u64 = kept.iter().map(|it| it.disk_bytes).sum();
            if total + disk_bytes > self.max_bytes {
                kept.sort_by_key(|it| it.used);
                // An eighth more than needed, so that a full directory is not listed each time.
                let target = self.max_bytes - (self.max_bytes / 8).max(disk_bytes);
                for oldest in kept {
                    if total <= target {
                        break;
                    }
                    ignore_missing(fs::remove_file(&oldest.path))?;
                    total -= oldest.disk_bytes;
                }
            }
            *room = self.max_bytes - total;
        }
        *room -= disk_bytes;
        Ok(())
    }

    /// Lists the manifests, aliases and profiles. Removes what crashes left behind, and ignores
    /// files of others.
    fn list(&self) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            // The file may have been removed since.
            let Ok(metadata) = entry.metadata() else { continue };
            let (Some(name), Ok(used)) = (name.to_str(), metadata.modified()) else { continue };
            if [SUFFIX, ALIAS_SUFFIX, profiles::SUFFIX].iter().any(|it| name.ends_with(it)) {
                kept.push(Kept { used, disk_bytes: disk_bytes(metadata.len()), path });
            } else if name.starts_with(TEMPORARY_PREFIX)
                && used.elapsed().is_ok_and(|age| age > TEMPORARY_MAX_AGE)
            {
                ignore_missing(fs::remove_file(path))?;
            }
        }
        Ok(kept)
    }
}

/// Opens a file of the directory for reading.
fn open(path: &Path) -> io::Result<File> {
    // Opening a pipe without NONBLOCK would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty());
    Ok(File::from(file.map_err(|errno| match errno {
        Errno::LOOP => invalid("it is a symbolic link"),
        errno => errno.into(),
    })?))
}

/// Marks a file of the directory as used now: those unused for longest are removed first.
fn mark_used(file: &File, path: &Path) {
    if let Err(error) = file.set_modified(SystemTime::now()) {
        // The file belongs to another user.
        tracing::debug!(file = %path.display(), %error, "cannot mark it as used");
    }
}

/// Returns the disk space that a file of `len` bytes takes.
fn disk_bytes(len: u64) -> u64 {
    len.next_multiple_of(DISK_BLOCK)
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Returns the number of bytes that encode the manifest of such a file.
fn encoded_len(tree: ContentTree) -> u64 {
    (HEADER_LEN + CHECKSUM_LEN) as u64 + 32 * tree.leaves() + tree.leaves().div_ceil(8)
}

fn encode(key: VersionKey, manifest: &Manifest) -> Vec<u8> {
    let size = manifest.tree().size().to_le_bytes();
    let leaves = manifest.leaves().as_flattened();
    let zeros = manifest.zeros().as_bytes();
    let mut bytes = [&MAGIC[..], key.as_bytes(), &size, leaves, zeros].concat();
    bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
    bytes
}

fn encode_alias(present: VersionKey, announced: &Version) -> Vec<u8> {
    let mut bytes = [&ALIAS_MAGIC[..], present.as_bytes(), &announced.to_bytes()].concat();
    bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
    bytes
}

fn decode_alias(bytes: &[u8]) -> Option<(VersionKey, Version)> {
    let bytes: &[u8; ALIAS_LEN] = bytes.try_into().ok()?;
    let (content, checksum) = bytes.split_at(ALIAS_LEN - CHECKSUM_LEN);
    let content = content.strip_prefix(ALIAS_MAGIC)?;
    let (present, announced) = content.split_first_chunk()?;
    let is_intact = blake3::hash(&bytes[..ALIAS_LEN - CHECKSUM_LEN]).as_bytes() == checksum;
    let announced = Version::from_bytes(announced.try_into().ok()?);
    is_intact.then_some((VersionKey::from_bytes(*present), announced))
}

/// Decodes the manifest of this version and size; `None` if the bytes are anything else.
fn decode(bytes: &[u8], key: VersionKey, tree: ContentTree) -> Option<Manifest> {
    if bytes.len() as u64 != encoded_len(tree) {
        return None;
    }
    let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_LEN);
    let (header, values) = content.split_at(HEADER_LEN);
    let expected = [&MAGIC[..], key.as_bytes(), &tree.size().to_le_bytes()].concat();
    let valid = header == expected && blake3::hash(content).as_bytes() == checksum;
    let (leaves, zeros) = values.split_at_checked(32 * usize::try_from(tree.leaves()).ok()?)?;
    let zeros = ZeroMap::from_bytes(tree.leaves(), zeros)?;
    let leaves = leaves.as_chunks().0;
    // Nobody writes a manifest of which a part is unknown.
    let is_whole = !leaves.contains(&UNKNOWN);
    (valid && is_whole).then(|| Manifest::with_zeros(tree, leaves.to_vec(), zeros))
}

/// Reads files of the directory for fuzzing: as they are, and with a right header and checksum.
pub(crate) fn fuzz(bytes: &[u8]) {
    let sealed = |content: &[&[u8]]| {
        let mut bytes = content.concat();
        bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
        bytes
    };
    decode_alias(bytes);
    decode_alias(&sealed(&[ALIAS_MAGIC, bytes]));
    let Some((size, rest)) = bytes.split_first_chunk() else { return };
    let Some((key, values)) = rest.split_first_chunk() else { return };
    let (tree, key) = (ContentTree::new(u64::from_le_bytes(*size)), VersionKey::from_bytes(*key));
    decode(bytes, key, tree);
    if let Some(manifest) = decode(&sealed(&[MAGIC, key.as_bytes(), size, values]), key, tree) {
        let again = decode(&encode(key, &manifest), key, tree);
        assert!(again == Some(manifest), "a manifest that is written again differs");
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::source::{HashProgress, OpenFile, hash_while};

    /// A served file with its version and manifest.
    fn served(bytes: &[u8]) -> (Version, Manifest) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let open = OpenFile::new(file).unwrap();
        let (version, progress) = (open.version, HashProgress::new(open.version.size()));
        let manifest = hash_while(&open, &progress, |_| true).unwrap().unwrap();
        (version, manifest)
    }

    fn names(dir: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_manifest_is_kept_in_the_documented_format() {
        let (version, manifest) = served(b"abc");
        let bytes = encode(version.key(), &manifest);
        assert_eq!(bytes.len(), 48 + 32 + 1 + 32);
        assert_eq!(&bytes[..8], b"bcmanif\x02");
        assert_eq!(&bytes[8..40], version.key().as_bytes());
        assert_eq!(&bytes[40..48], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[48..80], blake3::hash(b"abc").as_bytes());
        assert_eq!(bytes[80], 0, "no leaf of zeros");
        assert_eq!(&bytes[81..], blake3::hash(&bytes[..81]).as_bytes());
    }

    #[test]
    fn a_stored_manifest_is_loaded_by_any_later_process() {
        let dir = TempDir::new().unwrap();
        for bytes in [&b""[..], b"abc", &vec![7; 50_000], &vec![0; 50_000]] {
            let (version, manifest) = served(bytes);
            let state = StateDir::open(dir.path()).unwrap();
            assert_eq!(state.load(&version), None);
            state.store(&version, &manifest).unwrap();
            assert_eq!(StateDir::open(dir.path()).unwrap().load(&version), Some(manifest));
        }
        assert!(names(&dir).iter().all(|name| name.ends_with(SUFFIX)), "{:?}", names(&dir));
    }

    #[test]
    fn changed_bits_and_other_lengths_are_refused() {
        let (version, manifest) = served(&vec![7; 20_000]);
        let (key, tree) = (version.key(), *manifest.tree());
        let good = encode(key, &manifest);
        assert_eq!(decode(&good, key, tree), Some(manifest.clone()));
        for bit in 0..8 * good.len() {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad, key, tree), None, "bit {bit}");
        }
        for len in 0..good.len() {
            assert_eq!(decode(&good[..len], key, tree), None, "{len} bytes");
        }
        assert_eq!(decode(&[&good[..], &[0]].concat(), key, tree), None);
    }

    #[test]
    fn a_manifest_with_an_unknown_value_is_refused() {
        let (version, manifest) = served(&vec![7; 20_000]);
        let mut bytes = encode(version.key(), &manifest);
        bytes.truncate(bytes.len() - CHECKSUM_LEN);
        bytes[HEADER_LEN..HEADER_LEN + 32].fill(0);
        bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
        assert_eq!(decode(&bytes, version.key(), *manifest.tree()), None);
    }

    #[test]
    fn a_manifest_of_another_version_or_format_is_refused() {
        let (version, manifest) = served(b"abc");
        let (other, _) = served(b"abcd");
        let good = encode(version.key(), &manifest);
        assert_eq!(decode(&good, other.key(), *manifest.tree()), None);
        let mut next_format = good[..good.len() - CHECKSUM_LEN].to_vec();
        next_format[7] = 3;
        next_format.extend_from_slice(blake3::hash(&next_format).as_bytes());
        assert_eq!(decode(&next_format, version.key(), *manifest.tree()), None);
    }

    #[test]
    fn a_damaged_or_foreign_file_counts_as_absent_and_is_replaced() {
        let dir = TempDir::new().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let (version, manifest) = served(b"abc");
        let path = state.path_of(version.key());
        let damage: [(&str, &dyn Fn()); 4] = [
            ("short", &|| fs::write(&path, b"foreign").unwrap()),
            ("damaged", &|| fs::write(&path, [0; 113]).unwrap()),
            ("a link", &|| std::os::unix::fs::symlink("/dev/zero", &path).unwrap()),
            ("a pipe", &|| {
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, &path, kind, Mode::RUSR, 0).unwrap();
            }),
        ];
        for (name, damage) in damage {
            let _ = fs::remove_file(&path);
            damage();
            assert_eq!(state.load(&version), None, "{name}");
            damage();
            state.store(&version, &manifest).unwrap();
            assert_eq!(state.load(&version).as_ref(), Some(&manifest), "{name}");
        }
    }

    #[test]
    fn aliases_are_loaded_by_any_later_process_and_damaged_ones_are_ignored() {
        let dir = TempDir::new().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let (present, announced) = (served(b"abc").0, served(b"abcd").0.with_generation(7));
        assert_eq!(state.aliases().unwrap(), []);
        state.store_alias(present.key(), &announced).unwrap();
        let later = StateDir::open(dir.path()).unwrap();
        assert_eq!(later.aliases().unwrap(), [(present.key(), announced)]);
        let good = encode_alias(present.key(), &announced);
        for bit in 0..8 * good.len() {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_alias(&bad), None, "bit {bit}");
        }
        assert_eq!(decode_alias(&good[1..]), None);
        fs::write(dir.path().join("foreign.alias"), b"foreign").unwrap();
        assert_eq!(later.aliases().unwrap().len(), 1);
    }

    #[test]
    fn the_manifests_that_were_not_used_for_longest_are_removed_when_the_directory_is_full() {
        let dir = TempDir::new().unwrap();
        let state = StateDir { max_bytes: 8 * DISK_BLOCK, ..StateDir::open(dir.path()).unwrap() };
        let files: Vec<_> = (1..9).map(|size| served(&vec![0; size])).collect();
        for (k, (version, manifest)) in (0..).zip(&files) {
            state.store(version, manifest).unwrap();
            let file = File::open(state.path_of(version.key())).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(k)).unwrap();
        }
        fs::write(dir.path().join("foreign"), [0; 10_000]).unwrap();
        // Loading marks as used.
        assert!(state.load(&files[0].0).is_some());
        let (version, manifest) = served(b"one more");
        state.store(&version, &manifest).unwrap();
        let is_kept = |(version, _): &(Version, Manifest)| state.path_of(version.key()).exists();
        let kept: Vec<_> = files.iter().map(is_kept).collect();
        assert_eq!(kept, [true, false, true, true, true, true, true, true]);
        assert!(state.load(&version).is_some());
        assert!(dir.path().join("foreign").exists());
    }

    #[test]
    fn a_manifest_larger_than_the_directory_is_not_kept_and_removes_nothing() {
        let dir = TempDir::new().unwrap();
        let state = StateDir { max_bytes: DISK_BLOCK, ..StateDir::open(dir.path()).unwrap() };
        let (small, manifest) = served(b"abc");
        state.store(&small, &manifest).unwrap();
        let (large, manifest) = served(&vec![0; 3 << 20]);
        assert!(state.store(&large, &manifest).is_err());
        assert!(state.load(&small).is_some());
        assert_eq!(names(&dir).len(), 1);
    }

    #[test]
    fn a_file_that_a_crash_left_behind_is_removed_after_an_hour() {
        let dir = TempDir::new().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for (name, age) in [(".new-old", 2), (".new-recent", 0)] {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - age * TEMPORARY_MAX_AGE).unwrap();
        }
        assert_eq!(state.list().unwrap().len(), 0);
        assert_eq!(names(&dir), [".new-recent"]);
    }
}
