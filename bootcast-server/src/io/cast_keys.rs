//! Derives the keys that tag the casts' datagrams. docs/PROTOCOL.md, "Tags".

use bootcast_proto::DatagramKey;
use bootcast_proto::tag::KEY_LEN;

use crate::cast::CastId;

/// Derives a key for each cast from a seed and the cast's identifier. Because keys are not stored,
/// the key is still available for the end datagrams of a cast that is gone.
#[derive(Clone)]
pub struct CastKeys {
    seed: [u8; KEY_LEN],
}

impl CastKeys {
    /// Creates the keys from random bytes. `seed` must be another one in each run of the server,
    /// because cast identifiers start again from zero.
    pub fn new(seed: [u8; KEY_LEN]) -> Self {
        Self { seed }
    }

    /// Returns the key of this cast. It reveals neither the seed nor another cast's key.
    pub fn of(&self, cast: CastId) -> DatagramKey {
        let key = blake3::keyed_hash(&self.seed, &cast.0.to_be_bytes());
        DatagramKey::from_random(*key.as_bytes())
    }
}

impl std::fmt::Debug for CastKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CastKeys(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cast_and_every_seed_has_a_key_of_its_own() {
        let keys = CastKeys::new([1; KEY_LEN]);
        assert_eq!(keys.of(CastId(7)), keys.clone().of(CastId(7)));
        assert_ne!(keys.of(CastId(7)), keys.of(CastId(8)));
        assert_ne!(keys.of(CastId(7)), CastKeys::new([2; KEY_LEN]).of(CastId(7)));
    }
}
