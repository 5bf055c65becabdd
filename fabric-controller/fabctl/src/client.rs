//! The way to the controller.

use fabric_proto::v1::{
    audit_service_client::AuditServiceClient, blob_service_client::BlobServiceClient,
    controller_service_client::ControllerServiceClient, event_service_client::EventServiceClient,
    instance_service_client::InstanceServiceClient, node_service_client::NodeServiceClient,
    placement_service_client::PlacementServiceClient, service_service_client::ServiceServiceClient,
};
use fabric_trust::{context::Context, dial::Dial};
use tonic::transport::Channel;

use crate::error::{Failure, Result};

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
    /// The context cannot be used, or nobody answers.
    pub async fn connect(context: &Context) -> Result<Self> {
        let dial = Dial::new(context)?;
        let channel = dial.connect().await.map_err(|source| Failure::Connect {
            server: context.server.clone(),
            source,
        })?;
        Ok(Self { channel })
    }

    /// The controller itself.
    #[must_use]
    pub fn controller(&self) -> ControllerServiceClient<Channel> {
        ControllerServiceClient::new(self.channel.clone()).max_decoding_message_size(BIGGEST)
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

    /// Who did what.
    #[must_use]
    pub fn audit(&self) -> AuditServiceClient<Channel> {
        AuditServiceClient::new(self.channel.clone()).max_decoding_message_size(BIGGEST)
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
