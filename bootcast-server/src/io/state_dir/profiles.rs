//! Profiles in the state directory: text files, named by the content id.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bootcast_proto::Profile;
use bootcast_proto::manifest::ContentId;

use super::StateDir;

/// Suffix of the names of profiles.
pub(super) const SUFFIX: &str = ".profile";

/// Maximum length of a profile in bytes. The longest one that the server writes has 16,384 runs of
/// one leaf each, and as many candidates.
const MAX_LEN: u64 = 1 << 20;

impl StateDir {
    /// Returns the profile of a content. One that is malformed counts as absent. Fails if the file
    /// cannot be read.
    pub fn load_profile(&self, id: &ContentId, size: u64) -> io::Result<Option<Profile>> {
        let path = self.profile_path(id);
        match read(&path) {
            Ok(text) => {
                let parsed = Profile::parse_of(&text, id, size);
                let usable = parsed.inspect_err(|error| {
                    tracing::warn!(file = %path.display(), %error, "ignoring a kept profile");
                });
                Ok(usable.ok())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // It is no text, or a symbolic link.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(file = %path.display(), %error, "ignoring a kept profile");
                Ok(None)
            }
            Err(error) => {
                tracing::debug!(file = %path.display(), %error, "cannot read a kept profile");
                Err(error)
            }
        }
    }

    /// Keeps a profile durably. Replaces the one of the same content as a whole.
    pub fn store_profile(&self, id: &ContentId, profile: &Profile) -> io::Result<()> {
        self.write(&self.profile_path(id), profile.encode(id).as_bytes())
    }

    fn profile_path(&self, id: &ContentId) -> PathBuf {
        self.path.join(format!("{id}{SUFFIX}"))
    }
}

/// Reads a profile, and marks it as used now.
fn read(path: &Path) -> io::Result<String> {
    let file = super::open(path)?;
    let mut text = String::new();
    (&file).take(MAX_LEN).read_to_string(&mut text)?;
    super::mark_used(&file, path);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use bootcast_proto::profile::PROFILE_LEAVES;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_profile_is_a_text_that_any_later_process_loads() {
        let dir = TempDir::new().unwrap();
        let id = ContentId::from_bytes([7; 32]);
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.load_profile(&id, 1 << 20).unwrap(), None);
        let mut profile = Profile::new(1 << 20);
        profile.extend(5..9);
        state.store_profile(&id, &profile).unwrap();
        let later = StateDir::open(dir.path()).unwrap();
        assert_eq!(later.load_profile(&id, 1 << 20).unwrap(), Some(profile.clone()));
        assert_eq!(later.load_profile(&id, 1 << 21).unwrap(), None, "another size");
        let text = std::fs::read_to_string(state.profile_path(&id)).unwrap();
        assert_eq!(text, profile.encode(&id));
        std::fs::write(state.profile_path(&id), "bootcast profile 1\nrubbish\n").unwrap();
        assert_eq!(later.load_profile(&id, 1 << 20).unwrap(), None);
        std::fs::write(state.profile_path(&id), [0xff]).unwrap();
        assert_eq!(later.load_profile(&id, 1 << 20).unwrap(), None);
        state.store_profile(&id, &profile).unwrap();
        assert_eq!(later.load_profile(&id, 1 << 20).unwrap(), Some(profile));
        assert_eq!(later.list().unwrap().len(), 1, "it counts for the size of the directory");
    }

    #[test]
    fn the_longest_profile_is_read() {
        let dir = TempDir::new().unwrap();
        let id = ContentId::from_bytes([7; 32]);
        let state = StateDir::open(dir.path()).unwrap();
        let mut profile = Profile::new(u64::MAX);
        let last = u64::MAX / (2 << 14);
        for leaf in (0..PROFILE_LEAVES as u64).map(|step| last - 2 * step) {
            profile.extend(leaf - 1..leaf);
            assert!(profile.propose(leaf));
        }
        assert_eq!(profile.runs().len(), PROFILE_LEAVES);
        state.store_profile(&id, &profile).unwrap();
        assert_eq!(state.load_profile(&id, u64::MAX).unwrap(), Some(profile));
    }
}
