//! `fabric.v1.NodeService`

use std::{collections::BTreeMap, sync::Arc};

use fabric_proto::{
    id::NodeId,
    v1::{
        CordonNodeRequest, CordonNodeResponse, DrainNodeRequest, DrainNodeResponse,
        LabelNodeRequest, LabelNodeResponse, ListNodesRequest, ListNodesResponse, Node,
        RemoveNodeRequest, RemoveNodeResponse, UncordonNodeRequest, UncordonNodeResponse,
        node_service_server::NodeService,
    },
};
use tonic::{Request, Response, Status};

use super::{convert, labels::Labelling};
use crate::{
    clock,
    controller::Controller,
    error::{Error, Result as ControllerResult},
    idempotency::Once,
    model::{
        event::{EventRecord, Reason, SubjectKind},
        instance::InstanceRecord,
        node::NodeRecord,
        own::OwnResources,
        steadiness::Steadiness,
    },
    records::{self, Kept},
    store::Txn,
};

/// See the [module](self).
pub struct NodeApi {
    /// The controller.
    pub controller: Arc<Controller>,
}

#[tonic::async_trait]
impl NodeService for NodeApi {
    async fn list_nodes(
        &self,
        _request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        Ok(Response::new(ListNodesResponse {
            nodes: self.list().await?,
        }))
    }

    async fn cordon_node(
        &self,
        request: Request<CordonNodeRequest>,
    ) -> Result<Response<CordonNodeResponse>, Status> {
        let request = request.into_inner();
        let once = Once::of("CordonNode", &request, |it| &mut it.request_id)?;
        let node = self.change(once, &request.node_id, Intent::Cordon, |node| {
            CordonNodeResponse { node: Some(node) }
        });
        Ok(Response::new(node.await?))
    }

    async fn uncordon_node(
        &self,
        request: Request<UncordonNodeRequest>,
    ) -> Result<Response<UncordonNodeResponse>, Status> {
        let request = request.into_inner();
        let once = Once::of("UncordonNode", &request, |it| &mut it.request_id)?;
        let node = self.change(once, &request.node_id, Intent::Uncordon, |node| {
            UncordonNodeResponse { node: Some(node) }
        });
        Ok(Response::new(node.await?))
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<DrainNodeResponse>, Status> {
        let request = request.into_inner();
        let once = Once::of("DrainNode", &request, |it| &mut it.request_id)?;
        let node = self.change(once, &request.node_id, Intent::Drain, |node| {
            DrainNodeResponse { node: Some(node) }
        });
        Ok(Response::new(node.await?))
    }

    async fn label_node(
        &self,
        request: Request<LabelNodeRequest>,
    ) -> Result<Response<LabelNodeResponse>, Status> {
        let request = request.into_inner();
        let once = Once::of("LabelNode", &request, |it| &mut it.request_id)?;
        let id = request.node_id.clone();
        let intent = Intent::Label(Labelling::read(request)?);
        let node = self.change(once, &id, intent, |node| LabelNodeResponse {
            node: Some(node),
        });
        Ok(Response::new(node.await?))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        Ok(Response::new(self.remove(request.into_inner()).await?))
    }
}

/// What an operator wants of a node.
#[derive(Debug, Clone)]
enum Intent {
    Cordon,
    Uncordon,
    Drain,
    Label(Labelling),
}

impl Intent {
    /// The node as it is to be, and what is told of it.
    fn apply(&self, record: NodeRecord) -> ControllerResult<(NodeRecord, Reason, String)> {
        let (cordoned, draining, reason, what) = match self {
            Self::Label(labelling) => {
                let what = labelling.to_string();
                return Ok((labelling.apply(record)?, Reason::NodeLabelled, what));
            }
            // One that is drained goes on being drained.
            Self::Cordon => (
                true,
                record.draining,
                Reason::NodeCordoned,
                "nothing new is placed on it",
            ),
            Self::Uncordon => (
                false,
                false,
                Reason::NodeUncordoned,
                "it can have new instances",
            ),
            Self::Drain => (
                true,
                true,
                Reason::NodeDraining,
                "what it has is started on others",
            ),
        };
        let record = NodeRecord {
            cordoned,
            draining,
            ..record
        };
        let record = match self {
            // Whatever speaks against it.
            Self::Uncordon => NodeRecord {
                blame: 0,
                blamed_for: Vec::new(),
                condemned: false,
                steadiness: Steadiness::default(),
                ..record
            },
            Self::Cordon | Self::Drain | Self::Label(_) => record,
        };
        Ok((record, reason, what.to_owned()))
    }
}

impl NodeApi {
    async fn find(&self, id: &str) -> ControllerResult<Kept<NodeRecord>> {
        let Ok(node) = id.parse::<NodeId>() else {
            return Err(Error::no_node(id));
        };
        let key = records::node(&node);
        let found = records::get(&*self.controller.store, &key).await?;
        found.ok_or_else(|| Error::no_node(id))
    }

    /// Has a node be as it is meant to be; nothing happens if it is so already.
    async fn change<R>(
        &self,
        once: Once,
        id: &str,
        intent: Intent,
        answer: impl Fn(Node) -> R + Send + Sync,
    ) -> ControllerResult<R>
    where
        R: prost::Message + Default,
    {
        let now = clock::now();
        let (answer, intent) = (&answer, &intent);
        let answered = once
            .commit(&*self.controller.store, now, || async move {
                let kept = self.find(id).await?;
                let (record, reason, message) = intent.apply(kept.value.clone())?;
                let placed = self.placed(&record.node_id).await?;
                let shown = self.node(&record, &placed.iter().collect::<Vec<_>>());
                let mut txn = Txn::new();
                if record != kept.value {
                    let key = records::node(&record.node_id);
                    txn = records::replace(txn, &key, Some(kept.modified), &record)?;
                    if matches!(intent, Intent::Uncordon) {
                        txn = txn.delete(records::failures(&record.node_id));
                    }
                    let event = EventRecord::new(now, reason, SubjectKind::Node, id, message);
                    txn = records::add_event(txn, &event)?;
                }
                Ok((txn, answer(shown)))
            })
            .await?;
        self.controller.waker.wake();
        Ok(answered)
    }

    /// The instances on a node.
    async fn placed(&self, id: &NodeId) -> ControllerResult<Vec<InstanceRecord>> {
        let all: Vec<Kept<InstanceRecord>> =
            records::list(&*self.controller.store, records::INSTANCES).await?;
        let placed = all.into_iter().map(|kept| kept.value);
        Ok(placed.filter(|one| one.node.as_ref() == Some(id)).collect())
    }

    async fn remove(&self, request: RemoveNodeRequest) -> ControllerResult<RemoveNodeResponse> {
        let once = Once::of("RemoveNode", &request, |it| &mut it.request_id)?;
        let id = &request.node_id;
        let now = clock::now();
        let answer = once
            .commit(&*self.controller.store, now, || async move {
                let kept = self.find(id).await?;
                let node = &kept.value.node_id;
                self.check_gone(node, self.placed(node).await?.len())?;
                let key = records::node(node);
                let txn = Txn::new()
                    .when(&key, Some(kept.modified))
                    .delete(key)
                    .delete(records::goal(node))
                    .delete(records::failures(node))
                    .delete(records::node_events(node));
                let (reason, message) = (Reason::NodeRemoved, "an operator removes it");
                let event = EventRecord::new(now, reason, SubjectKind::Node, id, message);
                Ok((records::add_event(txn, &event)?, RemoveNodeResponse {}))
            })
            .await?;
        self.controller.waker.wake();
        Ok(answer)
    }

    /// Whether nothing can run on a node any more.
    fn check_gone(&self, node: &NodeId, instances: usize) -> ControllerResult<()> {
        let registry = &self.controller.registry;
        if registry.sight(node).connected {
            return Err(Error::Precondition(format!(
                "node {node} is there; `fabctl node drain {node}` and stop its host agent first"
            )));
        }
        let Some(lease) = &self.controller.config.lease else {
            return match instances {
                0 => Ok(()),
                _ => Err(Error::Precondition(format!(
                    "node {node} may still run its {instances} instances, for this controller \
                     gives no leases; delete or drain them first"
                ))),
            };
        };
        // Barred, it has no lease from here on.
        let silent = registry.silent_for(node);
        if registry.bar(node, lease.replace_after()) {
            return Ok(());
        }
        let left = lease.replace_after().saturating_sub(silent).as_secs() + 1;
        Err(Error::Precondition(format!(
            "node {node} may still run what it has: its lease has ended in {left} s; try again \
             then"
        )))
    }

    async fn list(&self) -> ControllerResult<Vec<Node>> {
        let store = &*self.controller.store;
        let nodes: Vec<Kept<NodeRecord>> = records::list(store, records::NODES).await?;
        let instances: Vec<Kept<InstanceRecord>> = records::list(store, records::INSTANCES).await?;
        let mut placed: BTreeMap<&NodeId, Vec<&InstanceRecord>> = BTreeMap::new();
        for record in instances.iter().map(|kept| &kept.value) {
            if let Some(node) = &record.node {
                placed.entry(node).or_default().push(record);
            }
        }
        let nodes = nodes.iter().map(|kept| {
            let placed = placed.get(&kept.value.node_id);
            self.node(&kept.value, placed.map_or(&[], Vec::as_slice))
        });
        Ok(nodes.collect())
    }

    fn node(&self, record: &NodeRecord, placed: &[&InstanceRecord]) -> Node {
        let sight = self.controller.registry.sight(&record.node_id);
        let mut resources = OwnResources::default();
        for one in placed {
            resources.add(&one.spec.resources);
        }
        Node {
            node_id: record.node_id.to_string(),
            connected: sight.connected,
            last_seen: sight.last_seen.map(convert::timestamp),
            inventory: Some(convert::inventory(&record.inventory)),
            labels: record.all_labels(),
            operator_labels: record.operator_labels.clone(),
            agent_version: record.agent_version.clone(),
            instances: u32::try_from(placed.len()).unwrap_or(u32::MAX),
            vcpus_used: placed.iter().map(|record| record.spec.size.vcpus).sum(),
            memory_used_bytes: placed
                .iter()
                .map(|record| record.spec.size.memory_bytes)
                .sum(),
            resources_used: resources.to_map(),
            goal_incarnation: sight.goal_incarnation,
            applied_incarnation: sight.report.map_or(0, |report| report.applied_incarnation),
            fault_domain: record.fault_domain().to_owned(),
            operator_fault_domain: record.fault_domain.clone().unwrap_or_default(),
            cordoned: record.cordoned,
            draining: record.draining,
            fenced: record.fenced,
            disk_free_bytes: sight.disk_free_bytes.unwrap_or(0),
            blame: record.blame,
            blamed_for: record.blamed_for.iter().map(ToString::to_string).collect(),
            condemned: record.condemned,
            unsteady_until: record.steadiness.held_until().map(convert::timestamp),
        }
    }
}
