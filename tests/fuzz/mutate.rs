//! Changes inputs at random, for a smoke test without a fuzzer.

use harness::Random;

/// Numbers at which comparisons and sums go wrong.
const NUMBERS: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX - 1,
    u64::MAX,
];

/// Longest input.
const MAX_LEN: usize = 4096;

/// Returns an input that is made of one or two others.
pub(crate) fn mutated(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = pick(inputs, random).to_vec();
    for _ in 0..=random.below(4) {
        let at = below(random, bytes.len() + 1);
        let len = below(random, 16).min(bytes.len() - at);
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + len)),
            2 => bytes.insert(at, random.below(256).to_le_bytes()[0]),
            3 => {
                let other = pick(inputs, random);
                let from = below(random, other.len() + 1);
                bytes.splice(at..at + len, other[from..].iter().copied());
            }
            4 => {
                let number = NUMBERS[below(random, NUMBERS.len())].to_be_bytes();
                let width = [1, 2, 4, 8][below(random, 4)];
                bytes.splice(at..at + len, number[8 - width..].iter().copied());
            }
            5 => {
                let number = NUMBERS[below(random, NUMBERS.len())].to_string();
                bytes.splice(at..at + len, number.into_bytes());
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ => bytes.push(random.below(256).to_le_bytes()[0]),
        }
        bytes.truncate(MAX_LEN);
    }
    bytes
}

fn pick<'a>(inputs: &'a [Vec<u8>], random: &mut Random) -> &'a [u8] {
    &inputs[below(random, inputs.len())]
}

fn below(random: &mut Random, end: usize) -> usize {
    usize::try_from(random.below(end as u64)).unwrap_or_default()
}
