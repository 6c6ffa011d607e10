//! `bootcast get`: fetches one file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bootcast_host::signals::EndSignals;
use bootcast_proto::api::Kind;
use bootcast_proto::{ContentId, Etag};
use futures_util::{FutureExt, TryFutureExt};
use indicatif::BinaryBytes;
use tracing::warn;

use super::cast::CastFetch;
use super::error::ToolError;
use super::expand::{Expansion, expanded_name};
use super::output::{InOrder, OnDisk, Output, PartialFile, Sink, Zeros, blocking};
use super::parts::Parts;
use super::progress::{Hash, Progress, Screen};
use super::proof::{Gate, check_file};
use super::range::ByteRange;
use super::receiving::ReceivingArgs;
use super::unicast::UnicastFetch;
use super::url::{Target, default_file_name};
use crate::cache::{Budget, Cache};
use crate::object::Object;
use crate::proof::Proof;
use crate::receiver::Verify;

/// Most attempts to fetch a file that changes on the server meanwhile.
const MAX_ATTEMPTS: u32 = 4;
/// Pause before another attempt, because the file may still be changing.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Bytes of a piece that is copied from the cache at a time.
const COPY_BYTES: u64 = 1 << 20;

/// Arguments of `bootcast get`.
#[derive(clap::Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Args {
    #[arg(help = "File to fetch: http://HOST[:PORT]/PATH with a percent-encoded path, or \
                HOST:[PORT:]/PATH with the path as it is; port 8888 unless named")]
    url: OsString,

    /// Write to FILE, which appears or is replaced once all bytes are on the disk; a block device
    /// is written in place; '-' is standard output [default: the last name of the URL]
    #[arg(short = 'O', long = "output", value_name = "FILE")]
    output: Option<PathBuf>,

    /// Fetch only these bytes, counted from 0: 0-499 (both included), 500- (to the end) or -500
    /// (the last 500)
    #[arg(
        short,
        long,
        value_name = "FROM-TO",
        allow_hyphen_values = true,
        conflicts_with = "unicast"
    )]
    range: Option<ByteRange>,

    /// Write only the content with this BLAKE3 hash, as `b3sum` prints it: no byte is believed
    /// before it is proven, whoever sent it
    #[arg(long, value_name = "HASH", conflicts_with = "range")]
    b3: Option<ContentId>,

    /// Proof that bytes need before they are written: the hash of their leaf of 16 KiB, or the tag
    /// of their datagram
    #[arg(long, value_name = "leaf|tag", default_value = "leaf")]
    verify: VerifyArg,

    /// Expand a file in the format of zstd, gzip or xz on the way; without --output, the name loses
    /// .zst, .gz or .xz
    #[arg(short, long, conflicts_with = "range")]
    decompress: bool,

    /// Free the blocks of a block device first, and then those of zeros instead of writing them
    #[arg(long, requires = "output")]
    discard: bool,

    /// Go on from where an earlier fetch with this option ended; what arrived is kept beside FILE
    /// until FILE is complete
    #[arg(
        short = 'c',
        long = "continue",
        conflicts_with_all = ["range", "decompress", "discard", "unicast"]
    )]
    resumes: bool,

    /// Keep the file in this cache, as mounts do by their option of this name, and take from it what
    /// it has
    #[arg(long, value_name = "DIR", conflicts_with_all = ["range", "resumes", "unicast"])]
    cache_dir: Option<PathBuf>,

    /// Fetch over plain HTTP, without multicast
    #[arg(short, long)]
    unicast: bool,

    #[command(flatten)]
    receiving: ReceivingArgs,

    /// Log to standard error what happens; given twice, also the details
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
}

/// Values of `--verify`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum VerifyArg {
    Leaf,
    Tag,
}

impl From<VerifyArg> for Verify {
    fn from(arg: VerifyArg) -> Self {
        match arg {
            VerifyArg::Leaf => Self::Leaf,
            VerifyArg::Tag => Self::Tag,
        }
    }
}

/// Fetches the file.
pub(super) async fn run(args: Args) -> Result<(), ToolError> {
    let target = Target::parse(&args.url)?;
    let to_stdout = args.output.as_ref().is_some_and(|output| output.as_os_str() == "-");
    let output = match &args.output {
        Some(_) if to_stdout => Output::stdout()?,
        Some(path) => Output::at(path)?,
        None => {
            let name = default_file_name(&target.path)?;
            Output::at(&if args.decompress { expanded_name(name) } else { name })?
        }
    };
    if args.discard && !matches!(output, Output::Device(_)) {
        return Err(ToolError::Usage("--discard needs a block device as output".into()));
    }
    if args.resumes && !matches!(output, Output::File(_)) {
        return Err(ToolError::Usage("--continue needs a file as output".into()));
    }
    let screen = Screen::new(args.receiving.quiet, to_stdout);
    screen.start_logging(args.receiving.quiet, args.verbose);
    let signals = EndSignals::listen()
        .map_err(|error| ToolError::Local(format!("cannot listen for signals: {error}")))?;
    let timeout = args.receiving.timeout();
    let transport = if args.unicast {
        Transport::Unicast { timeout }
    } else {
        // The bytes of an expected content are proven when they are written. Leaves are verified
        // before all the same, so that a member that forges is found out.
        let verify = if args.b3.is_some() { Verify::Leaf } else { args.verify.into() };
        let cast =
            CastFetch::new(&target, args.receiving.interface.unwrap_or_default(), timeout, verify)?;
        match args.range {
            Some(range) => Transport::Range(cast, range),
            None => Transport::Cast(cast),
        }
    };
    let cache = args.cache_dir.as_deref().map(|dir| super::cache::open(dir, Budget::recorded(dir)));
    let cache = cache.transpose()?;
    let progress = screen.progress(&target.display_name());
    let path = target.path.clone();
    let expected = args.b3.map(|id| Expected { id, timeout });
    let Args { decompress, discard, resumes, .. } = args;
    let get = Get {
        target,
        transport,
        cache,
        output,
        decompress,
        discard,
        resumes,
        expected,
        progress,
        signals,
    };
    // On the heap, because it is large.
    Box::pin(get.run()).await.map_err(|error| error.with_path(&path))
}

/// Transport of the bytes.
#[derive(Debug)]
enum Transport {
    /// The whole file by multicast.
    Cast(CastFetch),
    /// A part of the file by multicast.
    Range(CastFetch, ByteRange),
    /// The whole file over HTTP.
    Unicast {
        /// Longest time without a new byte; `None` for no limit.
        timeout: Option<Duration>,
    },
}

/// The content that `--b3` names.
#[derive(Clone, Copy, Debug)]
struct Expected {
    id: ContentId,
    timeout: Option<Duration>,
}

/// One run of the command.
struct Get {
    target: Target,
    transport: Transport,
    /// Cache that keeps the whole file, if it is to be kept.
    cache: Option<Cache>,
    output: Output,
    decompress: bool,
    discard: bool,
    resumes: bool,
    expected: Option<Expected>,
    progress: Progress,
    signals: EndSignals,
}

impl Get {
    /// Fetches the file, again from the start if it changes.
    async fn run(mut self) -> Result<(), ToolError> {
        let mut attempts = 1;
        let size = loop {
            match self.fetch().await {
                Err(ToolError::Changed) if attempts < MAX_ATTEMPTS => {
                    attempts += 1;
                    self.progress.restart("the file changed on the server");
                    let pause = tokio::time::sleep(RETRY_PAUSE).map(Ok::<_, ToolError>);
                    self.signals.guard(pause).await?;
                }
                Err(error @ ToolError::Cache(_)) if self.cache.is_some() => {
                    self.cache = None;
                    warn!("fetching without the cache: {error}");
                }
                outcome => break outcome?,
            }
        };
        let hash = self.hash();
        self.progress.finish(size, hash.as_ref());
        Ok(())
    }

    /// Returns the content id of the fetched file, if it is known without another request.
    fn hash(&self) -> Option<Hash> {
        let Target { control, path, .. } = &self.target;
        match (self.expected, &self.transport) {
            (Some(expected), _) => Some(Hash::Proven(expected.id)),
            (None, Transport::Cast(_)) => control.latest_stated_id(path).map(Hash::Stated),
            // No join, so nothing was stated; or only a part of the file was fetched.
            (None, Transport::Unicast { .. } | Transport::Range(..)) => None,
        }
    }

    /// Fetches one version to the output, proven if a content is expected. Returns its size.
    async fn fetch(&mut self) -> Result<u64, ToolError> {
        let proof = self.proof().await?;
        let size = self.write(proof.as_ref()).await?;
        if let Some(replaced) = proof.map(|proof| proof.replaced()).filter(|count| *count > 0) {
            let server = self.target.control.server();
            warn!(
                "{replaced} parts of 16 KiB arrived wrong and were fetched again over HTTP: \
                 another machine sends in the name of {server}"
            );
        }
        Ok(size)
    }

    /// Writes one version and syncs it. Returns the number of fetched bytes.
    async fn write(&mut self, proof: Option<&Arc<Proof>>) -> Result<u64, ToolError> {
        match &self.output {
            Output::Stream(sink) => {
                let sink = sink.clone();
                let size = self.fetch_to(&sink, Order::Ascending, Zeros::Written, proof).await?;
                self.signals.guard(sink.sync()).await?;
                Ok(size)
            }
            Output::Device(sink) => {
                let sink = sink.clone();
                let zeros = self.prepare(&sink).await?;
                let fetched = self.fetch_to(&sink, Order::Any, zeros, proof).await;
                // The device is written again from its beginning.
                let size = fetched.map_err(ToolError::before_another_attempt)?;
                self.signals.guard(sink.sync()).await?;
                Ok(size)
            }
            Output::File(path) if self.resumes => {
                let path = path.clone();
                self.fetch_resumably(&path, proof).await
            }
            Output::File(path) => {
                let part = PartialFile::create(path)?;
                let (sink, order) = (part.sink()?, Order::Any);
                let fetched = self.fetch_to(&sink, order, Zeros::LeftOut, proof).await;
                // The written bytes disappear with the partial file.
                let size = fetched.map_err(ToolError::before_another_attempt)?;
                self.signals.guard(part.publish(OnDisk)).await?;
                Ok(size)
            }
        }
    }

    /// Prepares a device to be written from its beginning. Returns how it takes zeros.
    async fn prepare(&mut self, sink: &Sink) -> Result<Zeros, ToolError> {
        sink.rewind()?;
        if !self.discard {
            return Ok(Zeros::Written);
        }
        let device = sink.clone();
        let freeing = blocking(move || device.free_all());
        let freeing = freeing.map_err(|error| sink.write_error(&error));
        let freed = self.signals.guard(freeing).await?;
        if freed == 0 {
            warn!("the device cannot free blocks that then read as zeros: zeros are written");
            return Ok(Zeros::Written);
        }
        Ok(Zeros::Freed(freed))
    }

    /// Fetches the proof of the expected content, if one is expected.
    async fn proof(&mut self) -> Result<Option<Arc<Proof>>, ToolError> {
        let Some(Expected { id, timeout }) = self.expected else { return Ok(None) };
        let Self { target, progress, signals, .. } = self;
        let busy = |reason: &str| progress.notify(reason);
        let proof = async {
            // Fails at once if the server cannot be reached, and not after the timeout.
            target.control.attributes(&target.path).await?;
            Ok(Proof::begin(&target.control, &target.path, id, timeout, busy).await?)
        };
        signals.guard(Box::pin(proof)).await.map(Some)
    }

    /// Writes the bytes, proven and expanded if that is wanted. Returns the number of fetched bytes.
    async fn fetch_to(
        &mut self,
        sink: &Sink,
        order: Order,
        zeros: Zeros,
        proof: Option<&Arc<Proof>>,
    ) -> Result<u64, ToolError> {
        if self.decompress {
            let expansion = Expansion::start(sink, zeros)?;
            let fetched = self.fetch_in_order(&expansion.input(), Zeros::Written, proof).await;
            let (fetched, expanded) = self.signals.guard(expansion.finish(fetched)).await?;
            self.progress.notify(&format!("expanded to {}", BinaryBytes(expanded)));
            return Ok(fetched);
        }
        match order {
            Order::Ascending => self.fetch_in_order(sink, zeros, proof).await,
            Order::Any => {
                let size = self.fetch_in_place(sink, zeros).await?;
                self.check(proof, size, sink).await?;
                Ok(size)
            }
        }
    }

    /// Writes the bytes from the first to the last, each once it is proven. Returns their number.
    async fn fetch_in_order(
        &mut self,
        sink: &Sink,
        zeros: Zeros,
        proof: Option<&Arc<Proof>>,
    ) -> Result<u64, ToolError> {
        let gate = proof.cloned().map(Gate::new);
        let kept = self.keep().await?;
        let Self { target, transport, progress, signals, .. } = self;
        let size = match (transport, kept) {
            (_, Some(kept)) => signals.guard(copy(&kept, sink.in_order(zeros), gate)).await?,
            (Transport::Cast(cast), None) => {
                cast.write_in_order(sink, gate, progress, signals).await?
            }
            (Transport::Range(cast, range), None) => {
                return cast.write_range(*range, sink, progress, signals).await;
            }
            (Transport::Unicast { timeout }, None) => {
                let output = sink.in_order(zeros);
                let fetch = UnicastFetch::new(target, *timeout, progress, output);
                let mut fetch = fetch.through(gate);
                signals.guard(fetch.run()).await?
            }
        };
        if proof.is_some_and(|proof| proof.tree().size() != size) {
            // Each leaf was proven, but not that these were all.
            return Err(ToolError::ChangedMidway(size));
        }
        Ok(size)
    }

    /// Writes the bytes, each in place when it arrives. Returns their number.
    async fn fetch_in_place(&mut self, sink: &Sink, zeros: Zeros) -> Result<u64, ToolError> {
        match &self.transport {
            Transport::Cast(cast) if self.cache.is_none() => {
                cast.write_in_place(sink, zeros, &self.progress, &mut self.signals).await
            }
            // Nothing arrives out of order.
            Transport::Cast(_) | Transport::Range(..) | Transport::Unicast { .. } => {
                self.fetch_in_order(sink, zeros, None).await
            }
        }
    }

    /// Fetches the file into the cache that is to keep it. Returns `None` if none is.
    async fn keep(&mut self) -> Result<Option<Arc<Object>>, ToolError> {
        let Self { target, transport, cache, progress, signals, .. } = self;
        let (Transport::Cast(cast), Some(cache)) = (transport, cache) else { return Ok(None) };
        let (etag, size) = version(target, signals).await?;
        cast.keep(cache, etag, size, progress, signals).await.map(Some)
    }

    /// Fetches one version to a file, with what earlier fetches left of it. Returns its size.
    async fn fetch_resumably(
        &mut self,
        path: &Path,
        proof: Option<&Arc<Proof>>,
    ) -> Result<u64, ToolError> {
        let parts = Parts::open(path)?;
        let Self { target, transport, progress, signals, .. } = self;
        let Transport::Cast(cast) = transport else {
            unreachable!("--continue conflicts with other transports")
        };
        let (etag, size) = version(target, signals).await?;
        let kept = cast.keep(parts.cache(), etag, size, progress, signals).await?;
        let part = parts.take(&kept.store().path().expect("a cache on disk"))?;
        self.check(proof, size, &part.sink()?).await?;
        self.signals.guard(part.publish(OnDisk)).await?;
        parts.remove();
        Ok(size)
    }

    /// Checks what was written, and replaces wrong bytes.
    async fn check(
        &mut self,
        proof: Option<&Arc<Proof>>,
        size: u64,
        sink: &Sink,
    ) -> Result<(), ToolError> {
        let Some(proof) = proof else { return Ok(()) };
        if size != proof.tree().size() {
            return Err(ToolError::Changed);
        }
        self.signals.guard(check_file(proof, sink.reopen()?, sink)).await
    }
}

/// Returns the version and the size of a file, before anything of it is fetched.
async fn version(target: &Target, signals: &mut EndSignals) -> Result<(Etag, u64), ToolError> {
    let Target { control, path } = target;
    let attributes = signals.guard(async { Ok::<_, ToolError>(control.attributes(path).await?) });
    let attributes = attributes.await?;
    match (attributes.kind, attributes.etag) {
        (Kind::File, Some(etag)) => Ok((etag, attributes.size)),
        _ => Err(ToolError::Usage("this server names no version that could be kept".into())),
    }
}

/// Writes a complete file to an output, through a gate if it must be proven. Returns its size.
async fn copy(
    file: &Arc<Object>,
    mut output: InOrder,
    mut gate: Option<Gate>,
) -> Result<u64, ToolError> {
    let size = file.snapshot().size.expect("it is complete");
    let mut offset = 0;
    while offset < size {
        let (source, len) = (file.clone(), (size - offset).min(COPY_BYTES));
        let read = blocking(move || {
            let mut bytes = vec![0; usize::try_from(len).expect("at most a MiB")];
            source.store().read_exact_at(&mut bytes, offset).map(|()| bytes)
        });
        let read = read.await;
        let mut bytes = read.map_err(|error| ToolError::Local(format!("the cache: {error}")))?;
        if let Some(gate) = &mut gate {
            bytes = gate.pass(&bytes).await?;
        }
        let mut to = output.clone();
        let written = blocking(move || to.write(&bytes).map(|()| to)).await;
        output = written.map_err(|error| output.error(&error))?;
        offset += len;
    }
    let end = output.clone();
    blocking(move || end.finish()).await.map_err(|error| output.error(&error))
}

/// Order in which an output takes bytes.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// From the first to the last.
    Ascending,
    /// Each page in place when it arrives.
    Any,
}
