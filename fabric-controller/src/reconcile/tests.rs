//! The plan by example, and by property: a small cluster that does what it is
//! told, step by step.

use std::collections::{BTreeMap, BTreeSet};

use fabric_proto::id::NodeId;
use proptest::prelude::*;

use super::{
    plan::{Input, NodeFacts, Plan, plan},
    rollout,
    update_walk::Health,
};
use crate::{
    model::{
        definition::NodeRules,
        deployment::Slot,
        instance::{InstanceRecord, Phase, RestartScope, tests::spec},
        node::{Inventory, Kvm, NodeRecord},
        service::{ServiceRecord, ServiceRole, tests::service as made},
        size::{MIB, Size},
        time::WallTime,
    },
    placement::Policy,
};

const NOW: WallTime = WallTime::from_micros(1);
const POLICY: Policy = Policy {
    vcpus_per_cpu: 1,
    ..Policy::DEFAULT
};

pub(super) fn node_record(name: &str) -> NodeRecord {
    NodeRecord {
        inventory: Inventory {
            cpus: 4,
            memory_bytes: 1024 * MIB,
            ..Inventory::default()
        },
        ..NodeRecord::new(name.parse().unwrap(), NOW)
    }
}

fn service(name: &str, instances: u32) -> ServiceRecord {
    made(name, vec![ServiceRole::of(spec(), instances)])
}

/// The only role of a service.
fn role(service: &mut ServiceRecord) -> &mut ServiceRole {
    let production = service.slots.get_mut(&Slot::Production).unwrap();
    &mut production.version.roles[0]
}

/// A cluster as the store and the nodes would have it.
struct Cluster {
    input: Input,
}

impl Cluster {
    fn new(nodes: &[&str]) -> Self {
        let nodes: Vec<_> = nodes.iter().map(|name| node_record(name)).collect();
        let facts = nodes.iter().map(|node| {
            (
                node.node_id.clone(),
                NodeFacts {
                    connected: true,
                    ..NodeFacts::default()
                },
            )
        });
        Self {
            input: Input {
                facts: facts.collect(),
                nodes,
                next_epoch: 1,
                ..Input::default()
            },
        }
    }

    /// Plans and writes once, as the reconciler does.
    fn turn(&mut self) -> Plan {
        let plan = plan(POLICY, &self.input, NOW);
        self.write(&plan);
        plan
    }

    fn write(&mut self, plan: &Plan) {
        self.input
            .instances
            .retain(|one| !plan.put.contains_key(&one.id) && !plan.delete.contains(&one.id));
        self.input.instances.extend(plan.put.values().cloned());
        for service in &mut self.input.services {
            if let Some(changed) = plan.services.get(&service.name) {
                *service = changed.clone();
            }
        }
        self.input.next_epoch += 1;
    }

    /// Until there is nothing left to do.
    fn settle(&mut self) {
        for _ in 0..30 {
            if !self.turn().is_empty() {
                continue;
            }
            self.give_goals();
            // Nothing is up in this cluster, so that nothing is lost by a change.
            let health = |one: &InstanceRecord| match one.node {
                Some(_) => Health::Down("Starting".to_owned()),
                None => Health::Homeless,
            };
            let (plan, _) = rollout::walk(&self.input, &health, NOW);
            if plan.is_empty() {
                return;
            }
            self.write(&plan);
        }
        panic!("the plan never ends");
    }

    fn give_goals(&mut self) {
        for (node, facts) in &mut self.input.facts {
            let wanted: BTreeSet<_> = self
                .input
                .instances
                .iter()
                .filter(|one| one.node.as_ref() == Some(node) && one.phase == Phase::Wanted)
                .map(|one| one.id.clone())
                .collect();
            if wanted != facts.goal_instances {
                facts.goal_incarnation += 1;
                facts.goal_instances = wanted;
            }
        }
    }

    /// The nodes take up their goals and report so.
    fn report(&mut self) {
        for facts in self
            .input
            .facts
            .values_mut()
            .filter(|facts| facts.connected)
        {
            facts.reported = Some((facts.goal_incarnation, facts.goal_instances.clone()));
        }
    }

    fn facts(&mut self, node: &str) -> &mut NodeFacts {
        self.input
            .facts
            .get_mut(&node.parse::<NodeId>().unwrap())
            .unwrap()
    }

    fn only(&self) -> &InstanceRecord {
        assert_eq!(self.input.instances.len(), 1);
        &self.input.instances[0]
    }
}

#[test]
fn instances_come_to_be_are_placed_and_go_when_their_node_says_so() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.input.services = vec![service("shop", 1)];
    cluster.settle();
    cluster.report();
    assert_eq!(cluster.only().node.as_ref().unwrap().as_str(), "n1");
    cluster.input.services.clear();
    cluster.settle();
    assert_eq!(cluster.only().phase, Phase::Removing);
    cluster.report();
    cluster.settle();
    assert!(cluster.input.instances.is_empty());
}

#[test]
fn a_report_under_an_older_goal_is_not_believed() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.input.services = vec![service("shop", 1)];
    // The node reports nothing yet, under the goal before.
    cluster.report();
    cluster.settle();
    cluster.input.services.clear();
    cluster.settle();
    assert_eq!(cluster.input.instances.len(), 1, "it may be about to start");
    cluster.report();
    cluster.settle();
    assert!(cluster.input.instances.is_empty());
}

#[test]
fn an_instance_that_never_had_a_node_goes_at_once() {
    let mut cluster = Cluster::new(&[]);
    cluster.input.services = vec![service("shop", 1)];
    cluster.settle();
    assert_eq!(
        cluster.only().unplaceable,
        "there is no node; start a host agent"
    );
    cluster.input.services.clear();
    cluster.settle();
    assert!(cluster.input.instances.is_empty());
}

#[test]
fn being_unplaceable_is_told_once() {
    let mut cluster = Cluster::new(&[]);
    cluster.input.services = vec![service("shop", 1)];
    assert_eq!(cluster.turn().events.len(), 1);
    cluster.input.nodes.push(node_record("n1"));
    cluster
        .input
        .facts
        .insert("n1".parse().unwrap(), NodeFacts::default());
    let plan = cluster.turn();
    assert_eq!(
        (plan.events.len(), plan.put.len()),
        (0, 1),
        "the reason changes, silently"
    );
}

#[test]
fn another_image_is_a_new_epoch_on_the_same_node() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.input.services = vec![service("shop", 1)];
    cluster.settle();
    let before = cluster.only().clone();
    role(&mut cluster.input.services[0]).spec.package = None;
    cluster.settle();
    let after = cluster.only();
    assert!(after.epoch > before.epoch);
    assert_eq!(after.node, before.node);
    assert_eq!(after.restart.scope, Some(RestartScope::Reimage));
}

#[test]
fn another_command_restarts_the_role_alone() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.input.services = vec![service("shop", 1)];
    cluster.settle();
    let before = cluster.only().clone();
    role(&mut cluster.input.services[0])
        .spec
        .role
        .command
        .push("x".to_owned());
    cluster.settle();
    let after = cluster.only();
    assert_eq!(after.epoch, before.epoch);
    assert_eq!(after.restart, before.restart.again(RestartScope::Role));
    assert_eq!(after.spec.role.command.len(), 2);
}

#[test]
fn another_size_is_placed_anew_once_the_old_one_is_gone() {
    let mut cluster = Cluster::new(&["n1"]);
    cluster.input.services = vec![service("shop", 1)];
    cluster.settle();
    cluster.report();
    let before = cluster.only().clone();
    let big = Size {
        vcpus: 4,
        memory_bytes: 1024 * MIB,
        cpu_weight: 0,
    };
    role(&mut cluster.input.services[0]).spec.size = big;
    cluster.settle();
    assert_eq!(cluster.only().phase, Phase::Removing);
    cluster.report();
    cluster.settle();
    let after = cluster.only();
    assert_eq!((after.phase, after.spec.size), (Phase::Wanted, big));
    assert!(after.epoch > before.epoch);
}

/// A cluster of a node with a fast disk and one without, and so many instances in it.
fn fast_and_slow(instances: u32) -> Cluster {
    let mut cluster = Cluster::new(&["n1", "n2"]);
    cluster.input.nodes[0].labels = fast();
    let mut shop = service("shop", instances);
    role(&mut shop).upgrade_domains = 1;
    cluster.input.services = vec![shop];
    cluster.settle();
    cluster.report();
    cluster
}

fn fast() -> BTreeMap<String, String> {
    [("disk".to_owned(), "nvme".to_owned())].into()
}

fn at(one: &InstanceRecord) -> &str {
    one.node.as_ref().map_or("", NodeId::as_str)
}

#[test]
fn other_rules_for_nodes_move_only_who_is_on_one_that_does_not_meet_them() {
    let mut cluster = fast_and_slow(2);
    let before = cluster.input.instances.clone();
    let nodes: Vec<_> = before.iter().map(at).collect();
    assert_eq!(nodes, ["n1", "n2"]);
    role(&mut cluster.input.services[0]).spec.nodes.labels = fast();
    cluster.settle();
    let phases: Vec<_> = cluster
        .input
        .instances
        .iter()
        .map(|one| (one.number, one.phase))
        .collect();
    assert!(phases.contains(&(0, Phase::Wanted)) && phases.contains(&(1, Phase::Removing)));
    cluster.report();
    cluster.settle();
    for one in &cluster.input.instances {
        assert_eq!((at(one), &one.spec.nodes.labels), ("n1", &fast()));
        let same = &before[one.number as usize];
        assert_eq!(one.epoch == same.epoch, one.number == 0);
        assert_eq!(one.restart, same.restart);
    }
    // Without them again nobody notices.
    let before = cluster.input.instances.clone();
    role(&mut cluster.input.services[0])
        .spec
        .nodes
        .labels
        .clear();
    cluster.settle();
    for (one, was) in cluster.input.instances.iter().zip(&before) {
        let bare = InstanceRecord {
            spec: one.spec.clone(),
            ..was.clone()
        };
        assert!(one.spec.nodes.is_empty());
        assert_eq!(*one, bare);
    }
}

#[test]
fn what_may_still_run_on_a_node_that_is_not_there_is_not_forgotten() {
    let mut cluster = Cluster::new(&["n1", "n2"]);
    cluster.input.services = vec![service("shop", 1)];
    cluster.settle();
    cluster.report();
    let node = cluster.only().node.clone().unwrap();
    cluster.facts(node.as_str()).connected = false;
    cluster.input.services.clear();
    cluster.settle();
    cluster.report();
    cluster.settle();
    assert_eq!(cluster.only().phase, Phase::Removing);
    // Wanted again, it stays where it may still be, under a new epoch.
    let before = cluster.only().epoch;
    cluster.input.services = vec![service("shop", 1)];
    cluster.settle();
    assert_eq!(cluster.only().node.as_ref(), Some(&node));
    assert!(cluster.only().epoch > before);
}

/// What an operator or the world does.
#[derive(Debug, Clone)]
enum Step {
    Apply(usize, u32, u32),
    Delete(usize),
    Connect(usize, bool),
    Report,
}

const SERVICES: [&str; 3] = ["a", "b", "c"];
const NODES: [&str; 2] = ["n1", "n2"];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..SERVICES.len(), 0u32..5, 1u32..4)
            .prop_map(|(name, count, vcpus)| Step::Apply(name, count, vcpus)),
        (0..SERVICES.len()).prop_map(Step::Delete),
        (0..NODES.len(), any::<bool>())
            .prop_map(|(node, connected)| Step::Connect(node, connected)),
        Just(Step::Report),
    ]
}

fn apply(cluster: &mut Cluster, step: &Step) {
    match step {
        Step::Apply(index, count, vcpus) => {
            let mut wanted = service(SERVICES[*index], *count);
            role(&mut wanted).spec.size.vcpus = *vcpus;
            cluster.input.services.retain(|one| one.name != wanted.name);
            cluster.input.services.push(wanted);
        }
        Step::Delete(index) => {
            cluster
                .input
                .services
                .retain(|one| one.name.as_str() != SERVICES[*index]);
        }
        Step::Connect(index, connected) => cluster.facts(NODES[*index]).connected = *connected,
        Step::Report => cluster.report(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_happens_no_node_is_promised_twice_and_epochs_only_grow(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let mut cluster = Cluster::new(&NODES);
        let mut epochs = BTreeMap::new();
        for step in &steps {
            apply(&mut cluster, step);
            cluster.settle();
            for node in NODES {
                let on = |one: &&InstanceRecord| one.node.as_ref().is_some_and(|id| id.as_str() == node);
                let sizes = || cluster.input.instances.iter().filter(on).map(|one| one.spec.size);
                prop_assert!(sizes().map(|size| size.vcpus).sum::<u32>() <= 4);
                prop_assert!(sizes().map(|size| size.memory_bytes).sum::<u64>() <= 1024 * MIB);
            }
            for one in &cluster.input.instances {
                let last = epochs.insert(one.id.clone(), one.epoch).unwrap_or(0);
                prop_assert!(one.epoch >= last, "the epoch of {} went back", one.id);
            }
        }
    }

    #[test]
    fn whatever_else_is_asked_of_nodes_who_is_on_one_that_is_so_stays_as_it_is(
        count in 1u32..8,
        asked in prop::collection::vec((any::<bool>(), any::<bool>()), 1..6),
    ) {
        let mut cluster = fast_and_slow(count);
        cluster.input.nodes[1].inventory.kvm_kind = "hardware".to_owned();
        for (labelled, hardware) in asked {
            let before: BTreeMap<_, _> =
                cluster.input.instances.iter().map(|one| (one.id.clone(), one.clone())).collect();
            let rules = NodeRules {
                labels: if labelled { fast() } else { BTreeMap::new() },
                kvm: hardware.then_some(Kvm::Hardware),
            };
            role(&mut cluster.input.services[0]).spec.nodes = rules.clone();
            for _ in 0..3 {
                cluster.settle();
                cluster.report();
            }
            let nodes = cluster.input.nodes.clone();
            let meets = |one: &InstanceRecord| {
                let node = nodes.iter().find(|node| Some(&node.node_id) == one.node.as_ref());
                node.map(|node| node.meets(&rules))
            };
            for one in &cluster.input.instances {
                prop_assert_eq!(&one.spec.nodes, &rules);
                prop_assert!(meets(one) != Some(false), "{} is on {}", one.id, at(one));
                let was = &before[&one.id];
                if meets(was) == Some(true) {
                    let as_it_was = InstanceRecord { spec: one.spec.clone(), ..was.clone() };
                    prop_assert_eq!(one, &as_it_was);
                }
            }
            prop_assert_eq!(cluster.input.instances.len(), count as usize);
        }
    }

    /// What a node is asked for by placement, and by whoever looks whether one may stay.
    #[test]
    fn a_node_meets_rules_just_when_placement_has_no_objection_to_it(
        own in any::<bool>(),
        operators in prop::option::of(any::<bool>()),
        kvm in prop::option::of(any::<bool>()),
        asked in any::<bool>(),
        asked_kvm in prop::option::of(any::<bool>()),
    ) {
        let disk = |fast: bool| if fast { "nvme" } else { "hdd" }.to_owned();
        let of = |hardware: bool| if hardware { Kvm::Hardware } else { Kvm::Interpreted };
        let mut node = node_record("n1");
        node.labels = [("disk".to_owned(), disk(own))].into();
        node.operator_labels.extend(operators.map(|one| ("disk".to_owned(), disk(one))));
        node.inventory.kvm_kind = kvm.map(of).map_or_else(String::new, |kvm| kvm.to_string());
        let mut shop = service("shop", 1);
        let rules = NodeRules {
            labels: if asked { fast() } else { BTreeMap::new() },
            kvm: asked_kvm.map(of),
        };
        role(&mut shop).spec.nodes = rules.clone();
        let mut cluster = Cluster::new(&["n1"]);
        let meets = node.meets(&rules);
        cluster.input.nodes = vec![node];
        cluster.input.services = vec![shop];
        cluster.settle();
        prop_assert_eq!(cluster.only().node.is_some(), meets);
    }

    #[test]
    fn when_all_nodes_answer_exactly_what_is_wanted_is_left(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let mut cluster = Cluster::new(&NODES);
        for step in &steps {
            apply(&mut cluster, step);
            cluster.settle();
        }
        for node in NODES {
            cluster.facts(node).connected = true;
        }
        for _ in 0..3 {
            cluster.report();
            cluster.settle();
        }
        let wanted: BTreeSet<_> = cluster
            .input
            .services
            .iter()
            .flat_map(|one| one.instances().unwrap())
            .map(|(id, ..)| id)
            .collect();
        let there: BTreeSet<_> = cluster.input.instances.iter().map(|one| one.id.clone()).collect();
        prop_assert_eq!(there, wanted);
        prop_assert!(cluster.input.instances.iter().all(|one| one.phase == Phase::Wanted));
    }
}
