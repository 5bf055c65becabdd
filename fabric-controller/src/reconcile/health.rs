//! How an instance is as what it is to be *now*: a report from before it was changed
//! does not count.
//!
//! Its node must have taken up the goal that it was given last, and the process of
//! its role must have been started for the restart that was asked for last. (Another
//! epoch is seen to by [`derive`](fn@derive).)

use fabric_proto::{id::InstanceId, node::v1::InstanceStatus};

use super::{plan::NodeFacts, update_walk::Health};
use crate::{
    model::{
        definition::RestartMode,
        instance::InstanceRecord,
        state::{InstanceState, NodeView, derive},
    },
    node_session,
    registry::Registry,
};

/// See the [module](self).
#[must_use]
pub fn health(record: &InstanceRecord, registry: &Registry, has_taken_up: bool) -> Health {
    let Some(node) = &record.node else {
        return Health::Homeless;
    };
    let sight = registry.sight(node);
    let status = sight
        .report
        .as_ref()
        .and_then(|report| report.instances.get(&record.id));
    let observed = status.map(node_session::observed);
    let derived = derive(record, sight.view, observed.as_ref());
    let how = if derived.reason.is_empty() {
        derived.state.to_string()
    } else {
        format!("{}: {}", derived.state, derived.reason)
    };
    match derived.state {
        InstanceState::Unknown | InstanceState::Paused => Health::Unseen(how),
        _ if record.keep.is_held() || sight.view != NodeView::Heard => Health::Unseen(how),
        _ if !has_taken_up => Health::Unseen("its node has not taken up the change yet".to_owned()),
        InstanceState::Failed => Health::Failed(how),
        InstanceState::Ready if is_anew(record, status) => Health::Ready,
        // A role that is not started again when it ends has ended as it should.
        InstanceState::Stopped if record.spec.role.restart.mode != RestartMode::Always => {
            Health::Ready
        }
        InstanceState::Ready => Health::Down("its role is yet to be started anew".to_owned()),
        _ => Health::Down(how),
    }
}

/// Whether a node has taken up what it was told last, and the instance is part of it.
#[must_use]
pub fn has_taken_up(facts: &NodeFacts, id: &InstanceId) -> bool {
    let applied = facts.reported.as_ref().map_or(0, |(applied, _)| *applied);
    applied >= facts.goal_incarnation && facts.goal_instances.contains(id)
}

/// Whether its role's process was started for the last restart of the role.
fn is_anew(record: &InstanceRecord, status: Option<&InstanceStatus>) -> bool {
    let role = status.and_then(|status| status.role.as_ref());
    role.is_some_and(|role| role.restart_generation >= record.restart.role_generation)
}
