//! Rolling updates, carried into records: who is changed now, and how.
//!
//! [`update_walk`] decides; this gives it what it looks at, and turns what it says
//! into what must change in the store. Pure as well. What becomes of an instance
//! that is reached depends on what is new about it ([`Effect`]): one that starts its
//! role anew gets the next restart generation, so that a report from before is known
//! by its number; another image or package raises the epoch and asks for a fresh
//! disk; another size, or rules that its node does not meet, make the instance go, so
//! that it is placed anew.
//!
//! A walk that fails is stopped, or the deployment is given the version before and
//! walks back, as its policy says. An update that nobody has asked for begins where
//! instances are not what they should be, whyever: what is, is driven to what should be.

use std::collections::{BTreeMap, BTreeSet};

use fabric_proto::id::{InstanceId, ServiceName};

use super::{
    plan::{Input, Plan},
    update_walk::{self, Fate, Health, Seen, Step},
};
use crate::model::{
    deployment::{Deployment, Slot},
    event::{EventRecord, Reason, SubjectKind},
    instance::{Effect, InstanceRecord, InstanceSpec, Phase, RestartScope},
    node::Nodes,
    revision::Revision,
    service::ServiceRecord,
    time::WallTime,
    update::{Cause, OnFailure, Update, UpdateState},
};

/// Who makes changes that no operator has asked for.
pub const FABRIC: &str = "the fabric";

/// How an instance is, whatever it is asked of.
pub type HealthOf<'a> = dyn Fn(&InstanceRecord) -> Health + Sync + 'a;

/// What updates change now, and when to look again though nothing has changed.
#[must_use]
pub fn walk(input: &Input, health: &HealthOf<'_>, now: WallTime) -> (Plan, Option<WallTime>) {
    let mut plan = Plan::default();
    let mut again: Option<WallTime> = None;
    let nodes = input.nodes.iter().collect();
    let mut instances: BTreeMap<_, Vec<&InstanceRecord>> = BTreeMap::new();
    for one in &input.instances {
        let of = instances.entry((&one.service, one.colour)).or_default();
        of.push(one);
    }
    for service in &input.services {
        for (slot, deployment) in &service.slots {
            let instances = instances.get(&(&service.name, deployment.colour));
            let instances = instances.map_or(&[][..], Vec::as_slice);
            let Some(update) = current(deployment, instances, &nodes, now) else {
                continue;
            };
            let step = look(deployment, &update, instances, &nodes, health, now);
            again = [again, step.again].into_iter().flatten().min();
            let turn = Turn {
                service,
                slot: *slot,
                deployment,
                nodes: &nodes,
                next_epoch: input.next_epoch,
                now,
            };
            turn.write(instances, step, health, &mut plan);
        }
    }
    (plan, again)
}

/// What the walk would do next, for those who ask how it is. `instances` are those of
/// the deployment.
#[must_use]
pub fn look(
    deployment: &Deployment,
    update: &Update,
    instances: &[&InstanceRecord],
    nodes: &Nodes<'_>,
    health: &HealthOf<'_>,
    now: WallTime,
) -> Step {
    let seen = see_all(deployment, update, instances, nodes, health);
    update_walk::step(&deployment.version.policy, update, &seen, now)
}

/// The instances of a deployment as the walk sees them.
#[must_use]
pub fn see_all(
    deployment: &Deployment,
    update: &Update,
    instances: &[&InstanceRecord],
    nodes: &Nodes<'_>,
    health: &HealthOf<'_>,
) -> Vec<Seen> {
    let seen = instances.iter();
    seen.filter_map(|one| see(deployment, update, one, nodes, health))
        .collect()
}

/// An instance as the walk sees it; `None` if the deployment does not want it.
fn see(
    deployment: &Deployment,
    update: &Update,
    one: &InstanceRecord,
    nodes: &Nodes<'_>,
    health: &HealthOf<'_>,
) -> Option<Seen> {
    let role = deployment.version.role(&one.role)?;
    if one.number >= role.instances {
        return None;
    }
    let is_old = one.phase == Phase::Wanted && one.effect_of(&role.spec, nodes) != Effect::Nothing;
    let is_changed = one.revision >= update.since_revision;
    Some(Seen {
        id: one.id.clone(),
        role: one.role.clone(),
        domain: role.upgrade_domain(one.number),
        old: is_old,
        changed: is_changed.then(|| one.updated.max(one.changed)),
        health: health(one),
    })
}

/// The update that is under way, or one that must begin.
#[must_use]
pub fn current(
    deployment: &Deployment,
    instances: &[&InstanceRecord],
    nodes: &Nodes<'_>,
    now: WallTime,
) -> Option<Update> {
    if let Some(update) = deployment.under_way() {
        return Some(update.clone());
    }
    let differs = |one: &&&InstanceRecord| {
        let role = deployment.version.role(&one.role);
        let role = role.filter(|role| one.phase == Phase::Wanted && one.number < role.instances);
        role.is_some_and(|role| one.effect_of(&role.spec, nodes) != Effect::Nothing)
    };
    let differing = instances.iter().filter(differs);
    let roles: BTreeSet<_> = differing.map(|one| one.role.clone()).collect();
    let revision = deployment.revision;
    (!roles.is_empty()).then(|| Update::new(Cause::Operator, revision, roles, None, now))
}

/// One step of one deployment.
struct Turn<'a> {
    service: &'a ServiceRecord,
    slot: Slot,
    deployment: &'a Deployment,
    nodes: &'a Nodes<'a>,
    next_epoch: u64,
    now: WallTime,
}

impl Turn<'_> {
    fn write(
        &self,
        instances: &[&InstanceRecord],
        step: Step,
        health: &HealthOf<'_>,
        plan: &mut Plan,
    ) {
        for one in instances.iter().filter(|one| step.take.contains(&one.id)) {
            if let Some(role) = self.deployment.version.role(&one.role) {
                let given_up = matches!(health(one), Health::Failed(_));
                let record = self.changed(one, &role.spec, given_up);
                plan.put.insert(one.id.clone(), record);
            }
        }
        let domain = |update: &Update| update.current.map(|current| current.domain);
        let before = self.deployment.update.as_ref();
        if let Some(now_in) = domain(&step.update)
            && before.and_then(domain) != Some(now_in)
        {
            let message = format!("upgrade domain {now_in}: {}", list(&step.take));
            self.tell(plan, Reason::UpdateDomainBegun, message);
        }
        match step.fate {
            Fate::On => self.put(plan, Some(step.update)),
            Fate::Done => {
                let message = self.done(&step.update);
                self.tell(plan, Reason::UpdateFinished, message);
                self.put(
                    plan,
                    Some(Update {
                        state: UpdateState::Done,
                        ended: Some(self.now),
                        previous: None,
                        ..step.update
                    }),
                );
            }
            Fate::Failed(why) => self.failed(plan, step.update, why),
        }
    }

    fn done(&self, update: &Update) -> String {
        let revision = self.deployment.revision;
        match &update.cause {
            Cause::GivenUp(_) => format!("{} is back to what it was before", self.slot),
            Cause::Operator => format!("{} is at revision {revision}", self.slot),
            Cause::OsImage(image) => format!("{} is at OS image {image}", self.slot),
        }
    }

    fn failed(&self, plan: &mut Plan, update: Update, why: String) {
        let rolls_back = self.deployment.version.policy.on_failure == OnFailure::Rollback;
        // The other slot may have moved in the same turn.
        let service = plan
            .services
            .get(&self.service.name)
            .unwrap_or(self.service);
        let back = rolls_back
            .then(|| {
                self.deployment
                    .back(service.generation + 1, why.clone(), self.now)
            })
            .flatten();
        let Some(back) = back else {
            self.tell(plan, Reason::UpdateStopped, why.clone());
            let state = UpdateState::Stopped(why);
            return self.put(plan, Some(Update { state, ..update }));
        };
        let service = with(service, self.slot, back, self.now);
        self.tell(plan, Reason::UpdateRolledBack, why.clone());
        let revision = Revision {
            number: service.generation,
            time: self.now,
            who: FABRIC.to_owned(),
            what: format!("back to the version before: {why}"),
            slot: self.slot,
            version: service.slots.get(&self.slot).map(|one| one.version.clone()),
        };
        plan.revisions.push((service.name.clone(), revision));
        plan.services.insert(service.name.clone(), service);
    }

    /// Keeps how far the update is.
    fn put(&self, plan: &mut Plan, update: Option<Update>) {
        if self.deployment.update == update {
            return;
        }
        let name: &ServiceName = &self.service.name;
        let service = plan.services.entry(name.clone());
        let service = service.or_insert_with(|| self.service.clone());
        if let Some(deployment) = service.slots.get_mut(&self.slot) {
            deployment.update = update;
        }
    }

    /// An instance that the walk has reached. One that its node has given up begins
    /// anew, whatever has changed.
    fn changed(
        &self,
        there: &InstanceRecord,
        spec: &InstanceSpec,
        given_up: bool,
    ) -> InstanceRecord {
        let mut record = InstanceRecord {
            revision: self.deployment.revision,
            updated: self.now,
            spec: spec.clone(),
            ..there.clone()
        };
        if there.node.is_none() {
            return record;
        }
        match there.effect_of(spec, self.nodes) {
            effect if given_up && effect < Effect::Replace => self.reimage(&mut record),
            Effect::Nothing | Effect::Deliver => {}
            Effect::RestartRole => record.restart = there.restart.again(RestartScope::Role),
            Effect::Reimage => self.reimage(&mut record),
            Effect::Replace => {
                record.spec = there.spec.clone();
                record.phase = Phase::Removing;
                record.changed = self.now;
            }
        }
        record
    }

    fn reimage(&self, record: &mut InstanceRecord) {
        record.epoch = self.next_epoch;
        record.restart = record.restart.again(RestartScope::Reimage);
        record.changed = self.now;
    }

    fn tell(&self, plan: &mut Plan, reason: Reason, message: String) {
        let message = match self.slot {
            Slot::Production => message,
            Slot::Staging => format!("{}: {message}", self.slot),
        };
        let name = &self.service.name;
        plan.events.push(EventRecord::new(
            self.now,
            reason,
            SubjectKind::Service,
            name,
            message,
        ));
    }
}

/// Instances in a line, the first of them by name.
fn list(ids: &BTreeSet<InstanceId>) -> String {
    const NAMED: usize = 10;
    let named: Vec<_> = ids.iter().take(NAMED).map(InstanceId::as_str).collect();
    match ids.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// The service with that in the slot, one generation later.
#[must_use]
pub fn with(
    service: &ServiceRecord,
    slot: Slot,
    deployment: Deployment,
    now: WallTime,
) -> ServiceRecord {
    let mut service = service.clone();
    service.generation += 1;
    service.updated = now;
    service.slots.insert(slot, deployment);
    service
}
