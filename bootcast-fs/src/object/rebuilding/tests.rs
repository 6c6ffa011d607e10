#![expect(clippy::disallowed_methods, reason = "a test has a clock")]

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bootcast_proto::fec::RepairIndex;
use bootcast_proto::join::Extensions;
use bootcast_proto::wire::symbol_header;
use bootcast_proto::{
    BlockIndex, BlockLayout, Etag, JoinAnswer, Layout, PageSize, RemotePath, Token,
};

use super::*;
use crate::cache::{Cache, ObjectKey};
use crate::object::{Unread, Waiter};
use crate::receiver::{Fill, Timing};

const SERVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 40_000);
const TIMING: Timing = Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };

/// A file whose last page is short, what its server says of it, and an object that joined.
struct Cast {
    bytes: Vec<u8>,
    geometry: Geometry,
    layout: BlockLayout,
    object: Arc<Object>,
}

impl Cast {
    /// Pages of 64 bytes, windows of two blocks.
    fn new(cache: &Cache) -> Self {
        let bytes: Vec<u8> = (0..20_000u32)
            .flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_le_bytes())
            .take(64 * 600 + 7)
            .collect();
        let geometry = Geometry::new(bytes.len() as u64, PageSize::new(64).unwrap()).unwrap();
        let layout = BlockLayout::new(geometry.pages(), 2).unwrap();
        let key = ObjectKey {
            server: "head:8888".into(),
            path: RemotePath::decode("image").unwrap(),
            etag: Some(Etag::new("v1").unwrap()),
            content: None,
        };
        let store = cache.open(&key).unwrap();
        let object = Arc::new(Object::new(key, store, None, TIMING, Fill::Full, 1));
        object.open();
        let answer = JoinAnswer {
            connect: "239.255.0.1:9000".parse().unwrap(),
            token: Token::from_random(1),
            pages: geometry.pages(),
            page_size: geometry.page_size(),
            extensions: Extensions {
                size: Some(geometry.size()),
                etag: Some(Etag::new("v1").unwrap()),
                repair: Some(9001),
                interleave: Some(2),
                ..Extensions::default()
            },
        };
        assert!(object.handle_join(Ok(answer), Instant::now()).is_empty());
        Self { bytes, geometry, layout, object }
    }

    fn page(&self, page: PageIndex) -> &[u8] {
        let start = usize::try_from(self.geometry.offset(page)).unwrap();
        &self.bytes[start..start + page_len(&self.geometry, page)]
    }

    fn send_page(&self, page: PageIndex) -> Vec<Ready> {
        let header = Layout::Base.header(page, self.geometry.pages(), self.page(page));
        let bytes = [&header[..], self.page(page)].concat();
        self.object.receive(&[(SERVER, &bytes[..])], Instant::now())
    }

    fn send_symbol(&self, block: BlockIndex, number: usize) {
        let number = RepairIndex::new(number).unwrap();
        let sources = self.layout.pages_in(block).map(|(source, page)| (source, self.page(page)));
        let mut symbol = vec![0; 64];
        fec::encode(Engine::best(), number, sources, &mut symbol);
        let bytes = [&symbol_header(block, number, 8)[..], &symbol].concat();
        self.object.receive_repair(&[(SERVER, &bytes[..])], Instant::now());
    }

    /// Rebuilds all that can be; returns the reads that this served.
    fn rebuild(&self) -> Vec<Ready> {
        let mut served = Vec::new();
        if let Some(mut rebuilding) = self.object.begin_rebuilding() {
            while rebuilding.step(|reads| served.extend(reads)) {}
        }
        served
    }

    fn stored(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes.len()];
        self.object.store().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

/// Keeps what a read was answered.
struct Reader(Arc<Mutex<Option<Vec<u8>>>>);

impl Waiter for Reader {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        *self.0.lock().unwrap() = Some(outcome.unwrap().to_vec());
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

#[test]
fn a_file_with_lost_pages_is_rebuilt_from_symbols() {
    let dir = tempfile::tempdir().unwrap();
    for cache in [Cache::Memory, Cache::on_disk(dir.path()).unwrap()] {
        let cast = Cast::new(&cache);
        // Every ninth page is lost, the short last one too.
        let lost = |page: &PageIndex| page.0 % 9 == 6;
        assert!(lost(&PageIndex(cast.geometry.pages() - 1)));
        for page in cast.geometry.all().iter().filter(|page| !lost(page)) {
            cast.send_page(page);
        }
        for block in (0..cast.layout.blocks()).map(BlockIndex) {
            // The first symbol is lost too.
            (1..=15).for_each(|number| cast.send_symbol(block, number));
        }
        assert!(!cast.object.snapshot().is_complete);
        assert!(cast.rebuild().is_empty());
        assert!(cast.object.snapshot().is_complete);
        assert_eq!(cast.stored(), cast.bytes);
    }
}

#[test]
fn a_read_that_waits_for_a_lost_page_is_served_once_it_is_rebuilt() {
    let cast = Cast::new(&Cache::Memory);
    let lost = PageIndex(10);
    cast.geometry.all().iter().filter(|page| *page != lost).for_each(|page| {
        cast.send_page(page);
    });
    let answer = Arc::new(Mutex::new(None));
    let reader = Box::new(Reader(answer.clone()));
    drop(cast.object.read(600..700, reader, Instant::now()));
    assert_eq!(*answer.lock().unwrap(), None);
    cast.send_symbol(cast.layout.place(lost).0, 0);
    for ready in cast.rebuild() {
        cast.object.answer(ready);
    }
    assert_eq!(answer.lock().unwrap().as_deref(), Some(&cast.bytes[600..700]));
}

#[test]
fn only_one_at_a_time_rebuilds() {
    let cast = Cast::new(&Cache::Memory);
    cast.geometry.all().iter().skip(1).for_each(|page| {
        cast.send_page(page);
    });
    assert!(cast.object.begin_rebuilding().is_none());
    cast.send_symbol(BlockIndex(0), 0);
    let first = cast.object.begin_rebuilding();
    assert!(first.is_some());
    assert!(cast.object.begin_rebuilding().is_none());
    drop(first);
    assert!(cast.object.begin_rebuilding().is_some(), "the first one ended without its work");
}

#[test]
fn space_is_freed_only_where_nothing_is_rebuilt_from_it() {
    let cast = Cast::new(&Cache::Memory);
    // A page of the second window, of pages 256 to 511.
    let lost = PageIndex(300);
    cast.geometry.all().iter().filter(|page| *page != lost).for_each(|page| {
        cast.send_page(page);
    });
    cast.object.free_before(cast.geometry.offset(lost));
    cast.send_symbol(cast.layout.place(lost).0, 3);
    cast.rebuild();
    assert!(cast.object.snapshot().is_complete);
    let second = usize::try_from(cast.geometry.offset(PageIndex(256))).unwrap();
    assert_eq!(cast.stored()[second..], cast.bytes[second..]);
    assert_ne!(cast.stored()[..second], cast.bytes[..second]);
}

#[test]
fn blocks_that_are_near_each_other_are_read_together() {
    let layout = BlockLayout::new(100_000, 64).unwrap();
    let geometry = Geometry::new(100_000 * 1456, PageSize::new(1456).unwrap()).unwrap();
    let plan = |block| {
        let mut plan = DecodePlan::default();
        plan.block = BlockIndex(block);
        plan
    };
    let plans = [0, 1, 5, 10, 13, 17, 21, 25, 26, 62, 63, 64].map(plan).to_vec();
    let task = Task { plans, geometry, layout };
    let spans: Vec<Vec<_>> =
        task.spans().map(|span| span.iter().map(|plan| plan.block.0).collect()).collect();
    // Too far from the one before, too many from the first, another window.
    let expected: [&[u32]; 4] = [&[0, 1, 5], &[10, 13, 17, 21, 25], &[26], &[62, 63]];
    assert_eq!(spans[..4], expected);
    assert_eq!(spans[4..], [[64]]);
    // Pages of which a block has more than that: each for itself.
    let geometry = Geometry::new(100_000 * 65_000, PageSize::new(65_000).unwrap()).unwrap();
    assert_eq!(Task { geometry, ..task }.spans().count(), 12);
}

#[test]
fn many_lost_pages_of_many_windows_are_rebuilt_in_one_go() {
    let cast = Cast::new(&Cache::Memory);
    // Of each block one, two or none.
    let lost = |page: &PageIndex| page.0 % 127 == 3 && !page.0.is_multiple_of(5);
    for page in cast.geometry.all().iter().filter(|page| !lost(page)) {
        cast.send_page(page);
    }
    for block in (0..cast.layout.blocks()).map(BlockIndex) {
        (0..3).for_each(|number| cast.send_symbol(block, number));
    }
    let mut rebuilding = cast.object.begin_rebuilding().unwrap();
    assert!(rebuilding.lacks_nothing_else());
    assert!(rebuilding.step(|served| assert!(served.is_empty())));
    assert!(cast.object.snapshot().is_complete && rebuilding.lacks_nothing_else());
    assert_eq!(cast.stored(), cast.bytes);
    assert!(!rebuilding.step(|_| {}));
}

#[test]
fn a_block_is_rebuilt_before_any_page_came() {
    let cast = Cast::new(&Cache::Memory);
    let block = BlockIndex(1);
    (0..128).for_each(|number| cast.send_symbol(block, number));
    cast.rebuild();
    for (_, page) in cast.layout.pages_in(block) {
        let mut bytes = [0; 64];
        cast.object.store().read_exact_at(&mut bytes, cast.geometry.offset(page)).unwrap();
        assert_eq!(bytes, cast.page(page));
    }
    assert_eq!(cast.object.snapshot().received, 128 * 64);
}
