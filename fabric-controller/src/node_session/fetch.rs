//! The bytes of an image or a package, for a node.

use std::io::SeekFrom;

use bytes::Bytes;
use fabric_proto::{
    id::Digest,
    node::v1::{FetchBlobRequest, FetchBlobResponse},
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::io::ReaderStream;
use tonic::Status;

use crate::{
    controller::Controller,
    error::{Error, Result},
};

/// Bytes in one piece.
const PIECE: usize = 256 * 1024;

/// Opens the file at the offset; the first piece says how long it is.
pub(super) async fn open(
    controller: &Controller,
    request: &FetchBlobRequest,
) -> Result<impl Stream<Item = Result<FetchBlobResponse, Status>> + Send + use<>> {
    let digest: Digest = request
        .digest
        .parse()
        .map_err(|error| Error::Invalid(format!("digest: {error}")))?;
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
