//! Blobs from the controller.

use async_trait::async_trait;
use fabric_proto::{
    id::Digest,
    node::v1::{FetchBlobRequest, node_service_client::NodeServiceClient},
};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

use crate::blobs::source::{BlobSource, Pieces, SourceError};

/// Fetches blobs from the controller.
#[derive(Debug)]
pub struct ControllerBlobs {
    /// The link to it.
    pub client: NodeServiceClient<Channel>,
}

#[async_trait]
impl BlobSource for ControllerBlobs {
    async fn fetch(&self, digest: &Digest, offset: u64) -> Result<Pieces, SourceError> {
        let request = FetchBlobRequest {
            digest: digest.to_string(),
            offset,
        };
        let mut client = self.client.clone();
        let answer = client.fetch_blob(request).await.map_err(Box::new)?;
        let pieces = answer.into_inner().map(|piece| {
            piece
                .map(|piece| piece.data)
                .map_err(|status| Box::new(status).into())
        });
        Ok(Box::pin(pieces))
    }
}
