//! Uploading a file: digest, begin, send, and go on where it broke off.

use std::{
    fs::File,
    io::{IsTerminal as _, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use fabric_proto::{
    id::Digest,
    v1::{BeginUploadRequest, Blob, UploadRequest},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::Context;
use crate::{
    client::request_id,
    error::{Failure, Result},
};

/// Bytes in one piece.
const PIECE: usize = 256 * 1024;
/// How often a broken upload is gone on with.
const TRIES: u32 = 5;
/// Before the first new try; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// Uploads a file; `what` says as what, and lacks nothing but what the file says.
pub(super) async fn upload(
    context: &Context,
    what: BeginUploadRequest,
    path: &Path,
) -> Result<Blob> {
    let size = std::fs::metadata(path)
        .map_err(Failure::file("read", path))?
        .len();
    let bar = bar(size);
    bar.set_message("digest");
    let digest = digest(path, &bar).await?;
    bar.set_message("upload");
    let mut tried = 0;
    loop {
        let request = BeginUploadRequest {
            digest: digest.to_string(),
            size_bytes: size,
            request_id: request_id(),
            ..what.clone()
        };
        let begun = context
            .client
            .blobs()
            .begin_upload(request)
            .await?
            .into_inner();
        if let Some(blob) = begun.blob {
            bar.finish_and_clear();
            return Ok(blob);
        }
        bar.set_position(begun.offset);
        match send(context, &digest, path, begun.offset, &bar).await {
            Ok(blob) => {
                bar.finish_and_clear();
                return Ok(blob);
            }
            Err(Failure::Call(status)) if tried < TRIES && is_worth_a_try(&status) => {
                tokio::time::sleep(PAUSE * 2_u32.pow(tried)).await;
                tried += 1;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Whether the connection broke, rather than the controller refused.
fn is_worth_a_try(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Aborted
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
    )
}

/// A bar on standard error; nothing where that is no terminal.
fn bar(size: u64) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template(
        "{msg:>8} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    );
    let bar = ProgressBar::with_draw_target(Some(size), target);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

async fn digest(path: &Path, bar: &ProgressBar) -> Result<Digest> {
    let (path, bar) = (path.to_owned(), bar.clone());
    blocking(path, move |path| {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(buffer.get(..count).unwrap_or_default());
            bar.inc(count as u64);
        }
        let sum: [u8; 32] = hasher.finalize().into();
        Ok(Digest::of_sha256(&sum))
    })
    .await
}

/// Reads a file where that may block.
async fn blocking<T: Send + 'static>(
    path: PathBuf,
    read: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let named = path.clone();
    let done = tokio::task::spawn_blocking(move || read(&path)).await;
    done.map_err(std::io::Error::other)
        .and_then(|done| done)
        .map_err(Failure::file("read", named))
}

/// Sends the file from an offset on.
async fn send(
    context: &Context,
    digest: &Digest,
    path: &Path,
    offset: u64,
    bar: &ProgressBar,
) -> Result<Blob> {
    let mut file = File::open(path).map_err(Failure::file("read", path))?;
    file.seek(SeekFrom::Start(offset))
        .map_err(Failure::file("read", path))?;
    let (pieces, sent) = mpsc::channel(4);
    let mut first = Some(digest.to_string());
    let bar = bar.clone();
    let reading = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let mut offset = offset;
        loop {
            let mut data = Vec::with_capacity(PIECE);
            let count = file.by_ref().take(PIECE as u64).read_to_end(&mut data)?;
            let digest = first.take();
            if count == 0 && digest.is_none() {
                return Ok(());
            }
            let digest = digest.unwrap_or_default();
            let piece = UploadRequest {
                digest,
                offset,
                data: Bytes::from(data),
            };
            // The controller has ended the call; its answer says why.
            if pieces.blocking_send(piece).is_err() {
                return Ok(());
            }
            offset += count as u64;
            bar.set_position(offset);
        }
    });
    let answer = context
        .client
        .blobs()
        .upload(ReceiverStream::new(sent))
        .await;
    reading
        .await
        .map_err(std::io::Error::other)
        .and_then(|done| done)
        .map_err(Failure::file("read", path))?;
    answer?.into_inner().blob.ok_or(Failure::Answer("blob"))
}
