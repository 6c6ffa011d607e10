//! Inode numbers, derived from path, type and version.
//!
//! A number is taken from a hash of these three. So it does not change when the kernel forgets the
//! inode, and is the same in a listing, in `stat` and in other mounts of the same directory.
//! Programs rely on this: `cp -r`, `tar` and `find` take a file whose number changed for another
//! file.
//!
//! Numbers have 32 bits if possible, because programs with a 32-bit `ino_t` fail on larger ones. Of
//! 100,000 names, two are likely to collide. The second then gets another number and keeps it.

use std::collections::HashMap;

use bootcast_proto::RemotePath;
use bootcast_proto::api::Kind;

use super::FileVersion;
use super::inode::ROOT;

/// Identity of an inode: a hash of its path, its type and its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity([u8; 32]);

impl Identity {
    /// Computes an identity. The type is part of it, because the kernel must never see an inode
    /// change its type.
    pub(super) fn of(path: &RemotePath, version: Option<&FileVersion>, kind: Kind) -> Self {
        let kind = match kind {
            Kind::File => 0,
            Kind::Directory => 1,
            Kind::Symlink => 2,
            Kind::Other => 3,
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[kind]);
        hasher.update(&(path.as_bytes().len() as u64).to_le_bytes());
        hasher.update(path.as_bytes());
        match version {
            None => {}
            Some(FileVersion::Etag(etag)) => {
                hasher.update(b"e").update(etag.as_str().as_bytes());
            }
            Some(FileVersion::Plain(content)) => {
                hasher.update(b"p").update(&content.to_le_bytes());
            }
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Returns the numbers to try, in order of preference: the eight 32-bit words of the hash, then
    /// larger numbers. Leaves out 0, the root's number and `u64::MAX`, which are reserved.
    fn candidates(&self) -> impl Iterator<Item = u64> {
        let small = self.0.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word).into());
        let start =
            self.0.as_chunks().0.iter().fold(0, |sum, word| sum ^ u64::from_be_bytes(*word));
        // All larger numbers, from one derived from the hash, with wrap-around: one is free.
        let large = (0..=u64::MAX).map(move |step| start.wrapping_add(step) | (1 << 32));
        small.chain(large).filter(|&number| number > ROOT && number != u64::MAX)
    }
}

/// Assignment of numbers to inodes.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Owner of each number in use.
    owners: HashMap<u64, Identity>,
    /// Identities whose first candidate was in use, with the number that they got instead. They
    /// keep it for the life of the mount. They are few: about one with 100,000 names.
    displaced: HashMap<Identity, u64>,
}

impl Numbers {
    /// Returns the number of an inode and marks it as in use.
    pub(super) fn acquire(&mut self, identity: Identity) -> u64 {
        let number = self.assign(identity, |_| true);
        self.owners.insert(number, identity);
        number
    }

    /// Marks a number as in use by the inode that another process gave it to.
    pub(super) fn restore(&mut self, identity: Identity, number: u64) {
        self.owners.insert(number, identity);
        if identity.candidates().next() != Some(number) {
            self.displaced.insert(identity, number);
        }
    }

    /// Ends the use of a number, unless it is reserved for a displaced identity.
    pub(super) fn release(&mut self, number: u64, identity: &Identity) {
        if !self.displaced.contains_key(identity) && self.owners.get(&number) == Some(identity) {
            self.owners.remove(&number);
        }
    }

    /// Returns the number that [`Self::acquire`] will give to an entry of a listing. `listed` has
    /// the numbers of the previous entries; this one is added to it.
    pub(super) fn predict(
        &mut self,
        identity: Identity,
        listed: &mut HashMap<u64, Identity>,
    ) -> u64 {
        let number = self
            .assign(identity, |number| listed.get(&number).is_none_or(|owner| *owner == identity));
        listed.insert(number, identity);
        number
    }

    /// Returns the first candidate that is not in use and for which `is_free` returns true. A
    /// candidate other than the very first stays assigned to this identity.
    fn assign(&mut self, identity: Identity, is_free: impl Fn(u64) -> bool) -> u64 {
        if let Some(&number) = self.displaced.get(&identity) {
            return number;
        }
        let fits = |number: &u64| {
            self.owners.get(number).is_none_or(|owner| *owner == identity) && is_free(*number)
        };
        let mut candidates = identity.candidates().enumerate();
        let (tries, number) = candidates
            .find(|(_, number)| fits(number))
            .expect("there are more numbers than inodes that fit in memory");
        if tries > 0 {
            self.displaced.insert(identity, number);
            self.owners.insert(number, identity);
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an identity whose first candidates are these.
    fn with_candidates(candidates: [u32; 8]) -> Identity {
        let mut bytes = [0; 32];
        for (word, candidate) in bytes.chunks_exact_mut(4).zip(candidates) {
            word.copy_from_slice(&candidate.to_be_bytes());
        }
        Identity(bytes)
    }

    fn of(path: &str) -> Identity {
        Identity::of(&RemotePath::decode(path).unwrap(), None, Kind::Directory)
    }

    #[test]
    fn a_number_is_the_same_in_every_mount_and_after_its_release() {
        let (mut one, mut other) = (Numbers::default(), Numbers::default());
        other.acquire(of("first"));
        let number = one.acquire(of("a/b"));
        assert_eq!(other.acquire(of("a/b")), number);
        one.release(number, &of("a/b"));
        one.acquire(of("c"));
        assert_eq!(one.acquire(of("a/b")), number);
        assert_eq!(number, 1_004_918_010, "numbers must not change between releases");
    }

    #[test]
    fn path_type_and_version_each_change_the_number() {
        let path = RemotePath::decode("a").unwrap();
        let etag = |text| FileVersion::Etag(bootcast_proto::Etag::new(text).unwrap());
        let identities = [
            Identity::of(&path, None, Kind::Directory),
            Identity::of(&path, None, Kind::Symlink),
            Identity::of(&path, Some(&etag("1")), Kind::File),
            Identity::of(&path, Some(&etag("2")), Kind::File),
            Identity::of(&path, Some(&FileVersion::Plain(1)), Kind::File),
            Identity::of(&RemotePath::decode("b").unwrap(), None, Kind::Directory),
        ];
        let mut numbers = Numbers::default();
        let taken: std::collections::HashSet<_> =
            identities.iter().map(|identity| numbers.acquire(*identity)).collect();
        assert_eq!(taken.len(), identities.len());
        assert!(taken.iter().all(|number| *number < 1 << 32));
    }

    #[test]
    fn a_displaced_inode_keeps_its_number() {
        let mut numbers = Numbers::default();
        let [first, second] = [70, 71].map(|next| with_candidates([69, next, 0, 0, 0, 0, 0, 0]));
        assert_eq!((numbers.acquire(first), numbers.acquire(second)), (69, 71));
        numbers.release(69, &first);
        numbers.release(71, &second);
        assert_eq!(numbers.acquire(second), 71, "as before, though its first candidate is free");
        assert_eq!(numbers.acquire(with_candidates([71, 72, 0, 0, 0, 0, 0, 0])), 72);
        assert_eq!(numbers.acquire(first), 69);
    }

    #[test]
    fn predicted_numbers_are_those_that_the_entries_acquire() {
        let mut numbers = Numbers::default();
        let entries = [80, 81, 82].map(|next| with_candidates([79, next, 0, 0, 0, 0, 0, 0]));
        let mut listed = HashMap::new();
        let predicted = entries.map(|entry| numbers.predict(entry, &mut listed));
        assert_eq!(predicted, [79, 81, 82]);
        let mut backwards = entries;
        backwards.reverse();
        assert_eq!(backwards.map(|entry| numbers.acquire(entry)), [82, 81, 79]);
        assert_eq!(entries.map(|entry| numbers.predict(entry, &mut HashMap::new())), predicted);
    }

    #[test]
    fn reserved_numbers_are_never_assigned() {
        let mut numbers = Numbers::default();
        let identity = with_candidates([0, 1, 1, 0, 0, 1, 0, 1]);
        let other = with_candidates([1, 0, 1, 0, 0, 1, 0, 1]);
        let assigned = [numbers.acquire(identity), numbers.acquire(other)];
        assert!(assigned.iter().all(|number| *number >= 1 << 32), "{assigned:?}");
        assert_ne!(assigned[0], assigned[1]);
    }
}
