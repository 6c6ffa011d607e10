//! Random choices of a test, which can be repeated.

use std::time::SystemTime;

/// Environment variable with the seed of an earlier run.
const SEED: &str = "BOOTCAST_SEED";

/// Random numbers from a seed (`SplitMix64`).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Creates random numbers from the seed in the environment variable `BOOTCAST_SEED`, otherwise
    /// from the clock. Prints the seed, so that a failed test shows it.
    pub fn new() -> Self {
        let clock = || {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            since.map_or(1, |since| u64::from(since.subsec_nanos()) ^ since.as_secs())
        };
        let seed = given_seed().unwrap_or_else(clock);
        println!("repeat with {SEED}={seed}");
        Self(seed)
    }

    /// Creates the same random numbers every time, unless the environment variable names a seed.
    pub fn seeded(seed: u64) -> Self {
        Self(given_seed().unwrap_or(seed))
    }

    /// Returns a number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// Returns the seed in the environment variable.
fn given_seed() -> Option<u64> {
    let given = std::env::var(SEED).ok()?;
    Some(given.parse().expect("a seed is a number"))
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}
