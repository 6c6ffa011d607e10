//! Computes sums of multiples of symbols. Encoding and decoding spend nearly all their time here.

use alloc::vec::Vec;

use super::gf256::NIBBLES;

/// A sum of multiples of symbols, to be computed into `bytes`.
#[derive(Debug)]
pub(super) struct Sum<'a> {
    /// Initial value, to which the multiples are added.
    pub(super) bytes: &'a mut [u8],
    /// One factor for each symbol.
    pub(super) factors: Vec<u8>,
}

/// Implementation of the sums. All implementations give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Computes one byte at a time. The reference, and the fallback of machines without the others.
    Scalar,
    /// Computes 32 bytes at a time, by table look-ups in registers.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Computes 16 bytes at a time, by table look-ups in registers.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Engine {
    /// Fastest implementation that this machine supports.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if sys::has_avx2() {
            return Self::Avx2;
        }
        // Every 64-bit ARM has NEON.
        #[cfg(target_arch = "aarch64")]
        return Self::Neon;
        #[cfg(not(target_arch = "aarch64"))]
        Self::Scalar
    }

    /// All implementations that this machine supports.
    pub fn all() -> impl Iterator<Item = Self> {
        let best = Self::best();
        core::iter::once(Self::Scalar).chain((best != Self::Scalar).then_some(best))
    }

    /// Adds the symbols, multiplied by the sum's factors, to each sum.
    ///
    /// All sums have the same length. A shorter symbol counts as padded with zeros; no symbol may
    /// be longer. The loop takes one piece of all symbols at a time and adds it to every sum,
    /// because the symbols together do not fit in the L1 cache.
    pub(super) fn add(self, sums: &mut [Sum<'_>], symbols: &[&[u8]]) {
        let Some(len) = sums.first().map(|sum| sum.bytes.len()) else { return };
        debug_assert!(sums.iter().all(|sum| sum.bytes.len() == len));
        debug_assert!(sums.iter().all(|sum| sum.factors.len() == symbols.len()));
        debug_assert!(symbols.iter().all(|symbol| symbol.len() <= len));
        // Up to this length every symbol has bytes.
        let common = symbols.iter().map(|symbol| symbol.len()).fold(len, usize::min);
        let done = match self {
            Self::Scalar => 0,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => sys::add_avx2(sums, symbols, common),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => sys::add_neon(sums, symbols, common),
        };
        for sum in sums {
            add_scalar(sum, symbols, done);
        }
    }
}

/// Adds the bytes of the symbols from offset `from` on.
fn add_scalar(sum: &mut Sum<'_>, symbols: &[&[u8]], from: usize) {
    for (factor, symbol) in sum.factors.iter().zip(symbols) {
        let [low, high] = &NIBBLES[usize::from(*factor)];
        let rest = symbol.get(from..).unwrap_or_default();
        for (sum, byte) in sum.bytes[from..].iter_mut().zip(rest) {
            *sum ^= low[usize::from(byte & 15)] ^ high[usize::from(byte >> 4)];
        }
    }
}

/// Access to vector instructions. Each `add_` function returns how many bytes, from the front on,
/// it has computed.
#[expect(
    unsafe_code,
    reason = "vector instructions and raw loads; each block says why it is sound"
)]
mod sys {
    use super::{NIBBLES, Sum};

    #[cfg(target_arch = "x86_64")]
    cpufeatures::new!(avx2, "avx2");

    #[cfg(target_arch = "x86_64")]
    pub(super) fn has_avx2() -> bool {
        avx2::get()
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn add_avx2(sums: &mut [Sum<'_>], symbols: &[&[u8]], common: usize) -> usize {
        if !has_avx2() {
            return 0;
        }
        // SAFETY: the CPU has AVX2, as checked just above.
        unsafe { x86::add(sums, symbols, common) }
    }

    #[cfg(target_arch = "x86_64")]
    mod x86 {
        use core::arch::x86_64::{
            __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256,
            _mm256_loadu_si256, _mm256_set1_epi8, _mm256_setzero_si256, _mm256_shuffle_epi8,
            _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256,
        };

        use super::{NIBBLES, Sum};

        /// Registers that together hold a piece of a sum while all symbols are added to it.
        const LANES: usize = 4;

        /// Bytes of a register.
        const LANE: usize = 32;

        /// Bytes of a piece.
        const PIECE: usize = LANES * LANE;

        /// Zero bits, then one bits: masks out the bytes of the last lane that are done already.
        const EDGE: [u8; 2 * LANE] = {
            let mut edge = [0; 2 * LANE];
            let (_, ones) = edge.split_at_mut(LANE);
            ones.copy_from_slice(&[0xff; LANE]);
            edge
        };

        #[target_feature(enable = "avx2")]
        pub(super) fn add(sums: &mut [Sum<'_>], symbols: &[&[u8]], common: usize) -> usize {
            let (pieces, lanes) = (common / PIECE * PIECE, common / LANE * LANE);
            for at in (0..pieces).step_by(PIECE) {
                for Sum { bytes, factors } in &mut *sums {
                    let mut piece = [_mm256_setzero_si256(); LANES];
                    for (lane, words) in piece.iter_mut().enumerate() {
                        *words = load(&bytes[at + lane * LANE..]);
                    }
                    let piece = add_piece(piece, factors, symbols, at);
                    for (lane, words) in piece.into_iter().enumerate() {
                        store(&mut bytes[at + lane * LANE..], words);
                    }
                }
            }
            for at in (pieces..lanes).step_by(LANE) {
                for Sum { bytes, factors } in &mut *sums {
                    let [lane] = add_piece([load(&bytes[at..])], factors, symbols, at);
                    store(&mut bytes[at..], lane);
                }
            }
            let Some(at) = common.checked_sub(LANE).filter(|_| lanes < common) else {
                return lanes;
            };
            // The last lane overlaps bytes that are done. The mask prevents a second addition.
            let mask = load(&EDGE[LANE - (lanes - at)..]);
            for Sum { bytes, factors } in sums {
                let [products] = add_piece([_mm256_setzero_si256()], factors, symbols, at);
                let products = _mm256_and_si256(products, mask);
                let lane = _mm256_xor_si256(load(&bytes[at..]), products);
                store(&mut bytes[at..], lane);
            }
            common
        }

        /// Adds the bytes of the symbols at offset `at` to a piece of a sum.
        #[target_feature(enable = "avx2")]
        #[inline]
        fn add_piece<const COUNT: usize>(
            mut piece: [__m256i; COUNT],
            factors: &[u8],
            symbols: &[&[u8]],
            at: usize,
        ) -> [__m256i; COUNT] {
            let low_bits = _mm256_set1_epi8(15);
            for (factor, symbol) in factors.iter().zip(symbols) {
                let [low, high] = &NIBBLES[usize::from(*factor)];
                let (low, high) = (broadcast(low), broadcast(high));
                let bytes = &symbol[at..at + COUNT * LANE];
                for (lane, sum) in piece.iter_mut().enumerate() {
                    let byte = load(&bytes[lane * LANE..]);
                    let upper = _mm256_and_si256(_mm256_srli_epi64::<4>(byte), low_bits);
                    let lower = _mm256_and_si256(byte, low_bits);
                    let product = _mm256_xor_si256(
                        _mm256_shuffle_epi8(low, lower),
                        _mm256_shuffle_epi8(high, upper),
                    );
                    *sum = _mm256_xor_si256(*sum, product);
                }
            }
            piece
        }

        #[target_feature(enable = "avx2")]
        fn load(bytes: &[u8]) -> __m256i {
            assert!(bytes.len() >= 32);
            // SAFETY: 32 bytes can be read, and the load needs no alignment.
            unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
        }

        #[target_feature(enable = "avx2")]
        fn store(bytes: &mut [u8], value: __m256i) {
            assert!(bytes.len() >= 32);
            // SAFETY: 32 bytes can be written, and the store needs no alignment.
            unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) }
        }

        #[target_feature(enable = "avx2")]
        fn broadcast(table: &[u8; 16]) -> __m256i {
            // SAFETY: 16 bytes can be read, and the load needs no alignment.
            _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
        }
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn add_neon(sums: &mut [Sum<'_>], symbols: &[&[u8]], common: usize) -> usize {
        use core::arch::aarch64::{
            vandq_u8, vdupq_n_u8, veorq_u8, vld1q_u8, vqtbl1q_u8, vshrq_n_u8, vst1q_u8,
        };
        const PIECE: usize = 16;
        let whole = common / PIECE * PIECE;
        for at in (0..whole).step_by(PIECE) {
            for Sum { bytes, factors } in &mut *sums {
                let piece = &mut bytes[at..at + PIECE];
                // SAFETY: every 64-bit ARM has NEON. Each load and store touches the 16 bytes of a
                // slice of that length.
                unsafe {
                    let mut total = vld1q_u8(piece.as_ptr());
                    for (factor, symbol) in factors.iter().zip(symbols) {
                        let [low, high] = &NIBBLES[usize::from(*factor)];
                        let byte = vld1q_u8(symbol[at..at + PIECE].as_ptr());
                        let lower =
                            vqtbl1q_u8(vld1q_u8(low.as_ptr()), vandq_u8(byte, vdupq_n_u8(15)));
                        let upper = vqtbl1q_u8(vld1q_u8(high.as_ptr()), vshrq_n_u8::<4>(byte));
                        total = veorq_u8(total, veorq_u8(lower, upper));
                    }
                    vst1q_u8(piece.as_mut_ptr(), total);
                }
            }
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_engine_computes_the_same_bytes(
            len in 0usize..700, seed in any::<u8>(),
            rows in proptest::collection::vec(any::<[u8; 20]>(), 0..9),
            cuts in proptest::collection::vec(0usize..700, 0..20),
        ) {
            let fill = |salt: usize, len: usize| -> Vec<u8> {
                let byte = |at: usize| (at * 31 + salt * 101 + usize::from(seed)).to_le_bytes()[0];
                (0..len).map(byte).collect()
            };
            // Every third symbol may be shorter than the sums.
            let symbol = |(salt, cut): (usize, &usize)| {
                fill(salt, if salt % 3 > 0 { len } else { len.min(*cut) })
            };
            let symbols: Vec<_> = cuts.iter().enumerate().map(symbol).collect();
            let symbols: Vec<_> = symbols.iter().map(Vec::as_slice).collect();
            let sums = |engine: Engine| {
                let mut bytes: Vec<_> = (0..rows.len()).map(|row| fill(99 + row, len)).collect();
                let sums = bytes.iter_mut().zip(&rows).map(|(bytes, row)| Sum {
                    bytes,
                    factors: row[..symbols.len()].to_vec(),
                });
                engine.add(&mut sums.collect::<Vec<_>>(), &symbols);
                bytes
            };
            for engine in Engine::all() {
                prop_assert_eq!(sums(engine), sums(Engine::Scalar), "{:?}", engine);
            }
        }
    }
}
