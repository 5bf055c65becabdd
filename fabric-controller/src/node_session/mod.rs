//! `fabric.node.v1`, served to host agents.
//!
//! [`session`] is one node's conversation; [`intake`] is the border, where what a
//! node says is checked before anything believes it. Bulk data has calls of its
//! own: [`fetch`] down, output up.

mod fetch;
mod intake;
mod session;
mod watch;

use std::{pin::Pin, sync::Arc, time::Duration};

use fabric_proto::{
    id::NodeId,
    node::v1::{
        FetchBlobRequest, FetchBlobResponse, SendOutputRequest, SendOutputResponse, SessionRequest,
        SessionResponse, node_service_server::NodeService,
    },
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use self::intake::observed;
pub use self::watch::watch_nodes;
use crate::{controller::Controller, error::Error, trust::caller::Caller};

/// Most bytes in one piece of output.
const PIECE: usize = 64 * 1024;

/// The service.
pub struct NodeSessions {
    controller: Arc<Controller>,
}

impl NodeSessions {
    /// For this controller.
    #[must_use]
    pub const fn new(controller: Arc<Controller>) -> Self {
        Self { controller }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl NodeService for NodeSessions {
    type SessionStream = Answers<SessionResponse>;
    type FetchBlobStream = Answers<FetchBlobResponse>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = Caller::of(&request)?;
        let answers = session::start(Arc::clone(&self.controller), caller, request.into_inner());
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn fetch_blob(
        &self,
        request: Request<FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let caller = Caller::of(&request)?;
        let pieces = fetch::open(&self.controller, &caller, &request.into_inner()).await?;
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn send_output(
        &self,
        request: Request<Streaming<SendOutputRequest>>,
    ) -> Result<Response<SendOutputResponse>, Status> {
        let node = Caller::of(&request)?.node()?;
        relay(&self.controller, node.as_ref(), request.into_inner()).await?;
        Ok(Response::new(SendOutputResponse {}))
    }
}

/// Passes output on until either side ends.
async fn relay(
    controller: &Controller,
    node: Option<&NodeId>,
    mut pieces: Streaming<SendOutputRequest>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(Duration::from_secs(10), pieces.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no first message came within 10 s"))??;
    let Some(first) = first else { return Ok(()) };
    let Some(operator) = controller.outputs.claim(&first.stream_id, node) else {
        return Err(Error::Precondition("nobody wants this output any more".to_owned()).into());
    };
    let mut next = Some(first);
    while let Some(piece) = next {
        if !piece.error.is_empty() {
            let why = intake::line(&piece.error);
            let _ = operator.send(Err(Error::Precondition(why))).await;
            return Ok(());
        }
        if piece.data.len() > PIECE {
            return Err(Status::invalid_argument(format!(
                "data: the most is {PIECE} bytes"
            )));
        }
        // An operator who is gone wants no more.
        if !piece.data.is_empty() && operator.send(Ok(piece.data)).await.is_err() {
            return Ok(());
        }
        next = tokio::select! {
            piece = pieces.message() => match piece {
                Ok(piece) => piece,
                Err(status) => {
                    let why = "the node broke off the output; try again".to_owned();
                    let _ = operator.send(Err(Error::Unavailable(why))).await;
                    return Err(status);
                }
            },
            () = operator.closed() => None,
            () = controller.end.cancelled() => None,
        };
    }
    Ok(())
}
