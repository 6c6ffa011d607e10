//! Encodes repair symbols of a file. docs/PROTOCOL.md, "The code".
//!
//! Every symbol needs all pages of its block, and blocks are interleaved over a window. Therefore
//! neighbouring blocks are read together, one row of pages at a time. The symbols of a block that
//! will be sent next are encoded together, so that its pages are read once for all of them.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bootcast_proto::fec::{Engine, REPAIRS, RepairIndex, SourceIndex, encode_all};
use bootcast_proto::wire::{REPAIR_HEADER_LEN, symbol_header};
use bootcast_proto::{BlockIndex, BlockLayout, DatagramKey, Geometry, PageRange};

use super::ReadFailure;
use super::pages::failure_of;
use super::proof::{PartialLeaves, prove};
use super::source::{PageSource, ReadError, read_ranges};
use crate::cast::Symbol;

/// Maximum number of symbols of a block that are encoded together. Encoding eight takes only twice
/// as long as encoding one.
const ENCODE_AHEAD: usize = 8;

/// Maximum number of bytes that are read for several blocks together. A single block may be larger.
const MAX_READ_BYTES: usize = 3 << 20;

/// Maximum number of buffers for rows that are kept for later reads.
const MAX_SPARE_ROWS: usize = 4;

/// Reads blocks of one version of one file, and encodes their repair symbols.
#[derive(Clone, Debug)]
pub struct SymbolReader {
    source: Arc<dyn PageSource>,
    geometry: Geometry,
    layout: BlockLayout,
    /// Key that tags the datagrams; `None` leaves them without tags.
    key: Option<DatagramKey>,
    engine: Engine,
}

/// Buffers for the pages of neighbouring blocks, row by row. All readers use them in turn.
#[derive(Clone, Debug, Default)]
pub struct Rows(Arc<Mutex<Vec<Vec<u8>>>>);

/// Symbols that were encoded and not sent yet.
#[derive(Debug, Default)]
pub struct SymbolBuffer {
    payloads: BTreeMap<(BlockIndex, RepairIndex), Vec<u8>>,
    /// Consecutive datagrams that the last call of [`Self::datagrams`] returned.
    datagrams: Vec<u8>,
}

/// Outcome of [`SymbolReader::read`].
#[derive(Debug)]
pub struct SymbolsRead {
    /// Symbols that were encoded, some of them also if the read failed later.
    pub encoded: SymbolBuffer,
    /// Why not all symbols were encoded; `None` if they were.
    pub failure: Option<ReadFailure>,
    /// Number of bytes read from the file.
    pub bytes_read: u64,
}

/// Neighbouring blocks of one window.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: BlockIndex,
    blocks: u32,
}

impl SymbolReader {
    /// Creates a reader; nothing is read yet.
    pub fn new(source: Arc<dyn PageSource>, geometry: Geometry, layout: BlockLayout) -> Self {
        Self { source, geometry, layout, key: None, engine: Engine::best() }
    }

    /// Sets the key that tags the datagrams.
    #[must_use]
    pub(super) fn tagged(self, key: Option<DatagramKey>) -> Self {
        Self { key, ..self }
    }

    /// Returns the key that tags the datagrams.
    pub fn key(&self) -> Option<&DatagramKey> {
        self.key.as_ref()
    }

    /// Encodes these symbols, and beside them about `ahead_bytes` of symbols that will be sent
    /// next. May block.
    pub fn read(&self, symbols: &[Symbol], ahead_bytes: usize, rows: &Rows) -> SymbolsRead {
        debug_assert!(!symbols.is_empty(), "the sender would wait for nothing");
        let mut buffer = rows.take();
        let (mut encoded, mut failure, mut bytes_read) = (SymbolBuffer::default(), None, 0);
        for (at, symbol) in symbols.iter().enumerate() {
            if encoded.contains(*symbol) {
                continue;
            }
            let span = self.span(&symbols[at..], &encoded);
            match self.read_rows(span, &mut buffer) {
                Ok(bytes) => bytes_read += bytes,
                Err(error) => {
                    failure = Some(self.failure(error, span));
                    break;
                }
            }
            let blocks = &symbols[at..at + span.blocks as usize];
            self.encode(span, blocks, ahead_bytes, &buffer, &mut encoded);
        }
        rows.put_back(buffer);
        SymbolsRead { encoded, failure, bytes_read }
    }

    /// Encodes the first symbol of each block of the span, and some of those after it.
    fn encode(
        &self,
        span: Span,
        symbols: &[Symbol],
        ahead_bytes: usize,
        rows: &[u8],
        encoded: &mut SymbolBuffer,
    ) {
        let page_size = self.page_size();
        let has_room = encoded.payloads.len() * page_size < ahead_bytes;
        let ahead = if has_room { ENCODE_AHEAD } else { 1 };
        for symbol in symbols {
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
                encoded.payloads.insert((symbol.block, number), payload);
            }
        }
    }

    /// Returns the first of these blocks, with the neighbours after it that need encoding too.
    fn span(&self, symbols: &[Symbol], encoded: &SymbolBuffer) -> Span {
        let first = symbols[0].block;
        let window = self.layout.window_of_block(first);
        let most = (MAX_READ_BYTES / (REPAIRS * self.page_size())).max(1);
        let neighbours = symbols.iter().zip(first.0..).take(most).take_while(|(symbol, block)| {
            symbol.block.0 == *block
                && self.layout.window_of_block(symbol.block) == window
                && !encoded.contains(**symbol)
        });
        Span { first, blocks: u32::try_from(neighbours.count()).unwrap_or(1) }
    }

    /// Reads the pages of these blocks row by row. A row holds the pages at one position of all the
    /// blocks. Returns the number of bytes read.
    fn read_rows(&self, span: Span, rows: &mut Vec<u8>) -> Result<u64, ReadError> {
        let row_len = self.row_len(span);
        rows.resize(REPAIRS * row_len, 0);
        let ranges = (0..REPAIRS).map(|at| self.geometry.byte_range(self.row(span, at)));
        let ranges: Vec<_> = ranges.collect();
        let len = |bytes: &Range<u64>| {
            usize::try_from(bytes.end - bytes.start).expect("a row fits memory")
        };
        let mut buffers: Vec<_> = std::iter::zip(rows.chunks_exact_mut(row_len), &ranges)
            .map(|(row, bytes)| (bytes.start, [IoSliceMut::new(&mut row[..len(bytes)])]))
            .collect();
        let reads = buffers.iter_mut().map(|(offset, row)| (*offset, &mut row[..]));
        read_ranges(&*self.source, reads)?;
        let parts = std::iter::zip(rows.chunks_exact(row_len), &ranges)
            .map(|(row, bytes)| (bytes.clone(), std::iter::once(&row[..len(bytes)])));
        prove(&*self.source, PartialLeaves::Skip, parts)?;
        Ok(ranges.iter().map(|bytes| bytes.end - bytes.start).sum())
    }

    /// Finds the first block of a span with pages that cannot be read, if the error may be theirs.
    fn failure(&self, error: ReadError, span: Span) -> ReadFailure {
        let mut failure = ReadFailure { error, unreadable: Vec::new() };
        for block in span.first.0..span.first.0 + span.blocks {
            let pages = self.layout.pages_in(BlockIndex(block)).map(|(_, page)| page);
            failure = failure_of(&*self.source, &self.geometry, failure.error, pages);
            if !failure.unreadable.is_empty() {
                break;
            }
        }
        failure.unreadable.sort_unstable();
        failure
    }

    /// Returns the pages of one block of the span that [`Self::read_rows`] read.
    fn sources<'a>(
        &self,
        span: Span,
        block: BlockIndex,
        rows: &'a [u8],
    ) -> impl Iterator<Item = (SourceIndex, &'a [u8])> {
        let (geometry, page_size, row_len) = (self.geometry, self.page_size(), self.row_len(span));
        let offset = (block.0 - span.first.0) as usize * page_size;
        let pages: Vec<_> = self.layout.pages_in(block).collect();
        pages.into_iter().map(move |(source, page)| {
            let start = source.get() * row_len + offset;
            let len = geometry.page_len(page).unwrap_or(0) as usize;
            (source, &rows[start..start + len])
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

impl SymbolBuffer {
    /// Whether the symbol was encoded.
    pub fn contains(&self, symbol: Symbol) -> bool {
        self.payloads.contains_key(&(symbol.block, symbol.number))
    }

    /// Returns the number of bytes of the symbols.
    pub fn bytes(&self) -> usize {
        self.payloads.values().next().map_or(0, |payload| payload.len() * self.payloads.len())
    }

    /// Adds symbols.
    pub fn append(&mut self, mut encoded: Self) {
        self.payloads.append(&mut encoded.payloads);
    }

    /// Returns the datagrams of these symbols, all full; `None` unless all are here. Keeps the
    /// symbols until [`Self::discard`].
    pub fn datagrams(&mut self, symbols: &[Symbol], key: Option<&DatagramKey>) -> Option<&[u8]> {
        self.datagrams.clear();
        let mut datagram_len = 0;
        for symbol in symbols {
            let payload = self.payloads.get(&(symbol.block, symbol.number))?;
            let header = symbol_header(symbol.block, symbol.number, symbol.promised);
            self.datagrams.extend_from_slice(&header);
            self.datagrams.extend_from_slice(payload);
            datagram_len = REPAIR_HEADER_LEN + payload.len();
        }
        if let Some(key) = key {
            key.seal_all(&mut self.datagrams, datagram_len);
        }
        Some(&self.datagrams)
    }

    /// Discards symbols that were sent.
    pub fn discard(&mut self, sent: &[Symbol]) {
        for symbol in sent {
            self.payloads.remove(&(symbol.block, symbol.number));
        }
    }
}

impl Rows {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn put_back(&self, rows: Vec<u8>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MAX_SPARE_ROWS {
            spare.push(rows);
        }
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
    use crate::io::reader::source::FileSource;
    use crate::source::OpenFile;

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
    }

    fn reader(file: &NamedTempFile, page_size: u64, interleave: u32) -> SymbolReader {
        let file = file.reopen().unwrap();
        let open = OpenFile::new(file).unwrap();
        let geometry =
            Geometry::new(open.version.size(), PageSize::new(page_size).unwrap()).unwrap();
        let layout = BlockLayout::new(geometry.pages(), interleave).unwrap();
        let source = FileSource::from(open);
        SymbolReader::new(Arc::new(source), geometry, layout)
    }

    fn symbol(block: u32, number: usize, promised: u8) -> Symbol {
        let number = RepairIndex::new(number % REPAIRS).unwrap();
        Symbol { block: BlockIndex(block), number, promised }
    }

    #[test]
    fn promised_symbols_are_encoded_with_the_first_from_a_single_read() {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&content(50_000)).unwrap();
        let reader = reader(&file, 100, 4);
        let layer = |number| (0..4).map(|block| symbol(block, number, 5)).collect::<Vec<_>>();
        let read = reader.read(&layer(0), 1 << 20, &Rows::default());
        assert!(read.failure.is_none() && read.bytes_read == 50_000);
        let mut encoded = SymbolBuffer::default();
        encoded.append(read.encoded);
        for number in 0..5 {
            assert!(encoded.datagrams(&layer(number), None).is_some());
            encoded.discard(&layer(number));
        }
        assert_eq!(encoded.bytes(), 0);
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
            let reader = reader(&file, 100, 1);
            change(&file);
            let failure = reader.read(&[symbol(0, 0, 1)], 0, &Rows::default()).failure;
            assert!(matches!(failure.unwrap().error, ReadError::Changed));
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
            let reader = reader(&file, page_size, interleave).tagged(key);
            let (layout, geometry) = (reader.layout, reader.geometry);
            let symbols: Vec<_> =
                (0..layout.blocks()).map(|block| symbol(block, number, promised)).collect();
            let mut encoded = reader.read(&symbols, ahead_bytes, &Rows::default()).encoded;
            let datagrams = encoded.datagrams(&symbols, reader.key()).unwrap();
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
