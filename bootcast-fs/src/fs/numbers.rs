//! Inode numbers, derived from what an inode stands for.
//!
//! The number is a hash of path, type and version. So it survives that the kernel forgets the
//! inode, and is the same in a listing, in `stat` and in every other mount of the same directory.
//! Programs rely on the first two: `cp -r`, `tar` and `find` take a file whose number changed for
//! another one.
//!
//! Numbers have 32 bits, because programs with a 32-bit `ino_t` fail on larger ones. Two of 100,000
//! names are then likely to collide; the second gets another number and keeps it.

use std::collections::HashMap;

use bootcast_proto::RemotePath;
use bootcast_proto::api::Kind;

use super::FileVersion;
use super::inode::ROOT;

/// Identity of an inode: the hash of its path, its type and its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity([u8; 32]);

impl Identity {
    /// The type is part of it: the kernel must never see an inode change its type.
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

    /// Numbers to try, the best first: those of 32 bits that the hash holds, then larger ones.
    fn candidates(&self) -> impl Iterator<Item = u64> {
        let small = self.0.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word).into());
        let start =
            self.0.as_chunks().0.iter().fold(0, |sum, word| sum ^ u64::from_be_bytes(*word));
        // All large numbers, from some place on and around: one of them is free.
        let large = (0..=u64::MAX).map(move |step| start.wrapping_add(step) | (1 << 32));
        small.chain(large).filter(|&number| number > ROOT && number != u64::MAX)
    }
}

/// Which numbers are given to which inodes.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Owners of the numbers in use.
    owners: HashMap<u64, Identity>,
    /// Identities whose first candidate was taken, with the number that they got. They keep it for
    /// the life of the mount, and there are few: one in 86,000 of 100,000 names.
    displaced: HashMap<Identity, u64>,
}

impl Numbers {
    /// Takes the number of an inode into use.
    pub(super) fn take(&mut self, identity: Identity) -> u64 {
        let number = self.assign(identity, |_| true);
        self.owners.insert(number, identity);
        number
    }

    /// Ends the use of a number.
    pub(super) fn give_back(&mut self, number: u64, identity: &Identity) {
        if !self.displaced.contains_key(identity) && self.owners.get(&number) == Some(identity) {
            self.owners.remove(&number);
        }
    }

    /// Returns the number that [`Self::take`] would give to an entry of a listing. `listed` holds
    /// those of the entries before it.
    pub(super) fn foresee(
        &mut self,
        identity: Identity,
        listed: &mut HashMap<u64, Identity>,
    ) -> u64 {
        let number = self
            .assign(identity, |number| listed.get(&number).is_none_or(|owner| *owner == identity));
        listed.insert(number, identity);
        number
    }

    /// Assigns a number to an identity. A number that is not the first choice stays assigned.
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
            .expect("there are more numbers than inodes fit in memory");
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

    /// An identity whose candidates are these, then others.
    fn with_candidates(candidates: [u32; 8]) -> Identity {
        let mut bytes = [0; 32];
        for (place, candidate) in bytes.chunks_exact_mut(4).zip(candidates) {
            place.copy_from_slice(&candidate.to_be_bytes());
        }
        Identity(bytes)
    }

    fn of(path: &str) -> Identity {
        Identity::of(&RemotePath::decode(path).unwrap(), None, Kind::Directory)
    }

    #[test]
    fn the_same_inode_has_the_same_number_in_every_mount_and_after_it_was_forgotten() {
        let (mut one, mut other) = (Numbers::default(), Numbers::default());
        other.take(of("first"));
        let number = one.take(of("a/b"));
        assert_eq!(other.take(of("a/b")), number);
        one.give_back(number, &of("a/b"));
        one.take(of("c"));
        assert_eq!(one.take(of("a/b")), number);
        assert_eq!(number, 1_004_918_010, "a number that earlier programs gave must not change");
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
            identities.iter().map(|identity| numbers.take(*identity)).collect();
        assert_eq!(taken.len(), identities.len());
        assert!(taken.iter().all(|number| *number < 1 << 32));
    }

    #[test]
    fn two_inodes_never_share_a_number_and_the_second_keeps_its_other_one() {
        let mut numbers = Numbers::default();
        let [first, second] = [70, 71].map(|next| with_candidates([69, next, 0, 0, 0, 0, 0, 0]));
        assert_eq!((numbers.take(first), numbers.take(second)), (69, 71));
        numbers.give_back(69, &first);
        numbers.give_back(71, &second);
        assert_eq!(numbers.take(second), 71, "as before, though its first choice is free");
        assert_eq!(numbers.take(with_candidates([71, 72, 0, 0, 0, 0, 0, 0])), 72);
        assert_eq!(numbers.take(first), 69);
    }

    #[test]
    fn the_numbers_of_a_listing_are_those_that_its_entries_get() {
        let mut numbers = Numbers::default();
        let entries = [80, 81, 82].map(|next| with_candidates([79, next, 0, 0, 0, 0, 0, 0]));
        let mut listed = HashMap::new();
        let foreseen = entries.map(|entry| numbers.foresee(entry, &mut listed));
        assert_eq!(foreseen, [79, 81, 82]);
        let mut backwards = entries;
        backwards.reverse();
        assert_eq!(backwards.map(|entry| numbers.take(entry)), [82, 81, 79]);
        assert_eq!(entries.map(|entry| numbers.foresee(entry, &mut HashMap::new())), foreseen);
    }

    #[test]
    fn reserved_numbers_are_given_to_nobody() {
        let mut numbers = Numbers::default();
        let identity = with_candidates([0, 1, 1, 0, 0, 1, 0, 1]);
        let other = with_candidates([1, 0, 1, 0, 0, 1, 0, 1]);
        let given = [numbers.take(identity), numbers.take(other)];
        assert!(given.iter().all(|number| *number >= 1 << 32), "{given:?}");
        assert_ne!(given[0], given[1]);
    }
}
