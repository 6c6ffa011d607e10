//! The format before, which is read but not written:
//!
//! ```text
//! {"format":2,"server":..,"path":..,"etag":..,"b3":..,"size":..,"page_size":..}\n
//! bitmap of the held pages, page 0 in the lowest bit of the first byte
//! BLAKE3 hash of everything before it, 32 bytes
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bootcast_proto::PageSet;

use super::{Header, Parsed, Unusable};
use crate::receiver::Assembly;

/// Its format number.
const FORMAT: u32 = 2;

/// Format without a checksum. It is not read: a bit that flipped in it cannot be noticed, and
/// saving it anew would give the damage a right checksum.
const FORMAT_WITHOUT_CHECKSUM: u32 = 1;

/// Most bytes of such a state: a bit for each page of the largest file, and a header.
const MAX_LEN: u64 = 600 << 20;

/// Reads a state of `len` bytes.
pub(super) fn read(file: &File, len: u64) -> io::Result<Result<Parsed, Unusable>> {
    let Some(len) = usize::try_from(len.min(MAX_LEN)).ok() else {
        return Ok(Err(Unusable::Checksum));
    };
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(checked(&bytes).and_then(|body| parse(body).ok_or(Unusable::Mismatch)))
}

fn parse(body: &[u8]) -> Option<Parsed> {
    let (header, bitmap) = split(body)?;
    let geometry = header.geometry().filter(|_| header.format == FORMAT)?;
    let held = PageSet::from_bytes(geometry.pages(), bitmap)?;
    let assembly = Assembly::resume(geometry, held);
    Some(Parsed { header, assembly, is_damaged: false, header_len: None })
}

/// Returns what the checksum covers, if the checksum is right.
fn checked(bytes: &[u8]) -> Result<&[u8], Unusable> {
    if let Some((body, checksum)) = bytes.split_last_chunk::<{ blake3::OUT_LEN }>()
        && blake3::hash(body) == *checksum
    {
        return Ok(body);
    }
    let format = split(bytes).map(|(header, _)| header.format);
    let is_earlier = format == Some(FORMAT_WITHOUT_CHECKSUM);
    Err(if is_earlier { Unusable::NoChecksum } else { Unusable::Checksum })
}

/// Splits the header from the bytes after it.
fn split(bytes: &[u8]) -> Option<(Header, &[u8])> {
    let line = bytes.iter().position(|&byte| byte == b'\n')?;
    Some((serde_json::from_slice(&bytes[..line]).ok()?, &bytes[line + 1..]))
}
