//! The bytes of an image or a package, for a node.

use std::io::SeekFrom;

use bytes::Bytes;
use fabric_proto::{
    id::Digest,
    node::v1::{FetchBlobRequest, FetchBlobResponse, InstanceGoal},
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::io::ReaderStream;
use tonic::Status;

use crate::{
    controller::Controller,
    error::{Error, Result},
    trust::caller::Caller,
};

/// Bytes in one piece.
const PIECE: usize = 256 * 1024;

/// Opens the file at the offset; the first piece says how long it is.
pub(super) async fn open(
    controller: &Controller,
    caller: &Caller,
    request: &FetchBlobRequest,
) -> Result<impl Stream<Item = Result<FetchBlobResponse, Status>> + Send + use<>> {
    let digest: Digest = request
        .digest
        .parse()
        .map_err(|error| Error::Invalid(format!("digest: {error}")))?;
    if let Some(node) = caller.node()? {
        let goal = controller.registry.goal(&node).ok_or_else(|| {
            Error::Unavailable(format!(
                "the goal of node {node} is not made yet; try again"
            ))
        })?;
        let wanted = digest.to_string();
        let named = |one: &InstanceGoal| one.image_digest == wanted || one.package_digest == wanted;
        if !goal.instances.iter().any(named) {
            return Err(Error::Denied(format!(
                "{digest} is not for node {node}: its goal does not name it"
            )));
        }
    }
    let path = controller.blobs.file(&digest);
    let mut file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NotFound {
                kind: "file",
                name: digest.to_string(),
                hint: "it was deleted or never uploaded",
            });
        }
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let total_bytes = file
        .metadata()
        .await
        .map_err(Error::io("look at", &path))?
        .len();
    if request.offset > total_bytes {
        let what = format!(
            "offset {}: the file has {total_bytes} bytes",
            request.offset
        );
        return Err(Error::Invalid(what));
    }
    file.seek(SeekFrom::Start(request.offset))
        .await
        .map_err(Error::io("read", &path))?;
    let first = FetchBlobResponse {
        total_bytes,
        data: Bytes::new(),
    };
    let rest = file.take(total_bytes - request.offset);
    let pieces = ReaderStream::with_capacity(rest, PIECE).map(move |piece| match piece {
        Ok(data) => Ok(FetchBlobResponse {
            total_bytes: 0,
            data,
        }),
        Err(error) => Err(Status::from(Error::io("read", &path)(error))),
    });
    Ok(tokio_stream::once(Ok(first)).chain(pieces))
}
