//! `fabric-controller init`, `token` and `certificate`: what an administrator does about
//! who is who. `init` needs the data directory for itself; the others ask the running
//! controller, over its socket in the data directory or as a context says.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use fabric_controller::{
    data_dir::DataDir,
    trust::setup::{self, Setup},
};
use fabric_proto::v1::{
    Certificate, CertificateRole, CreateCertificateRequest, CreateTokenRequest,
    ListCertificatesRequest, RevokeCertificateRequest, trust_service_client::TrustServiceClient,
};
use fabric_trust::{
    address::Address,
    context::{Context, Contexts},
    dial::Dial,
    key::NewKey,
};
use tonic::{Status, transport::Channel};

use crate::cli::{CertificateCommand, Create, Init, OperatorRole, TokenCommand, Where};

/// The controller's socket in its data directory.
pub const SOCKET: &str = "controller.sock";
/// How long a controller may take to listen once it was started.
const STARTING: Duration = Duration::from_secs(5);
/// Name of the context that `init` writes.
const CONTEXT: &str = "fabric";

pub fn init(settings: &Init) -> anyhow::Result<()> {
    let _lock = DataDir::open(&settings.data_dir)?;
    let Some(new) = setup::set_up(&settings.data_dir, &settings.server, &settings.name)? else {
        bail!(
            "{} is set up already; its administrator's context is {}. For another certificate, \
             use `fabric-controller certificate create` while it runs",
            settings.data_dir.display(),
            settings.data_dir.join(setup::CONTEXT).display()
        );
    };
    let mut out = io::stdout().lock();
    writeln!(out, "made a CA in {}", settings.data_dir.display())?;
    writeln!(out, "  fingerprint: sha256:{}", new.fingerprint)?;
    writeln!(
        out,
        "made an administrator's context: {}",
        new.file.display()
    )?;
    match add_context(&new, settings.no_context) {
        Ok(Some(file)) => writeln!(
            out,
            "added it to {} as {CONTEXT:?}, which fabctl uses from now on",
            file.display()
        )?,
        Ok(None) => writeln!(
            out,
            "to use it: fabctl context import {0}   (or export FABCTL_CONFIG={0})",
            new.file.display()
        )?,
        Err(error) => bail!(
            "{error:#}; to use it all the same: export FABCTL_CONFIG={}",
            new.file.display()
        ),
    }
    writeln!(
        out,
        "next: fabric-controller serve --data-dir {}",
        settings.data_dir.display()
    )?;
    Ok(())
}

/// Adds the context to this user's, unless one of that name leads elsewhere.
fn add_context(new: &Setup, no: bool) -> anyhow::Result<Option<PathBuf>> {
    let Some(file) = Contexts::place().filter(|_| !no) else {
        return Ok(None);
    };
    let mut contexts = Contexts::read(&file)?;
    let other = contexts.contexts.get(CONTEXT);
    if other.is_some_and(|other| other.server != new.context.server) {
        return Ok(None);
    }
    contexts
        .contexts
        .insert(CONTEXT.to_owned(), new.context.clone());
    CONTEXT.clone_into(&mut contexts.current);
    contexts.write(&file)?;
    Ok(Some(file))
}

pub async fn token(command: TokenCommand) -> anyhow::Result<()> {
    let TokenCommand::Create(settings) = command;
    let (mut client, known) = connect(&settings.place).await?;
    let request = CreateTokenRequest {
        node_id: settings
            .node
            .clone()
            .flatten()
            .map_or_else(String::new, |id| id.to_string()),
        ttl: Some(duration(settings.ttl.into())?),
        request_id: request_id(),
    };
    let answer = client
        .create_token(request)
        .await
        .map_err(said)?
        .into_inner();
    let mut out = io::stdout().lock();
    // Alone on its line, for scripts; the rest is for people.
    writeln!(out, "{}", answer.token)?;
    let server = known.map_or_else(|| "CONTROLLER:7070".to_owned(), |server| server.to_string());
    let _ = writeln!(
        io::stderr(),
        "good once, until {}. On the machine that is to join:\n  \
         host-agent join {server} --token TOKEN --data-dir DIR{}",
        time(answer.expires),
        match settings.node.flatten() {
            Some(_) => "",
            None => " --node-id NAME",
        }
    );
    Ok(())
}

pub async fn certificate(command: CertificateCommand) -> anyhow::Result<()> {
    match command {
        CertificateCommand::Create(settings) => create(settings).await,
        CertificateCommand::List { place } => {
            let (mut client, _) = connect(&place).await?;
            let answer = client.list_certificates(ListCertificatesRequest {}).await;
            show(&answer.map_err(said)?.into_inner().certificates)
        }
        CertificateCommand::Revoke {
            name,
            serial,
            place,
        } => {
            let (mut client, _) = connect(&place).await?;
            let request = RevokeCertificateRequest {
                serial: serial.unwrap_or_default(),
                name: name.unwrap_or_default(),
                request_id: request_id(),
            };
            let answer = client.revoke_certificate(request).await.map_err(said)?;
            show(&answer.into_inner().certificates)
        }
    }
}

async fn create(settings: Create) -> anyhow::Result<()> {
    let (mut client, known) = connect(&settings.place).await?;
    let server = settings.server.or(known);
    let server =
        server.context("say where its holder reaches the controller: --server HOST:PORT")?;
    let out = settings
        .out
        .unwrap_or_else(|| format!("{}.toml", settings.name).into());
    if out.exists() {
        bail!("{} is there already; give another --out", out.display());
    }
    let key = NewKey::generate()?;
    let role = match settings.role {
        OperatorRole::Admin => CertificateRole::Admin,
        OperatorRole::Operator => CertificateRole::Operator,
        OperatorRole::Reader => CertificateRole::Reader,
    };
    let request = CreateCertificateRequest {
        name: settings.name.clone(),
        role: role.into(),
        ttl: Some(duration(settings.ttl.into())?),
        csr: key.request.into(),
        request_id: request_id(),
    };
    let answer = client
        .create_certificate(request)
        .await
        .map_err(said)?
        .into_inner();
    let context = Context {
        server,
        ca: answer.ca_pem,
        certificate: answer.certificate_pem,
        key: key.key_pem,
    };
    Contexts::one(CONTEXT, context).write(&out)?;
    println!(
        "wrote {0}, which holds a private key: give it to {1} alone, who uses it by \
         `fabctl context import {0}`",
        out.display(),
        settings.name
    );
    Ok(())
}

/// A client, and where others reach the controller if that is known.
async fn connect(place: &Where) -> anyhow::Result<(TrustServiceClient<Channel>, Option<Address>)> {
    let (context, known) = match &place.data_dir {
        Some(data_dir) => {
            let own = read_context(&data_dir.join(setup::CONTEXT), None).ok();
            let context = Context {
                server: Address::Unix(data_dir.join(SOCKET)),
                ca: String::new(),
                certificate: String::new(),
                key: String::new(),
            };
            (context, own.map(|own| own.server))
        }
        None => {
            let file = Contexts::place().context("there is no home directory; give --data-dir")?;
            let context = read_context(&file, place.context.as_deref())?;
            let server = context.server.clone();
            (context, Some(server))
        }
    };
    let dial = Dial::new(&context)?;
    // One that was just started may not listen yet.
    let deadline = Instant::now() + STARTING;
    let connected = loop {
        match dial.connect().await {
            Err(_) if place.data_dir.is_some() && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            connected => break connected,
        }
    };
    let channel = connected.with_context(|| {
        format!(
            "cannot reach the controller at {}; does it run?",
            dial.server()
        )
    })?;
    Ok((TrustServiceClient::new(channel), known))
}

fn read_context(file: &Path, name: Option<&str>) -> anyhow::Result<Context> {
    let mut contexts = Contexts::read(file)?;
    let name = name.unwrap_or(&contexts.current).to_owned();
    contexts.contexts.remove(&name).with_context(|| {
        format!(
            "there is no context {name:?} in {}; give --data-dir",
            file.display()
        )
    })
}

fn show(certificates: &[Certificate]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{:<32}  {:<8}  {:<20}  {:<20}  NAME",
        "SERIAL", "ROLE", "EXPIRES", "REVOKED"
    )?;
    for one in certificates {
        let role = match one.role() {
            CertificateRole::Admin => "admin",
            CertificateRole::Operator => "operator",
            CertificateRole::Reader => "reader",
            CertificateRole::Node => "node",
            CertificateRole::Unspecified => "?",
        };
        let (expires, revoked) = (time(one.expires), one.revoked);
        let revoked = revoked.map_or_else(|| "-".to_owned(), |at| time(Some(at)));
        writeln!(
            out,
            "{:<32}  {role:<8}  {expires:<20}  {revoked:<20}  {}",
            one.serial, one.name
        )?;
    }
    Ok(())
}

fn time(at: Option<prost_types::Timestamp>) -> String {
    let at = at.and_then(|at| SystemTime::try_from(at).ok());
    at.map_or_else(
        || "?".to_owned(),
        |at| humantime::format_rfc3339_seconds(at).to_string(),
    )
}

fn duration(ttl: Duration) -> anyhow::Result<prost_types::Duration> {
    prost_types::Duration::try_from(ttl)
        .ok()
        .context("--ttl is too long")
}

fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// What the controller said.
fn said(status: Status) -> anyhow::Error {
    anyhow::Error::msg(status.message().to_owned())
}
