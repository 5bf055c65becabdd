//! What an update is going to do: to whom, in what order, and why. For people.
//!
//! Nothing is guessed here: the [walk](update_walk) itself is asked again and again, each
//! time as if all that it has changed were Ready by then, and without any bake time.
//! Where it would wait for something, that is said, and taken for seen to. So the order is
//! the walk's own, with what is down already coming first. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fabric_proto::id::{InstanceId, RoleName};

use super::{
    rollout::{self, HealthOf},
    update_walk::{self, Health, Seen},
};
use crate::model::{
    change::spec_differences,
    deployment::Deployment,
    instance::{Effect, InstanceRecord},
    node::Nodes,
    time::WallTime,
    update::{Update, UpdatePolicy, UpdateState},
};

/// One step: what happens to instances of a role in an upgrade domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The upgrade domain.
    pub domain: u32,
    /// The role.
    pub role: RoleName,
    /// The instances.
    pub instances: Vec<InstanceId>,
    /// What happens to each of them.
    pub effect: Effect,
    /// Why: what differs.
    pub why: String,
    /// Why it is their turn then; empty if only for the number of their domain.
    pub when: String,
}

/// The steps by which instances that are there are brought to what a deployment is to
/// run, in order, as they are now. `instances` are those of the deployment.
#[must_use]
pub fn steps(
    deployment: &Deployment,
    instances: &[&InstanceRecord],
    nodes: &Nodes<'_>,
    health: &HealthOf<'_>,
    now: WallTime,
) -> Vec<Step> {
    let Some(update) = rollout::current(deployment, instances, nodes, now) else {
        return Vec::new();
    };
    let seen = rollout::see_all(deployment, &update, instances, nodes, health);
    let records: BTreeMap<_, _> = instances.iter().map(|one| (&one.id, *one)).collect();
    let turns = turns(&update, seen, now).into_iter();
    let steps = turns.flat_map(|turn| turn.steps(deployment, &records, nodes));
    steps.collect()
}

/// What happens to the update that is under way when `new` takes the place of `there`;
/// empty if none is.
#[must_use]
pub fn under_way(there: &Deployment, new: &Deployment) -> String {
    let Some(update) = there.under_way() else {
        return String::new();
    };
    let how = match &update.state {
        UpdateState::Walking | UpdateState::Done => "is under way".to_owned(),
        UpdateState::Paused => "is paused".to_owned(),
        UpdateState::Stopped(why) => format!("has stopped ({why})"),
    };
    let place = update.current.map_or_else(String::new, |current| {
        format!(" in upgrade domain {}", current.domain)
    });
    let then = if new.update == there.update {
        "stays as it is, and the steps are what is left of it"
    } else {
        "ends, and another one takes its place"
    };
    format!("an update {how}{place}: it {then}")
}

/// Who is changed at once.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    take: Vec<Seen>,
    when: String,
}

impl Turn {
    /// Each of its upgrade domains, roles and reasons by itself.
    fn steps(
        self,
        deployment: &Deployment,
        records: &BTreeMap<&InstanceId, &InstanceRecord>,
        nodes: &Nodes<'_>,
    ) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for one in self.take {
            let role = deployment.version.role(&one.role);
            let (Some(record), Some(role)) = (records.get(&one.id), role) else {
                continue;
            };
            let step = Step {
                domain: one.domain,
                role: one.role,
                instances: vec![one.id],
                effect: record.effect_of(&role.spec, nodes),
                why: spec_differences(&record.spec, &role.spec).join("; "),
                when: self.when.clone(),
            };
            let same = |other: &&mut Step| {
                (other.domain, &other.role, other.effect, &other.why)
                    == (step.domain, &step.role, step.effect, &step.why)
            };
            match steps.iter_mut().find(same) {
                Some(other) => other.instances.extend(step.instances),
                None => steps.push(step),
            }
        }
        steps
    }
}

/// Who is changed when.
fn turns(update: &Update, mut all: Vec<Seen>, now: WallTime) -> Vec<Turn> {
    let policy = UpdatePolicy {
        bake: Duration::ZERO,
        ..UpdatePolicy::default()
    };
    let mut update = Update {
        state: UpdateState::Walking,
        ..update.clone()
    };
    all.retain(|one| update.roles.contains(&one.role));
    for one in &mut all {
        // None of them fails the update in this thought.
        one.changed = None;
    }
    let mut turns = Vec::new();
    let mut waited = String::new();
    loop {
        let step = update_walk::step(&policy, &update, &all, now);
        update = step.update;
        if step.take.is_empty() {
            let mut unwell = all.iter_mut().filter(|one| one.health != Health::Ready);
            let Some(first) = unwell.next() else {
                return turns;
            };
            waited = update_walk::describe(first);
            first.health = Health::Ready;
            let more = unwell.map(|one| one.health = Health::Ready).count();
            if more > 0 {
                waited = format!("{waited} and {more} more");
            }
            continue;
        }
        turns.extend(taken(&all, &step.take, &std::mem::take(&mut waited)));
        for one in all.iter_mut().filter(|one| step.take.contains(&one.id)) {
            one.old = false;
            if one.health != Health::Homeless {
                one.health = Health::Ready;
            }
        }
    }
}

/// Those who are taken: who has no node apart from those whose domain it is.
fn taken(all: &[Seen], take: &BTreeSet<InstanceId>, waited: &str) -> Vec<Turn> {
    let take = all.iter().filter(|one| take.contains(&one.id)).cloned();
    let (homeless, here): (Vec<_>, Vec<_>) = take.partition(|one| one.health == Health::Homeless);
    let down = here.iter().find_map(|one| match &one.health {
        Health::Down(how) | Health::Failed(how) => Some((&one.id, how)),
        Health::Ready | Health::Homeless | Health::Unseen(_) => None,
    });
    let when = match down {
        Some((id, how)) => format!("before others, for instance {id} is down already ({how})"),
        None if waited.is_empty() => String::new(),
        None => format!("after a wait for {waited}"),
    };
    let at_once = Turn {
        take: homeless,
        when: "at once, for there is no node that runs it".to_owned(),
    };
    let turns = [at_once, Turn { take: here, when }].into_iter();
    turns.filter(|turn| !turn.take.is_empty()).collect()
}

#[cfg(test)]
#[path = "foreseen_tests.rs"]
mod tests;
