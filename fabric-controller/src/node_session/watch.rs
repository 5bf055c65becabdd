//! Notices nodes that are no longer heard, and those that are again.

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
    let counted = || nodes.iter().filter(|node| !node.value.fenced);
    let is_lost = |node: &&Kept<NodeRecord>| controller.registry.is_lost(&node.value.node_id);
    // As with failover: where too many are silent at once, no node has done anything.
    let most = controller.config.lease.unwrap_or_default();
    let is_their_doing = counted().filter(is_lost).count() <= most.most_silent(counted().count());
    for node in &nodes {
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
        let (lost, reason, message) = match node.value.lost {
            false if controller.registry.is_lost(id) => {
                let seconds = controller.registry.lost_after().as_secs_f64();
                let message = format!("nothing was heard from it for {seconds} s");
                (true, Reason::NodeLost, message)
            }
            // Its registration says so by itself, unless there was no room for it.
            true if controller.registry.sight(id).connected => {
                (false, Reason::NodeConnected, "it is heard again".to_owned())
            }
            _ => continue,
        };
        tracing::warn!(node = %id, "{message}");
        let now = clock::now();
        let steadiness = match lost && is_their_doing {
            true => node.value.steadiness.lost(now),
            false => node.value.steadiness,
        };
        let event = EventRecord::new(now, reason, SubjectKind::Node, id, message);
        let record = NodeRecord {
            lost,
            steadiness,
            ..node.value.clone()
        };
        let txn = records::replace(Txn::new(), &records::node(id), Some(node.modified), &record)?;
        controller
            .store
            .txn(records::add_event(txn, &event)?)
            .await?;
        controller.registry.touch();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{controller::Config, data_dir::DataDir, store::memory::MemoryStore};

    #[tokio::test]
    async fn a_node_that_is_heard_is_not_lost_whatever_its_record_says() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(place.path()).unwrap();
        let store = Arc::new(MemoryStore::default());
        let controller = Controller::with_store(store, data_dir, Config::default());
        let controller = controller.await.unwrap();
        let id: NodeId = "n1".parse().unwrap();
        let record = NodeRecord {
            lost: true,
            ..NodeRecord::new(id.clone(), clock::now())
        };
        let txn = records::replace(Txn::new(), &records::node(&id), None, &record).unwrap();
        controller.store.txn(txn).await.unwrap();
        let is_lost = async || {
            look(&controller, &mut BTreeSet::new()).await.unwrap();
            let key = records::node(&id);
            let kept = records::get::<NodeRecord>(&*controller.store, &key).await;
            kept.unwrap().unwrap().value.lost
        };
        assert!(is_lost().await);
        // As when it came back while the store's disk was full.
        let _session = controller.registry.open(&id);
        assert!(!is_lost().await);
    }
}
