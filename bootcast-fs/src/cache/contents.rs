//! Links from contents to the objects that have all of them.

use std::io;
use std::path::{Component, Path, PathBuf};

use bootcast_proto::ContentId;

use super::replace;

/// Directory of all objects, as seen from the links.
const OBJECTS: &str = "../objects";

/// Returns the directory of an object that has all of this content, as far as the link tells. The
/// caller checks it: a link can outlive its object. Links to other places count as absent.
pub(super) fn find(cache_dir: &Path, content: ContentId) -> Option<PathBuf> {
    let target = std::fs::read_link(link(cache_dir, content)).ok()?;
    let mut object = target.strip_prefix(OBJECTS).ok()?.components();
    match (object.next(), object.next()) {
        (Some(Component::Normal(name)), None) => Some(cache_dir.join("objects").join(name)),
        _ => None,
    }
}

/// Records that an object has all of this content. The newest object wins.
pub(super) fn record(object: &Path, content: ContentId) -> io::Result<()> {
    let (Some(name), Some(cache_dir)) =
        (object.file_name(), object.parent().and_then(Path::parent))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let link = link(cache_dir, content);
    let target = Path::new(OBJECTS).join(name);
    replace(&link, |new| std::os::unix::fs::symlink(&target, new), |()| Ok(()))
}

/// Removes the link to an object, if it leads there.
pub(super) fn forget(cache_dir: &Path, content: ContentId, object: &Path) {
    if find(cache_dir, content).as_deref() == Some(object) {
        // A link that stays leads nowhere.
        let _ = std::fs::remove_file(link(cache_dir, content));
    }
}

fn link(cache_dir: &Path, content: ContentId) -> PathBuf {
    cache_dir.join("contents").join(content.to_string())
}
