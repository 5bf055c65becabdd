//! Who this node is to its controller: joining it once, and a certificate that is
//! renewed for as long as the host agent runs.
//!
//! What was got is one file in the data directory, mode 0600: the controller's address
//! and CA, our certificate, and its key, which is made here and goes nowhere else.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use fabric_proto::{
    id::NodeId,
    v1::{JoinNodeRequest, RenewCertificateRequest, trust_service_client::TrustServiceClient},
};
use fabric_trust::{
    address::Address,
    context::{self, Context},
    dial::{Dial, OwnCertificate},
    identity::hex,
    key::{self, NewKey},
    token::JoinToken,
};
use tonic::transport::Channel;

use crate::clock;

/// Name of the file in the data directory.
const FILE: &str = "identity.toml";
/// How often is looked whether the certificate is to be renewed, at least: a machine may
/// have slept.
const LOOK: Duration = Duration::from_secs(60);
/// How long is waited after a renewal that failed.
const AGAIN: Duration = Duration::from_secs(10);
/// How long the controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The file in a data directory.
fn file(data: &Path) -> PathBuf {
    data.join(FILE)
}

/// What was got when this node joined; `None` if it has not.
///
/// # Errors
///
/// It cannot be read.
pub fn read(data: &Path) -> anyhow::Result<Option<Context>> {
    Ok(context::read(&file(data))?)
}

/// Joins: makes a key, spends the token for a certificate, keeps both. The name that the
/// node has from now on is answered.
///
/// # Errors
///
/// The controller is not the token's, is not there, or says no.
pub async fn join(
    server: &Address,
    token: &JoinToken,
    node: Option<&NodeId>,
    data: &Path,
) -> anyhow::Result<NodeId> {
    let dial = Dial::joining(server, token)?;
    let channel = dial.connect().await;
    let channel = channel.with_context(|| format!("cannot reach the controller at {server}"))?;
    let key = NewKey::generate()?;
    let request = JoinNodeRequest {
        token: token.to_string(),
        node_id: node.map_or_else(String::new, ToString::to_string),
        csr: key.request.into(),
        request_id: request_id()?,
    };
    let mut client = TrustServiceClient::new(channel);
    let answer = tokio::time::timeout(PATIENCE, client.join_node(request)).await;
    let answer = answer.context("the controller does not answer")?;
    let answer = answer
        .map_err(|status| anyhow::Error::msg(status.message().to_owned()))
        .with_context(|| format!("the controller at {server} does not let this node join"))?
        .into_inner();
    let got = Context {
        server: server.clone(),
        ca: answer.ca_pem,
        certificate: answer.certificate_pem,
        key: key.key_pem,
    };
    let credentials = got.credentials()?;
    anyhow::ensure!(
        token.names(&credentials.ca),
        "the controller's answer is of another CA than the token's"
    );
    context::write(&file(data), &got)?;
    answer
        .node_id
        .parse()
        .context("the controller gave a name that is none")
}

/// Renews the certificate whenever two thirds of its life are over.
#[derive(Debug)]
pub struct Renewal {
    /// What we have.
    pub context: Context,
    /// The link to the controller, which goes on as it is.
    pub channel: Channel,
    /// What new connections show.
    pub own: Arc<OwnCertificate>,
    /// The data directory.
    pub data: PathBuf,
}

impl Renewal {
    /// For ever.
    pub async fn run(mut self) {
        loop {
            let identity = match self.context.identity() {
                Ok(identity) => identity,
                Err(error) => {
                    tracing::error!(%error, "our certificate cannot be read, nor renewed");
                    return;
                }
            };
            let now = clock::wall_time();
            let wait = match identity.renew_at().duration_since(now) {
                Ok(left) => left.min(LOOK),
                Err(_) => match self.renew().await {
                    Ok(()) => continue,
                    Err(error) => {
                        self.tell(&identity.not_after, &error);
                        let left = identity.not_after.duration_since(now).unwrap_or(AGAIN);
                        AGAIN.min(left / 4).max(Duration::from_millis(100))
                    }
                },
            };
            tokio::time::sleep(wait).await;
        }
    }

    fn tell(&self, end: &SystemTime, error: &anyhow::Error) {
        if *end < clock::wall_time() {
            tracing::error!(
                "our certificate has expired and could not be renewed ({error:#}): virtual \
                 machines run on, but the controller is not heard; compare this machine's clock \
                 (`date`) with the controller's, or join again: `fabric-controller token create \
                 --node NAME` there, `host-agent join` here"
            );
        } else {
            tracing::warn!("our certificate could not be renewed, trying again: {error:#}");
        }
    }

    async fn renew(&mut self) -> anyhow::Result<()> {
        let key = NewKey::generate()?;
        let request = RenewCertificateRequest {
            csr: key.request.into(),
            request_id: request_id()?,
        };
        let mut client = TrustServiceClient::new(self.channel.clone());
        let answer = tokio::time::timeout(PATIENCE, client.renew_certificate(request)).await;
        let answer = answer.context("the controller does not answer")?;
        let answer = answer
            .map_err(|status| anyhow::Error::msg(status.message().to_owned()))?
            .into_inner();
        let got = Context {
            server: self.context.server.clone(),
            ca: answer.ca_pem,
            certificate: answer.certificate_pem,
            key: key.key_pem,
        };
        let credentials = got.credentials()?;
        // Kept first: what is in use is on the disk.
        context::write(&file(&self.data), &got)?;
        self.own.replace(credentials)?;
        self.context = got;
        tracing::info!("our certificate is renewed");
        Ok(())
    }
}

fn request_id() -> anyhow::Result<String> {
    Ok(hex(&key::random::<16>()?))
}
