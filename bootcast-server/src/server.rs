//! Assembles the parts of the server and runs them.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bootcast_proto::tag::KEY_LEN;
use bootcast_proto::units::PACKET_OVERHEAD;
use bootcast_proto::wire::HEADER_LEN;
use bootcast_proto::{BLOCK_PAGES, BitRate, PageSize};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::api::{self, ApiState};
use crate::cast::{CeilingSource, RepairSettings, Settings};
use crate::cli::{Config, RepairConfig};
use crate::io::cast_keys::CastKeys;
use crate::io::http;
use crate::io::identity::Identity;
use crate::io::interface::{self, Interface};
use crate::io::manifests::Manifests;
use crate::io::prehash::{self, Prehash};
use crate::io::profiles::Profiles;
use crate::io::sender::{self, SenderConfig, SenderHandle, SourceAddress};
use crate::io::socket::{SocketConfig, batch_datagrams};
use crate::io::state_dir::StateDir;
use crate::io::threads::{ThreadPanicked, ThreadWatch};
use crate::source::Source;

/// MTU in bytes that determines the page size on loopback. The real one, 65,536, would give pages
/// that no network carries. Small pages cost little here: the kernel moves a batch in one piece.
const LOOPBACK_PAGE_MTU: u32 = 1500;

/// Maximum wire time of a batch of several pages. Keeps a batch from being a burst at low rates.
const BATCH_TIME: Duration = Duration::from_millis(2);

/// Time to send one window of the default interleave at the configured rate. A loss burst a tenth
/// as long is then spread over all blocks of the window.
const WINDOW_TIME: Duration = Duration::from_millis(200);

/// Range of the default interleave, in blocks. Smaller windows do not spread loss bursts, larger
/// ones delay the repair of slow casts.
const DEFAULT_INTERLEAVE: RangeInclusive<u64> = 16..=512;

/// Time that a server which stops waits for the profiles to be kept.
const KEEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Default rate ceiling in percent of the interface's speed. The rest is left to HTTP answers and
/// other traffic of this host. The ceiling counts Ethernet framing.
const DEFAULT_RATE_PERCENT: u64 = 97;

/// Speed assumed of an interface that does not report one, in bits per second.
const ASSUMED_SPEED_BITS: u64 = 1_000_000_000;

/// Default rate ceiling on loopback, in bits per second. Loopback reports no speed; one core copies
/// about this much beside other work.
const LOOPBACK_RATE_BITS: u64 = 10_000_000_000;

/// A server that accepts connections and whose sender thread runs.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: ApiState,
    /// Names by which clients may call the server.
    names: api::Names,
    sender: SenderHandle,
    sender_ended: oneshot::Receiver<()>,
    prehash: Option<Prehash>,
    /// Keeps the profiles that casts learn, until the sender thread has ended.
    keeping_profiles: JoinHandle<()>,
    /// Threads that panicked.
    panics: mpsc::UnboundedReceiver<ThreadPanicked>,
}

impl Server {
    /// Opens the directory and the sockets, and starts the sender thread. Errors say what to do.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        raise_descriptor_limit();
        let dir = config.directories.dir.display().to_string();
        let source = Source::new(&config.directories.dir)
            .with_context(|| format!("cannot serve {dir:?} (choose a directory with --dir)"))?;
        let source = Arc::new(source);
        let interface = interface::resolve(config.interface.as_ref(), config.any_group)?;
        let page_size = page_size(config.page_size, &interface)?;
        let rate = config.rate.unwrap_or_else(|| default_rate(&interface));
        let datagram_len = HEADER_LEN + page_size.get() as usize;
        let socket = SocketConfig { ttl: config.ttl, datagram_len, rate };
        let settings = Settings {
            rate,
            rate_source: rate_source(config.rate.is_some(), &interface),
            batch_pages: batch_pages(rate, page_size),
            data_port: config.data_port,
            max_casts: config.max_casts,
            policy: config.policy,
            plain: config.plain,
            groups: config.groups.starting_at(getrandom::u32()?),
            repair: config.repair.map(|it| repair_settings(it, rate, page_size)),
        };
        let listener = TcpListener::bind(config.listen).await.with_context(|| {
            format!("cannot listen on {} (choose another address with --listen)", config.listen)
        })?;
        let address = listener.local_addr()?;
        let manifests = Manifests::new(state_dir(config.directories.state_dir).await);
        let identity = Identity::new(Arc::clone(&source), manifests.clone());
        let profiles = Profiles::new(manifests.clone());
        let (learned, received) = mpsc::unbounded_channel();
        let keeping_profiles = tokio::spawn(profiles.clone().keep(received));
        let sender = SenderConfig {
            identity: identity.clone(),
            source_address: SourceAddress::new(interface.address),
            interface: interface.clone(),
            interface_name: config.interface,
            any_group: config.any_group,
            socket,
            page_size,
            layout: config.layout,
            keys: config.tags.then(cast_keys).transpose()?,
            profiles: learned,
        };
        let (watch, panics) = ThreadWatch::new();
        let (sender, sender_ended) = sender::spawn(sender, settings, &watch)
            .with_context(|| format!("cannot send multicast through {}", interface.name))?;
        tracing::info!(
            dir, interface = interface.name, source = %interface.address, %page_size, %rate,
            "serving"
        );
        tracing::info!(addr = %address, "listening");
        let start = || prehash::start(source.clone(), manifests.clone(), &watch);
        let prehash = config.prehash.then(start);
        let prehash = prehash.transpose().context("cannot start a thread for --prehash")?;
        let state = ApiState::new(identity, sender.clone(), profiles);
        let names = config.names;
        Ok(Self {
            listener,
            address,
            state,
            names,
            sender,
            sender_ended,
            prehash,
            keeping_profiles,
            panics,
        })
    }

    /// Returns the address of the control plane.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves, then ends all casts and returns within about a second, or
    /// three if the state directory hangs. Fails if a thread panics: what it was doing will never
    /// be finished.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { listener, state, names, sender, sender_ended, prehash, .. } = self;
        let keeping_profiles = self.keeping_profiles;
        let mut panics = self.panics;
        let mut panicked = None;
        let until = async {
            tokio::select! {
                () = stop => {}
                // The watch lives as long as the sender's threads.
                Some(thread) = panics.recv() => panicked = Some(thread),
            }
            drop(prehash);
            sender.stop();
        };
        http::serve(listener, api::router(state, names), until).await;
        if let Some(panicked) = panicked {
            return Err(panicked.into());
        }
        // The thread sends nothing: this resolves, with an error, when the thread ends.
        let _ = sender_ended.await;
        // The newest profiles are kept, unless the disk hangs.
        let _ = tokio::time::timeout(KEEP_TIMEOUT, keeping_profiles).await;
        Ok(())
    }
}

/// Opens the state directory. Without it the server computes manifests anew after each start.
async fn state_dir(path: PathBuf) -> Option<StateDir> {
    let name = path.display().to_string();
    let opened = tokio::task::spawn_blocking(move || StateDir::open(&path)).await;
    match opened.map_err(std::io::Error::other).and_then(|opened| opened) {
        Ok(state) => Some(state),
        Err(error) => {
            tracing::warn!(
                dir = name, %error,
                "hashes of files are not kept across restarts (choose a directory with --state-dir)"
            );
            None
        }
    }
}

/// Creates the cast keys of this run of the server.
fn cast_keys() -> Result<CastKeys, getrandom::Error> {
    let mut seed = [0; KEY_LEN];
    getrandom::fill(&mut seed)?;
    Ok(CastKeys::new(seed))
}

/// Raises the descriptor limit to its maximum, because each connection and each cast holds a
/// descriptor. The usual limit of 1024 exists for programs that call select(2).
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Without this the server works for fewer clients.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Returns the configured page size, or the largest that fits the MTU. Fails if it does not fit.
fn page_size(wanted: Option<PageSize>, interface: &Interface) -> anyhow::Result<PageSize> {
    let Interface { name, mtu, .. } = interface;
    let largest = |mtu| {
        PageSize::for_mtu(mtu).with_context(|| {
            format!("the MTU of {name} is {mtu}, too small for a page: choose another --interface")
        })
    };
    let Some(wanted) = wanted else {
        return largest(if interface.is_loopback { (*mtu).min(LOOPBACK_PAGE_MTU) } else { *mtu });
    };
    if wanted.get() + PACKET_OVERHEAD > *mtu {
        let largest = largest(*mtu)?;
        bail!(
            "a page of {wanted} bytes does not fit the MTU of {name}, {mtu}: \
             use --page-size {largest} or less"
        );
    }
    Ok(wanted)
}

/// Returns the pages of a full batch: as many as one system call sends, but no more than
/// [`BATCH_TIME`] carries at this rate.
fn batch_pages(rate: BitRate, page_size: PageSize) -> u32 {
    let datagram_len = HEADER_LEN + page_size.get() as usize;
    let per_call = u32::try_from(batch_datagrams(datagram_len)).unwrap_or(u32::MAX);
    let per_batch_time = rate.bytes_in(BATCH_TIME) / page_size.wire_len();
    u32::try_from(per_batch_time).unwrap_or(u32::MAX).clamp(1, per_call)
}

/// Completes the repair settings with the default interleave.
fn repair_settings(config: RepairConfig, rate: BitRate, page_size: PageSize) -> RepairSettings {
    let default_interleave = || {
        let blocks = rate.bytes_in(WINDOW_TIME) / page_size.wire_len() / u64::from(BLOCK_PAGES);
        let blocks = blocks.clamp(*DEFAULT_INTERLEAVE.start(), *DEFAULT_INTERLEAVE.end());
        u32::try_from(blocks).expect("512 at most")
    };
    RepairSettings {
        interleave: config.interleave.unwrap_or_else(default_interleave),
        repair_port: config.port,
        lease: config.lease,
    }
}

/// Returns how reliable the rate ceiling is. `is_named`: the operator set it.
fn rate_source(is_named: bool, interface: &Interface) -> CeilingSource {
    if is_named {
        CeilingSource::Operator
    } else if interface.speed.is_some() || interface.is_loopback {
        CeilingSource::Interface
    } else {
        CeilingSource::Assumption
    }
}

/// Returns the rate ceiling of an interface when the operator sets none.
fn default_rate(interface: &Interface) -> BitRate {
    let rate = if interface.is_loopback {
        BitRate::from_bits_per_second(LOOPBACK_RATE_BITS)
    } else {
        let speed = interface.speed.map_or(ASSUMED_SPEED_BITS, BitRate::bits_per_second);
        BitRate::from_bits_per_second(speed / 100 * DEFAULT_RATE_PERCENT)
    };
    rate.expect("speeds are at least 1 Mbit/s")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn interface(mtu: u32) -> Interface {
        Interface {
            name: "eth0".to_owned(),
            index: 2,
            address: Ipv4Addr::new(192, 0, 2, 1),
            mtu,
            speed: None,
            is_loopback: false,
        }
    }

    #[test]
    fn a_page_fills_the_mtu_and_on_loopback_an_mtu_of_1500() {
        assert_eq!(page_size(None, &interface(1500)).unwrap().get(), 1456);
        assert_eq!(page_size(None, &interface(9000)).unwrap().get(), 8956);
        let loopback = Interface { is_loopback: true, ..interface(65_536) };
        assert_eq!(page_size(None, &loopback).unwrap().get(), 1456);
    }

    #[test]
    fn the_error_for_a_page_over_the_mtu_names_the_largest_that_fits() {
        let wanted = PageSize::new(1457).ok();
        let error = page_size(wanted, &interface(1500)).unwrap_err().to_string();
        assert!(error.contains("--page-size 1456"), "{error}");
        assert!(page_size(PageSize::new(1456).ok(), &interface(1500)).is_ok());
    }

    #[test]
    fn a_batch_fills_one_system_call_unless_that_exceeds_the_batch_time() {
        let page = PageSize::new(1456).unwrap();
        for (rate, pages) in [("10gbit", 44), ("271mbit", 44), ("100mbit", 16), ("1mbit", 1)] {
            assert_eq!(batch_pages(rate.parse().unwrap(), page), pages, "{rate}");
        }
    }

    #[test]
    fn the_default_rate_is_97_percent_of_the_interface_speed() {
        let speed = "10gbit".parse().ok();
        assert_eq!(default_rate(&Interface { speed, ..interface(1500) }).to_string(), "9700mbit");
        assert_eq!(default_rate(&interface(1500)).to_string(), "970mbit");
        let loopback = Interface { is_loopback: true, ..interface(65_536) };
        assert_eq!(default_rate(&loopback).to_string(), "10gbit");
    }
}
