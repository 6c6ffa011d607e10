//! Divides a directory into bundles, and copies small files into one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use bootcast_proto::api::{Entry, Kind};
use bootcast_proto::bundle::{BUNDLE_PREFIX, BundleIndex, BundleInfo, BundledFile};
use bootcast_proto::limits::{BUNDLE_BYTES, BUNDLE_FILES, SMALL_FILE};
use bootcast_proto::path::decode_segment;
use bootcast_proto::{ContentId, Manifest, RemotePath};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::MAX_NAME_BYTES;
use super::gathering::Gathering;
use crate::io::identity::Identity;
use crate::source::{OpenFile, SourceError, Version};

/// Memory in bytes that a name takes besides its letters: pointer, length, and what the allocator
/// adds.
const NAME_OVERHEAD: usize = 32;

/// Files of a directory that belong to one bundle.
#[derive(Debug)]
pub(super) struct Run {
    /// Percent-encoded names.
    pub(super) files: Arc<[Box<str>]>,
    /// The bundle once it was made, and the requests that wait for it.
    pub(super) made: Option<(BundleInfo, Gathering)>,
}

impl Run {
    fn new(files: &mut Vec<Box<str>>) -> Self {
        Self { files: std::mem::take(files).into(), made: None }
    }

    /// Whether the run has a file of this encoded name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| **file == *name)
    }

    /// Returns the encoded name of the first file.
    pub(super) fn first(&self) -> Option<&str> {
        self.files.first().map(AsRef::as_ref)
    }
}

/// Divides the entries of a directory into runs, until their names take too much memory. Returns
/// also how many bytes these take. Entries come in the order of their encoded names.
pub(super) fn divide(entries: Vec<Entry>) -> (Vec<Run>, usize) {
    let is_small =
        |Entry { attributes: it, .. }: &Entry| it.kind == Kind::File && it.size <= SMALL_FILE;
    let (mut runs, mut files, mut bytes, mut memory) = (Vec::new(), Vec::new(), 0, 0);
    for Entry { name, attributes } in entries.into_iter().filter(is_small) {
        let with_name = memory + name.len() + NAME_OVERHEAD;
        if with_name > MAX_NAME_BYTES {
            break;
        }
        if bytes + attributes.size > BUNDLE_BYTES || files.len() == BUNDLE_FILES {
            runs.push(Run::new(&mut files));
            bytes = 0;
        }
        (bytes, memory) = (bytes + attributes.size, with_name);
        files.push(name.into_boxed_str());
    }
    if !files.is_empty() {
        runs.push(Run::new(&mut files));
    }
    (runs, memory)
}

/// Copies these files into a bundle, which can be opened from then on. Leaves out those that cannot
/// be read or that change; returns `None` if none is left. Blocks.
pub(super) fn make(
    identity: &Identity,
    directory: &RemotePath,
    files: &[Box<str>],
) -> Result<Option<BundleInfo>, SourceError> {
    let (mut index, mut bytes) = (BundleIndex::default(), Vec::new());
    for file in files {
        let Some((open, content)) = read(identity, directory, file) else { continue };
        if bytes.len() + content.len() > usize::try_from(BUNDLE_BYTES).unwrap_or(usize::MAX) {
            // The files have grown.
            break;
        }
        let b3 = (!content.is_empty()).then(|| ContentId::of_content(&content));
        let (name, size) = (file.to_string(), content.len() as u64);
        index.files.push(BundledFile { name, etag: open.etag(), size, b3 });
        bytes.extend_from_slice(&content);
    }
    if index.files.is_empty() {
        return Ok(None);
    }
    let mut head = serde_json::to_vec(&index).map_err(io::Error::other)?;
    let hash = blake3::hash(&head).to_hex();
    let name = format!("{BUNDLE_PREFIX}{}", &hash[..32]);
    let index = head.len() as u64;
    head.append(&mut bytes);
    let path = directory.join(name.as_bytes()).map_err(io::Error::other)?;
    let version = if let Some(version) = identity.bundle_files().version(&path) {
        // Its casts go on.
        version
    } else {
        let file = in_memory(&head)?;
        let version = Version::of_file(&file)?;
        // Casts then know it from their first page on, and it is not kept on disk.
        identity.manifests().remember_ahead(&version, Manifest::of_content(&head), false);
        identity.bundle_files().add(&path, file, version)
    };
    Ok(Some(BundleInfo { name, etag: version.etag(), size: version.size(), index, next: None }))
}

/// Reads a small file of this encoded name; `None` if it cannot be read, or may be changing.
fn read(identity: &Identity, directory: &RemotePath, name: &str) -> Option<(OpenFile, Vec<u8>)> {
    let path = directory.join(&decode_segment(name).ok()?).ok()?;
    let open = identity.announce(&path, identity.open(&path).ok()?);
    let is_settled = open.present.unstable_for(SystemTime::now()).is_none() && !open.is_suspect;
    if open.present.size() > SMALL_FILE || !is_settled {
        return None;
    }
    let mut bytes = Vec::new();
    (&open.file).take(SMALL_FILE + 1).read_to_end(&mut bytes).ok()?;
    let is_unchanged = Version::of_file(&open.file).ok()? == open.present;
    let known = identity.manifests().content_id_in_memory(&open.version);
    let is_right = known.is_none_or(|id| bytes.is_empty() || id == ContentId::of_content(&bytes));
    let is_whole = bytes.len() as u64 == open.version.size();
    (is_unchanged && is_right && is_whole).then_some((open, bytes))
}

/// Creates a file in memory with these bytes, which nobody can change.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("bootcast-bundle", flags)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::{served, settle};
    use super::*;

    fn runs(identity: &Identity) -> Vec<Run> {
        divide(identity.list(&RemotePath::root()).unwrap().entries.unwrap()).0
    }

    #[test]
    fn a_directory_is_divided_by_bytes_and_large_files_are_left_out() {
        let (dir, identity) = served(&[]);
        for k in 0..130 {
            File::create(dir.path().join(format!("{k:03}"))).unwrap().set_len(SMALL_FILE).unwrap();
        }
        File::create(dir.path().join("000-large")).unwrap().set_len(SMALL_FILE + 1).unwrap();
        std::fs::create_dir(dir.path().join("000-directory")).unwrap();
        let runs = runs(&identity);
        let found: Vec<_> =
            runs.iter().map(|run| (run.first().unwrap(), run.files.len())).collect();
        assert_eq!(found, [("000", 64), ("064", 64), ("128", 2)]);
        assert!(runs[1].has("127") && !runs[1].has("128") && !runs[0].has("000-large"));
    }

    #[test]
    fn a_bundle_has_an_index_and_the_bytes_of_its_files_and_can_be_opened() {
        let (dir, identity) = served(&[("a b", "one"), ("c", ""), ("d", "three")]);
        let files = runs(&identity).remove(0).files;
        // It vanishes after the listing.
        std::fs::remove_file(dir.path().join("d")).unwrap();
        std::fs::set_permissions(dir.path().join("c"), PermissionsExt::from_mode(0o600)).unwrap();
        settle(&identity, "c");
        let info = make(&identity, &RemotePath::root(), &files).unwrap().unwrap();
        let again = make(&identity, &RemotePath::root(), &files).unwrap();
        assert_eq!(again.as_ref(), Some(&info), "its casts go on");
        let path = RemotePath::decode(&info.name).unwrap();
        let mut open = identity.announce(&path, identity.open(&path).unwrap());
        assert_eq!((open.etag(), open.version.size()), (info.etag.clone(), info.size));
        assert_eq!(identity.version(&path).unwrap(), open.version);
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut open.file).unwrap();
        open.file.read_to_end(&mut bytes).unwrap();
        let (head, rest) = bytes.split_at(usize::try_from(info.index).unwrap());
        let index: BundleIndex = serde_json::from_slice(head).unwrap();
        let found: Vec<_> = index.files.iter().map(|it| (it.name.as_str(), it.size)).collect();
        assert_eq!((found, rest), (vec![("a%20b", 3), ("c", 0)], &b"one"[..]));
        assert_eq!(index.files[0].b3, Some(ContentId::of_content(b"one")));
        assert_eq!(index.files[1].b3, None);
        let id = identity.manifests().content_id_in_memory(&open.version);
        assert_eq!(id, Some(ContentId::of_content(&bytes)));
    }

    #[tokio::test]
    async fn a_bundle_that_is_made_again_has_a_version_of_its_own_and_is_not_suspect() {
        let (_dir, identity) = served(&[("a", "one")]);
        let files = runs(&identity).remove(0).files;
        let make = || make(&identity, &RemotePath::root(), &files).unwrap().unwrap();
        let first = make();
        let path = RemotePath::decode(&first.name).unwrap();
        let open = || identity.announce(&path, identity.open(&path).unwrap());
        assert_eq!(open().etag(), first.etag);
        identity.bundle_files().lock().clear();
        let again = make();
        assert_eq!(again.name, first.name);
        for _ in 0..2 {
            let open = open();
            assert!(!open.is_suspect);
            assert_eq!((open.etag(), open.version), (again.etag.clone(), open.present));
            assert_eq!(identity.version(&path).unwrap(), open.present);
        }
    }

    #[test]
    fn no_file_no_bundle() {
        let (_dir, identity) = served(&[]);
        let files = ["gone".into()];
        assert_eq!(make(&identity, &RemotePath::root(), &files).unwrap(), None);
    }
}
