//! Where blobs come from.

use std::{fmt, pin::Pin};

use async_trait::async_trait;
use bytes::Bytes;
use fabric_proto::id::Digest;
use tokio_stream::Stream;

/// Why a source does not give a blob.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The controller answered with an error, or not at all.
    #[error("{}", .0.message())]
    Status(#[from] Box<tonic::Status>),
    /// The stream ended too early.
    #[error("the transfer ended at {at} of {of} bytes")]
    Short {
        /// Bytes that are there.
        at: u64,
        /// Bytes that there should be.
        of: u64,
    },
    /// Nothing came for a long time.
    #[error("nothing came for {} s", .0.as_secs())]
    Stalled(std::time::Duration),
}

/// Pieces of a blob, in order.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, SourceError>> + Send>>;

/// Gives blobs by digest.
#[async_trait]
pub trait BlobSource: fmt::Debug + Send + Sync {
    /// The bytes of a blob from an offset on.
    async fn fetch(&self, digest: &Digest, offset: u64) -> Result<Pieces, SourceError>;
}
