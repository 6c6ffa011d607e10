//! Computes the tags of eight datagrams in parallel.
//!
//! The BLAKE3 library hashes the chunks of a long message in parallel, but a datagram of 1472 bytes
//! has only two chunks. Datagrams of equal length need the same computation, so here each datagram
//! has a vector lane of its own.
//!
//! The computation is that of the BLAKE3 paper, section 2. The library hashes messages longer than
//! two chunks; it is fast at these.

use core::ops::Range;

use super::{KEY_LEN, TAG, Tag};

/// Datagrams hashed in parallel.
pub(super) const LANES: usize = 8;

/// Bytes of a block: the input of one compression.
const BLOCK: usize = 64;

/// [`BLOCK`] as a `u32`, the type of the compression function's length word.
const BLOCK_LEN: u32 = 64;
const _: () = assert!(BLOCK_LEN as usize == BLOCK);

/// Bytes of a chunk: a leaf of the hash tree.
const CHUNK: usize = 1024;

/// Longest message that this module hashes.
const MESSAGE_MAX: usize = 2 * CHUNK;

/// Initialization vector: BLAKE3 paper, table 1.
const IV: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Compression flags: BLAKE3 paper, table 3.
mod flag {
    pub(super) const CHUNK_START: u32 = 1;
    pub(super) const CHUNK_END: u32 = 1 << 1;
    pub(super) const PARENT: u32 = 1 << 2;
    pub(super) const ROOT: u32 = 1 << 3;
    pub(super) const KEYED_HASH: u32 = 1 << 4;
}

const ROUNDS: usize = 7;

/// Index of the block's word that each step of a round mixes in.
const SCHEDULE: [[usize; 16]; ROUNDS] = schedule();

/// Computes the schedule: the words of a block are permuted between two rounds (BLAKE3 paper, table
/// 2).
const fn schedule() -> [[usize; 16]; ROUNDS] {
    const PERMUTATION: [usize; 16] = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
    let mut rounds = [[0; 16]; ROUNDS];
    let (mut round, mut word) = (0, 0);
    while round < ROUNDS {
        while word < 16 {
            rounds[round][word] =
                if round == 0 { word } else { rounds[round - 1][PERMUTATION[word]] };
            word += 1;
        }
        (round, word) = (round + 1, 0);
    }
    rounds
}

/// Computes the tags of one to eight datagrams. `None` if their lengths differ or are too long, or
/// if this CPU lacks the instructions.
pub(super) fn tags(key: &[u8; KEY_LEN], datagrams: &[&[u8]]) -> Option<[Tag; LANES]> {
    let len = datagrams.first()?.len();
    let fits = (TAG.end..=MESSAGE_MAX + TAG.len()).contains(&len) && datagrams.len() <= LANES;
    if !fits || datagrams.iter().any(|datagram| datagram.len() != len) {
        return None;
    }
    // Unused lanes hash the first datagram again.
    let lanes = core::array::from_fn(|lane| *datagrams.get(lane).unwrap_or(&datagrams[0]));
    sys::tags(key, &lanes)
}

/// Copies the block at offset `at` of the message, padded with zeros.
///
/// The message is the datagram without its tag. The first block must be copied because the tag
/// divides its bytes in the datagram, the last block because of the padding.
fn edge_block(datagram: &[u8], at: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let front = if at == 0 { &datagram[..TAG.start] } else { &[] };
    let (front_of_block, rest_of_block) = block.split_at_mut(front.len());
    front_of_block.copy_from_slice(front);
    let rest = &datagram[TAG.end.max(TAG.len() + at)..];
    let len = rest.len().min(rest_of_block.len());
    rest_of_block[..len].copy_from_slice(&rest[..len]);
    block
}

/// Offset, length and flags of each block in a chunk of the message.
fn blocks(chunk: Range<usize>) -> impl Iterator<Item = (usize, u32, u32)> {
    let Range { start, end } = chunk;
    (start..end).step_by(BLOCK).map(move |at| {
        let first = if at == start { flag::CHUNK_START } else { 0 };
        let last = if at + BLOCK >= end { flag::CHUNK_END } else { 0 };
        let len = u32::try_from(end - at).unwrap_or(BLOCK_LEN).min(BLOCK_LEN);
        (at, len, first | last | flag::KEYED_HASH)
    })
}

/// Stand-in for architectures without an implementation here.
#[cfg(not(target_arch = "x86_64"))]
mod sys {
    use super::{KEY_LEN, LANES, Tag};

    pub(super) fn tags(_: &[u8; KEY_LEN], _: &[&[u8]; LANES]) -> Option<[Tag; LANES]> {
        None
    }
}

/// Access to vector instructions.
#[cfg(target_arch = "x86_64")]
#[expect(
    unsafe_code,
    reason = "vector instructions and raw loads; each block says why it is sound"
)]
mod sys {
    use core::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_loadu_si256, _mm256_or_si256, _mm256_permute2x128_si256,
        _mm256_set1_epi32, _mm256_setr_epi8, _mm256_shuffle_epi8, _mm256_slli_epi32,
        _mm256_srli_epi32, _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64,
        _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
    };
    use core::array::from_fn;
    use core::ops::Range;

    use super::{
        BLOCK, BLOCK_LEN, CHUNK, IV, KEY_LEN, LANES, SCHEDULE, TAG, Tag, blocks, edge_block, flag,
    };

    cpufeatures::new!(avx2, "avx2");

    /// One word of each lane.
    type Words = __m256i;

    /// Bytes that one load takes: half a block.
    const HALF: usize = size_of::<Words>();
    const _: () = assert!(2 * HALF == BLOCK);

    pub(super) fn tags(key: &[u8; KEY_LEN], datagrams: &[&[u8]; LANES]) -> Option<[Tag; LANES]> {
        // SAFETY: the CPU has AVX2, as checked in the same expression.
        avx2::get().then(|| unsafe { hash(key, datagrams) })
    }

    /// Hashes datagrams of equal length, at most two chunks each.
    #[target_feature(enable = "avx2")]
    fn hash(key: &[u8; KEY_LEN], datagrams: &[&[u8]; LANES]) -> [Tag; LANES] {
        let words = key.as_chunks().0;
        let key: [Words; 8] = from_fn(|word| broadcast(u32::from_le_bytes(words[word])));
        let len = datagrams[0].len() - TAG.len();
        let root = if len <= CHUNK {
            chunk(&key, datagrams, 0..len, flag::ROOT)
        } else {
            let left = chunk(&key, datagrams, 0..CHUNK, 0);
            let right = chunk(&key, datagrams, CHUNK..len, 0);
            let mut both = [broadcast(0); 16];
            both[..8].copy_from_slice(&left);
            both[8..].copy_from_slice(&right);
            let flags = flag::PARENT | flag::ROOT | flag::KEYED_HASH;
            compress(&key, &both, [0, BLOCK_LEN, flags])
        };
        let (low, high) = (lanes(root[0]), lanes(root[1]));
        from_fn(|lane| (u64::from(high[lane]) << 32 | u64::from(low[lane])).to_le_bytes())
    }

    /// Hashes one chunk of each message. `root` is [`flag::ROOT`] if the message has no other
    /// chunk, else 0.
    #[target_feature(enable = "avx2")]
    fn chunk(
        key: &[Words; 8],
        datagrams: &[&[u8]; LANES],
        chunk: Range<usize>,
        root: u32,
    ) -> [Words; 8] {
        let number = u32::from(chunk.start > 0);
        blocks(chunk).fold(*key, |state, (at, len, flags)| {
            let is_last = flags & flag::CHUNK_END != 0;
            let flags = flags | if is_last { root } else { 0 };
            compress(&state, &load(datagrams, at), [number, len, flags])
        })
    }

    /// Compression function of the paper, truncated to 8 words. `number` is the chunk's number in
    /// the message; `len` and `flags` are those of the block.
    #[target_feature(enable = "avx2")]
    fn compress(
        state: &[Words; 8],
        block: &[Words; 16],
        [number, len, flags]: [u32; 3],
    ) -> [Words; 8] {
        let mut v = [broadcast(0); 16];
        v[..8].copy_from_slice(state);
        v[8..12].copy_from_slice(&[IV[0], IV[1], IV[2], IV[3]].map(|word| broadcast(word)));
        (v[12], v[14], v[15]) = (broadcast(number), broadcast(len), broadcast(flags));
        round::<0>(&mut v, block);
        round::<1>(&mut v, block);
        round::<2>(&mut v, block);
        round::<3>(&mut v, block);
        round::<4>(&mut v, block);
        round::<5>(&mut v, block);
        round::<6>(&mut v, block);
        from_fn(|word| _mm256_xor_si256(v[word], v[word + 8]))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn round<const ROUND: usize>(v: &mut [Words; 16], block: &[Words; 16]) {
        let word = |at: usize| block[SCHEDULE[ROUND][at]];
        mix(v, [0, 4, 8, 12], word(0), word(1));
        mix(v, [1, 5, 9, 13], word(2), word(3));
        mix(v, [2, 6, 10, 14], word(4), word(5));
        mix(v, [3, 7, 11, 15], word(6), word(7));
        mix(v, [0, 5, 10, 15], word(8), word(9));
        mix(v, [1, 6, 11, 12], word(10), word(11));
        mix(v, [2, 7, 8, 13], word(12), word(13));
        mix(v, [3, 4, 9, 14], word(14), word(15));
    }

    /// Quarter round of the paper.
    #[target_feature(enable = "avx2")]
    #[inline]
    #[expect(clippy::many_single_char_names, reason = "the paper's names")]
    fn mix(v: &mut [Words; 16], [a, b, c, d]: [usize; 4], x: Words, y: Words) {
        v[a] = _mm256_add_epi32(_mm256_add_epi32(v[a], v[b]), x);
        v[d] = rotate_bytes::<2>(_mm256_xor_si256(v[d], v[a]));
        v[c] = _mm256_add_epi32(v[c], v[d]);
        v[b] = rotate::<12, 20>(_mm256_xor_si256(v[b], v[c]));
        v[a] = _mm256_add_epi32(_mm256_add_epi32(v[a], v[b]), y);
        v[d] = rotate_bytes::<1>(_mm256_xor_si256(v[d], v[a]));
        v[c] = _mm256_add_epi32(v[c], v[d]);
        v[b] = rotate::<7, 25>(_mm256_xor_si256(v[b], v[c]));
    }

    /// Rotates each word right by `RIGHT` bits; `LEFT` is 32 minus `RIGHT`.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn rotate<const RIGHT: i32, const LEFT: i32>(words: Words) -> Words {
        const { assert!(RIGHT + LEFT == 32) };
        _mm256_or_si256(_mm256_srli_epi32::<RIGHT>(words), _mm256_slli_epi32::<LEFT>(words))
    }

    /// Rotates each word right by one or two bytes.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn rotate_bytes<const BYTES: usize>(words: Words) -> Words {
        let one = _mm256_setr_epi8(
            1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12, 1, 2, 3, 0, 5, 6, 7, 4, 9, 10,
            11, 8, 13, 14, 15, 12,
        );
        let two = _mm256_setr_epi8(
            2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11,
            8, 9, 14, 15, 12, 13,
        );
        _mm256_shuffle_epi8(words, if BYTES == 1 { one } else { two })
    }

    /// Loads the block at offset `at` of each message, word by word.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(datagrams: &[&[u8]; LANES], at: usize) -> [Words; 16] {
        if at > 0 && at + BLOCK + TAG.len() <= datagrams[0].len() {
            load_blocks(datagrams, at + TAG.len())
        } else {
            let edges = datagrams.map(|datagram| edge_block(datagram, at));
            load_blocks(&edges.each_ref().map(|edge| &edge[..]), 0)
        }
    }

    /// Loads the block at offset `from` of each slice, word by word.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn load_blocks(lanes: &[&[u8]; LANES], from: usize) -> [Words; 16] {
        // No iterator here: its closures would be compiled without AVX2 and become calls.
        let half = |lane: usize, half: usize| load_words(&lanes[lane][from + half * HALF..]);
        let words_of_half = |index: usize| {
            transpose([
                half(0, index),
                half(1, index),
                half(2, index),
                half(3, index),
                half(4, index),
                half(5, index),
                half(6, index),
                half(7, index),
            ])
        };
        let mut words = [broadcast(0); 16];
        words[..8].copy_from_slice(&words_of_half(0));
        words[8..].copy_from_slice(&words_of_half(1));
        words
    }

    /// Turns eight words of each lane into the lanes of each word: 4 by 4 within the register
    /// halves, then across the halves.
    #[target_feature(enable = "avx2")]
    #[inline]
    #[expect(clippy::many_single_char_names, reason = "a letter for each of eight equal rows")]
    fn transpose([a, b, c, d, e, f, g, h]: [Words; 8]) -> [Words; 8] {
        let [a, b, c, d] = transpose_halves([a, b, c, d]);
        let [e, f, g, h] = transpose_halves([e, f, g, h]);
        let low = |first, second| _mm256_permute2x128_si256::<0x20>(first, second);
        let high = |first, second| _mm256_permute2x128_si256::<0x31>(first, second);
        [low(a, e), low(b, f), low(c, g), low(d, h), high(a, e), high(b, f), high(c, g), high(d, h)]
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn transpose_halves([a, b, c, d]: [Words; 4]) -> [Words; 4] {
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn broadcast(word: u32) -> Words {
        _mm256_set1_epi32(word.cast_signed())
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load_words(bytes: &[u8]) -> Words {
        assert!(bytes.len() >= size_of::<Words>());
        // SAFETY: 32 bytes can be read, and the load needs no alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn lanes(words: Words) -> [u32; LANES] {
        let mut lanes = [0; LANES];
        // SAFETY: 32 bytes can be written, and the store needs no alignment.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), words) };
        lanes
    }
}
