//! `bootcast cache warm`: fetches files into the cache ahead of their use.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;

use bootcast_host::signals::EndSignals;
use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Kind};
use tokio::task::spawn_blocking;
use tracing::warn;

use super::cache::Place;
use super::cast::CastFetch;
use super::error::ToolError;
use super::progress::Screen;
use super::receiving::ReceivingArgs;
use super::url::Target;
use crate::cache::{Amount, Budget, Cache, Names};
use crate::receiver::Verify;

/// Arguments of `bootcast cache warm`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[arg(required = true, help = "Files to fetch, named as for bootcast get")]
    urls: Vec<OsString>,

    #[command(flatten)]
    place: Place,

    /// Most that the cache may take up [default: as the newest mount states it, else 50%]
    #[arg(long, value_name = "SIZE|N%", value_parser = Amount::parse)]
    cache_size: Option<Amount>,

    /// Least that the cache leaves free on its disk [default: as the newest mount states it, else
    /// 2%]
    #[arg(long, value_name = "SIZE|N%", value_parser = Amount::parse)]
    cache_min_free: Option<Amount>,

    #[command(flatten)]
    receiving: ReceivingArgs,
}

/// Fetches the files, one after another. Goes on after one that cannot be fetched, and returns the
/// first error.
pub(super) async fn run(args: Args) -> Result<(), ToolError> {
    let targets = args.urls.iter().map(|url| Target::parse(url)).collect::<Result<Vec<_>, _>>()?;
    let cache = args.open_cache()?;
    let screen = Screen::new(args.receiving.quiet, false);
    screen.start_logging(args.receiving.quiet, 0);
    let mut signals = EndSignals::listen()
        .map_err(|error| ToolError::Local(format!("cannot listen for signals: {error}")))?;
    let mut recorder = Recorder::default();
    let mut first = None;
    for target in targets {
        let path = target.path.clone();
        let fetch = args.fetch(target, &cache, &mut recorder, &screen, &mut signals);
        let fetched = Box::pin(fetch).await;
        match fetched.map_err(|error| error.with_path(&path)) {
            Ok(()) => {}
            Err(error @ ToolError::Signal(_)) => return Err(error),
            Err(error) if first.is_none() => first = Some(error),
            Err(error) => eprintln!("bootcast: {}", super::one_line(&error.to_string())),
        }
    }
    first.map_or(Ok(()), Err)
}

impl Args {
    fn open_cache(&self) -> Result<Cache, ToolError> {
        let dir = self.place.dir()?;
        let recorded = Budget::recorded(&dir);
        let budget = Budget {
            size: self.cache_size.unwrap_or(recorded.size),
            min_free: self.cache_min_free.unwrap_or(recorded.min_free),
        };
        super::cache::open(&dir, budget)
    }

    async fn fetch(
        &self,
        target: Target,
        cache: &Cache,
        recorder: &mut Recorder,
        screen: &Screen,
        signals: &mut EndSignals,
    ) -> Result<(), ToolError> {
        let timeout = self.receiving.timeout();
        let attributes = signals
            .guard(async { Ok::<_, ToolError>(target.control.attributes(&target.path).await?) });
        let attributes = attributes.await?;
        let (Kind::File, Some(etag)) = (attributes.kind, attributes.etag.clone()) else {
            return Err(ToolError::Usage("only single files can be fetched ahead".into()));
        };
        let interface = self.receiving.interface.clone().unwrap_or_default();
        let progress = screen.progress(&target.display_name());
        let cast = CastFetch::new(&target, interface, timeout, Verify::Leaf)?;
        cast.keep(cache, etag, attributes.size, &progress, signals).await?;
        progress.finish(attributes.size, None);
        // A failure here does not undo the fetch.
        let names = signals
            .guard(async { Ok::<_, ToolError>(recorder.record(cache, &target, attributes).await) });
        if let Err(error) = names.await? {
            warn!(%error, "a mount without the server will not show the file");
        }
        Ok(())
    }
}

/// Records names for mounts that begin without the server.
#[derive(Default)]
struct Recorder {
    /// Names in the cache, by server.
    names: HashMap<String, Names>,
    /// Servers and directories that were recorded, with those above them.
    recorded: HashSet<(String, RemotePath)>,
}

impl Recorder {
    /// Records the file and the directories above it. Each of these may be what is mounted.
    async fn record(
        &mut self,
        cache: &Cache,
        target: &Target,
        attributes: Attributes,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let Target { control, path } = target;
        let server = control.server();
        let Some(names) = self.names_of(cache, server).await? else { return Ok(()) };
        let etag = attributes.etag.as_ref();
        let content = etag.and_then(|etag| control.stated_id(path, etag));
        {
            let (names, path) = (names.clone(), path.clone());
            spawn_blocking(move || names.record(&path, &attributes, content)).await??;
        }
        let mut above = Vec::new();
        for directory in std::iter::successors(path.parent(), RemotePath::parent) {
            if self.recorded.contains(&(server.to_owned(), directory.clone())) {
                break;
            }
            let attributes = control.attributes(&directory).await?;
            let (names, path) = (names.clone(), directory.clone());
            let record = move || {
                names.record_root(&path, &attributes)?;
                names.record(&path, &attributes, None)
            };
            spawn_blocking(record).await??;
            above.push((server.to_owned(), directory));
        }
        self.recorded.extend(above);
        Ok(())
    }

    /// Returns the names of a server; `None` if the cache remembers none.
    async fn names_of(&mut self, cache: &Cache, server: &str) -> io::Result<Option<Names>> {
        if let Some(names) = self.names.get(server) {
            return Ok(Some(names.clone()));
        }
        let (cache, of) = (cache.clone(), server.to_owned());
        let opened = spawn_blocking(move || Names::of(&cache, &of)).await;
        let opened = opened.map_err(io::Error::other)??;
        self.names.extend(opened.clone().map(|names| (server.to_owned(), names)));
        Ok(opened)
    }
}
