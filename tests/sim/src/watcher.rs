//! What must always hold, and what must hold in the end. It looks at what is really so:
//! what the store has committed, and what runs on the machines.
//!
//! - No instance runs on two nodes at once. A machine that wakes from its sleep has as
//!   long to find out as a node has for killing what it runs.
//! - No instance is started on two nodes under one epoch, nor under an epoch that is lower
//!   than one under which it was started before.
//! - What was acknowledged to an operator is in the store.
//! - No node has been promised more than it has.
//! - What is placed is spread over fault domains, as far as there is room; where the spread
//!   is strict, no fault domain has more than its share.
//! - What is placed is on a node that has the labels that it asks for, and the processors
//!   that its image is for.
//! - Of each role, only one upgrade domain at a time is down by our own doing.
//! - In the end: every instance that a service wants runs, and is ready as what it is to be,
//!   with its settings, on a node that is as it asks, unless an operator has stopped it; and
//!   nothing else runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fabric_controller::{
    model::{
        event::EventRecord,
        instance::{Effect, InstanceRecord, Phase},
        node::NodeRecord,
        service::ServiceRecord,
    },
    placement::{Policy, Resources, Spreading},
    reconcile::placing,
    records,
    store::Op,
};
use fabric_proto::id::{InstanceId, NodeId};
use host_agent::hypervisor::simulated::Seen;
use serde::de::DeserializeOwned;

use crate::operator::{self, Noted};

/// What is promised and does not hold.
pub type Violation = String;

/// What runs on a node, as it is.
#[derive(Debug, Clone)]
pub struct Site {
    /// The node.
    pub node: NodeId,
    /// Its guests.
    pub guests: Vec<Seen>,
    /// Whether they run: the machine has power and does not sleep.
    pub runs: bool,
    /// When it woke up last.
    pub woke: Option<Duration>,
    /// How many guests were started on it.
    started: u64,
}

impl Site {
    /// A node on which nothing runs.
    #[must_use]
    pub const fn new(node: NodeId) -> Self {
        Self {
            node,
            guests: Vec::new(),
            runs: true,
            woke: None,
            started: 0,
        }
    }
}

/// Within so long the controller knows that an instance has become ready, or that its node is
/// not heard: the node may be cut off just then, and is lost 10 s later.
const TOLD: Duration = Duration::from_secs(15);
/// Within so long what is decided knows of a node that has just come back.
const DECIDED: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Watcher {
    now: Duration,
    policy: Policy,
    /// How long a node may take to kill what it runs.
    kill: Duration,
    services: BTreeMap<String, ServiceRecord>,
    instances: BTreeMap<InstanceId, InstanceRecord>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    /// When the record of a node was last changed.
    judged: BTreeMap<NodeId, Duration>,
    /// Since when guests are ready, by their node and their number there.
    ready: BTreeMap<(NodeId, u64), Duration>,
    requests: BTreeSet<String>,
    /// Where an instance was started under an epoch.
    epochs: BTreeMap<(String, u64), NodeId>,
    /// The highest epoch under which it was started.
    highest: BTreeMap<String, u64>,
    /// Instances that are down by our own doing.
    ours: BTreeSet<InstanceId>,
    /// Acknowledged calls that have been looked at.
    acknowledged: BTreeSet<String>,
}

impl Watcher {
    /// Nothing has been seen. A node may take so long to kill what it runs.
    #[must_use]
    pub fn new(kill: Duration) -> Self {
        Self {
            kill,
            ..Self::default()
        }
    }

    /// A transaction was committed. `connected` are the nodes that could be given
    /// something all the time; what is told of it is returned.
    ///
    /// # Errors
    ///
    /// What does not hold any longer.
    pub fn committed(
        &mut self,
        now: Duration,
        ops: &[Op],
        sites: &[Site],
        connected: &BTreeSet<NodeId>,
    ) -> Result<Vec<EventRecord>, Violation> {
        let is_put =
            |op: &Op, prefix: &str| matches!(op, Op::Put { key, .. } if key.starts_with(prefix));
        self.now = now;
        let by_operator = ops.iter().any(|op| is_put(op, records::REQUESTS));
        let mut events = Vec::new();
        let mut placed = Vec::new();
        let mut taken = Vec::new();
        for op in ops {
            match op {
                Op::Put { key, value } => {
                    if let Some(id) = key.strip_prefix(records::REQUESTS) {
                        self.requests.insert(id.to_owned());
                    } else if let Some(name) = key.strip_prefix(records::SERVICES) {
                        self.services.insert(name.to_owned(), decode(key, value)?);
                    } else if key.starts_with(records::NODES) {
                        let record: NodeRecord = decode(key, value)?;
                        self.judged.insert(record.node_id.clone(), now);
                        self.nodes.insert(record.node_id.clone(), record);
                    } else if key.starts_with(records::INSTANCES) {
                        let new: InstanceRecord = decode(key, value)?;
                        let old = self.instances.get(&new.id);
                        if old.is_none_or(|old| old.node.is_none()) && new.node.is_some() {
                            placed.push(new.id.clone());
                        }
                        let is_ready = old.is_some_and(|old| self.is_known_ready(old, sites));
                        if old.is_some_and(|old| self.is_taken_down(old, &new)) && !by_operator {
                            taken.push((new.id.clone(), is_ready));
                        }
                        if old.is_some_and(|old| is_failed_over(old, &new)) {
                            self.ours.remove(&new.id);
                        }
                        self.instances.insert(new.id.clone(), new);
                    }
                }
                Op::Delete { key } => {
                    if let Some(name) = key.strip_prefix(records::SERVICES) {
                        self.services.remove(name);
                    } else if let Some(id) = key.strip_prefix(records::INSTANCES) {
                        self.instances.retain(|one, _| one.as_str() != id);
                    } else if let Some(id) = key.strip_prefix(records::NODES) {
                        self.nodes.retain(|one, _| one.as_str() != id);
                    }
                }
                Op::Append { log, value } if log == records::EVENTS => {
                    events.push(decode(log, value)?);
                }
                Op::Append { .. } | Op::DeleteUpTo { .. } => {}
            }
        }
        self.check_taken(&taken)?;
        if !placed.is_empty() {
            self.check_rules(&placed)?;
            self.check_capacity()?;
            self.check_spread(&placed, connected)?;
        }
        Ok(events)
    }

    /// Whether a change that no operator has asked for takes an instance down. One that an
    /// operator has stopped or paused is down already, if only by its record yet.
    fn is_taken_down(&self, old: &InstanceRecord, new: &InstanceRecord) -> bool {
        if old.phase != Phase::Wanted || old.node.is_none() || old.node != new.node {
            return false;
        }
        if old.keep.is_held() {
            return false;
        }
        let moves = new.phase == Phase::Moving;
        let goes = new.phase == Phase::Removing && self.is_wanted(old);
        moves || goes || new.restart.generation != old.restart.generation
    }

    /// Whether the controller must know that it is ready.
    fn is_known_ready(&self, record: &InstanceRecord, sites: &[Site]) -> bool {
        let since = record.node.as_ref().and_then(|node| {
            let number = guest(record, sites)?.number;
            self.ready.get(&(node.clone(), number))
        });
        is_ready(record, sites) && since.is_some_and(|since| self.now >= *since + TOLD)
    }

    fn is_wanted(&self, record: &InstanceRecord) -> bool {
        let service = self.services.get(record.service.as_str());
        let role = service.and_then(|service| service.role_of(record));
        role.is_some_and(|role| record.number < role.instances)
    }

    /// Its upgrade domain, and what it has that in common with.
    fn domain(&self, record: &InstanceRecord) -> Option<(String, u32)> {
        let role = self
            .services
            .get(record.service.as_str())?
            .role_of(record)?;
        let of = format!("{}/{:?}/{}", record.service, record.colour, record.role);
        Some((of, role.upgrade_domain(record.number)))
    }

    fn check_taken(&mut self, taken: &[(InstanceId, bool)]) -> Result<(), Violation> {
        for (id, was_ready) in taken {
            let Some((role, domain)) = self.instances.get(id).and_then(|one| self.domain(one))
            else {
                continue;
            };
            let others = self.ours.iter().filter(|other| *other != id);
            let others = others.filter_map(|other| Some((other, self.instances.get(other)?)));
            let elsewhere = others
                // What goes because an operator wants fewer is not down.
                .filter(|(_, record)| self.is_wanted(record))
                .filter_map(|(other, record)| Some((other, self.domain(record)?)))
                .find(|(_, (of, other))| *of == role && *other != domain);
            if let Some((other, (_, theirs))) = elsewhere.filter(|_| *was_ready) {
                let how = self.instances.get(id).map(|one| one.phase);
                return Err(format!(
                    "two upgrade domains of {role} are down by our own doing: {id} of domain \
                     {domain} is taken down ({how:?}) while {other} of domain {theirs} is not ready \
                     again"
                ));
            }
            self.ours.insert(id.clone());
        }
        Ok(())
    }

    /// What was placed just now is on nodes that are as it asks.
    fn check_rules(&self, placed: &[InstanceId]) -> Result<(), Violation> {
        for record in placed.iter().filter_map(|id| self.instances.get(id)) {
            if let Some(node) = self.stands_on_wrong(record) {
                let rules = &record.spec.nodes;
                return Err(format!(
                    "{} asks for {rules} and is placed on {node}",
                    record.id
                ));
            }
        }
        Ok(())
    }

    /// Its node, if that is not as it asks.
    fn stands_on_wrong(&self, record: &InstanceRecord) -> Option<&NodeId> {
        let node = self.nodes.get(record.node.as_ref()?)?;
        (!record.spec.can_be_on(node)).then_some(&node.node_id)
    }

    fn check_capacity(&self) -> Result<(), Violation> {
        let services: Vec<_> = self.services.values().cloned().collect();
        let mut promised: BTreeMap<NodeId, Resources> = BTreeMap::new();
        for one in placing::instances(self.instances.values(), &services) {
            if let Some(node) = one.node {
                let sum = promised.entry(node).or_default();
                *sum = sum.plus(&one.needs.resources);
            }
        }
        for (node, sum) in promised {
            let Some(record) = self.nodes.get(&node) else {
                continue;
            };
            let has = placing::node(record, true, Arc::default()).capacity(self.policy);
            if !sum.fits_in(&has) {
                return Err(format!("node {node} has {has} and is promised for {sum}"));
            }
        }
        Ok(())
    }

    /// What was placed just now could not have been spread better.
    fn check_spread(
        &self,
        placed: &[InstanceId],
        connected: &BTreeSet<NodeId>,
    ) -> Result<(), Violation> {
        let services: Vec<_> = self.services.values().cloned().collect();
        let all = placing::instances(self.instances.values(), &services);
        let mut free: BTreeMap<&NodeId, Resources> = BTreeMap::new();
        for (id, record) in &self.nodes {
            let judged = self.judged.get(id).copied().unwrap_or_default();
            let usable = connected.contains(id)
                && !record.lost
                && record.is_open()
                && self.now >= judged + DECIDED;
            if usable {
                free.insert(
                    id,
                    placing::node(record, true, Arc::default()).capacity(self.policy),
                );
            }
        }
        for one in &all {
            if let Some(free) = one.node.as_ref().and_then(|node| free.get_mut(node)) {
                *free = free.minus(&one.needs.resources);
            }
        }
        let domain = |node: &NodeId| self.nodes.get(node).map(NodeRecord::fault_domain);
        for one in all.iter().filter(|one| placed.contains(&one.id)) {
            let Some(here) = one.node.as_ref().and_then(domain) else {
                continue;
            };
            let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
            let group = all
                .iter()
                .filter(|other| other.group == one.group && !other.leaving);
            for domain in group.filter_map(|other| domain(other.node.as_ref()?)) {
                *counts.entry(domain).or_default() += 1;
            }
            let count = |domain: &str| counts.get(domain).copied().unwrap_or(0);
            if one.spreading == Spreading::Strict && one.fault_domains > 1 {
                let group = all.iter().filter(|other| other.group == one.group);
                let size = group.filter(|other| !other.leaving).count();
                let share = u32::try_from(size).unwrap_or(u32::MAX);
                let share = share.div_ceil(one.fault_domains);
                if count(here) > share {
                    return Err(format!(
                        "{} is placed in fault domain {here}, which has {} of {}, and is to have \
                         {share} at the most",
                        one.id,
                        count(here),
                        one.group
                    ));
                }
            }
            let spec = self.instances.get(&one.id).map(|record| &record.spec);
            let meets = |node: &NodeId| {
                let node = self.nodes.get(node);
                node.zip(spec)
                    .is_some_and(|(node, spec)| spec.can_be_on(node))
            };
            for (node, free) in &free {
                let Some(there) = domain(node) else { continue };
                let better = count(there) + 1 < count(here);
                if better && one.needs.resources.fits_in(free) && meets(node) {
                    return Err(format!(
                        "{} is placed in fault domain {here}, which has {} of {}, while {there} \
                         has {} and node {node} room",
                        one.id,
                        count(here),
                        one.group,
                        count(there)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Something has started or ended, or machines have.
    ///
    /// # Errors
    ///
    /// What does not hold any longer.
    pub fn runs(&mut self, now: Duration, sites: &mut [Site]) -> Result<(), Violation> {
        for site in sites.iter_mut() {
            let before = site.started;
            for guest in site.guests.iter().filter(|guest| guest.number > before) {
                site.started = site.started.max(guest.number);
                self.started(&site.node, guest)?;
            }
        }
        let mut running: BTreeMap<&str, &NodeId> = BTreeMap::new();
        let finds_out = |site: &&Site| site.woke.is_none_or(|woke| now > woke + self.kill);
        for site in sites.iter().filter(|site| site.runs).filter(finds_out) {
            for guest in &site.guests {
                if let Some(other) = running.insert(&guest.instance, &site.node) {
                    return Err(format!(
                        "{} runs twice: on node {other} and on node {}",
                        guest.instance, site.node
                    ));
                }
            }
        }
        let seen = sites.iter().flat_map(|site| {
            let ready = site.guests.iter().filter(|guest| guest.ready.is_some());
            ready.map(|guest| (site.node.clone(), guest.number))
        });
        let since = |guest| (self.ready.get(&guest).copied().unwrap_or(now), guest);
        let since: Vec<_> = seen.map(since).collect();
        self.ready = since.into_iter().map(|(at, guest)| (guest, at)).collect();
        let ready = |id: &InstanceId| {
            let record = self.instances.get(id);
            record.is_some_and(|record| is_ready(record, sites))
        };
        let ready: BTreeSet<_> = self.ours.iter().filter(|id| ready(id)).cloned().collect();
        self.ours.retain(|id| !ready.contains(id));
        Ok(())
    }

    fn started(&mut self, node: &NodeId, guest: &Seen) -> Result<(), Violation> {
        let (instance, epoch) = (guest.instance.clone(), guest.epoch);
        let under = (instance.clone(), epoch);
        let first = self.epochs.entry(under).or_insert_with(|| node.clone());
        if first != node {
            return Err(format!(
                "{instance} is started under epoch {epoch} on node {node}, and was on node {first}"
            ));
        }
        let highest = self.highest.entry(instance.clone()).or_default();
        if epoch < *highest {
            return Err(format!(
                "{instance} is started under epoch {epoch} on node {node}, after epoch {highest}"
            ));
        }
        *highest = epoch;
        Ok(())
    }

    /// The operator has noted something.
    ///
    /// # Errors
    ///
    /// What was acknowledged and is not in the store.
    pub fn acknowledged(&mut self, noted: &Noted) -> Result<(), Violation> {
        for (id, effect) in &noted.acknowledged {
            if !self.acknowledged.insert(id.clone()) {
                continue;
            }
            if !self.requests.contains(id) {
                return Err(format!("{id} was acknowledged and is not in the store"));
            }
            if let operator::Effect::Applied {
                service,
                generation,
            } = effect
            {
                let kept = self.services.get(service).map_or(0, |one| one.generation);
                if kept < *generation {
                    return Err(format!(
                        "{service} was acknowledged at generation {generation}, and is at {kept}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What is yet to come right; none once everything is as it should be.
    #[must_use]
    pub fn unsettled(&self, sites: &[Site]) -> Option<String> {
        let mut wanted = BTreeSet::new();
        for service in self.services.values() {
            for (slot, deployment) in &service.slots {
                if let Some(update) = deployment.under_way() {
                    let state = &update.state;
                    return Some(format!(
                        "the update of {} ({slot}): {state:?}",
                        service.name
                    ));
                }
            }
            for (id, _, role, _) in service.instances().unwrap_or_default() {
                let Some(record) = self.instances.get(&id) else {
                    return Some(format!("{id} is not there"));
                };
                let as_wanted = record.spec.effect_of(&role.spec) == Effect::Nothing;
                if record.phase != Phase::Wanted || !as_wanted {
                    return Some(format!(
                        "{id} is {:?} and not as it should be",
                        record.phase
                    ));
                }
                if record.keep.stopped {
                    if let Some(site) = running(record, sites).next() {
                        return Some(format!("{id} is stopped and runs on {}", site.node));
                    }
                    if record.node.is_none() {
                        return Some(format!("{id} is stopped and has no node"));
                    }
                    wanted.insert(id);
                    continue;
                }
                if let Some(node) = self.stands_on_wrong(record) {
                    let rules = &record.spec.nodes;
                    return Some(format!("{id} asks for {rules} and is on {node}"));
                }
                if !is_ready(record, sites) || !has_settings(record, sites) {
                    let node = record.node.as_ref().map_or("no node", NodeId::as_str);
                    return Some(format!(
                        "{id} is not ready on {node} {}",
                        record.unplaceable
                    ));
                }
                wanted.insert(id);
            }
        }
        if let Some(id) = self.instances.keys().find(|id| !wanted.contains(*id)) {
            return Some(format!("{id} is still there"));
        }
        for site in sites.iter().filter(|site| site.runs) {
            let known = |guest: &&Seen| {
                let record = self
                    .instances
                    .iter()
                    .find(|(id, _)| id.as_str() == guest.instance);
                record.is_some_and(|(_, record)| record.node.as_ref() == Some(&site.node))
            };
            if let Some(guest) = site.guests.iter().find(|guest| !known(guest)) {
                return Some(format!("{} still runs on {}", guest.instance, site.node));
            }
            let heard = self.nodes.get(&site.node);
            if heard.is_none_or(|node| node.lost || node.fenced) {
                return Some(format!("node {} is not heard", site.node));
            }
        }
        None
    }
}

fn decode<T: DeserializeOwned>(key: &str, value: &bytes::Bytes) -> Result<T, Violation> {
    serde_json::from_slice(value).map_err(|error| format!("{key} in the store is damaged: {error}"))
}

/// It is taken off a node that is not heard.
fn is_failed_over(old: &InstanceRecord, new: &InstanceRecord) -> bool {
    old.phase == Phase::Wanted && old.node.is_some() && new.node.is_none()
}

/// Where it runs.
fn running<'a>(
    record: &InstanceRecord,
    sites: &'a [Site],
) -> impl Iterator<Item = &'a Site> + use<'a> {
    let id = record.id.to_string();
    sites.iter().filter(move |site| {
        let mut guests = site.guests.iter();
        site.runs && guests.any(|guest| guest.instance == id)
    })
}

/// Its guest, if that runs where it is to be.
fn guest<'a>(record: &InstanceRecord, sites: &'a [Site]) -> Option<&'a Seen> {
    let node = record.node.as_ref()?;
    let site = sites.iter().find(|site| site.node == *node && site.runs)?;
    let mut guests = site.guests.iter();
    guests.find(|guest| guest.instance == record.id.as_str() && guest.epoch == record.epoch)
}

/// Whether it really is what it is to be.
fn is_ready(record: &InstanceRecord, sites: &[Site]) -> bool {
    let role = guest(record, sites).and_then(|guest| guest.ready.as_ref());
    role.is_some_and(|role| {
        role.command == record.spec.role.command
            && role.restart_generation >= record.restart.role_generation
    })
}

/// Whether its role has the settings that it is to have.
fn has_settings(record: &InstanceRecord, sites: &[Site]) -> bool {
    let role = guest(record, sites).and_then(|guest| guest.ready.as_ref());
    let settings = role.map(|role| role.settings.iter().collect::<BTreeMap<_, _>>());
    settings.is_some_and(|settings| settings == record.spec.role.settings.iter().collect())
}
