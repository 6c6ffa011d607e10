//! The header [`HEADER_SPACE`], which states the capacity of the file system of a directory.
//! docs/PROTOCOL.md, "Meta".

use alloc::format;
use alloc::string::String;

/// Response header of `GET /meta/` of a directory with `entries=0`.
pub const HEADER_SPACE: &str = "x-bootcast-space";

/// Capacity of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size.
    pub total: u64,
    /// Bytes that nothing takes up.
    pub free: u64,
    /// Bytes of these that programs without privileges may use.
    pub available: u64,
}

impl Space {
    /// Encodes the three numbers in the order of the fields: `1000000,250000,200000`.
    pub fn encode(&self) -> String {
        format!("{},{},{}", self.total, self.free, self.available)
    }

    /// Parses the output of [`Self::encode`]; `None` if it is malformed, or if more is free than
    /// there is. Further numbers are ignored.
    pub fn decode(text: &str) -> Option<Self> {
        let mut numbers = text.split(',').map(|number| number.trim().parse().ok());
        let (total, free, available) = (numbers.next()??, numbers.next()??, numbers.next()??);
        (available <= free && free <= total).then_some(Self { total, free, available })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded_and_further_numbers_are_ignored() {
        let space = Space { total: 1000, free: 250, available: 200 };
        assert_eq!(space.encode(), "1000,250,200");
        assert_eq!(Space::decode("1000,250,200"), Some(space));
        assert_eq!(Space::decode(" 1000, 250,200 ,7"), Some(space));
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for text in
            ["", "1", "1,2", "1,1,-1", "1000,250,251", "1000,1001,1", "99999999999999999999,1,1"]
        {
            assert_eq!(Space::decode(text), None, "{text}");
        }
    }
}
