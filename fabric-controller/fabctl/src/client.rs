//! The way to the controller.

use std::time::Duration;

use fabric_proto::v1::{
    blob_service_client::BlobServiceClient, event_service_client::EventServiceClient,
    instance_service_client::InstanceServiceClient, node_service_client::NodeServiceClient,
    placement_service_client::PlacementServiceClient, service_service_client::ServiceServiceClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::error::{Failure, Result};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Biggest answer: the list of very many instances.
const BIGGEST: usize = 64 << 20;

/// A connection to the controller.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// The address is none, or nobody answers.
    pub async fn connect(server: &str) -> Result<Self> {
        let invalid = || Failure::Address {
            address: server.to_owned(),
        };
        let failed = |source| Failure::Connect {
            server: server.to_owned(),
            source,
        };
        let channel = if let Some(path) = server.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(invalid());
            }
            let path = path.to_owned();
            let connector = service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            // The URI is not used to connect, only to have an authority.
            let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT);
            endpoint
                .connect_with_connector(connector)
                .await
                .map_err(failed)?
        } else {
            let url = if server.contains("://") {
                server.to_owned()
            } else {
                format!("http://{server}")
            };
            if !url.starts_with("http://") {
                return Err(invalid());
            }
            let endpoint = Endpoint::from_shared(url).map_err(|_| invalid())?;
            endpoint
                .connect_timeout(CONNECT)
                .connect()
                .await
                .map_err(failed)?
        };
        Ok(Self { channel })
    }

    /// The machines.
    #[must_use]
    pub fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone()).max_decoding_message_size(BIGGEST)
    }

    /// Images and packages.
    #[must_use]
    pub fn blobs(&self) -> BlobServiceClient<Channel> {
        BlobServiceClient::new(self.channel.clone()).max_decoding_message_size(BIGGEST)
    }

    /// The hosted services.
    #[must_use]
    pub fn services(&self) -> ServiceServiceClient<Channel> {
        ServiceServiceClient::new(self.channel.clone()).max_decoding_message_size(BIGGEST)
    }

    /// The instances.
    #[must_use]
    pub fn instances(&self) -> InstanceServiceClient<Channel> {
        InstanceServiceClient::new(self.channel.clone()).max_decoding_message_size(BIGGEST)
    }

    /// Where instances go, and why.
    #[must_use]
    pub fn placement(&self) -> PlacementServiceClient<Channel> {
        PlacementServiceClient::new(self.channel.clone()).max_decoding_message_size(BIGGEST)
    }

    /// What happened.
    #[must_use]
    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone()).max_decoding_message_size(BIGGEST)
    }
}

/// A new id for a request that changes something.
#[must_use]
pub fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
