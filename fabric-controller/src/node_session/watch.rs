//! Notices nodes that are no longer heard.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use fabric_proto::id::NodeId;

use crate::{
    clock,
    controller::Controller,
    error::Result,
    model::{
        event::{EventRecord, Reason, SubjectKind},
        node::NodeRecord,
    },
    reconcile::chain,
    records::{self, Kept},
    store::Txn,
};

/// How often is looked.
const PERIOD: Duration = Duration::from_millis(500);

/// Looks until the controller ends. Instances of a lost node are shown as Unknown;
/// once its lease has ended, the reconciler is woken to start them elsewhere.
pub async fn watch_nodes(controller: Arc<Controller>) {
    let mut timer = tokio::time::interval(PERIOD);
    let mut due = BTreeSet::new();
    loop {
        tokio::select! {
            () = controller.end.cancelled() => return,
            _ = timer.tick() => {}
        }
        if let Err(error) = look(&controller, &mut due).await {
            tracing::error!(error = %chain(&error), "cannot note that a node is lost");
        }
    }
}

/// `due` are those whose lease is known to have ended.
async fn look(controller: &Controller, due: &mut BTreeSet<NodeId>) -> Result<()> {
    let nodes: Vec<Kept<NodeRecord>> = records::list(&*controller.store, records::NODES).await?;
    for node in nodes {
        let id = &node.value.node_id;
        let lease = controller.config.lease;
        let ended = lease.is_some_and(|policy| {
            controller.registry.silent_for(id) >= policy.replace_after() && !node.value.fenced
        });
        if !ended {
            due.remove(id);
        } else if due.insert(id.clone()) {
            controller.registry.touch();
        }
        if node.value.lost || !controller.registry.is_lost(id) {
            continue;
        }
        let seconds = controller.registry.lost_after().as_secs_f64();
        let message = format!("nothing was heard from it for {seconds} s");
        let event = EventRecord::new(
            clock::now(),
            Reason::NodeLost,
            SubjectKind::Node,
            id,
            message,
        );
        let lost = NodeRecord {
            lost: true,
            ..node.value.clone()
        };
        let txn = records::replace(Txn::new(), &records::node(id), Some(node.modified), &lost)?;
        tracing::warn!(node = %id, "node lost");
        controller
            .store
            .txn(records::add_event(txn, &event)?)
            .await?;
        controller.registry.touch();
    }
    Ok(())
}
