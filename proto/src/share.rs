//! Shares of a cast's members, as beacons state them.

/// A share of the members, in 1/65536: a permit or a panel. docs/PROTOCOL.md, "Which members a
/// share means".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u16);

impl Share {
    /// No member.
    pub const NONE: Self = Self(0);

    /// All members.
    pub const ALL: Self = Self(u16::MAX);

    /// Returns the share of `part` members among `whole`, rounded up.
    pub fn of(part: u64, whole: u64) -> Self {
        Self::from_parts(part.saturating_mul(1 << 16).div_ceil(whole.max(1)))
    }

    /// Returns this share multiplied by `factor`, at most all.
    #[must_use]
    pub fn times(self, factor: u64) -> Self {
        Self::from_parts(self.parts().saturating_mul(factor))
    }

    /// Returns this share divided by `divisor`, rounded down.
    #[must_use]
    pub fn divided_by(self, divisor: u64) -> Self {
        Self::from_parts(self.parts() / divisor)
    }

    /// Returns this share of `count`, rounded down.
    pub fn apply(self, count: u64) -> u64 {
        count.saturating_mul(self.parts()) >> 16
    }

    /// Whether the members of this share include those whose tokens have this hash.
    pub fn includes(self, hash: u16) -> bool {
        self == Self::ALL || hash < self.0
    }

    fn from_parts(parts: u64) -> Self {
        u16::try_from(parts).map_or(Self::ALL, Self)
    }

    /// Returns the numerator of the fraction over 65536.
    fn parts(self) -> u64 {
        if self == Self::ALL { 1 << 16 } else { self.0.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_members_are_65536_parts_although_the_wire_says_65535() {
        assert_eq!(Share::of(24, 24), Share::ALL);
        assert_eq!((Share::of(100, 1), Share::of(1, 0)), (Share::ALL, Share::ALL));
        assert_eq!((Share::ALL.apply(1000), Share::ALL.divided_by(4)), (1000, Share(16_384)));
        assert_eq!((Share(16_384).times(4), Share(16_385).times(4)), (Share::ALL, Share::ALL));
        assert!(Share::ALL.includes(u16::MAX));
    }

    #[test]
    fn a_part_of_the_members_is_rounded_up_and_its_number_down() {
        assert_eq!(Share::of(100, 1000), Share(6554));
        assert_eq!((Share(6554).apply(1000), Share(6554).apply(u64::MAX) > 0), (100, true));
        assert_eq!((Share::of(0, 5), Share::NONE.apply(9)), (Share::NONE, 0));
        assert!(Share(7).includes(6) && !Share(7).includes(7) && !Share::NONE.includes(0));
    }
}
