//! Lists of the objects of each path, so that a new version finds an older one without a look at
//! every object.
//!
//! `CACHE_DIR/paths/<id>` has the names of the objects' directories, one a line, the newest first.
//! The name `<id>` stands for server and path. A line can outlive its object.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{ObjectKey, replace_file};

/// Maximum number of objects in a list.
const MAX_OBJECTS: usize = 8;

/// Length of an object's name: hexadecimal digits.
const NAME_LEN: usize = 32;

/// Records that an object has pages of the path of `key`, before all that are recorded.
pub(super) fn record(object: &Path, key: &ObjectKey) -> io::Result<()> {
    let (Some(name), Some(cache_dir)) =
        (object.file_name().and_then(|name| name.to_str()), object.parent().and_then(Path::parent))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut names = names(cache_dir, key);
    if names.first().is_some_and(|first| first == name) {
        return Ok(());
    }
    names.retain(|other| other != name);
    names.insert(0, name.to_owned());
    names.truncate(MAX_OBJECTS);
    write(&list(cache_dir, key), &names)
}

/// Removes an object from the list of the path of `key`.
pub(super) fn forget(object: &Path, key: &ObjectKey) {
    let (Some(name), Some(cache_dir)) =
        (object.file_name().and_then(|name| name.to_str()), object.parent().and_then(Path::parent))
    else {
        return;
    };
    let mut names = names(cache_dir, key);
    names.retain(|other| other != name);
    let list = list(cache_dir, key);
    // A line can outlive its object.
    let _ = if names.is_empty() { fs::remove_file(&list) } else { write(&list, &names) };
}

fn write(list: &Path, names: &[String]) -> io::Result<()> {
    // Another process may do the same at this moment. Then one of the two lists wins.
    replace_file(list, (names.join("\n") + "\n").as_bytes())
}

/// Returns the objects of the path of `key` except `own`, the newest first, as far as the list
/// tells.
pub(super) fn others(cache_dir: &Path, key: &ObjectKey, own: &str) -> Vec<PathBuf> {
    let others = names(cache_dir, key).into_iter().filter(|name| name != own);
    others.map(|name| cache_dir.join("objects").join(name)).collect()
}

/// Whether an object's directory can have this name.
pub(super) fn is_name(name: &str) -> bool {
    name.len() == NAME_LEN && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn names(cache_dir: &Path, key: &ObjectKey) -> Vec<String> {
    let text = fs::read_to_string(list(cache_dir, key)).unwrap_or_default();
    text.lines().filter(|name| is_name(name)).take(MAX_OBJECTS).map(str::to_owned).collect()
}

fn list(cache_dir: &Path, key: &ObjectKey) -> PathBuf {
    cache_dir.join("paths").join(key.path_id())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use bootcast_proto::RemotePath;

    use super::*;

    fn key(path: &str) -> ObjectKey {
        let path = RemotePath::decode(path).unwrap();
        ObjectKey { server: "head:8888".into(), path, etag: None, content: None }
    }

    fn name(number: usize) -> String {
        format!("{number:032x}")
    }

    #[test]
    fn the_newest_objects_of_a_path_come_first_and_the_oldest_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("paths")).unwrap();
        let objects = dir.path().join("objects");
        assert!(others(dir.path(), &key("image"), "").is_empty());
        for number in [1, 2, 3, 2] {
            record(&objects.join(name(number)), &key("image")).unwrap();
        }
        record(&objects.join(name(9)), &key("other")).unwrap();
        let of = |own: &str| others(dir.path(), &key("image"), own);
        assert_eq!(of(""), [2, 3, 1].map(|number| objects.join(name(number))));
        assert_eq!(of(&name(2)), [3, 1].map(|number| objects.join(name(number))));
        for number in 10..30 {
            record(&objects.join(name(number)), &key("image")).unwrap();
        }
        assert_eq!(of("").len(), MAX_OBJECTS);
        assert_eq!(of("")[0], objects.join(name(29)));
        let files = fs::read_dir(dir.path().join("paths")).unwrap();
        let modes: Vec<_> = files
            .map(|file| file.unwrap().metadata().unwrap().permissions().mode() & 0o777)
            .collect();
        assert_eq!(modes, [0o600; 2], "and nothing else is left");
    }

    #[test]
    fn a_damaged_list_names_nothing_outside_of_the_objects() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("paths")).unwrap();
        let text = format!("../../etc\n{}\n\n{}/..\n", name(1), &name(2)[3..]);
        fs::write(list(dir.path(), &key("image")), text).unwrap();
        let found = others(dir.path(), &key("image"), "");
        assert_eq!(found, [dir.path().join("objects").join(name(1))]);
    }
}
