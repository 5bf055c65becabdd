//! What there is now, looked up when somebody asks.

use std::collections::BTreeMap;

use super::Metrics;
use crate::{
    controller::Controller,
    error::{Error, Result},
    model::{
        instance::InstanceRecord,
        node::NodeRecord,
        service::ServiceRecord,
        state::{InstanceState, NodeView, derive},
        update::UpdateState,
    },
    node_session::observed,
    records,
    store::Range,
};

/// The states of nodes.
const NODES: [&str; 4] = ["connected", "silent", "lost", "fenced"];
/// The states of updates.
const UPDATES: [&str; 4] = ["walking", "paused", "stopped", "done"];

/// All metrics as they are now, as OpenMetrics text.
///
/// # Errors
///
/// The store failed.
pub async fn text(controller: &Controller) -> Result<String> {
    let prefixes = [records::NODES, records::SERVICES, records::INSTANCES];
    let ranges = prefixes.into_iter().map(Range::prefix).collect();
    let (mut all, _) = controller.store.ranges(ranges).await?;
    let mut next = || all.pop().unwrap_or_default();
    let (instances, services, nodes) = (next(), next(), next());
    let metrics = &controller.metrics;
    metrics.info.of([env!("CARGO_PKG_VERSION")]).set(1.0);
    metrics
        .start
        .set(controller.started.as_micros() as f64 / 1e6);
    let sessions = controller.registry.connected().len();
    metrics.sessions.set(sessions as f64);
    if let Some(disk) = controller.disk() {
        metrics.disk.set(disk.bytes as f64);
        metrics.disk_free.set(disk.free_bytes as f64);
    }
    look_at_nodes(metrics, controller, &all_of(&nodes)?);
    look_at_services(metrics, &all_of(&services)?);
    look_at_instances(metrics, controller, &all_of(&instances)?);
    metrics
        .list
        .text()
        .map_err(|_| Error::Internal("a metric cannot be written".to_owned()))
}

fn all_of<T: serde::de::DeserializeOwned>(entries: &[crate::store::Entry]) -> Result<Vec<T>> {
    let records = entries.iter().map(records::decode);
    records.map(|kept| kept.map(|kept| kept.value)).collect()
}

fn look_at_nodes(metrics: &Metrics, controller: &Controller, nodes: &[NodeRecord]) {
    let mut states: BTreeMap<&str, u32> = NODES.into_iter().map(|state| (state, 0)).collect();
    metrics.node_silent.clear();
    metrics.node_disk_free.clear();
    for node in nodes {
        let sight = controller.registry.sight(&node.node_id);
        let state = match (node.fenced, node.lost, sight.connected) {
            (true, _, _) => "fenced",
            (_, true, _) => "lost",
            (_, _, true) => "connected",
            _ => "silent",
        };
        *states.entry(state).or_default() += 1;
        let name = [node.node_id.as_str()];
        let silent = controller.registry.silent_for(&node.node_id);
        metrics.node_silent.of(name).set(silent.as_secs_f64());
        if let Some(free) = sight.disk_free_bytes {
            metrics.node_disk_free.of(name).set(free as f64);
        }
    }
    for (state, count) in states {
        metrics.nodes.of([state]).set(count.into());
    }
    let count = |is: fn(&NodeRecord) -> bool| nodes.iter().filter(|node| is(node)).count() as f64;
    metrics.nodes_cordoned.set(count(|node| node.cordoned));
    metrics.nodes_draining.set(count(|node| node.draining));
}

fn look_at_services(metrics: &Metrics, services: &[ServiceRecord]) {
    metrics.services.set(services.len() as f64);
    let mut states: BTreeMap<&str, u32> = UPDATES.into_iter().map(|state| (state, 0)).collect();
    let deployments = services.iter().flat_map(|service| service.slots.values());
    for update in deployments.filter_map(|one| one.update.as_ref()) {
        let state = match update.state {
            UpdateState::Walking => "walking",
            UpdateState::Paused => "paused",
            UpdateState::Stopped(_) => "stopped",
            UpdateState::Done => "done",
        };
        *states.entry(state).or_default() += 1;
    }
    for (state, count) in states {
        metrics.updates.of([state]).set(count.into());
    }
}

fn look_at_instances(metrics: &Metrics, controller: &Controller, instances: &[InstanceRecord]) {
    let states = InstanceState::ALL.iter();
    let mut states: BTreeMap<String, u32> = states.map(|one| (one.to_string(), 0)).collect();
    let mut sights = BTreeMap::new();
    for record in instances {
        let node = record.node.as_ref();
        let sight = node.map(|node| {
            sights
                .entry(node)
                .or_insert_with(|| controller.registry.sight(node))
        });
        let view = sight
            .as_ref()
            .map_or(NodeView::NotYetHeard, |sight| sight.view);
        let report = sight.as_ref().and_then(|sight| sight.report.as_ref());
        let status = report.and_then(|report| report.instances.get(&record.id));
        let seen = status.map(observed);
        let word = derive(record, view, seen.as_ref()).state.to_string();
        *states.entry(word).or_default() += 1;
    }
    for (state, count) in &states {
        metrics.instances.of([state]).set((*count).into());
    }
    let homeless = instances.iter().filter(|one| !one.unplaceable.is_empty());
    metrics.instances_unplaceable.set(homeless.count() as f64);
}
