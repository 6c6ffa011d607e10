//! The repair code `cauchy8-128`: systematic Cauchy Reed-Solomon over GF(2^8).
//!
//! A block has up to 128 *source* symbols, the pages, and up to 128 *repair* symbols. Any 128 of
//! the 256 give the block back, because every square part of a Cauchy matrix can be inverted
//! (Blömer et al., "An XOR-Based Erasure-Resilient Coding Scheme", 1995). With the field elements
//! `x_i = 128 + i` and `y_j = j`, which all differ, repair symbol *i* is
//!
//! ```text
//! repair_i = sum over j of source_j / (x_i + y_j)
//! ```
//!
//! Each repair symbol is computed independently of the others. In a block with fewer than 128 pages
//! the absent sources count as zero. A shorter page counts as padded with zeros.

mod engine;
mod gf256;

use alloc::vec;
use alloc::vec::Vec;

pub use engine::Engine;

use engine::Sum;
use gf256::{invert, mul};

/// Largest number of source symbols in a block.
pub const SOURCES: usize = 128;

/// Number of different repair symbols of a block.
pub const REPAIRS: usize = 128;

/// Position of a source symbol in its block, `0..128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceIndex(u8);

/// Number of a repair symbol of a block, `0..128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepairIndex(u8);

impl SourceIndex {
    /// Creates the index; `None` from 128 on.
    pub fn new(index: usize) -> Option<Self> {
        u8::try_from(index).ok().filter(|&index| usize::from(index) < SOURCES).map(Self)
    }

    /// The index as a number.
    pub fn get(self) -> usize {
        self.0.into()
    }

    /// Field element of this source symbol: `y_j` above.
    fn element(self) -> u8 {
        self.0
    }
}

impl RepairIndex {
    /// Creates the index; `None` from 128 on.
    pub fn new(index: usize) -> Option<Self> {
        u8::try_from(index).ok().filter(|&index| usize::from(index) < REPAIRS).map(Self)
    }

    /// The index as a number.
    pub fn get(self) -> usize {
        self.0.into()
    }

    /// Field element of this repair symbol: `x_i` above.
    fn element(self) -> u8 {
        128 | self.0
    }
}

/// Returns the factor by which the symbol `repair` multiplies `source`.
fn coefficient(repair: RepairIndex, source: SourceIndex) -> u8 {
    invert(repair.element() ^ source.element())
}

/// Computes the repair symbol `repair` of a block into `symbol`. Sources that are not given count
/// as zero; no source may be longer than `symbol`.
pub fn encode<'a>(
    engine: Engine,
    repair: RepairIndex,
    sources: impl Iterator<Item = (SourceIndex, &'a [u8])>,
    symbol: &mut [u8],
) {
    let sources: Vec<_> = sources.collect();
    encode_all(engine, &mut [(repair, symbol)], &sources);
}

/// Computes several repair symbols of a block, which all have the same length. Several times as
/// fast as a call of [`encode`] for each.
pub fn encode_all(
    engine: Engine,
    repairs: &mut [(RepairIndex, &mut [u8])],
    sources: &[(SourceIndex, &[u8])],
) {
    let sums = repairs.iter_mut().map(|(repair, symbol)| {
        symbol.fill(0);
        sum_of(*repair, sources, symbol)
    });
    engine.add(&mut sums.collect::<Vec<_>>(), &payloads(sources));
}

/// Prepares the sum that adds to `bytes` the sources with the factors of the symbol `repair`.
fn sum_of<'a>(
    repair: RepairIndex,
    sources: &[(SourceIndex, &[u8])],
    bytes: &'a mut [u8],
) -> Sum<'a> {
    let factors = sources.iter().map(|(source, _)| coefficient(repair, *source)).collect();
    Sum { bytes, factors }
}

fn payloads<'a>(sources: &[(SourceIndex, &'a [u8])]) -> Vec<&'a [u8]> {
    sources.iter().map(|(_, bytes)| *bytes).collect()
}

/// Reason why a block cannot be rebuilt from the given symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are fewer repair symbols than missing sources.
    #[error("{missing} pages are missing, but only {repairs} repair symbols are given")]
    TooFew {
        /// Sources to rebuild.
        missing: usize,
        /// Repair symbols given.
        repairs: usize,
    },
    /// A symbol is given twice, or a missing source is also given as present.
    #[error("a symbol is given twice")]
    Twice,
    /// A repair symbol does not have the length of the block's symbols, or a source is longer.
    #[error("a symbol has the wrong length")]
    Length,
}

/// Rebuilds the `missing` sources of a block and returns them in the same order, `len` bytes each.
///
/// `present` must contain all other sources that are not zero. Each of `repairs` has `len` bytes;
/// the first `missing.len()` of them are used.
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
    let syndromes = syndromes(engine, present, used);
    let syndromes: Vec<_> = syndromes.iter().map(Vec::as_slice).collect();
    let rows: Vec<_> = used.iter().map(|(repair, _)| *repair).collect();
    let sums = rebuilt
        .iter_mut()
        .zip(inverse(&rows, missing))
        .map(|(bytes, factors)| Sum { bytes, factors });
    engine.add(&mut sums.collect::<Vec<_>>(), &syndromes);
    Ok(rebuilt)
}

/// Checks that no symbol is given twice and that all lengths fit.
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

/// Subtracts the present sources from each repair symbol. The results are sums of the missing
/// sources alone.
fn syndromes(
    engine: Engine,
    present: &[(SourceIndex, &[u8])],
    used: &[(RepairIndex, &[u8])],
) -> Vec<Vec<u8>> {
    let mut syndromes: Vec<_> = used.iter().map(|(_, symbol)| symbol.to_vec()).collect();
    let sums = syndromes.iter_mut().zip(used).map(|(syndrome, (repair, _))| {
        // In this field subtraction is addition.
        sum_of(*repair, present, syndrome)
    });
    engine.add(&mut sums.collect::<Vec<_>>(), &payloads(present));
    syndromes
}

/// Returns the inverse of the Cauchy matrix `1 / (x_i + y_j)`: a row of factors for each of
/// `columns`.
///
/// The entry for `x_r` and `y_c` is as follows (Knuth, The Art of Computer Programming 1, 1.2.3,
/// exercise 41). In this field subtraction is addition.
///
/// ```text
///                 product over k of (x_k + y_c) (x_r + y_k)
/// -------------------------------------------------------------------------------
/// (x_r + y_c) * product over k != r of (x_r + x_k) * product over k != c of (y_c + y_k)
/// ```
///
/// Apart from `x_r + y_c`, each product depends on the row alone or on the column alone.
fn inverse(rows: &[RepairIndex], columns: &[SourceIndex]) -> Vec<Vec<u8>> {
    let xs: Vec<_> = rows.iter().map(|repair| repair.element()).collect();
    let ys: Vec<_> = columns.iter().map(|source| source.element()).collect();
    let row_factors: Vec<_> = xs.iter().map(|x| factor(*x, &xs, &ys)).collect();
    let column_factors: Vec<_> = ys.iter().map(|y| factor(*y, &ys, &xs)).collect();
    let entry = |x: &u8, y: &u8, row: u8, column: u8| mul(mul(row, column), invert(x ^ y));
    ys.iter()
        .zip(&column_factors)
        .map(|(y, column)| {
            xs.iter().zip(&row_factors).map(|(x, row)| entry(x, y, *row, *column)).collect()
        })
        .collect()
}

/// Returns the part of an entry of the inverse that depends on one row or column alone.
///
/// `element` is its x or y, `axis` contains the elements of all rows or all columns, and `others`
/// those of the other axis. The part is the product of `element + other` over `others`, divided by
/// the product of `element + peer` over the rest of `axis`.
fn factor(element: u8, axis: &[u8], others: &[u8]) -> u8 {
    let product = |elements: &[u8]| elements.iter().fold(1, |acc, other| mul(acc, element ^ other));
    let peers: Vec<_> = axis.iter().copied().filter(|peer| *peer != element).collect();
    mul(product(others), invert(product(&peers)))
}

#[cfg(test)]
mod tests;
