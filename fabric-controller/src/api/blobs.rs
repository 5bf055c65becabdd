//! `fabric.v1.BlobService`

use std::{sync::Arc, time::Duration};

use fabric_proto::{
    id::{BlobName, Digest},
    v1::{
        BeginUploadRequest, BeginUploadResponse, Blob, DeleteBlobRequest, DeleteBlobResponse,
        GetBlobRequest, GetBlobResponse, ListBlobsRequest, ListBlobsResponse, UploadRequest,
        UploadResponse, blob_service_server::BlobService,
    },
};
use tokio::time;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use crate::{
    blobs::{Begun, Upload},
    clock,
    controller::Controller,
    error::{Error, Result as ControllerResult},
    idempotency::Once,
    model::{
        blob::{BlobKind, BlobRecord, UploadTarget},
        event::{EventRecord, Reason, SubjectKind},
        service::ServiceRecord,
    },
    reconcile::chain,
    records::{self, Kept},
    store::Txn,
};

/// How long an upload may stand still.
const STILL: Duration = Duration::from_secs(60);

/// See the [module](self).
pub struct BlobApi {
    /// The controller.
    pub controller: Arc<Controller>,
}

#[tonic::async_trait]
impl BlobService for BlobApi {
    async fn begin_upload(
        &self,
        request: Request<BeginUploadRequest>,
    ) -> Result<Response<BeginUploadResponse>, Status> {
        Ok(Response::new(self.begin(request.into_inner()).await?))
    }

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        let blob = self.receive(request.into_inner()).await?;
        Ok(Response::new(UploadResponse { blob: Some(blob) }))
    }

    async fn list_blobs(
        &self,
        request: Request<ListBlobsRequest>,
    ) -> Result<Response<ListBlobsResponse>, Status> {
        let kind = convert::blob_kind("kind", request.into_inner().kind)?;
        let services = self.services().await?;
        let blobs = self.controller.blobs.list(kind).await?.into_iter();
        let blobs = blobs.map(|kept| shown(kept.value, &services)).collect();
        Ok(Response::new(ListBlobsResponse { blobs }))
    }

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<GetBlobResponse>, Status> {
        let request = request.into_inner();
        let kind = convert::known_blob_kind(request.kind)?;
        let found = self.controller.blobs.find(kind, &request.name).await?;
        let blob = Some(shown(found.value, &self.services().await?));
        Ok(Response::new(GetBlobResponse { blob }))
    }

    async fn delete_blob(
        &self,
        request: Request<DeleteBlobRequest>,
    ) -> Result<Response<DeleteBlobResponse>, Status> {
        Ok(Response::new(self.delete(request.into_inner()).await?))
    }
}

/// A blob with the services that use it.
fn shown(record: BlobRecord, services: &[Kept<ServiceRecord>]) -> Blob {
    let used_by = users(&record, services);
    convert::blob(record, used_by)
}

fn users(record: &BlobRecord, services: &[Kept<ServiceRecord>]) -> Vec<String> {
    let using = services
        .iter()
        .filter(|kept| kept.value.uses(&record.digest));
    using.map(|kept| kept.value.name.to_string()).collect()
}

impl BlobApi {
    async fn services(&self) -> ControllerResult<Vec<Kept<ServiceRecord>>> {
        records::list(&*self.controller.store, records::SERVICES).await
    }

    /// Asked again, this says where to go on now; a kept answer would be wrong.
    async fn begin(&self, request: BeginUploadRequest) -> ControllerResult<BeginUploadResponse> {
        let invalid = |field: &str, error: &dyn std::fmt::Display| {
            Error::Invalid(format!("{field}: {error}"))
        };
        let name: BlobName = request
            .name
            .parse()
            .map_err(|error| invalid("name", &error))?;
        let digest: Digest = request
            .digest
            .parse()
            .map_err(|error| invalid("digest", &error))?;
        let kind = convert::known_blob_kind(request.kind)?;
        let architecture = convert::architecture("architecture", &request.architecture)?;
        if let (BlobKind::Package, Some(architecture)) = (kind, architecture) {
            return Err(Error::Invalid(format!(
                "architecture: {architecture} of a package; only an image has one, a package is \
                 for what its role's image is for"
            )));
        }
        let target = UploadTarget {
            kind,
            name,
            architecture,
        };
        let size = request.size_bytes;
        match self.controller.blobs.begin(target, digest, size).await? {
            Begun::At(offset) => Ok(BeginUploadResponse { offset, blob: None }),
            Begun::Complete(record) => {
                let blob = Some(shown(record, &self.services().await?));
                Ok(BeginUploadResponse { offset: size, blob })
            }
        }
    }

    async fn receive(&self, mut pieces: Streaming<UploadRequest>) -> Result<Blob, Status> {
        let Some(first) = next(&mut pieces).await? else {
            return Err(Status::invalid_argument(
                "the stream is empty; it begins with a digest",
            ));
        };
        let digest: Digest = first
            .digest
            .parse()
            .map_err(|error| Status::invalid_argument(format!("digest: {error}")))?;
        let mut upload = self.controller.blobs.resume(&digest, first.offset).await?;
        let mut piece = Some(first);
        while let Some(UploadRequest { offset, data, .. }) = piece {
            upload = upload.append(offset, data).await?;
            piece = if upload.is_complete() {
                None
            } else {
                next(&mut pieces).await?
            };
        }
        let record = self.complete(upload).await?;
        Ok(shown(record, &self.services().await?))
    }

    async fn complete(&self, upload: Upload) -> ControllerResult<BlobRecord> {
        let (arrived, size) = upload.progress();
        if arrived < size {
            return Err(Error::Aborted(format!(
                "the stream ended after {arrived} of {size} bytes; BeginUpload says where to go on"
            )));
        }
        self.controller.blobs.finish(upload).await
    }

    async fn delete(&self, request: DeleteBlobRequest) -> ControllerResult<DeleteBlobResponse> {
        let once = Once::of("DeleteBlob", &request, |it| &mut it.request_id)?;
        let kind = convert::known_blob_kind(request.kind)?;
        let name: BlobName = request.name.parse().map_err(|error| {
            Error::Invalid(format!(
                "name: {error}; a digest can have several names, give one"
            ))
        })?;
        let name = &name;
        let now = clock::now();
        let answer = once
            .commit(&*self.controller.store, now, || async move {
                let found = self.controller.blobs.find(kind, name.as_str()).await?;
                let users = users(&found.value, &self.services().await?);
                if !users.is_empty() {
                    return Err(Error::Precondition(format!(
                        "{kind} {name} is used by {}; delete or change that first",
                        users.join(", ")
                    )));
                }
                let reason = match kind {
                    BlobKind::Image => Reason::ImageDeleted,
                    BlobKind::Package => Reason::PackageDeleted,
                };
                let key = records::blob(kind, name);
                let txn = Txn::new().when(&key, Some(found.modified)).delete(key);
                let message = found.value.digest.to_string();
                let event = EventRecord::new(now, reason, SubjectKind::from(kind), name, message);
                Ok((records::add_event(txn, &event)?, DeleteBlobResponse {}))
            })
            .await?;
        // The name is gone; the file goes now or at the next sweep.
        if let Err(error) = self.controller.blobs.sweep().await {
            tracing::warn!(error = %chain(&error), "cannot remove files that nothing refers to");
        }
        Ok(answer)
    }
}

/// The next piece of an upload, within bounds of time.
async fn next(pieces: &mut Streaming<UploadRequest>) -> Result<Option<UploadRequest>, Status> {
    time::timeout(STILL, pieces.message()).await.map_err(|_| {
        Status::deadline_exceeded(format!(
            "no piece came for {} s; BeginUpload says where to go on",
            STILL.as_secs()
        ))
    })?
}
