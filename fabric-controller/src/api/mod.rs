//! `fabric.v1`, served to operators: one file per service, conversion at the edge.

mod audit;
mod blobs;
mod controller;
mod convert;
mod events;
mod instances;
mod keeps;
mod labels;
mod nodes;
mod placement;
mod services;
mod slots;
pub mod status;
mod trust;
mod updates;

use std::{pin::Pin, sync::Arc};

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Response, Status};

pub use self::{
    audit::AuditApi, blobs::BlobApi, controller::ControllerApi, events::EventApi,
    instances::InstanceApi, nodes::NodeApi, placement::PlacementApi, services::ServiceApi,
    trust::TrustApi,
};
use crate::{controller::Controller, error::Result as ControllerResult};

/// Answers that wait for a slow operator.
const WAITING: usize = 64;

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The operator's end of a stream of answers.
struct Operator<T> {
    answers: mpsc::Sender<Result<T, Status>>,
}

/// The operator wants no more.
struct Gone;

impl<T> Operator<T> {
    /// Sends an answer, as fast as the operator reads.
    async fn send(&self, answer: T) -> Result<(), Gone> {
        self.answers.send(Ok(answer)).await.map_err(|_| Gone)
    }
}

/// Answers with a stream that a task of its own fills, until that ends, the
/// operator goes, or the controller does.
fn stream<T, F>(
    controller: &Arc<Controller>,
    fill: impl FnOnce(Operator<T>) -> F,
) -> Response<Answers<T>>
where
    T: Send + 'static,
    F: Future<Output = ControllerResult<Result<(), Gone>>> + Send + 'static,
{
    let (answers, received) = mpsc::channel(WAITING);
    let end = controller.end.clone();
    let filling = fill(Operator {
        answers: answers.clone(),
    });
    controller.tasks.spawn(async move {
        let failed = tokio::select! {
            () = end.cancelled() => Some(Status::unavailable("the controller is shutting down")),
            () = answers.closed() => None,
            done = filling => done.err().map(Status::from),
        };
        if let Some(status) = failed {
            // An operator who does not read is not waited for.
            let _ = answers.try_send(Err(status));
        }
    });
    Response::new(Box::pin(ReceiverStream::new(received)))
}
