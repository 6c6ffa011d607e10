//! The command `bootcastfs SOURCE MOUNTPOINT`: mounts a directory of a bootcast server. `mount -t
//! fuse.bootcastfs` runs it. Under the name `mount.bootcastfs` it takes the arguments that mount(8)
//! passes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::handover::replace::Offer;
use crate::handover::store::Store;
use crate::handover::{Connection, Start, keeper};
use crate::mount::helper::{HelperArgs, is_helper};
use crate::mount::{MountError, MountRequest, daemon, logging, options, root_fs};
use crate::{panics, run_mount};

/// Name of the program that runs this command.
pub(crate) const NAME: &str = "bootcastfs";

const EXAMPLES: &str = "\
Examples:
  bootcastfs head:/images /mnt/images
  bootcastfs head:/images /mnt/images -f -o allow_other,cache=memory,log=debug
  mount -t bootcastfs head:8888:/images /mnt/images -o allow_other,interface=eth1
  mount -t bootcastfs head:/images/root.erofs /mnt -o b3=HASH
  bootcastfs --replace /mnt/images

/etc/fstab:
  head:/images  /mnt/images  bootcastfs  ro,allow_other,_netdev,nofail  0  0

In the background, log lines go to syslog.

Exit codes, as of mount(8):
  0   mounted
  1   wrong usage
  32  the mount failed";

/// Mount a directory of a bootcast server, read-only; a file that many hosts read at the same time
/// is sent to all of them once, by multicast
#[derive(Parser)]
#[command(name = NAME, version, max_term_width = 100)]
struct Args {
    #[arg(help = "Directory to mount, or with -o file or b3= a file: HOST:[PORT:]/PATH or \
                http://HOST[:PORT]/PATH, with an IPv6 address in brackets; port 8888 unless named")]
    #[arg(required_unless_present = "replace")]
    source: Option<OsString>,

    /// Directory to mount on
    #[arg(required_unless_present = "replace")]
    mountpoint: Option<PathBuf>,

    /// Take over a mount from the process that serves it, with its options, while files stay open;
    /// this starts a new version of the program without an unmount
    #[arg(
        long,
        value_name = "MOUNTPOINT",
        conflicts_with_all = ["source", "mountpoint", "options"]
    )]
    replace: Option<PathBuf>,

    #[command(flatten)]
    how: How,
}

/// Arguments that all commands share that mount.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct How {
    /// Mount options, separated by commas; can be given more than once
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<OsString>,

    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    pub(crate) foreground: bool,

    /// Like -f -o log=debug
    #[arg(short, long)]
    pub(crate) debug: bool,
}

/// Whether a program that is started under this name runs this command. A process that serves a
/// root file system has an `@` before its name.
pub fn is_named(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or(program);
    let name = name.as_bytes();
    is_helper(program) || name.strip_prefix(b"@").unwrap_or(name) == NAME.as_bytes()
}

/// Returns the command line that the command understands, with its help.
pub fn command() -> clap::Command {
    let help = format!("Mount options:\n{}\n{EXAMPLES}", options::help());
    Args::command().after_help(help)
}

/// Runs the command of this process.
pub fn run_process() -> ExitCode {
    panics::end_on_panic(|description| {
        eprintln!("bootcastfs: {description}");
        tracing::error!("{description}");
    });
    let command_line: Vec<OsString> = std::env::args_os().collect();
    let invocation = match parse(&command_line) {
        Ok(invocation) => invocation,
        Err(error) if !error.use_stderr() => {
            // The user asked for help or the version. A closed pipe is not an error here.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return daemon::fail(&usage_error(&error)),
    };
    if invocation.is_fake {
        return match invocation.request() {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => daemon::fail(&error),
        };
    }
    run(&invocation, &command_line)
}

/// Request of the command line, under either name of the program.
struct Invocation {
    args: Args,
    /// Whether nothing is to be mounted.
    is_fake: bool,
    /// Whether unknown options are ignored.
    is_sloppy: bool,
}

impl Invocation {
    fn request(&self) -> Result<MountRequest, MountError> {
        let Args { source, mountpoint, how: How { options, .. }, .. } = &self.args;
        let (source, mountpoint) =
            (source.clone().unwrap_or_default(), mountpoint.clone().unwrap_or_default());
        if self.is_sloppy {
            MountRequest::parse_sloppy(&source, &mountpoint, options)
        } else {
            MountRequest::parse(&source, &mountpoint, options)
        }
    }

    /// Whether the process stays in the foreground.
    fn is_foreground(&self) -> bool {
        self.args.how.foreground || self.args.how.debug
    }

    /// Returns what to mount, and how to come by the connection. `stored` is a connection that a
    /// previous process left in `store`.
    fn start(
        &self,
        store: &Store,
        stored: Option<Connection>,
    ) -> Result<(MountRequest, Start), MountError> {
        match (&self.args.replace, stored) {
            (None, None) => Ok((self.request()?, Start::Mount)),
            // A keeper has another working directory than the command line was typed in.
            (replace, Some(connection)) if replace.is_some() || keeper::is_child() => {
                Ok((connection.mount_request()?, Start::Resume(connection)))
            }
            (_, Some(connection)) => {
                let request = self.request()?;
                let start = connection.of_mount(&request).map_or_else(
                    |mountpoint| {
                        eprintln!("bootcastfs: warning: left {}", mountpoint.display());
                        store.remove();
                        Start::Mount
                    },
                    Start::Resume,
                );
                Ok((request, start))
            }
            (Some(mountpoint), None) => {
                let offer = Offer::request(mountpoint)?;
                Ok((offer.mount_request()?, Start::Replace(offer)))
            }
        }
    }
}

fn run(invocation: &Invocation, command_line: &[OsString]) -> ExitCode {
    // Its error cannot be reported to a keeper: there is no socket to it.
    match Store::open(invocation.is_foreground()) {
        Ok((store, stored)) => match invocation.start(&store, stored) {
            Ok((request, start)) => serve(request, start, &store, invocation, command_line),
            Err(error) => fail(&store, &error),
        },
        Err(error) => daemon::fail(&error),
    }
}

fn serve(
    mut request: MountRequest,
    start: Start,
    store: &Store,
    invocation: &Invocation,
    command_line: &[OsString],
) -> ExitCode {
    request.options.root_fs |= root_fs::is_in_initrd();
    if request.options.root_fs
        && let Err(error) = root_fs::mark(command_line)
    {
        return fail(store, &error);
    }
    if request.options.keeper && store.is_service_manager() {
        let reason = "no keeper in a service: systemd keeps the connection, with \
                      FileDescriptorStoreMax=2";
        return fail(store, &MountError::usage(&reason));
    }
    let (request, args) = (&request, &invocation.args);
    let log = request.options.log.clone();
    let serve = |start: Start, ready: &mut dyn FnMut()| {
        if request.options.keeper && !keeper::is_child() {
            keeper::run(command_line, &request.mountpoint, start, ready)
        } else {
            run_mount(request, start, store, ready)
        }
    };
    if invocation.is_foreground() {
        logging::to_stderr(log.as_deref().or(args.how.debug.then_some("debug")));
        return match serve(start, &mut || ()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(store, &error),
        };
    }
    if keeper::is_child() {
        // The keeper has the terminal, and reports errors there.
        if let Err(error) = daemon::leave_terminal() {
            return fail(store, &MountError::failed(&error));
        }
        logging::in_background(request.options.root_fs, log.as_deref());
        return match serve(start, &mut || ()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error}");
                fail(store, &error)
            }
        };
    }
    if request.options.wants_rw {
        // In the foreground the log goes to the terminal and has this warning.
        eprintln!("bootcastfs: warning: ignoring -o rw: the file system is read-only");
    }
    daemon::run_in_background(|reporter| {
        logging::in_background(request.options.root_fs, log.as_deref());
        serve(start, &mut || reporter.report_ready())
    })
}

/// Reports an error to the keeper of this process, or prints it. Returns its exit code.
fn fail(store: &Store, error: &MountError) -> ExitCode {
    if store.report_error(error) {
        return ExitCode::from(error.exit_code());
    }
    daemon::fail(error)
}

fn parse(command_line: &[OsString]) -> Result<Invocation, clap::Error> {
    if command_line.first().is_some_and(|program| is_helper(program)) {
        let helper = HelperArgs::try_parse_from(command_line)?;
        let HelperArgs { source, mountpoint, options, fake, sloppy, .. } = helper;
        let args = Args {
            source: Some(source),
            mountpoint: Some(mountpoint),
            replace: None,
            how: How { options, ..How::default() },
        };
        return Ok(Invocation { args, is_fake: fake, is_sloppy: sloppy });
    }
    let matches = command().try_get_matches_from(command_line)?;
    let args = Args::from_arg_matches(&matches)?;
    Ok(Invocation { args, is_fake: false, is_sloppy: false })
}

/// Creates the error of a wrong command line from the first paragraph of clap's message.
pub(crate) fn usage_error(error: &clap::Error) -> MountError {
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    MountError::usage(&format!("{} (see --help)", paragraph.trim_start_matches("error: ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_program_selects_the_command() {
        for name in ["bootcastfs", "/sbin/mount.bootcastfs", "@bootcastfs", "@mount.bootcastfs"] {
            assert!(is_named(name.as_ref()), "{name}");
        }
        for name in ["bootcast", "/bootcastfs/bootcast", "bootcastfs2", "@bootcast", ""] {
            assert!(!is_named(name.as_ref()), "{name}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
