//! Passes a role's output or a guest's console from its node to an operator.
//!
//! The operator's call puts a request into the node's goal; the node opens a call
//! of its own with what was asked for; the two are joined here through a bounded
//! channel, so that an operator who reads slowly slows the node's call down and
//! nothing else. When either side ends, the request leaves the goal. Nothing here
//! outlives the controller.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use fabric_proto::{
    id::NodeId,
    node::v1::{OutputKind, OutputRequest},
};
use tokio::sync::mpsc;

use crate::{
    error::{Error, Result},
    reconcile::Waker,
};

/// Pieces that wait for a slow operator.
const WAITING: usize = 16;
/// Most streams of all operators together.
const STREAMS: usize = 256;

/// A piece of output, or why there is no more.
pub type Piece = Result<Bytes>;

/// What an operator wants to see.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Node of the instance.
    pub node: NodeId,
    /// The instance.
    pub instance_id: String,
    /// Which output.
    pub kind: OutputKind,
    /// How many of the newest bytes first; 0 means all.
    pub tail_bytes: u64,
    /// Whether to go on with what comes.
    pub follow: bool,
}

/// A stream that an operator has open.
#[derive(Debug)]
struct Stream {
    node: NodeId,
    request: OutputRequest,
    /// Until the node has opened its call.
    sender: Option<mpsc::Sender<Piece>>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Outputs {
    streams: Mutex<BTreeMap<String, Stream>>,
    waker: Arc<Waker>,
}

/// The operator's end. When it is dropped the stream is over.
#[derive(Debug)]
pub struct Receiver {
    outputs: Arc<Outputs>,
    stream_id: String,
    pieces: mpsc::Receiver<Piece>,
}

impl Receiver {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<Piece> {
        self.pieces.recv().await
    }

    /// True once the node has opened its call.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        let streams = self.outputs.lock();
        streams
            .get(&self.stream_id)
            .is_none_or(|stream| stream.sender.is_none())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.outputs.lock().remove(&self.stream_id);
        self.outputs.waker.wake();
    }
}

impl Outputs {
    /// No stream; the waker is woken whenever a node's requests change.
    #[must_use]
    pub fn new(waker: Arc<Waker>) -> Self {
        Self {
            streams: Mutex::default(),
            waker,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream for an operator.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub fn open(self: &Arc<Self>, wanted: Wanted) -> Result<Receiver> {
        let stream_id = uuid::Uuid::new_v4().to_string();
        let (sender, pieces) = mpsc::channel(WAITING);
        let request = OutputRequest {
            stream_id: stream_id.clone(),
            instance_id: wanted.instance_id,
            kind: wanted.kind.into(),
            tail_bytes: if wanted.tail_bytes == 0 {
                u64::MAX
            } else {
                wanted.tail_bytes
            },
            follow: wanted.follow,
        };
        let mut streams = self.lock();
        if streams.len() >= STREAMS {
            return Err(Error::Exhausted(format!(
                "{STREAMS} output streams are open, which is the most; close one"
            )));
        }
        let stream = Stream {
            node: wanted.node,
            request,
            sender: Some(sender),
        };
        streams.insert(stream_id.clone(), stream);
        drop(streams);
        self.waker.wake();
        Ok(Receiver {
            outputs: Arc::clone(self),
            stream_id,
            pieces,
        })
    }

    /// The node's end of a stream: once, and never again. `None` for the node: of any.
    #[must_use]
    pub fn claim(&self, stream_id: &str, node: Option<&NodeId>) -> Option<mpsc::Sender<Piece>> {
        let mut streams = self.lock();
        let stream = streams.get_mut(stream_id)?;
        if node.is_some_and(|node| *node != stream.node) {
            return None;
        }
        stream.sender.take()
    }

    /// What operators want to see from a node, by stream id.
    #[must_use]
    pub fn requests(&self, node: &NodeId) -> Vec<OutputRequest> {
        let streams = self.lock();
        let of_node = streams.values().filter(|stream| stream.node == *node);
        of_node.map(|stream| stream.request.clone()).collect()
    }
}
