//! Encodes repair symbols of a file into datagrams. docs/PROTOCOL.md, "The code".
//!
//! Every symbol needs all pages of its block, and blocks are interleaved over a window. Therefore
//! neighbouring blocks are read together, one row of pages at a time. The symbols of a block that
//! will be sent next are encoded together, so that its pages are read once for all of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::sync::Arc;

use bootcast_proto::fec::{Engine, REPAIRS, RepairIndex, SourceIndex, encode_all};
use bootcast_proto::wire::{REPAIR_HEADER_LEN, symbol_header};
use bootcast_proto::{BlockIndex, BlockLayout, DatagramKey, Geometry, PageRange};

use super::page_reader::ReadError;
use super::reading::read_exact;
use crate::cast::Symbol;
use crate::source::Version;

/// Maximum number of symbols of a block that are encoded together. Encoding eight takes only twice
/// as long as encoding one.
const ENCODE_AHEAD: usize = 8;

/// Maximum number of bytes that are read for several blocks together. A single block may be larger.
const MAX_READ_BYTES: usize = 3 << 20;

/// Encodes the repair symbols of one version of one file.
#[derive(Debug)]
pub struct RepairReader {
    file: Arc<File>,
    version: Version,
    geometry: Geometry,
    layout: BlockLayout,
    /// Key that tags the datagrams; `None` leaves them without tags.
    key: Option<DatagramKey>,
    engine: Engine,
    /// Symbols that were encoded and not sent yet.
    encoded: BTreeMap<(BlockIndex, RepairIndex), Vec<u8>>,
    /// Consecutive datagrams that the last call of [`Self::datagrams`] returned.
    datagrams: Vec<u8>,
    bytes_read: u64,
}

/// Buffer for the pages of neighbouring blocks, row by row. All readers use it in turn.
#[derive(Debug, Default)]
pub struct Rows(Vec<u8>);

/// Neighbouring blocks of one window.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: BlockIndex,
    blocks: u32,
}

impl RepairReader {
    /// Creates a reader; nothing is read yet.
    pub fn new(file: Arc<File>, version: Version, geometry: Geometry, layout: BlockLayout) -> Self {
        Self {
            file,
            version,
            geometry,
            layout,
            key: None,
            engine: Engine::best(),
            encoded: BTreeMap::new(),
            datagrams: Vec::new(),
            bytes_read: 0,
        }
    }

    /// Sets the key that tags the datagrams.
    #[must_use]
    pub(super) fn tagged(self, key: Option<DatagramKey>) -> Self {
        Self { key, ..self }
    }

    /// Returns the number of bytes read from the file so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Returns the datagrams of these symbols, all full. Keeps the symbols until [`Self::discard`],
    /// and beside them about `ahead_bytes` of symbols that will be sent next.
    pub fn datagrams(
        &mut self,
        symbols: &[Symbol],
        ahead_bytes: usize,
        rows: &mut Rows,
    ) -> Result<&[u8], ReadError> {
        self.datagrams.clear();
        for (at, symbol) in symbols.iter().enumerate() {
            let key = (symbol.block, symbol.number);
            if !self.encoded.contains_key(&key) {
                self.encode(&symbols[at..], ahead_bytes, rows)?;
            }
            let payload = self.encoded.get(&key).expect("encoded above");
            let header = symbol_header(symbol.block, symbol.number, symbol.promised);
            self.datagrams.extend_from_slice(&header);
            self.datagrams.extend_from_slice(payload);
        }
        if let Some(key) = &self.key {
            let datagram_len = REPAIR_HEADER_LEN + self.page_size();
            key.seal_all(&mut self.datagrams, datagram_len);
        }
        Ok(&self.datagrams)
    }

    /// Discards symbols that were sent.
    pub fn discard(&mut self, sent: &[Symbol]) {
        for symbol in sent {
            self.encoded.remove(&(symbol.block, symbol.number));
        }
    }

    /// Encodes the first of these symbols, and those after it as long as their blocks are
    /// neighbours.
    fn encode(
        &mut self,
        symbols: &[Symbol],
        ahead_bytes: usize,
        rows: &mut Rows,
    ) -> Result<(), ReadError> {
        let span = self.span(symbols);
        self.read(span, rows)?;
        let page_size = self.page_size();
        let has_room = self.encoded.len() * page_size < ahead_bytes;
        let ahead = if has_room { ENCODE_AHEAD } else { 1 };
        for symbol in &symbols[..span.blocks as usize] {
            let numbers = (0..outstanding(*symbol).min(ahead)).map(|step| {
                let number = (symbol.number.get() + step) % REPAIRS;
                RepairIndex::new(number).expect("a remainder by 128")
            });
            let mut payloads: Vec<_> = numbers.map(|number| (number, vec![0; page_size])).collect();
            let mut repairs: Vec<_> =
                payloads.iter_mut().map(|(number, payload)| (*number, &mut payload[..])).collect();
            let sources: Vec<_> = self.sources(span, symbol.block, rows).collect();
            encode_all(self.engine, &mut repairs, &sources);
            for (number, payload) in payloads {
                self.encoded.insert((symbol.block, number), payload);
            }
        }
        Ok(())
    }

    /// Returns the first of these blocks, with the neighbours after it that need encoding too.
    fn span(&self, symbols: &[Symbol]) -> Span {
        let first = symbols[0].block;
        let window = self.layout.window_of_block(first);
        let most = (MAX_READ_BYTES / (REPAIRS * self.page_size())).max(1);
        let neighbours = symbols.iter().zip(first.0..).take(most).take_while(|(symbol, block)| {
            symbol.block.0 == *block
                && self.layout.window_of_block(symbol.block) == window
                && !self.encoded.contains_key(&(symbol.block, symbol.number))
        });
        Span { first, blocks: u32::try_from(neighbours.count()).unwrap_or(1) }
    }

    /// Reads the pages of these blocks row by row. A row holds the pages at one position of all the
    /// blocks.
    fn read(&mut self, span: Span, rows: &mut Rows) -> Result<(), ReadError> {
        rows.0.resize(REPAIRS * self.row_len(span), 0);
        let row_len = self.row_len(span);
        for (position, row) in rows.0.chunks_exact_mut(row_len).enumerate() {
            let bytes = self.geometry.byte_range(self.row(span, position));
            let len = usize::try_from(bytes.end - bytes.start).expect("a row fits memory");
            let mut row = [IoSliceMut::new(&mut row[..len])];
            read_exact(&self.file, &mut row, bytes.start)?;
            self.bytes_read += len as u64;
        }
        // Checked after the read: if the version is still the same, the bytes belong to it.
        if Version::of_file(&self.file).map_err(ReadError::Io)? != self.version {
            return Err(ReadError::Changed);
        }
        Ok(())
    }

    /// Returns the pages of one block of the span that [`Self::read`] read.
    fn sources<'a>(
        &self,
        span: Span,
        block: BlockIndex,
        rows: &'a Rows,
    ) -> impl Iterator<Item = (SourceIndex, &'a [u8])> {
        let (geometry, page_size, row_len) = (self.geometry, self.page_size(), self.row_len(span));
        let offset = (block.0 - span.first.0) as usize * page_size;
        let pages: Vec<_> = self.layout.pages_in(block).collect();
        pages.into_iter().map(move |(source, page)| {
            let start = source.get() * row_len + offset;
            let len = geometry.page_len(page).unwrap_or(0) as usize;
            (source, &rows.0[start..start + len])
        })
    }

    /// Returns the pages at one position of these blocks. Shorter blocks may have none there.
    fn row(&self, span: Span, position: usize) -> PageRange {
        let page = |block: u32| {
            let source = SourceIndex::new(position)?;
            self.layout.page_at(BlockIndex(block), source)
        };
        // The longer blocks of a window come first.
        let pages = (span.first.0..span.first.0 + span.blocks).map_while(page);
        let Some((first, count)) = pages.fold(None, |run, page| match run {
            None => Some((page, 1)),
            Some((first, count)) => Some((first, count + 1)),
        }) else {
            return PageRange::default();
        };
        PageRange::new(first.0, first.0 + count)
    }

    /// Returns the length of a row in the buffer, in bytes.
    fn row_len(&self, span: Span) -> usize {
        span.blocks as usize * self.page_size()
    }

    fn page_size(&self) -> usize {
        self.geometry.page_size().get() as usize
    }
}

/// Returns how many promised symbols of the block are to be sent from this one on: 1 to 128. A
/// promise of 255 stands for any larger one, so that only this symbol is certain.
fn outstanding(symbol: Symbol) -> usize {
    if symbol.promised == u8::MAX {
        return 1;
    }
    let (promised, number) = (usize::from(symbol.promised), symbol.number.get());
    (promised + REPAIRS - number - 1) % REPAIRS + 1
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bootcast_proto::PageSize;
    use bootcast_proto::fec::decode;
    use bootcast_proto::tag::TAG;
    use bootcast_proto::wire::REPAIR_HEADER_LEN;
    use proptest::prelude::*;
    use tempfile::NamedTempFile;

    use super::*;

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
    }

    fn reader(file: &NamedTempFile, page_size: u64, interleave: u32) -> RepairReader {
        let file = file.reopen().unwrap();
        let version = Version::of_file(&file).unwrap();
        let geometry = Geometry::new(version.size(), PageSize::new(page_size).unwrap()).unwrap();
        let layout = BlockLayout::new(geometry.pages(), interleave).unwrap();
        RepairReader::new(Arc::new(file), version, geometry, layout)
    }

    fn symbol(block: u32, number: usize, promised: u8) -> Symbol {
        let number = RepairIndex::new(number % REPAIRS).unwrap();
        Symbol { block: BlockIndex(block), number, promised }
    }

    #[test]
    fn promised_symbols_are_encoded_with_the_first_from_a_single_read() {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&content(50_000)).unwrap();
        let mut reader = reader(&file, 100, 4);
        let mut rows = Rows::default();
        let layer = |number| (0..4).map(|block| symbol(block, number, 5)).collect::<Vec<_>>();
        for number in 0..5 {
            reader.datagrams(&layer(number), 1 << 20, &mut rows).unwrap();
            reader.discard(&layer(number));
        }
        assert_eq!(reader.bytes_read(), 50_000);
        assert!(reader.encoded.is_empty());
    }

    #[test]
    fn a_change_of_the_file_is_detected_before_its_symbols_are_sent() {
        let changes: [fn(&NamedTempFile); 2] = [
            |file| file.as_file().set_len(100).unwrap(),
            |file| file.as_file().write_all(b"x").unwrap(),
        ];
        for change in changes {
            let mut file = NamedTempFile::new().unwrap();
            file.write_all(&content(5000)).unwrap();
            let mut reader = reader(&file, 100, 1);
            change(&file);
            let failed = reader.datagrams(&[symbol(0, 0, 1)], 0, &mut Rows::default());
            assert!(matches!(failed, Err(ReadError::Changed)));
        }
    }

    #[test]
    fn outstanding_symbols_are_counted_from_this_symbol_on() {
        for (number, promised, expected) in [(0, 1, 1), (0, 128, 128), (127, 128, 1), (3, 5, 2)] {
            assert_eq!(outstanding(symbol(0, number, promised)), expected);
        }
        // Symbol numbers have wrapped: 130 were sent.
        assert_eq!(outstanding(symbol(0, 130, 140)), 10);
        assert_eq!(outstanding(symbol(0, 0, 255)), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_symbol_rebuilds_a_page_of_its_block(
            size in 1usize..200_000, page_size in 30u64..400, interleave in 1u32..9,
            number in 0usize..128, promised in 1u8.., lost: u32, ahead_bytes in 0usize..9000,
            key: Option<[u8; 32]>,
        ) {
            let key = key.map(DatagramKey::from_random);
            let content = content(size);
            let mut file = NamedTempFile::new().unwrap();
            file.write_all(&content).unwrap();
            let mut reader = reader(&file, page_size, interleave).tagged(key);
            let (layout, geometry) = (reader.layout, reader.geometry);
            let symbols: Vec<_> =
                (0..layout.blocks()).map(|block| symbol(block, number, promised)).collect();
            let mut rows = Rows::default();
            let datagrams = reader.datagrams(&symbols, ahead_bytes, &mut rows).unwrap().to_vec();
            let len = usize::try_from(page_size).unwrap();
            let page = |page| {
                let bytes = geometry.byte_range(PageRange::single(page));
                &content[usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap()]
            };
            let datagrams = datagrams.chunks(REPAIR_HEADER_LEN + len);
            for (wanted, datagram) in symbols.iter().zip(datagrams) {
                let (header, payload) = datagram.split_at(REPAIR_HEADER_LEN);
                let mut expected = symbol_header(wanted.block, wanted.number, promised);
                if let Some(key) = key {
                    prop_assert!(key.is_genuine(datagram));
                    expected[TAG].copy_from_slice(&header[TAG]);
                }
                prop_assert_eq!(header, expected);
                let pages: Vec<_> = layout.pages_in(wanted.block).collect();
                let (missing, lost) = pages[lost as usize % pages.len()];
                let present = pages.iter().filter(|it| it.0 != missing);
                let present: Vec<_> = present.map(|it| (it.0, page(it.1))).collect();
                let repairs = [(wanted.number, payload)];
                let rebuilt = decode(Engine::best(), len, &[missing], &present, &repairs).unwrap();
                prop_assert_eq!(&rebuilt[0][..page(lost).len()], page(lost));
            }
        }
    }
}
