//! Output for operators: each stream that the goal asks for is sent to the
//! controller in a call of its own, until it ends or nobody asks any longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fabric_proto::{
    id::InstanceId,
    node::v1::{self as wire, node_service_client::NodeServiceClient},
};
use fabric_vmm::console::{RingError, RingReader};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::role_log::RoleLog;
use crate::{
    instance::{
        directory::{CONSOLE, InstanceDirectory},
        disks::chain,
    },
    node::View,
};

/// Bytes in one message; the contract's bound.
const PIECE: usize = 64 * 1024;
/// How often a console is looked at by who follows it.
const LOOK: Duration = Duration::from_millis(200);
/// Streams at a time.
const MOST_STREAMS: usize = 64;

/// Where an instance's output is.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Its role's.
    pub log: Arc<RoleLog>,
    /// Its console is in here.
    pub directory: Arc<InstanceDirectory>,
}

/// Sends what the goal asks for, for ever.
pub async fn send_outputs(mut view: View, client: NodeServiceClient<Channel>) {
    let mut streams = JoinSet::new();
    let mut known: BTreeMap<String, tokio::task::AbortHandle> = BTreeMap::new();
    loop {
        let wanted = view.outputs.borrow_and_update().clone();
        let names: BTreeSet<&str> = wanted.iter().map(|one| one.stream_id.as_str()).collect();
        // Those that have ended are known as long as they are asked for, so that
        // none is sent twice.
        known.retain(|name, task| {
            let asked_for = names.contains(name.as_str());
            if !asked_for {
                task.abort();
            }
            asked_for
        });
        for request in wanted.into_iter().take(MOST_STREAMS) {
            if !known.contains_key(&request.stream_id) {
                let name = request.stream_id.clone();
                let task = streams.spawn(send(request, view.clone(), client.clone()));
                known.insert(name, task);
            }
        }
        loop {
            tokio::select! {
                changed = view.outputs.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                Some(_) = streams.join_next() => {}
            }
        }
    }
}

async fn send(request: wire::OutputRequest, view: View, mut client: NodeServiceClient<Channel>) {
    let (pieces, receiver) = mpsc::channel(4);
    let name = request.stream_id.clone();
    let call = client.send_output(ReceiverStream::new(receiver));
    // The call ends when the controller has had enough, or its sender is dropped.
    let producing = async move {
        produce(&request, &view, &pieces).await;
        drop(pieces);
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        () = producing => return,
        answer = call => answer,
    };
    if let Err(status) = answer {
        tracing::debug!(stream = name, %status, "an output stream was broken off");
    }
}

/// Sends pieces of one stream; names it in the first.
struct Pieces<'a> {
    sender: &'a mpsc::Sender<wire::SendOutputRequest>,
    name: Option<String>,
}

impl Pieces<'_> {
    async fn send(&mut self, data: Bytes, error: String) -> Option<()> {
        let stream_id = self.name.take().unwrap_or_default();
        self.sender
            .send(wire::SendOutputRequest {
                stream_id,
                data,
                error,
            })
            .await
            .ok()
    }
}

async fn produce(
    request: &wire::OutputRequest,
    view: &View,
    sender: &mpsc::Sender<wire::SendOutputRequest>,
) {
    let mut pieces = Pieces {
        sender,
        name: Some(request.stream_id.clone()),
    };
    let id = request.instance_id.parse::<InstanceId>().ok();
    let shown = id.and_then(|id| view.shown.borrow().get(&id).cloned());
    let Some(shown) = shown else {
        let error = format!("no instance {:.80?} on this node", request.instance_id);
        pieces.send(Bytes::new(), error).await;
        return;
    };
    let result = match request.kind() {
        wire::OutputKind::Log => log(request, &shown.log, &mut pieces).await,
        wire::OutputKind::Console => console(request, &shown.directory, &mut pieces).await,
        wire::OutputKind::Unspecified => Err("no such output".to_owned()),
    };
    if let Err(error) = result {
        pieces.send(Bytes::new(), error).await;
    }
}

async fn log(
    request: &wire::OutputRequest,
    log: &RoleLog,
    pieces: &mut Pieces<'_>,
) -> Result<(), String> {
    let mut end = log.end();
    let until = *end.borrow_and_update();
    let mut at = until.saturating_sub(request.tail_bytes);
    // So that the controller knows the stream even if there is nothing in it.
    if pieces.send(Bytes::new(), String::new()).await.is_none() {
        return Ok(());
    }
    loop {
        let (from, data) = log
            .read(at, PIECE as u64)
            .map_err(|error| format!("the log: {error}"))?;
        if !data.is_empty() {
            at = from + data.len() as u64;
            if pieces.send(data.into(), String::new()).await.is_none() {
                return Ok(());
            }
        } else if !request.follow || end.changed().await.is_err() {
            return Ok(());
        }
        if !request.follow && at >= until {
            return Ok(());
        }
    }
}

/// A console is in a file of the VMM, begun anew with each start of the machine.
async fn console(
    request: &wire::OutputRequest,
    directory: &InstanceDirectory,
    pieces: &mut Pieces<'_>,
) -> Result<(), String> {
    let path = directory.file(CONSOLE);
    let mut seen = Seen { total: 0, at: None };
    if pieces.send(Bytes::new(), String::new()).await.is_none() {
        return Ok(());
    }
    loop {
        let data = match RingReader::open(&path) {
            Ok(ring) => seen
                .next(&ring, request.tail_bytes)
                .map_err(|error| format!("its console: {}", chain(&error)))?,
            Err(_) if request.follow => Vec::new(),
            Err(error) => return Err(format!("its console: {}", chain(&error))),
        };
        if !data.is_empty() {
            if pieces.send(data.into(), String::new()).await.is_none() {
                return Ok(());
            }
        } else if request.follow {
            tokio::time::sleep(LOOK).await;
        } else {
            return Ok(());
        }
    }
}

/// How far a console has been read.
struct Seen {
    total: u64,
    /// Nothing before the first look.
    at: Option<u64>,
}

impl Seen {
    fn next(&mut self, ring: &RingReader, tail: u64) -> Result<Vec<u8>, RingError> {
        let total = ring.total()?;
        if total < self.total {
            // The machine was started again; its console begins anew.
            self.at = Some(0);
        }
        self.total = total;
        let at = self.at.unwrap_or_else(|| total.saturating_sub(tail));
        let chunk = ring.read_from(at, PIECE)?;
        self.at = Some(chunk.offset + chunk.bytes.len() as u64);
        Ok(chunk.bytes)
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
