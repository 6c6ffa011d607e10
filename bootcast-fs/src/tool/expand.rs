//! Expands a compressed file while it is fetched: bytes that arrive in order go down a pipe to a
//! thread that writes what they expand to.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use flate2::read::MultiGzDecoder;
use liblzma::read::XzDecoder;
use liblzma::stream::Stream;
use tokio::task::JoinHandle;
use tracing::debug;

use super::error::ToolError;
use super::output::{InOrder, Sink, Zeros};

/// Names of compressed files end in a dot and one of these.
const SUFFIXES: [&str; 3] = ["zst", "gz", "xz"];
/// Bytes that the pipe holds, if the kernel permits: the fetch goes on while a block is expanded.
const PIPE_BYTES: usize = 1 << 20;
/// Bytes that are expanded before they are written.
const PIECE_BYTES: usize = 1 << 20;
/// Most memory that a zstd file may demand: 2 to this power. `zstd -d` has the same limit.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Most bytes of memory that an xz file may demand. `xz -9` demands 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;
/// Bytes at the start of a file that name its format.
const MAGIC_BYTES: usize = 6;

/// Expansion of one file.
#[derive(Debug)]
pub(super) struct Expansion {
    input: Sink,
    expander: JoinHandle<Result<u64, ToolError>>,
}

impl Expansion {
    /// Starts a thread that expands to `output`. Needs the tokio runtime.
    pub(super) fn start(output: &Sink, zeros: Zeros) -> Result<Self, ToolError> {
        let (reader, writer) = io::pipe()
            .map_err(|error| ToolError::Local(format!("cannot create a pipe: {error}")))?;
        // Without the right to a larger pipe, the usual one serves.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
        let input = Sink::pipe(OwnedFd::from(writer).into());
        let output = output.clone();
        let expander = tokio::task::spawn_blocking(move || {
            let source = BufReader::new(File::from(OwnedFd::from(reader)));
            expand(source, output.in_order(zeros))
        });
        Ok(Self { input, expander })
    }

    /// Returns the end of the pipe that takes the bytes of the compressed file.
    pub(super) fn input(&self) -> Sink {
        self.input.clone()
    }

    /// Waits until the last byte is written, after the last use of the input. `fetched` is the
    /// outcome of the fetch, with the number of its bytes. Returns it with the number of expanded
    /// bytes.
    pub(super) async fn finish(
        self,
        fetched: Result<u64, ToolError>,
    ) -> Result<(u64, u64), ToolError> {
        drop(self.input);
        // A signal ends the command also while the output blocks.
        if let Err(error @ ToolError::Signal(_)) = fetched {
            return Err(error);
        }
        // Also after an error: another attempt writes to the same place.
        let expanded = self.expander.await;
        let expanded = expanded.unwrap_or_else(|error| Err(ToolError::Panic(error.to_string())));
        match (fetched, expanded) {
            (Ok(fetched), expanded) => Ok((fetched, expanded?)),
            // An expander that failed reads no more.
            (Err(ToolError::ReaderGone), Err(cause)) => Err(cause),
            (Err(error), _) => Err(error),
        }
    }
}

/// Expands all of `source`. Returns the number of expanded bytes.
fn expand(source: impl Read, mut output: InOrder) -> Result<u64, ToolError> {
    let mut decoder = decoder(source).map_err(|error| unexpandable(&error))?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let len = fill(&mut *decoder, &mut piece).map_err(|error| unexpandable(&error))?;
        let written = output.write(&piece[..len]);
        written.map_err(|error| output.error(&error))?;
        if len < piece.len() {
            return output.finish().map_err(|error| output.error(&error));
        }
    }
}

/// Reads until `piece` is full or the source ends. Returns the number of bytes read.
fn fill(source: &mut dyn Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < piece.len() {
        match source.read(&mut piece[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Returns the decoder for the format that the first bytes name. Files of several members are
/// expanded one after another, as by `zstd`, `gzip` and `xz`.
fn decoder<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; MAGIC_BYTES];
    let len = fill(&mut source, &mut magic)?;
    let source = Cursor::new(magic).take(len as u64).chain(source);
    Ok(match magic {
        // RFC 8878, sections 3.1.1 and 3.1.2: a frame, or a skippable one before it.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::new(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            debug!("expanding zstd");
            Box::new(decoder)
        }
        // RFC 1952, section 2.3.1.
        [0x1f, 0x8b, ..] => {
            debug!("expanding gzip");
            Box::new(MultiGzDecoder::new(source))
        }
        // The .xz file format, section 2.1.1.1.
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
            debug!("expanding xz");
            Box::new(XzDecoder::new_stream(source, stream))
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "neither zstd, gzip nor xz")),
    })
}

fn unexpandable(error: &io::Error) -> ToolError {
    ToolError::Compressed(match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends in the middle of its compressed data".to_owned(),
        _ => error.to_string(),
    })
}

/// Returns the name of a file whose compressed form has this name.
pub(super) fn expanded_name(name: PathBuf) -> PathBuf {
    let is_compressed =
        name.extension().is_some_and(|it| SUFFIXES.iter().any(|suffix| it == *suffix));
    if is_compressed { name.with_extension("") } else { name }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use liblzma::write::XzEncoder;

    use super::*;
    use crate::tool::output::{Output, PartialFile};

    type Compress = fn(&[u8]) -> Vec<u8>;

    const FORMATS: [Compress; 3] = [zstd, gzip, xz];

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 1).unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Bytes with zeros in the middle and at the end, which fill no whole piece.
    fn image() -> Vec<u8> {
        let data = b"0123456789abcde".repeat(40_000);
        let (hole, end) = (vec![0; 3 << 20], vec![0; 100_000]);
        [data.clone(), hole, data, end].concat()
    }

    /// Expands to a new file. Returns it with the outcome.
    fn expand_to_file(source: &[u8], zeros: Zeros) -> (tempfile::TempDir, Result<u64, ToolError>) {
        let dir = tempfile::tempdir().unwrap();
        let part = PartialFile::create(&dir.path().join("image")).unwrap();
        let outcome = expand(source, part.sink().unwrap().in_order(zeros));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(part.publish(crate::tool::output::OnDisk)).unwrap();
        (dir, outcome)
    }

    fn error_of(source: &[u8]) -> String {
        let (_dir, outcome) = expand_to_file(source, Zeros::Written);
        let error = outcome.unwrap_err();
        assert_eq!(error.exit_code(), 8, "{error}");
        error.to_string()
    }

    #[test]
    fn every_format_expands_and_leaves_zeros_out() {
        let image = image();
        for format in FORMATS {
            for zeros in [Zeros::Written, Zeros::LeftOut, Zeros::Freed(u64::MAX)] {
                let (dir, outcome) = expand_to_file(&format(&image), zeros);
                assert_eq!(outcome.unwrap(), image.len() as u64);
                let file = dir.path().join("image");
                let expanded = std::fs::read(&file).unwrap();
                assert!(image.starts_with(&expanded));
                // A device has its size. So what frees its blocks leaves the size of a file alone.
                assert!(expanded.len() == image.len() || zeros == Zeros::Freed(u64::MAX));
                let allocated = file.metadata().unwrap().blocks() * 512;
                assert_eq!(allocated < image.len() as u64, zeros != Zeros::Written, "{zeros:?}");
            }
        }
    }

    #[test]
    fn several_members_expand_one_after_another() {
        for format in FORMATS {
            let members = [format(b"first, "), format(b""), format(b"second")].concat();
            let (dir, outcome) = expand_to_file(&members, Zeros::Written);
            assert_eq!(outcome.unwrap(), 13);
            assert_eq!(std::fs::read(dir.path().join("image")).unwrap(), b"first, second");
        }
    }

    #[test]
    fn what_is_cut_off_damaged_or_not_compressed_is_an_error() {
        let image = image();
        for format in FORMATS {
            let whole = format(&image);
            let text = error_of(&whole[..whole.len() - 9]);
            assert!(text.contains("it ends in the middle"), "{text}");
            let mut damaged = whole.clone();
            let middle = damaged.len() / 2;
            damaged[middle..middle + 8].fill(0x5a);
            let text = error_of(&damaged);
            assert!(text.starts_with("--decompress cannot expand it: "), "{text}");
        }
        for other in [&b""[..], b"\x1f", b"text that is none"] {
            let text = error_of(other);
            assert!(text.contains("neither zstd, gzip nor xz"), "{text}");
        }
    }

    #[test]
    fn a_file_cannot_demand_more_memory_than_the_limit() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(ZSTD_WINDOW_LOG + 1).unwrap();
        encoder.write_all(b"x").unwrap();
        let text = error_of(&encoder.finish().unwrap());
        assert!(text.contains("too much memory"), "{text}");
    }

    #[test]
    fn the_name_loses_the_suffix_of_the_format() {
        let name = |name: &str| expanded_name(name.into()).into_os_string().into_string().unwrap();
        for (compressed, expanded) in [
            ("a.img.zst", "a.img"),
            ("a.gz", "a"),
            ("a.xz", "a"),
            ("a.img", "a.img"),
            (".zst", ".zst"),
            ("zst", "zst"),
        ] {
            assert_eq!(name(compressed), expanded);
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_other_error() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output = Sink::pipe(OwnedFd::from(writer).into()).in_order(Zeros::Written);
        let outcome = expand(&*gzip(b"text"), output);
        assert!(matches!(outcome, Err(ToolError::ReaderGone)), "{outcome:?}");
        let Ok(Output::Stream(null)) = Output::at("/dev/null".as_ref()) else { panic!() };
        assert_eq!(expand(&*gzip(b"text"), null.in_order(Zeros::Written)).unwrap(), 4);
    }
}
