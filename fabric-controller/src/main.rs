//! `fabric-controller`: wires configuration, log, signals and the server.
#![forbid(unsafe_code)]
#![warn(clippy::print_stderr)]

mod admin;
mod cli;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use fabric_controller::{
    controller::Config,
    listen::Address,
    maintenance::{self, Found, MaintenanceError},
    metrics::Metrics,
    model::lease::LeasePolicy,
    placement::Policy,
    serve,
    trust::table,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

/// Descriptors that a controller can use.
const MANY_FILES: u64 = 65_536;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(settings) => run(settings),
        Command::Init(settings) => admin::init(&settings),
        Command::Token(command) => ask(admin::token(command)),
        Command::Certificate(command) => ask(admin::certificate(command)),
        Command::Backup(settings) => {
            let made = maintenance::backup(&settings.data_dir, &settings.to);
            told("backed up", made)
        }
        Command::Check(settings) => {
            let found = maintenance::check(&settings.directory, settings.digests);
            told("sound", found)
        }
        Command::Restore(settings) => {
            let restored = maintenance::restore(&settings.from, &settings.data_dir, settings.force);
            told("restored", restored)
        }
        Command::Permissions => {
            print!("{}", table::markdown());
            Ok(())
        }
        Command::Metrics => {
            print!("{}", Metrics::default().list().markdown());
            Ok(())
        }
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "fabric-controller", &mut io::stdout());
            Ok(())
        }
    };
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    // What cannot be said, as on a full disk, is no reason to panic.
    let mut out = io::stderr();
    let _ = writeln!(out, "error: {error}");
    for cause in error.chain().skip(1) {
        let _ = writeln!(out, "  cause: {cause}");
    }
    ExitCode::FAILURE
}

/// Prints what is there, and fails if anything of it is wrong.
fn told(done: &str, found: Result<Found, MaintenanceError>) -> anyhow::Result<()> {
    let found = found?;
    for (kind, count) in &found.records {
        println!("{count:>8}  {kind}");
    }
    for problem in &found.problems {
        println!("problem: {problem}");
    }
    match found.problems.len() {
        0 => println!("{done}, at revision {}", found.revision),
        problems => anyhow::bail!("{problems} problems were found"),
    }
    Ok(())
}

fn ask(question: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(question)
}

fn run(mut settings: cli::Serve) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // They are told on standard error, with a panic where that cannot be written.
        .log_internal_errors(false)
        .init();
    let config = Config {
        heartbeat_period: settings.heartbeat.into(),
        lost_after: settings.lost_after.into(),
        lease: settings.lease.0.map(|length| LeasePolicy {
            silent_percent: settings.silent_percent,
            ..LeasePolicy::of(length)
        }),
        policy: Policy {
            vcpus_per_cpu: settings.vcpus_per_cpu,
            fill: settings.fill.into(),
        },
        condemn_percent: settings.condemn_percent,
        events_kept: settings.events_kept,
        names: settings.name,
        node_certificates: settings.node_certificates.into(),
        metrics_listen: settings.metrics_listen,
    };
    allow_many_files();
    let own = format!("unix:{}", settings.data_dir.join(admin::SOCKET).display());
    match own.parse::<Address>() {
        // It is made in the directory, which has to be there.
        Ok(address) => settings.listen.push(address),
        Err(error) => tracing::warn!("there is no socket in the data directory: {error}"),
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = stop_on_signals()?;
        let server = serve::Serve::prepare(&settings.data_dir, settings.listen, config).await?;
        server.run(stop).await?;
        Ok(())
    })
}

/// Every connection takes a descriptor.
fn allow_many_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(MANY_FILES), hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
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
