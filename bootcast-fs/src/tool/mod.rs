//! The command line tool `bootcast`: fetches and lists files of a server without a mount, and looks
//! after the cache of mounts.
//!
//! | module | holds |
//! |---|---|
//! | `get` | `bootcast get` |
//! | `cast`, `unicast` | fetching by multicast, and over plain HTTP |
//! | `range` | fetching a part of a file |
//! | `expand` | expanding a compressed file on the way |
//! | `output` | the destination of the bytes, and syncing it |
//! | `spool`, `relay` | storing pages that arrive in any order, and writing them in order |
//! | `proof` | checking the bytes against a content id |
//! | `stall`, `probe` | detecting that a fetch stalled or cannot succeed |
//! | `progress` | progress bar, notices and log lines on the terminal |
//! | `list`, `status`, `profile` | `bootcast ls`, `status URL`, `profile` |
//! | `mount_status` | `bootcast status MOUNTPOINT` |
//! | `cache`, `warm` | `bootcast cache` |
//! | `kexec`, `sys` | `bootcast kexec` |
//! | `url` | the argument that names a file on a server |
//! | `receiving` | options of the commands that receive files |
//! | `signals` | ending a command on a signal |
//! | `stdout` | printing short answers |
//! | `error` | errors and exit codes |

mod cache;
mod cast;
mod error;
mod expand;
mod get;
mod kexec;
mod list;
mod mount_status;
mod output;
mod parts;
mod probe;
mod profile;
mod progress;
mod proof;
mod range;
mod receiving;
mod relay;
mod spool;
mod stall;
mod status;
mod stdout;
mod sys;
mod unicast;
mod url;
mod warm;

use std::ffi::OsString;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::panics;
use error::{ANSWER_EXIT_CODES, EXIT_CODES, ToolError};

const EXAMPLES: &str = "\
Examples:
  bootcast get http://head/images/debian.img
  bootcast get head:/images/debian.img.zst --decompress -O /dev/sda --discard
  bootcast get http://head/images/debian.img --range 0-511 -O mbr
  bootcast ls -l http://head/images
  bootcast status /mnt/images
  bootcast status http://head
  bootcast profile http://head/images/debian.img
  bootcast cache ls
  bootcast cache warm http://head/images/debian.img";

/// Fetch files from a bootcast server, which sends a file to many hosts at once by multicast
#[derive(Parser, Debug)]
#[command(name = "bootcast", version, max_term_width = 100, after_help = after_help())]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Fetch a file
    #[command(after_help = EXIT_CODES)]
    Get(get::Args),
    /// List a directory
    #[command(after_help = ANSWER_EXIT_CODES)]
    Ls(list::Args),
    /// Show what a mount does, or what a server is casting
    #[command(after_help = ANSWER_EXIT_CODES)]
    Status(status::Args),
    /// Show which parts of a file its readers want first after an open
    #[command(after_help = ANSWER_EXIT_CODES)]
    Profile(profile::Args),
    /// Show, check or free what mounts keep on this machine
    #[command(subcommand, after_help = cache::EXIT_CODES)]
    Cache(cache::Command),
    /// Start another kernel at once, without an end of what runs: for an initramfs
    #[command(after_help = EXIT_CODES)]
    Kexec(kexec::Args),
}

fn after_help() -> String {
    format!("{EXAMPLES}\n\n{EXIT_CODES}")
}

/// Returns the command lines that the tool understands, with their help.
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs the command line, which starts with the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = match Args::try_parse_from(args) {
        Ok(args) => catch_panic(|| run_command(args.command)),
        Err(error) if !error.use_stderr() => {
            // The user asked for help or the version. A closed pipe is not an error here.
            let _ = error.print();
            Ok(())
        }
        Err(error) => Err(usage_error(&error)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, ToolError::ReaderGone) {
                eprintln!("bootcast: {}", one_line(&error.to_string()));
            }
            error.exit_code().into()
        }
    }
}

fn run_command(command: Command) -> Result<(), ToolError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ToolError::Local(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            description = panics::first() => Err(ToolError::Panic(description)),
            outcome = async {
                match command {
                    Command::Get(args) => get::run(args).await,
                    Command::Ls(args) => list::run(args).await,
                    Command::Status(args) => status::run(args).await,
                    Command::Profile(args) => profile::run(args).await,
                    Command::Cache(cache::Command::Warm(args)) => warm::run(args).await,
                    Command::Cache(command) => cache::run(command),
                    Command::Kexec(args) => kexec::run(args),
                }
            } => outcome,
        }
    });
    // Does not wait for a write that blocks on a pipe without a reader.
    runtime.shutdown_background();
    outcome
}

/// Runs `work`. A panic of this thread becomes an error, like one of any other thread.
fn catch_panic(work: impl FnOnce() -> Result<(), ToolError>) -> Result<(), ToolError> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(ToolError::Panic(panics::description().unwrap_or_default())))
}

/// Creates the error of a wrong command line from the first paragraph of clap's message.
fn usage_error(error: &clap::Error) -> ToolError {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return ToolError::Usage(
            "a command is missing: get, ls, status, profile, cache or kexec (see --help)".into(),
        );
    }
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let what = paragraph.trim_start_matches("error: ");
    ToolError::Usage(format!("{} (see --help)", one_line(what)))
}

/// Joins the lines of a message and escapes control characters. Parts of it come from the server.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    url::printable(line.as_bytes())
}

/// Parses arguments of the command line that are not plain words, for fuzzing.
pub(crate) fn fuzz_arguments(text: &str) {
    let _ = text.parse::<range::ByteRange>();
    let _ = url::printable(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_wrong_command_line_is_one_line_and_exit_code_1() {
        for line in ["bootcast", "bootcast get", "bootcast git x", "bootcast get -t soon head:/x"] {
            let error = usage_error(&parse(line).unwrap_err());
            assert_eq!(error.exit_code(), 1, "{line}");
            assert!(!error.to_string().contains('\n'), "{line}");
            assert!(error.to_string().contains("--help"), "{line}");
        }
    }

    #[test]
    fn a_timeout_without_a_unit_is_in_seconds() {
        for line in ["-t 0", "--timeout 1m30s", "-t 0.5", "--timeout=90"] {
            assert!(parse(&format!("bootcast get {line} head:/x")).is_ok(), "{line}");
        }
        let error = parse("bootcast get -t 18000000000000000000 head:/x").unwrap_err();
        assert!(error.to_string().contains("up to a year"), "{error}");
    }

    #[test]
    fn a_servers_text_is_one_line_without_control_characters() {
        assert_eq!(one_line("no\nsuch \x1b[2J file"), "no such \\u{1b}[2J file");
    }
}
