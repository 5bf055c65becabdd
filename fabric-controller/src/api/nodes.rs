//! `fabric.v1.NodeService`

use std::sync::Arc;

use fabric_proto::{
    id::NodeId,
    v1::{ListNodesRequest, ListNodesResponse, Node, node_service_server::NodeService},
};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    controller::Controller,
    error::Result as ControllerResult,
    model::{instance::InstanceRecord, node::NodeRecord},
    records::{self, Kept},
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
}

impl NodeApi {
    async fn list(&self) -> ControllerResult<Vec<Node>> {
        let store = &*self.controller.store;
        let nodes: Vec<Kept<NodeRecord>> = records::list(store, records::NODES).await?;
        let instances: Vec<Kept<InstanceRecord>> = records::list(store, records::INSTANCES).await?;
        let nodes = nodes.into_iter().map(|kept| {
            let placed = |id: &NodeId| -> Vec<&InstanceRecord> {
                let records = instances.iter().map(|kept| &kept.value);
                records
                    .filter(|record| record.node.as_ref() == Some(id))
                    .collect()
            };
            self.node(&kept.value, &placed(&kept.value.node_id))
        });
        Ok(nodes.collect())
    }

    fn node(&self, record: &NodeRecord, placed: &[&InstanceRecord]) -> Node {
        let sight = self.controller.registry.sight(&record.node_id);
        Node {
            node_id: record.node_id.to_string(),
            connected: sight.connected,
            last_seen: sight.last_seen.map(convert::timestamp),
            inventory: Some(convert::inventory(&record.inventory)),
            labels: record.labels.clone(),
            agent_version: record.agent_version.clone(),
            instances: u32::try_from(placed.len()).unwrap_or(u32::MAX),
            vcpus_used: placed.iter().map(|record| record.spec.size.vcpus).sum(),
            memory_used_bytes: placed
                .iter()
                .map(|record| record.spec.size.memory_bytes)
                .sum(),
            goal_incarnation: sight.goal_incarnation,
            applied_incarnation: sight.report.map_or(0, |report| report.applied_incarnation),
        }
    }
}
