//! The repair code `cauchy8-128`: systematic Cauchy Reed-Solomon over GF(2^8).
//!
//! A block has up to 128 *source* symbols, the pages, and up to 128 *repair* symbols. Any 128 of the 256 give the block
//! back (Blömer et al., "An XOR-Based Erasure-Resilient Coding Scheme", 1995: every square part of a Cauchy matrix
//! can be inverted). With `x_i = 128 + i` and `y_j = j`, elements of the field and all different,
//!
//! ```text
//! repair_i = sum over j of source_j / (x_i + y_j)
//! ```
//!
//! Each repair symbol is computed by itself, whichever others exist. A block with fewer pages is one whose missing sources are
//! zero, and a page shorter than the others one with zeros behind.

mod engine;
mod gf256;

use alloc::vec;
use alloc::vec::Vec;

pub use engine::Engine;

use engine::Term;
use gf256::{invert, mul};

/// Source symbols of a block at most.
pub const SOURCES: usize = 128;

/// Repair symbols of a block at most.
pub const REPAIRS: usize = 128;

/// Position of a source symbol in its block, `0..128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceIndex(u8);

/// Number of a repair symbol of a block, `0..128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepairIndex(u8);

impl SourceIndex {
    /// `None` from 128 on.
    pub fn new(index: usize) -> Option<Self> {
        u8::try_from(index).ok().filter(|&index| usize::from(index) < SOURCES).map(Self)
    }

    /// As a number.
    pub fn get(self) -> usize {
        self.0.into()
    }

    /// `y_j`.
    fn element(self) -> u8 {
        self.0
    }
}

impl RepairIndex {
    /// `None` from 128 on.
    pub fn new(index: usize) -> Option<Self> {
        u8::try_from(index).ok().filter(|&index| usize::from(index) < REPAIRS).map(Self)
    }

    /// As a number.
    pub fn get(self) -> usize {
        self.0.into()
    }

    /// `x_i`.
    fn element(self) -> u8 {
        128 | self.0
    }
}

/// What `source` counts with in `repair`.
fn coefficient(repair: RepairIndex, source: SourceIndex) -> u8 {
    invert(repair.element() ^ source.element())
}

/// The repair symbol `repair` of the block with these sources, into `symbol`. Sources that are not given count as zero; none may be
/// longer than `symbol`.
pub fn encode<'a>(
    engine: Engine,
    repair: RepairIndex,
    sources: impl Iterator<Item = (SourceIndex, &'a [u8])>,
    symbol: &mut [u8],
) {
    symbol.fill(0);
    let terms: Vec<_> = sources
        .map(|(source, bytes)| Term { factor: coefficient(repair, source), symbol: bytes })
        .collect();
    engine.add(symbol, &terms);
}

/// The symbols at hand do not give the block back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer repair symbols than missing sources.
    #[error("{missing} pages are missing and {repairs} repair symbols here")]
    TooFew {
        /// Sources to be rebuilt.
        missing: usize,
        /// Repair symbols given.
        repairs: usize,
    },
    /// An index given twice, or a missing source given as present.
    #[error("a symbol is given twice")]
    Twice,
    /// A symbol is longer than the block's symbols are.
    #[error("a symbol has the wrong length")]
    Length,
}

/// Rebuilds the `missing` sources of a block, each `len` bytes, in the order given.
///
/// `present` are all other sources that are not zero; of `repairs`, each `len` bytes, as many as are missing are used.
pub fn decode(
    engine: Engine,
    len: usize,
    missing: &[SourceIndex],
    present: &[(SourceIndex, &[u8])],
    repairs: &[(RepairIndex, &[u8])],
) -> Result<Vec<Vec<u8>>, DecodeError> {
    let Some(used) = repairs.get(..missing.len()) else {
        return Err(DecodeError::TooFew { missing: missing.len(), repairs: repairs.len() });
    };
    check(len, missing, present, used)?;
    let mut rebuilt = vec![vec![0; len]; missing.len()];
    if missing.is_empty() {
        return Ok(rebuilt);
    }
    let syndromes = syndromes(engine, len, present, used);
    let rows: Vec<_> = used.iter().map(|(repair, _)| *repair).collect();
    for (column, source) in rebuilt.iter_mut().enumerate() {
        let terms: Vec<_> = syndromes
            .iter()
            .enumerate()
            .map(|(row, syndrome)| Term {
                factor: inverse(&rows, missing, row, column),
                symbol: syndrome,
            })
            .collect();
        engine.add(source, &terms);
    }
    Ok(rebuilt)
}

fn check(
    len: usize,
    missing: &[SourceIndex],
    present: &[(SourceIndex, &[u8])],
    used: &[(RepairIndex, &[u8])],
) -> Result<(), DecodeError> {
    let mut sources = 0u128;
    for source in missing.iter().chain(present.iter().map(|(source, _)| source)) {
        if sources & (1 << source.0) != 0 {
            return Err(DecodeError::Twice);
        }
        sources |= 1 << source.0;
    }
    let mut repairs = 0u128;
    for (repair, symbol) in used {
        if repairs & (1 << repair.0) != 0 {
            return Err(DecodeError::Twice);
        }
        repairs |= 1 << repair.0;
        if symbol.len() != len {
            return Err(DecodeError::Length);
        }
    }
    let fits = present.iter().all(|(_, symbol)| symbol.len() <= len);
    if fits { Ok(()) } else { Err(DecodeError::Length) }
}

/// What remains of each repair symbol once the present sources are taken out: a sum of missing ones.
fn syndromes(
    engine: Engine,
    len: usize,
    present: &[(SourceIndex, &[u8])],
    used: &[(RepairIndex, &[u8])],
) -> Vec<Vec<u8>> {
    used.iter()
        .map(|(repair, symbol)| {
            let mut syndrome = vec![0; len];
            syndrome.copy_from_slice(symbol);
            let terms: Vec<_> = present
                .iter()
                .map(|(source, bytes)| Term {
                    factor: coefficient(*repair, *source),
                    symbol: bytes,
                })
                .collect();
            engine.add(&mut syndrome, &terms);
            syndrome
        })
        .collect()
}

/// The entry of the inverse of the Cauchy matrix `1 / (x_i + y_j)` that belongs to `x` of `row` and `y` of `column`
/// (Knuth, The Art of Computer Programming 1, 1.2.3, exercise 41; in this field minus is plus):
///
/// ```text
/// product over k of (x_k + y_column) (x_row + y_k)
/// ---------------------------------------------------------------------------------------------
/// (x_row + y_column) * product over k != row of (x_row + x_k) * product over k != column of (y_column + y_k)
/// ```
fn inverse(rows: &[RepairIndex], columns: &[SourceIndex], row: usize, column: usize) -> u8 {
    let (x, y) = (rows[row].element(), columns[column].element());
    let (mut above, mut below) = (1, x ^ y);
    for (k, (repair, source)) in rows.iter().zip(columns).enumerate() {
        above = mul(above, mul(repair.element() ^ y, x ^ source.element()));
        if k != row {
            below = mul(below, x ^ repair.element());
        }
        if k != column {
            below = mul(below, y ^ source.element());
        }
    }
    mul(above, invert(below))
}

#[cfg(test)]
mod tests;
