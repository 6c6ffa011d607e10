//! Entry point: parses arguments, sets up logging, runs the server, and sets the exit code.

use std::process::ExitCode;
use std::time::Duration;

use bootcast_host::signals::EndSignals;
use bootcast_server::cli::{Args, Command, Config};
use bootcast_server::hash;
use bootcast_server::logging::Logging;
use bootcast_server::server::Server;
use clap::Parser;
use tokio::runtime::Runtime;

/// Exit code if the server cannot start.
const EXIT_START: u8 = 2;
/// Exit code if the server failed after it started, or if a file cannot be hashed.
const EXIT_FAILED: u8 = 1;

/// Time that work on files gets to finish when the program ends. Work on a file system that hangs
/// never does.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report_failure(&error.into(), EXIT_START),
    };
    let code = runtime.block_on(run_command());
    runtime.shutdown_timeout(EXIT_TIMEOUT);
    code
}

/// Runs the server, or the command that the arguments name.
async fn run_command() -> ExitCode {
    let mut args = Args::parse();
    let logging = Logging::start(args.log_filter());
    tokio::spawn(logging.warn_of_dropped());
    if let Some(Command::Hash(args)) = args.command.take() {
        return match hash::run(args, print_error).await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(EXIT_FAILED),
            Err(error) => report_failure(&error, EXIT_FAILED),
        };
    }
    let mut signals = match EndSignals::listen() {
        Ok(signals) => signals,
        Err(error) => return report_failure(&error.into(), EXIT_START),
    };
    let server = tokio::select! {
        started = start(args) => match started {
            Ok(server) => server,
            Err(error) => return report_failure(&error, EXIT_START),
        },
        _ = signals.recv() => return ExitCode::SUCCESS,
    };
    match run(server, signals).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log says what led to the error, and goes first.
            drop(logging);
            report_failure(&error, EXIT_FAILED)
        }
    }
}

/// Starts the server. Its errors say what to do.
async fn start(args: Args) -> anyhow::Result<Server> {
    Server::start(Config::try_from(args)?).await
}

/// Runs the server until a signal ends it.
async fn run(server: Server, mut signals: EndSignals) -> anyhow::Result<()> {
    // Does nothing if no service manager started this process.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    server
        .run(async move {
            let signal = signals.recv().await;
            tracing::info!(signal = signal.name(), "stopping");
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        })
        .await
}

/// Prints the error, and returns the exit code.
fn report_failure(error: &anyhow::Error, code: u8) -> ExitCode {
    print_error(error);
    ExitCode::from(code)
}

/// Prints the error and its causes in one line.
fn print_error(error: &anyhow::Error) {
    eprintln!("bootcast-server: {error:#}");
}
