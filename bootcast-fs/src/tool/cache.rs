//! `bootcast cache`: shows, checks and frees what mounts keep on this machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use indicatif::BinaryBytes;
use serde::Serialize;

use super::error::ToolError;
use super::status::{counted, write_columns};
use super::stdout;
use super::url::printable;
use crate::cache::{self, Budget, Cache, Checked, Kept, KeptFile};
use crate::{durations, sizes};

/// Exit codes of `cache`, as `--help` shows them.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    wrong usage
  2    the cache cannot be read or changed, or a file in it was damaged
  9    an error in this program; please report it
  141  the reader of standard output went away";

/// A command of `bootcast cache`.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// List the files, the least recently used first
    Ls {
        #[command(flatten)]
        place: Place,
        /// Print JSON, with paths percent-encoded
        #[arg(long)]
        json: bool,
    },
    /// Check all bytes of complete files. A damaged file that nobody uses is removed, and fetched
    /// again when it is opened next
    Verify {
        #[command(flatten)]
        place: Place,
    },
    /// Fetch files into the cache, so that mounts find them there
    #[command(after_help = super::error::EXIT_CODES)]
    Warm(super::warm::Args),
    /// Remove files that no mount uses, the least recently used first
    #[command(group(clap::ArgGroup::new("which").required(true)))]
    Prune {
        #[command(flatten)]
        place: Place,
        /// Remove until the rest takes up at most this much of the disk, such as 20G
        #[arg(long, value_name = "SIZE", value_parser = sizes::parse, group = "which")]
        size: Option<u64>,
        /// Remove what was not used for this long, such as 30d
        #[arg(long, value_name = "TIME", value_parser = durations::parse, group = "which")]
        unused: Option<Duration>,
        /// Remove all, and forget the names that mounts show without their server
        #[arg(long, group = "which")]
        all: bool,
    },
}

/// Place of the cache.
#[derive(clap::Args, Debug)]
pub(super) struct Place {
    #[arg(
        long,
        value_name = "DIR",
        help = "Directory of the cache, as in the mount option \
        cache_dir=; /var/cache/bootcast or ~/.cache/bootcast unless named"
    )]
    cache_dir: Option<PathBuf>,
}

/// Runs a command.
#[expect(clippy::disallowed_methods, reason = "ages are shown to a person")]
pub(super) fn run(command: Command) -> Result<(), ToolError> {
    let now = SystemTime::now();
    match command {
        Command::Ls { place, json } => {
            let (dir, kept) = place.list()?;
            if json {
                return stdout::print_json(&kept.iter().map(Line::of).collect::<Vec<_>>());
            }
            stdout::print((table(&kept, now) + &budget(&dir)).as_bytes())
        }
        Command::Verify { place } => verify(&place),
        Command::Warm(_) => unreachable!("it needs the network, and runs elsewhere"),
        Command::Prune { place, unused: Some(unused), .. } => {
            let (dir, kept) = place.list()?;
            let old = kept.iter().filter(|object| since(object.used, now) >= unused);
            prune(&dir, old, u64::MAX)
        }
        // With `--all` there is no size, and nothing may stay.
        Command::Prune { place, size, all, .. } => {
            let (dir, kept) = place.list()?;
            if all {
                cache::forget_names(&dir).map_err(|error| unusable(&dir, &error))?;
            }
            let total = kept.iter().map(|object| object.allocated).sum::<u64>();
            prune(&dir, kept.iter(), total.saturating_sub(size.unwrap_or(0)))
        }
    }
}

impl Place {
    /// Returns the directory of the cache.
    pub(super) fn dir(&self) -> Result<PathBuf, ToolError> {
        let dir = self.cache_dir.clone().or_else(cache::default_dir);
        dir.ok_or_else(|| ToolError::Usage("no $HOME: name --cache-dir".into()))
    }

    /// Returns the directory of the cache, and the objects in it.
    fn list(&self) -> Result<(PathBuf, Vec<Kept>), ToolError> {
        let dir = self.dir()?;
        let kept = cache::list(&dir).map_err(|error| unusable(&dir, &error))?;
        Ok((dir, kept))
    }
}

/// Opens a cache, and creates it if it is missing.
pub(super) fn open(dir: &Path, budget: Budget) -> Result<Cache, ToolError> {
    Cache::with_budget(dir, budget).map_err(|error| unusable(dir, &error))
}

pub(super) fn unusable(dir: &Path, error: &std::io::Error) -> ToolError {
    ToolError::Local(format!("cannot use the cache {}: {error}", dir.display()))
}

/// A file of the cache, as `--json` shows it.
#[derive(Serialize)]
struct Line<'a> {
    server: Option<&'a str>,
    path: Option<String>,
    b3: Option<String>,
    size: Option<u64>,
    pages: Option<u32>,
    held: Option<u32>,
    allocated: u64,
    used: u64,
}

impl<'a> Line<'a> {
    fn of(object: &'a Kept) -> Self {
        let file = object.file.as_ref();
        Self {
            server: file.map(|file| file.server.as_str()),
            path: file.map(|file| file.path.encode()),
            b3: file.and_then(|file| file.content).map(|content| content.to_string()),
            size: file.map(|file| file.size),
            pages: file.map(|file| file.pages),
            held: file.map(|file| file.held),
            allocated: object.allocated,
            used: since(SystemTime::UNIX_EPOCH, object.used).as_secs(),
        }
    }
}

/// Returns the name of an object for people.
fn name(object: &Kept) -> String {
    match &object.file {
        Some(KeptFile { server, path, .. }) => {
            let server = server.strip_suffix(":8888").unwrap_or(server);
            format!("{}:/{}", printable(server.as_bytes()), printable(path.as_bytes()))
        }
        None => "(without a record of its pages)".into(),
    }
}

/// Formats a table, and a line of totals.
fn table(kept: &[Kept], now: SystemTime) -> String {
    let mut rows = vec![["FILE", "SIZE", "HERE", "ON DISK", "UNUSED FOR", "B3"].map(str::to_owned)];
    for object in kept {
        let of_file = |text: &dyn Fn(&KeptFile) -> String| {
            object.file.as_ref().map_or_else(|| "-".to_owned(), text)
        };
        let id = |file: &KeptFile| file.content.map(|id| id.to_string()[..12].to_owned());
        rows.push([
            name(object),
            of_file(&|file| BinaryBytes(file.size).to_string()),
            of_file(&here),
            BinaryBytes(object.allocated).to_string(),
            humantime::format_duration(coarse(since(object.used, now))).to_string(),
            of_file(&|file| id(file).unwrap_or_else(|| "-".to_owned())),
        ]);
    }
    let mut text = String::new();
    if !kept.is_empty() {
        write_columns(&mut text, &rows);
    }
    let allocated = kept.iter().map(|object| object.allocated).sum();
    text + &format!("{}, {} on the disk\n", files(kept.len()), BinaryBytes(allocated))
}

/// Formats the limits of the cache.
fn budget(dir: &Path) -> String {
    let (size, min_free) = Budget::recorded(dir).bytes(dir);
    let (size, min_free) = (BinaryBytes(size), BinaryBytes(min_free));
    format!("at most {size}, and {min_free} of the disk stay free\n")
}

/// Returns the share of a file that was here at the last checkpoint, as a whole number of percent
/// that is 100 only for a complete file.
fn here(file: &KeptFile) -> String {
    let percent = u64::from(file.held) * 100 / u64::from(file.pages.max(1));
    format!("{}%", if file.is_complete() { 100 } else { percent })
}

/// Returns the time from `begin` to `end`; 0 if `end` is earlier.
fn since(begin: SystemTime, end: SystemTime) -> Duration {
    end.duration_since(begin).unwrap_or_default()
}

/// Rounds a time down to a unit that suits its length.
fn coarse(time: Duration) -> Duration {
    let unit = match time.as_secs() {
        0..60 => 1,
        60..3600 => 60,
        3600..86_400 => 3600,
        _ => 86_400,
    };
    Duration::from_secs(time.as_secs() / unit * unit)
}

fn files(count: usize) -> String {
    counted(count as u64, "file")
}

/// Removes objects until `enough` bytes are free, and prints a line about it.
fn prune<'a>(
    dir: &Path,
    objects: impl Iterator<Item = &'a Kept>,
    enough: u64,
) -> Result<(), ToolError> {
    let (mut removed, mut freed, mut in_use) = (0, 0, 0);
    for object in objects {
        if freed >= enough {
            break;
        }
        if object.remove().map_err(|error| unusable(dir, &error))? {
            removed += 1;
            freed += object.allocated;
        } else {
            in_use += 1;
        }
    }
    let used =
        if in_use > 0 { format!("; {} in use stayed", files(in_use)) } else { String::new() };
    let text = format!("removed {}, {}{used}\n", files(removed), BinaryBytes(freed));
    stdout::print(text.as_bytes())
}

/// Checks all files, and removes damaged ones.
fn verify(place: &Place) -> Result<(), ToolError> {
    let (dir, kept) = place.list()?;
    let mut damaged = 0;
    for object in &kept {
        let failed = |error| unusable(&dir, &error);
        let result = match object.check().map_err(failed)? {
            Checked::Right => "OK",
            Checked::Unknown => "not complete: checked when it is read",
            Checked::Damaged => {
                damaged += 1;
                if object.remove().map_err(failed)? {
                    "damaged: removed"
                } else {
                    "damaged, and in use: checked when it is opened next"
                }
            }
        };
        stdout::print(format!("{}: {result}\n", name(object)).as_bytes())?;
    }
    if damaged > 0 {
        let text = format!("{} of {} damaged", damaged, files(kept.len()));
        return Err(ToolError::Local(text));
    }
    Ok(())
}
