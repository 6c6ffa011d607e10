//! The command `bootcast-urlmount URL.. DIR`: mounts the one file that the URLs name, from the
//! first server that has it. Takes the arguments of confluent's `urlmount`.
//!
//! It only chooses the URL. The mount is that of `bootcastfs URL DIR -o file`, as which this
//! program executes itself.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{CommandFactory, Parser};
use tokio::time::{sleep, timeout};

use crate::io::{Control, now};
use crate::mount::{MountError, MountOptions, MountRequest, root_fs};
use crate::mount_command::{self, How};
use crate::root::Root;

const NAME: &str = "bootcast-urlmount";

/// Longest time that a server gets to answer, that of urlmount.
const PATIENCE: Duration = Duration::from_secs(15);

/// Pause before all URLs are tried again, if `retry=` asks for it.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// Options that come before those of the command line. Like urlmount, the mount fetches what is
/// read, and each URL is tried once.
const DEFAULTS: &str = "file,fill=demand,retry=0";

/// Options of an initramfs, where nothing is a disk.
const DEFAULTS_IN_INITRD: &str = "file,fill=demand,retry=0,cache=memory";

const AFTER_HELP: &str = "\
Examples:
  bootcast-urlmount http://head1/os/rocky/rootimg.sfs http://head2/os/rocky/rootimg.sfs /mnt
  bootcast-urlmount http://head/images/root.erofs /mnt -o fill=eager

The URLs are tried in their order, each once. With -o retry=MINUTES they are tried again and again \
for this time. The options of bootcastfs(8) follow -o; fill=demand is on unless another fill= is \
given, and in an initramfs also cache=memory.

Exit codes:
  0   mounted
  1   wrong usage, or no URL names a file of a bootcast server that answers
  32  the mount failed";

/// Mount one file of a bootcast server as DIR/NAME, where NAME is the last part of its URL; takes
/// the arguments of confluent's urlmount
#[derive(Parser)]
#[command(name = NAME, version, max_term_width = 100, after_help = AFTER_HELP)]
#[command(override_usage = "bootcast-urlmount [OPTIONS] URL.. DIR")]
struct Args {
    #[arg(
        help = "URLs of the file, http://HOST[:PORT]/PATH; port 8888 unless named. The argument \
                without a colon is the directory to mount on"
    )]
    #[arg(value_name = "URL|DIR", required = true)]
    places: Vec<OsString>,

    #[command(flatten)]
    how: How,

    /// One thread (no effect)
    #[arg(short)]
    single: bool,
}

/// Mount that could begin with each of several URLs.
#[derive(Debug)]
struct Choice {
    urls: Vec<OsString>,
    dir: PathBuf,
    /// Lists of mount options, with the defaults before them.
    options: Vec<OsString>,
    /// Time for which all URLs are tried again and again.
    limit: Duration,
}

/// Whether a program that is started under this name runs this command.
pub fn is_named(program: &OsStr) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == NAME)
}

/// Returns the command line that the command understands, with its help.
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs the command of this process.
pub fn run_process() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            // The user asked for help or the version. A closed pipe is not an error here.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&mount_command::usage_error(&error)),
    };
    let How { options, foreground, debug } = args.how;
    let switches = [(foreground, "-f"), (debug, "-d")];
    let choice = match Choice::new(args.places, options, root_fs::is_in_initrd()) {
        Ok(choice) => choice,
        Err(error) => return fail(&error),
    };
    let url = match choice.first_that_answers() {
        Ok(url) => url,
        Err(error) => return fail(&error),
    };
    let mut mount = Command::new("/proc/self/exe");
    mount.arg0(mount_command::NAME).arg(url).arg(&choice.dir);
    mount.args(choice.options.iter().flat_map(|list| [OsStr::new("-o"), list]));
    mount.args(switches.iter().filter(|(is_given, _)| *is_given).map(|(_, switch)| switch));
    let error = mount.exec();
    fail(&MountError::failed(&format!("cannot run as {}: {error}", mount_command::NAME)))
}

impl Choice {
    /// Sorts the arguments into URLs and the directory, and checks them.
    fn new(
        places: Vec<OsString>,
        options: Vec<OsString>,
        is_in_initrd: bool,
    ) -> Result<Self, MountError> {
        let has_colon = |place: &OsString| place.as_bytes().contains(&b':');
        let (urls, dirs): (Vec<_>, Vec<_>) = places.into_iter().partition(has_colon);
        let usage = |reason: &str| MountError::usage(&format!("{reason} (see --help)"));
        let [dir] = &dirs[..] else {
            return Err(usage(match dirs.len() {
                0 => "a directory to mount on is missing",
                _ => "one directory is needed, and URLs with a colon",
            }));
        };
        if urls.is_empty() {
            return Err(usage("no URL given"));
        }
        let defaults = if is_in_initrd { DEFAULTS_IN_INITRD } else { DEFAULTS };
        let options = [vec![defaults.into()], options].concat();
        let parsed = MountOptions::parse(&options).map_err(|error| MountError::usage(&error))?;
        let limit = parsed.retry_limit();
        let choice = Self { urls, dir: dir.into(), options, limit };
        choice.check_names()?;
        Ok(choice)
    }

    /// Returns the request to mount one of the URLs.
    fn request(&self, url: &OsStr) -> Result<MountRequest, MountError> {
        MountRequest::parse(url, &self.dir, &self.options)
    }

    /// Checks that the file has the same name under all URLs. URLs that cannot be used are skipped
    /// later.
    fn check_names(&self) -> Result<(), MountError> {
        let mut known: Option<Vec<u8>> = None;
        for url in &self.urls {
            let Ok(request) = self.request(url) else { continue };
            let Some(name) = request.source.path.file_name() else {
                return Err(MountError::usage(&format!("{} names no file", url.display())));
            };
            if known.as_ref().is_some_and(|known| known != name) {
                return Err(MountError::usage(&format!(
                    "{} names another file than the URLs before it",
                    url.display()
                )));
            }
            known = Some(name.to_owned());
        }
        Ok(())
    }

    /// Returns the first URL whose server answers and has the file. Prints why others are not used.
    fn first_that_answers(&self) -> Result<&OsStr, MountError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| MountError::failed(&error))?;
        let found = runtime.block_on(self.search());
        // A name that is still being looked up holds nothing up.
        runtime.shutdown_background();
        found
    }

    async fn search(&self) -> Result<&OsStr, MountError> {
        let start = now();
        loop {
            for url in &self.urls {
                match self.check(url).await {
                    Ok(()) => return Ok(url),
                    Err(error) => eprintln!("{NAME}: {}: {error}", url.display()),
                }
            }
            if now().saturating_duration_since(start) + ROUND_PAUSE > self.limit {
                return Err(MountError::failed(&"no URL can be mounted"));
            }
            sleep(ROUND_PAUSE).await;
        }
    }

    /// Asks the server of a URL whether it has the file.
    async fn check(&self, url: &OsStr) -> Result<(), MountError> {
        let request = self.request(url)?;
        let control = Control::new(&request.source.base_url());
        let control = control.map_err(|error| MountError::failed(&error))?;
        match timeout(PATIENCE, Root::check(&control, &request)).await {
            Ok(checked) => checked,
            Err(_) => Err(MountError::failed(&control.unanswered())),
        }
    }
}

/// Prints an error as one line. Like urlmount, all of them end with exit code 1.
fn fail(error: &MountError) -> ExitCode {
    eprintln!("{NAME}: {error}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(places: &[&str]) -> Result<Choice, MountError> {
        Choice::new(places.iter().map(OsString::from).collect(), Vec::new(), false)
    }

    #[test]
    fn the_name_of_the_program_selects_the_command() {
        assert!(is_named(OsStr::new("/opt/confluent/bin/bootcast-urlmount")));
        for name in ["bootcast", "/bootcast-urlmount/bootcast", "urlmount", ""] {
            assert!(!is_named(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
        let line = "bootcast-urlmount -s http://a/x http://b/x /mnt -f -o allow_other -o soft";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        assert_eq!((args.places.len(), args.how.options.len()), (3, 2));
    }

    #[test]
    fn the_argument_without_a_colon_is_the_directory_wherever_it_stands() {
        for places in [["http://a/x", "http://b/d/x", "mnt"], ["mnt", "http://a/x", "http://b/d/x"]]
        {
            let choice = choice(&places).unwrap();
            assert_eq!(choice.urls, ["http://a/x", "http://b/d/x"]);
            assert_eq!(choice.dir, Path::new("mnt"));
        }
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for (places, reason) in [
            (&["http://a/x"][..], "a directory to mount on is missing"),
            (&["mnt"], "no URL given"),
            (&["http://a/x", "mnt", "mnt2"], "one directory is needed"),
            (&["http://a/", "mnt"], "http://a/ names no file"),
            (&["http://a/x", "http://b/y", "mnt"], "http://b/y names another file"),
        ] {
            let error = choice(places).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn options_that_bootcastfs_does_not_know_are_refused_before_any_url_is_tried() {
        for (options, reason) in [("bogus", "unknown option"), ("pins=/p", "pins= excludes")] {
            let places = vec!["http://a/x".into(), "mnt".into()];
            let error = Choice::new(places, vec![options.into()], false).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn urls_that_cannot_be_used_do_not_count() {
        assert!(choice(&["https://a/other", "http://b/x", "mnt"]).is_ok());
    }

    #[test]
    fn options_of_the_command_line_come_after_the_defaults() {
        let places = || vec!["http://a/x".into(), "mnt".into()];
        let choice = Choice::new(places(), vec!["fill=eager,retry=1".into()], true).unwrap();
        let options = choice.request(&choice.urls[0]).unwrap().options;
        assert!(options.is_single_file());
        assert_eq!(options.fill, crate::receiver::FillPolicy::AtOpen);
        assert_eq!(options.cache, crate::mount::options::CacheKind::Memory);
        assert_eq!(options.retry_limit(), Duration::from_secs(60));
        let choice = Choice::new(places(), Vec::new(), false).unwrap();
        let options = choice.request(&choice.urls[0]).unwrap().options;
        assert_eq!(options.fill, crate::receiver::FillPolicy::Never);
        assert_eq!(options.cache, crate::mount::options::CacheKind::Disk);
        assert_eq!(options.retry_limit(), Duration::ZERO);
    }
}
