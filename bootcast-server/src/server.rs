//! Assembles the server and runs it.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bootcast_proto::tag::KEY_LEN;
use bootcast_proto::wire::HEADER_LEN;
use bootcast_proto::{BLOCK_PAGES, BitRate, PageSize};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::api::{self, Served};
use crate::cast::{CeilingSource, RepairSettings, Settings};
use crate::cli::{Config, RepairConfig};
use crate::io::cast_keys::CastKeys;
use crate::io::http;
use crate::io::interface::{self, Interface};
use crate::io::sender::{self, SenderConfig, SenderHandle, SourceAddress};
use crate::io::socket::{SocketConfig, batch_datagrams};
use crate::source::Source;

/// Bytes of a packet beside its page: headers of IPv4, UDP and page.
const PACKET_OVERHEAD: u32 = 20 + 8 + 16;

/// MTU that determines the page size on loopback. Its own MTU of 65,536 would give pages that no
/// network carries, and the kernel moves a batch of small pages in one piece anyway.
const LOOPBACK_PAGE_MTU: u32 = 1500;

/// Longest time that a run occupies the wire, if it has more than one page.
const BATCH_TIME: Duration = Duration::from_millis(2);

/// Time to send a window. A loss burst of a tenth of it is spread over many blocks.
const WINDOW_TIME: Duration = Duration::from_millis(200);

/// Range of the default interleave. Smaller windows do not spread bursts, larger ones delay the
/// repair of slow casts.
const INTERLEAVE: RangeInclusive<u64> = 16..=512;

/// Default ceiling in percent of the interface's speed. The rest is for answers over HTTP and for
/// what else the head has to say; the ceiling counts Ethernet framing.
const DEFAULT_PERCENT: u64 = 97;

/// Speed assumed for an interface that does not report one, in bits per second.
const ASSUMED_SPEED_BITS: u64 = 1_000_000_000;

/// Rate on loopback, which has no speed: what one core can copy beside other work.
const LOOPBACK_RATE_BITS: u64 = 10_000_000_000;

/// A server that is listening.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    served: Served,
    sender: SenderHandle,
    sender_ended: oneshot::Receiver<()>,
}

impl Server {
    /// Opens the directory, the sockets and the sender's thread. Errors say what to do.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        raise_descriptor_limit();
        let dir = config.dir.display().to_string();
        let source = Source::new(&config.dir)
            .with_context(|| format!("cannot serve {dir:?}: name a directory by --dir"))?;
        let source = Arc::new(source);
        let found = interface::resolve(config.interface.as_ref(), config.any_group)?;
        let page_size = page_size(config.page_size, &found)?;
        let rate = config.rate.unwrap_or_else(|| default_rate(&found));
        let datagram_len = HEADER_LEN + page_size.get() as usize;
        let socket = SocketConfig { ttl: config.ttl, datagram_len, rate };
        let settings = Settings {
            rate,
            rate_source: rate_source(config.rate.is_some(), &found),
            batch_pages: batch_pages(rate, page_size),
            data_port: config.data_port,
            max_casts: config.max_casts,
            policy: config.policy,
            groups: config.groups.starting_at(getrandom::u32()?),
            repair: config.repair.map(|it| repair_settings(it, rate, page_size)),
        };
        let listener = TcpListener::bind(config.listen).await.with_context(|| {
            format!("cannot listen on {}: take another one by --listen", config.listen)
        })?;
        let address = listener.local_addr()?;
        let sender = SenderConfig {
            source: Arc::clone(&source),
            source_address: SourceAddress::new(found.address),
            interface: found.clone(),
            interface_name: config.interface,
            any_group: config.any_group,
            socket,
            page_size,
            layout: config.layout,
            keys: config.tags.then(cast_keys).transpose()?,
        };
        let (sender, sender_ended) = sender::spawn(sender, settings)
            .with_context(|| format!("cannot multicast through {}", found.name))?;
        tracing::info!(
            dir, interface = found.name, source = %found.address, %page_size, %rate, "serving"
        );
        tracing::info!(addr = %address, "listening");
        let served = Served::new(source, sender.clone());
        Ok(Self { listener, address, served, sender, sender_ended })
    }

    /// Address of the control plane.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves, then ends all casts and returns within about a second. Fails
    /// if the sender's thread dies.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { listener, served, sender, sender_ended, .. } = self;
        let mut sender_ended = sender_ended;
        let mut died = false;
        let until = async {
            tokio::select! {
                () = stop => {}
                _ = &mut sender_ended => died = true,
            }
            sender.stop();
        };
        http::serve(listener, api::router(served), until).await;
        if died {
            bail!("the sender's thread ended by itself");
        }
        // Resolves with an error when the thread ends.
        let _ = sender_ended.await;
        Ok(())
    }
}

fn cast_keys() -> Result<CastKeys, getrandom::Error> {
    let mut seed = [0; KEY_LEN];
    getrandom::fill(&mut seed)?;
    Ok(CastKeys::new(seed))
}

/// Raises the descriptor limit to its maximum: connections and casts hold one each. The usual limit
/// of 1024 exists for programs that call select(2).
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // The old limit also works, for fewer clients.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn page_size(wanted: Option<PageSize>, interface: &Interface) -> anyhow::Result<PageSize> {
    let Interface { name, mtu, .. } = interface;
    let fitting = |mtu| {
        PageSize::for_mtu(mtu).with_context(|| {
            format!("the MTU of {name} is {mtu}, too small for a page: take another --interface")
        })
    };
    let Some(wanted) = wanted else {
        return fitting(if interface.is_loopback { (*mtu).min(LOOPBACK_PAGE_MTU) } else { *mtu });
    };
    if wanted.get() + PACKET_OVERHEAD > *mtu {
        let largest = fitting(*mtu)?;
        bail!(
            "a page of {wanted} bytes does not fit the MTU of {name}, {mtu}: \
             take --page-size {largest} or less"
        );
    }
    Ok(wanted)
}

/// Pages in a run: what one system call takes, or fewer if that would be a burst at this rate.
fn batch_pages(rate: BitRate, page_size: PageSize) -> u32 {
    let datagram_len = HEADER_LEN + page_size.get() as usize;
    let most = u32::try_from(batch_datagrams(datagram_len)).unwrap_or(u32::MAX);
    let calm = rate.bytes_in(BATCH_TIME) / page_size.wire_len();
    u32::try_from(calm).unwrap_or(u32::MAX).clamp(1, most)
}

fn repair_settings(config: RepairConfig, rate: BitRate, page_size: PageSize) -> RepairSettings {
    let fitting = || {
        let blocks = rate.bytes_in(WINDOW_TIME) / page_size.wire_len() / u64::from(BLOCK_PAGES);
        let blocks = blocks.clamp(*INTERLEAVE.start(), *INTERLEAVE.end());
        u32::try_from(blocks).expect("512 at most")
    };
    RepairSettings {
        interleave: config.interleave.unwrap_or_else(fitting),
        repair_port: config.port,
        lease: config.lease,
    }
}

fn rate_source(is_named: bool, interface: &Interface) -> CeilingSource {
    if is_named {
        CeilingSource::Operator
    } else if interface.speed.is_some() || interface.is_loopback {
        CeilingSource::Interface
    } else {
        CeilingSource::Assumption
    }
}

fn default_rate(interface: &Interface) -> BitRate {
    let known = if interface.is_loopback {
        BitRate::from_bits_per_second(LOOPBACK_RATE_BITS)
    } else {
        let speed = interface.speed.map_or(ASSUMED_SPEED_BITS, BitRate::bits_per_second);
        BitRate::from_bits_per_second(speed / 100 * DEFAULT_PERCENT)
    };
    known.expect("a tenth of a megabit and more")
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
    fn a_page_fills_the_mtu_and_on_loopback_that_of_a_network() {
        assert_eq!(page_size(None, &interface(1500)).unwrap().get(), 1456);
        assert_eq!(page_size(None, &interface(9000)).unwrap().get(), 8956);
        let loopback = Interface { is_loopback: true, ..interface(65_536) };
        assert_eq!(page_size(None, &loopback).unwrap().get(), 1456);
    }

    #[test]
    fn a_page_over_the_mtu_is_refused_with_the_largest_that_fits() {
        let wanted = PageSize::new(1457).ok();
        let refusal = page_size(wanted, &interface(1500)).unwrap_err().to_string();
        assert!(refusal.contains("--page-size 1456"), "{refusal}");
        assert!(page_size(PageSize::new(1456).ok(), &interface(1500)).is_ok());
    }

    #[test]
    fn a_run_fills_a_system_call_but_is_no_burst_at_a_low_rate() {
        let page = PageSize::new(1456).unwrap();
        for (rate, pages) in [("10gbit", 44), ("271mbit", 44), ("100mbit", 16), ("1mbit", 1)] {
            assert_eq!(batch_pages(rate.parse().unwrap(), page), pages, "{rate}");
        }
    }

    #[test]
    fn the_default_rate_leaves_some_of_the_interface_to_others() {
        let speed = "10gbit".parse().ok();
        assert_eq!(default_rate(&Interface { speed, ..interface(1500) }).to_string(), "9700mbit");
        assert_eq!(default_rate(&interface(1500)).to_string(), "970mbit");
        let loopback = Interface { is_loopback: true, ..interface(65_536) };
        assert_eq!(default_rate(&loopback).to_string(), "10gbit");
    }
}
