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

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::BTreeMap,
        sync::{
            Mutex,
            atomic::{AtomicU64, Ordering},
        },
    };

    use sha2::{Digest as _, Sha256};

    use super::*;

    /// Blobs in memory, and faults on request.
    #[derive(Debug, Default)]
    pub(crate) struct Shelf {
        blobs: Mutex<BTreeMap<Digest, Bytes>>,
        /// Bytes after which the next transfer is cut off; 0 for none.
        pub(crate) cut_after: AtomicU64,
        /// Bytes that have been sent.
        pub(crate) sent: AtomicU64,
    }

    impl Shelf {
        pub(crate) fn put(&self, digest: &Digest, bytes: impl Into<Bytes>) {
            self.blobs
                .lock()
                .unwrap()
                .insert(digest.clone(), bytes.into());
        }

        /// Puts a sound VHD there.
        pub(crate) fn put_vhd(&self) -> (Digest, u64) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("disk.vhd");
            vhd::create_dynamic(&path, &vhd::CreateOptions::new(8 << 20)).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let digest = Digest::of_sha256(&Sha256::digest(&bytes).into());
            let length = bytes.len() as u64;
            self.put(&digest, bytes);
            (digest, length)
        }
    }

    #[async_trait]
    impl BlobSource for Shelf {
        async fn fetch(&self, digest: &Digest, offset: u64) -> Result<Pieces, SourceError> {
            let bytes = self.blobs.lock().unwrap().get(digest).cloned();
            let bytes = bytes
                .ok_or_else(|| Box::new(tonic::Status::not_found("no such blob")))?
                .slice(usize::try_from(offset).unwrap()..);
            let cut = self.cut_after.swap(0, Ordering::Relaxed);
            let mut pieces: Vec<Result<Bytes, SourceError>> = Vec::new();
            let mut left = if cut == 0 {
                bytes.len()
            } else {
                usize::try_from(cut).unwrap()
            };
            for piece in bytes.chunks(700) {
                let piece = &piece[..piece.len().min(left)];
                left -= piece.len();
                self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                pieces.push(Ok(Bytes::copy_from_slice(piece)));
                if left == 0 {
                    break;
                }
            }
            if cut != 0 {
                pieces.push(Err(Box::new(tonic::Status::unavailable("cut off")).into()));
            }
            Ok(Box::pin(tokio_stream::iter(pieces)))
        }
    }
}
