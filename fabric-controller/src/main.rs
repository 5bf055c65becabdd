//! `fabric-controller`: wires configuration, log, signals and the server.
#![forbid(unsafe_code)]

mod cli;

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use fabric_controller::{controller::Config, model::lease::LeasePolicy, placement::Policy, serve};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(settings) => run(settings),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "fabric-controller", &mut io::stdout());
            Ok(())
        }
    };
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  cause: {cause}");
    }
    ExitCode::FAILURE
}

fn run(settings: cli::Serve) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let config = Config {
        heartbeat_period: settings.heartbeat.into(),
        lost_after: settings.lost_after.into(),
        lease: settings.lease.0.map(LeasePolicy::of),
        policy: Policy {
            vcpus_per_cpu: settings.vcpus_per_cpu,
            fill: settings.fill.into(),
        },
        events_kept: settings.events_kept,
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = stop_on_signals()?;
        let server = serve::Serve::prepare(&settings.data_dir, settings.listen, config).await?;
        server.run(stop).await?;
        Ok(())
    })
}

/// Cancelled by SIGTERM or SIGINT.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}
