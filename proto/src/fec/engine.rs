//! The one loop that costs time: adding multiples of symbols to a symbol.

use super::gf256::NIBBLES;

/// A symbol and the factor that it counts with. A symbol shorter than the sum stands for itself with
/// zeros behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Term<'a> {
    pub(super) factor: u8,
    pub(super) symbol: &'a [u8],
}

/// A way to compute. All give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Byte by byte: the reference, and what machines without the others use.
    Scalar,
    /// 32 bytes at a time by table look-ups in registers.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 16 bytes at a time, likewise.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Engine {
    /// The fastest that this machine has.
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

    /// Every engine that this machine has.
    pub fn all() -> impl Iterator<Item = Self> {
        let best = Self::best();
        core::iter::once(Self::Scalar).chain((best != Self::Scalar).then_some(best))
    }

    /// Adds the terms to `sum`. No symbol may be longer than it.
    pub(super) fn add(self, sum: &mut [u8], terms: &[Term<'_>]) {
        debug_assert!(terms.iter().all(|term| term.symbol.len() <= sum.len()));
        let done = match self {
            Self::Scalar => 0,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => sys::add_avx2(sum, terms),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => sys::add_neon(sum, terms),
        };
        add_scalar(sum, terms, done);
    }
}

/// Adds what of the terms lies from `from` on.
fn add_scalar(sum: &mut [u8], terms: &[Term<'_>], from: usize) {
    for term in terms {
        let [low, high] = &NIBBLES[usize::from(term.factor)];
        let rest = term.symbol.get(from..).unwrap_or_default();
        for (sum, byte) in sum[from..].iter_mut().zip(rest) {
            *sum ^= low[usize::from(byte & 15)] ^ high[usize::from(byte >> 4)];
        }
    }
}

/// Bytes from the front that every term has.
fn common_len(sum: &[u8], terms: &[Term<'_>]) -> usize {
    terms.iter().map(|term| term.symbol.len()).fold(sum.len(), usize::min)
}

/// The door to vector instructions. Each function returns how many bytes from the front are done.
#[expect(
    unsafe_code,
    reason = "vector instructions and raw loads; each block says why it is sound"
)]
mod sys {
    use super::{NIBBLES, Term, common_len};

    #[cfg(target_arch = "x86_64")]
    cpufeatures::new!(avx2, "avx2");

    #[cfg(target_arch = "x86_64")]
    pub(super) fn has_avx2() -> bool {
        avx2::get()
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn add_avx2(sum: &mut [u8], terms: &[Term<'_>]) -> usize {
        if !has_avx2() {
            return 0;
        }
        // SAFETY: the CPU has AVX2, asked just above.
        unsafe { x86::add(sum, terms) }
    }

    #[cfg(target_arch = "x86_64")]
    mod x86 {
        use core::arch::x86_64::{
            __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256,
            _mm256_loadu_si256, _mm256_set1_epi8, _mm256_shuffle_epi8, _mm256_srli_epi64,
            _mm256_storeu_si256, _mm256_xor_si256,
        };

        use super::{NIBBLES, Term, common_len};

        /// Registers that hold a piece of the sum while all terms are added to it.
        const LANES: usize = 4;
        const PIECE: usize = LANES * 32;

        #[target_feature(enable = "avx2")]
        pub(super) fn add(sum: &mut [u8], terms: &[Term<'_>]) -> usize {
            let whole = common_len(sum, terms) / PIECE * PIECE;
            let low_bits = _mm256_set1_epi8(15);
            for at in (0..whole).step_by(PIECE) {
                let piece = &mut sum[at..at + PIECE];
                let mut sums: [__m256i; LANES] =
                    core::array::from_fn(|lane| load(&piece[lane * 32..]));
                for term in terms {
                    let [low, high] = &NIBBLES[usize::from(term.factor)];
                    let (low, high) = (broadcast(low), broadcast(high));
                    let bytes = &term.symbol[at..at + PIECE];
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        let byte = load(&bytes[lane * 32..]);
                        let upper = _mm256_and_si256(_mm256_srli_epi64::<4>(byte), low_bits);
                        let lower = _mm256_and_si256(byte, low_bits);
                        let product = _mm256_xor_si256(
                            _mm256_shuffle_epi8(low, lower),
                            _mm256_shuffle_epi8(high, upper),
                        );
                        *sum = _mm256_xor_si256(*sum, product);
                    }
                }
                for (lane, sum) in sums.into_iter().enumerate() {
                    store(&mut piece[lane * 32..], sum);
                }
            }
            whole
        }

        #[target_feature(enable = "avx2")]
        fn load(bytes: &[u8]) -> __m256i {
            assert!(bytes.len() >= 32);
            // SAFETY: 32 bytes can be read, and the load asks for no alignment.
            unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
        }

        #[target_feature(enable = "avx2")]
        fn store(bytes: &mut [u8], value: __m256i) {
            assert!(bytes.len() >= 32);
            // SAFETY: 32 bytes can be written, and the store asks for no alignment.
            unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) }
        }

        #[target_feature(enable = "avx2")]
        fn broadcast(table: &[u8; 16]) -> __m256i {
            // SAFETY: 16 bytes can be read, and the load asks for no alignment.
            _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
        }
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn add_neon(sum: &mut [u8], terms: &[Term<'_>]) -> usize {
        use core::arch::aarch64::{
            vandq_u8, vdupq_n_u8, veorq_u8, vld1q_u8, vqtbl1q_u8, vshrq_n_u8, vst1q_u8,
        };
        const PIECE: usize = 16;
        let whole = common_len(sum, terms) / PIECE * PIECE;
        for at in (0..whole).step_by(PIECE) {
            let piece = &mut sum[at..at + PIECE];
            // SAFETY: every 64-bit ARM has NEON; each load and store touches the 16 bytes of a slice of that length.
            unsafe {
                let mut total = vld1q_u8(piece.as_ptr());
                for term in terms {
                    let [low, high] = &NIBBLES[usize::from(term.factor)];
                    let byte = vld1q_u8(term.symbol[at..at + PIECE].as_ptr());
                    let lower = vqtbl1q_u8(vld1q_u8(low.as_ptr()), vandq_u8(byte, vdupq_n_u8(15)));
                    let upper = vqtbl1q_u8(vld1q_u8(high.as_ptr()), vshrq_n_u8::<4>(byte));
                    total = veorq_u8(total, veorq_u8(lower, upper));
                }
                vst1q_u8(piece.as_mut_ptr(), total);
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
            factors in proptest::collection::vec((any::<u8>(), 0usize..700), 0..20),
        ) {
            let fill = |salt: usize, len: usize| -> Vec<u8> {
                (0..len).map(|at| (at * 31 + salt * 101 + usize::from(seed)).to_le_bytes()[0]).collect()
            };
            let symbols: Vec<_> =
                factors.iter().enumerate().map(|(salt, (_, cut))| fill(salt, len.min(*cut))).collect();
            let terms: Vec<_> = factors
                .iter()
                .zip(&symbols)
                .map(|((factor, _), symbol)| Term { factor: *factor, symbol })
                .collect();
            let sum = |engine: Engine| {
                let mut sum = fill(99, len);
                engine.add(&mut sum, &terms);
                sum
            };
            for engine in Engine::all() {
                prop_assert_eq!(sum(engine), sum(Engine::Scalar), "{:?}", engine);
            }
        }
    }
}
