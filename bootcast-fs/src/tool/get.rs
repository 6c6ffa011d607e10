//! `bootcast get`: fetches one file.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;

use super::cast::CastFetch;
use super::error::ToolError;
use super::output::{OnDisk, Output, Part, Sink};
use super::progress::{Progress, Screen};
use super::range::ByteRange;
use super::signals::Signals;
use super::unicast::UnicastFetch;
use super::url::{Target, default_file_name};
use crate::durations;
use crate::io::InterfaceChoice;

/// Most attempts if the file changes on the server meanwhile.
const MAX_STARTS: u32 = 4;
/// Pause before each further attempt: the file may still be changing.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Arguments of `bootcast get`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[arg(
        help = "File to fetch: http://HOST[:PORT]/PATH, percent-encoded, or HOST:[PORT:]/PATH as it is; \
                  port 8888 unless named"
    )]
    url: OsString,

    /// Write to FILE, which appears or is replaced when everything is here; '-' is standard output,
    /// written in order as pages arrive [default: the last name of the URL]
    #[arg(short = 'O', long = "output", value_name = "FILE")]
    output: Option<PathBuf>,

    /// Fetch only these bytes, counted from 0: 0-499, 500- or the last ones, -500
    #[arg(
        short,
        long,
        value_name = "FROM-TO",
        allow_hyphen_values = true,
        conflicts_with = "unicast"
    )]
    range: Option<ByteRange>,

    /// Fetch the file over plain HTTP, for this client alone
    #[arg(short, long)]
    unicast: bool,

    /// Interface that multicast arrives on, by name or address [default: the one toward the server]
    #[arg(short, long, value_name = "NAME|ADDR", env = "BOOTCAST_INTERFACE")]
    interface: Option<InterfaceChoice>,

    /// Give up after this time without a new byte: seconds, or with units as in 1m30s; 0 is never
    #[arg(short, long, value_name = "DURATION", default_value = "60s", value_parser = durations::parse)]
    timeout: Duration,

    /// No progress bar and no notices; errors are still shown
    #[arg(short, long)]
    quiet: bool,

    /// Log what happens; twice for more
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
}

/// Fetches the file.
pub(super) async fn run(args: Args) -> Result<(), ToolError> {
    let target = Target::parse(&args.url)?;
    let to_stdout = args.output.as_ref().is_some_and(|output| output.as_os_str() == "-");
    let output = match &args.output {
        Some(_) if to_stdout => Output::stdout()?,
        Some(path) => Output::at(path)?,
        None => Output::at(&default_file_name(&target.path)?)?,
    };
    let screen = Screen::new(args.quiet, to_stdout);
    screen.log(args.quiet, args.verbose);
    let signals = Signals::listen()
        .map_err(|error| ToolError::Local(format!("cannot listen to signals: {error}")))?;
    let patience = Some(args.timeout).filter(|timeout| !timeout.is_zero());
    let transport = if args.unicast {
        Transport::Unicast { patience }
    } else {
        let cast = CastFetch::new(&target, args.interface.unwrap_or_default(), patience)?;
        match args.range {
            Some(range) => Transport::Part(cast, range),
            None => Transport::Cast(cast),
        }
    };
    let progress = screen.progress(&target.shown_name());
    let path = target.path.clone();
    let get = Get { target, transport, output, progress, signals };
    get.run().await.map_err(|error| error.about(&path))
}

/// How the bytes travel.
#[derive(Debug)]
enum Transport {
    Cast(CastFetch),
    /// Like `Cast`, but only these bytes.
    Part(CastFetch, ByteRange),
    Unicast {
        patience: Option<Duration>,
    },
}

/// One fetch.
struct Get {
    target: Target,
    transport: Transport,
    output: Output,
    progress: Progress,
    signals: Signals,
}

impl Get {
    async fn run(mut self) -> Result<(), ToolError> {
        let mut starts = 1;
        let size = loop {
            match self.fetch().await {
                Err(ToolError::Changed) if starts < MAX_STARTS => {
                    starts += 1;
                    self.progress.restart("the file changed on the server");
                    let pause = tokio::time::sleep(RESTART_PAUSE).map(Ok);
                    self.signals.guard(pause).await?;
                }
                outcome => break outcome?,
            }
        };
        self.progress.finish(size);
        Ok(())
    }

    /// Fetches one version and syncs it. Returns its size.
    async fn fetch(&mut self) -> Result<u64, ToolError> {
        match &self.output {
            Output::Stream(sink) => {
                let sink = sink.clone();
                let size = self.transport(&sink, Order::Ascending).await?;
                self.signals.guard(sink.sync()).await?;
                Ok(size)
            }
            Output::Device(sink) => {
                let sink = sink.clone();
                let size = self.transport(&sink, Order::Any).await?;
                self.signals.guard(sink.sync()).await?;
                Ok(size)
            }
            Output::File(path) => {
                let part = Part::begin(path)?;
                let fetched = self.transport(&part.sink()?, Order::Any).await;
                let size = fetched.map_err(|error| match error {
                    // Whatever was written disappears with the partial file.
                    ToolError::ChangedMidway(_) => ToolError::Changed,
                    error => error,
                })?;
                self.signals.guard(part.keep(OnDisk)).await?;
                Ok(size)
            }
        }
    }

    /// Writes the bytes to `sink`. Returns their number.
    async fn transport(&mut self, sink: &Sink, order: Order) -> Result<u64, ToolError> {
        let Self { target, transport, progress, signals, .. } = self;
        match (transport, order) {
            (Transport::Cast(cast), Order::Ascending) => cast.stream(sink, progress, signals).await,
            (Transport::Cast(cast), Order::Any) => cast.fill(sink, progress, signals).await,
            (Transport::Part(cast, range), _) => cast.part(*range, sink, progress, signals).await,
            (Transport::Unicast { patience }, _) => {
                let mut fetch = UnicastFetch::new(target, *patience, progress, sink)?;
                signals.guard(fetch.run()).await
            }
        }
    }
}

/// Order in which an output takes bytes.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// From the first to the last.
    Ascending,
    /// Each page at its place.
    Any,
}
