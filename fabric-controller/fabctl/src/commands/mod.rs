//! What each command does: ask the controller, show the answer.

mod audit;
mod blob;
mod context;
mod doctor;
mod event;
mod instance;
mod keep;
mod node;
mod placement;
mod revision;
mod service;
mod support;
mod update;
mod upload;
mod wait;
mod watch;
mod why;

use std::io;

use clap::CommandFactory as _;
use fabric_proto::v1::BlobKind;

use crate::{
    cli::{Cli, Command, Format, ImageCommand, ImageUpload, PackageCommand, Upload},
    client::Client,
    context::choose,
    error::{Failure, Result},
    package,
};

/// What every command has.
pub struct Context {
    /// The controller.
    pub client: Client,
    /// How to show things.
    pub format: Format,
}

/// Does what was asked for.
///
/// # Errors
///
/// It failed.
pub async fn run(cli: Cli) -> Result<()> {
    let Cli {
        server,
        context: name,
        output: format,
        command,
    } = cli;
    let context = async || {
        let chosen = choose(server.as_deref(), name.as_deref())?;
        let client = Client::connect(&chosen).await?;
        Ok::<_, Failure>(Context { client, format })
    };
    match command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "fabctl", &mut io::stdout());
            Ok(())
        }
        Command::Package(PackageCommand::Build(build)) => package::build(&build, format),
        Command::Package(PackageCommand::Upload(Upload { name_and_file })) => {
            blob::upload(&context().await?, BlobKind::Package, name_and_file, None).await
        }
        Command::Package(PackageCommand::Blob(command)) => {
            blob::run(&context().await?, BlobKind::Package, command).await
        }
        Command::Image(ImageCommand::Upload(ImageUpload {
            name_and_file,
            architecture,
        })) => {
            let image = BlobKind::Image;
            blob::upload(&context().await?, image, name_and_file, architecture).await
        }
        Command::Image(ImageCommand::Blob(command)) => {
            blob::run(&context().await?, BlobKind::Image, command).await
        }
        Command::Node(command) => node::run(&context().await?, command).await,
        Command::Service(command) => service::run(&context().await?, command).await,
        Command::Update(command) => update::run(&context().await?, command).await,
        Command::Instance(command) => instance::run(&context().await?, command).await,
        Command::Explain(explain) => placement::explain(&context().await?, explain).await,
        Command::Simulate(simulate) => placement::simulate(&context().await?, simulate).await,
        Command::Doctor(settings) => {
            let chosen = choose(server.as_deref(), name.as_deref());
            doctor::run(chosen, settings, format).await
        }
        Command::SupportBundle(settings) => {
            let chosen = choose(server.as_deref(), name.as_deref())?;
            support::run(&chosen, settings, format).await
        }
        Command::Why(settings) => why::run(&context().await?, settings).await,
        Command::Events(events) => event::run(&context().await?, events).await,
        Command::Audit(settings) => audit::run(&context().await?, settings).await,
        Command::Context(command) => context::run(command, format),
        Command::Watch(settings) => watch::run(&context().await?, settings).await,
    }
}
