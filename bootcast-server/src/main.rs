//! Entry point: parses arguments, sets up logging, runs the server, and sets the exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use bootcast_server::cli::{Args, Config};
use bootcast_server::server::Server;
use bootcast_server::signals::EndSignal;
use clap::Parser;
use tokio::signal::unix::SignalKind;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Exit code if the server cannot start. The message says what to do.
const EXIT_START: u8 = 2;
/// Exit code if the server failed after it started.
const EXIT_FAILED: u8 = 1;

#[tokio::main]
async fn main() -> ExitCode {
    let server = match start(Args::parse()).await {
        Ok(server) => server,
        Err(error) => return failed(&error, EXIT_START),
    };
    match run(server).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, EXIT_FAILED),
    }
}

async fn start(args: Args) -> anyhow::Result<Server> {
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(stderr).with(args.log_filter()).init();
    Server::start(Config::try_from(args)?).await
}

async fn run(server: Server) -> anyhow::Result<()> {
    let mut interrupt = EndSignal::listen(SignalKind::interrupt())?;
    let mut terminate = EndSignal::listen(SignalKind::terminate())?;
    // Fails if systemd did not start us.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    server
        .run(async move {
            tokio::select! {
                () = interrupt.recv() => {}
                () = terminate.recv() => {}
            }
            tracing::info!("stopping");
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        })
        .await
}

fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("bootcast-server: {error:#}");
    ExitCode::from(code)
}
