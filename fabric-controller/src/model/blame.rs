//! Which nodes are to blame for what fails on them, and which are not.
//!
//! A node is known by that several *unrelated* services keep failing on it while they, or
//! their images, do well elsewhere. What fails wherever it runs is itself to blame: one
//! service, or one image, however many fail of it, never speaks against a node.
//!
//! - A service *keeps failing* on a node when it has failed there several times lately;
//!   how often is in points, which halve with time ([`Failures`]).
//! - A service or an image that fails on several nodes, and on half of those that have
//!   it, is the suspect; its failures count for no node.
//! - Services of one image count as one, unless the image does well on another node.
//! - A single one that is left may be its own fault; from [`SEVERAL`] on it is the node's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fabric_proto::id::{Digest, InstanceId, NodeId, ServiceName};
use serde::{Deserialize, Serialize};

use super::{
    decay::Points,
    event::{Because, EventRecord, SubjectKind},
    instance::InstanceRecord,
    time::WallTime,
};

/// In which time failures count half.
const HALF_LIFE: Duration = Duration::from_secs(30 * 60);
/// Points of a virtual machine that has failed.
const FAILED: u32 = 100;
/// Points of one that was given up, after it had failed again and again.
const GIVEN_UP: u32 = 200;
/// With so many it keeps failing: three times lately.
const KEEPS_FAILING: u32 = 250;
/// With so many it has failed lately.
const FAILS: u32 = FAILED / 2;
/// No more than that of one service: forgotten two hours after it has ended.
const MOST: u32 = 3000;
/// Most services that are remembered of one node.
const REMEMBERED: usize = 64;

/// So many unrelated services speak against a node; fewer against themselves.
pub const SEVERAL: u32 = 2;
/// With so many the controller cordons it.
pub const CORDON: u32 = 3;

/// What has failed on a node lately.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    of: Vec<Failing>,
}

/// A service that fails on it, with one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failing {
    service: ServiceName,
    image: Digest,
    points: Points,
    /// The last failure.
    instance: InstanceId,
    reason: String,
}

/// How bad an event of a node is for it, if it tells that a virtual machine has failed:
/// each failure ends in one of these.
fn points_of(event: &EventRecord) -> Option<u32> {
    let reasons = [
        ("VmRestarting", FAILED),
        ("Reimaged", FAILED),
        ("GaveUp", GIVEN_UP),
    ];
    let known = reasons.iter().find(|(reason, _)| *reason == event.reason);
    known
        .filter(|_| event.warning && event.subject_kind == SubjectKind::Instance)
        .map(|(_, points)| *points)
}

/// Whether an event tells that a virtual machine has failed.
#[must_use]
pub fn is_failure(event: &EventRecord) -> bool {
    points_of(event).is_some()
}

impl Failures {
    /// The instance has failed, as the event says.
    pub fn note(&mut self, one: &InstanceRecord, event: &EventRecord, now: WallTime) {
        let Some(points) = points_of(event) else {
            return;
        };
        let image = &one.spec.image.digest;
        self.of.retain(|it| it.points.left(HALF_LIFE, now) > 0);
        let known = |it: &Failing| it.service == one.service && it.image == *image;
        let before = match self.of.iter().position(known) {
            Some(at) => self.of.swap_remove(at).points,
            None => Points::default(),
        };
        if self.of.len() >= REMEMBERED {
            self.of.sort_by_key(|it| it.points.left(HALF_LIFE, now));
            self.of.remove(0);
        }
        self.of.push(Failing {
            service: one.service.clone(),
            image: image.clone(),
            points: before.plus(points, MOST, HALF_LIFE, now),
            instance: one.id.clone(),
            reason: event.reason.clone(),
        });
    }

    /// Those that have failed at least so much.
    fn with(&self, least: u32, now: WallTime) -> impl Iterator<Item = &Failing> {
        let left = move |it: &&Failing| it.points.left(HALF_LIFE, now) >= least;
        self.of.iter().filter(left)
    }
}

/// What speaks against a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blame {
    /// How many unrelated services; at least [`SEVERAL`].
    pub count: u32,
    /// The services.
    pub services: BTreeSet<ServiceName>,
    /// The last failure of one of them.
    pub because: Because,
}

/// Where a service or an image is, and on which of these nodes it has failed lately.
#[derive(Debug, Default)]
struct Spread<'a> {
    there: BTreeSet<&'a NodeId>,
    failing: BTreeSet<&'a NodeId>,
}

impl Spread<'_> {
    fn is_suspect(&self) -> bool {
        let failing = self.failing.len();
        failing > 1 && failing * 2 >= self.there.len()
    }

    fn does_well_beside(&self, node: &NodeId) -> bool {
        let others = self.there.difference(&self.failing);
        others.into_iter().any(|other| *other != node)
    }
}

/// The nodes that are to blame. `placed` is what is on which node.
#[must_use]
pub fn blame(
    failures: &BTreeMap<NodeId, Failures>,
    placed: &[InstanceRecord],
    now: WallTime,
) -> BTreeMap<NodeId, Blame> {
    let keeps_failing = |on: &Failures| on.with(KEEPS_FAILING, now).next().is_some();
    if !failures.values().any(keeps_failing) {
        return BTreeMap::new();
    }
    let mut services: BTreeMap<&ServiceName, Spread<'_>> = BTreeMap::new();
    let mut images: BTreeMap<&Digest, Spread<'_>> = BTreeMap::new();
    for one in placed {
        if let Some(node) = &one.node {
            services.entry(&one.service).or_default().there.insert(node);
            let image = images.entry(&one.spec.image.digest).or_default();
            image.there.insert(node);
        }
    }
    for (node, failures) in failures {
        for one in failures.with(FAILS, now) {
            let service = services.entry(&one.service).or_default();
            let image = images.entry(&one.image).or_default();
            for spread in [service, image] {
                spread.there.insert(node);
                spread.failing.insert(node);
            }
        }
    }
    let is_suspect = |one: &Failing| {
        let service = services.get(&one.service);
        let image = images.get(&one.image);
        [service, image]
            .into_iter()
            .flatten()
            .any(Spread::is_suspect)
    };
    let mut blamed = BTreeMap::new();
    for (node, failures) in failures {
        let against: Vec<_> = failures
            .with(KEEPS_FAILING, now)
            .filter(|one| !is_suspect(one))
            .collect();
        let is_proven = |one: &Failing| {
            let image = images.get(&one.image);
            image.is_some_and(|image| image.does_well_beside(node))
        };
        if let Some(blame) = count(&against, &is_proven, now) {
            blamed.insert(node.clone(), blame);
        }
    }
    blamed
}

/// What is left against one node, if it is enough. Services whose image is not proven
/// elsewhere may all fail for that image.
fn count(
    against: &[&Failing],
    is_proven: &dyn Fn(&Failing) -> bool,
    now: WallTime,
) -> Option<Blame> {
    let proven = against.iter().filter(|one| is_proven(one));
    let proven: BTreeSet<_> = proven.map(|one| &one.service).collect();
    let rest = || against.iter().filter(|one| !proven.contains(&one.service));
    let services: BTreeSet<_> = rest().map(|one| &one.service).collect();
    let images: BTreeSet<_> = rest().map(|one| &one.image).collect();
    let unrelated = proven.len() + services.len().min(images.len());
    let count = u32::try_from(unrelated).unwrap_or(u32::MAX);
    let worst = against
        .iter()
        .max_by_key(|one| (one.points.left(HALF_LIFE, now), &one.instance))?;
    (count >= SEVERAL).then(|| Blame {
        count,
        services: against.iter().map(|one| one.service.clone()).collect(),
        because: Because {
            reason: worst.reason.clone(),
            subject_kind: SubjectKind::Instance,
            subject: worst.instance.to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::instance::tests::record;

    fn at(minutes: u64) -> WallTime {
        WallTime::EPOCH.after(Duration::from_secs(minutes * 60))
    }

    fn id(node: &str) -> NodeId {
        node.parse().unwrap()
    }

    /// An instance of a service, with an image by number, on a node.
    fn instance(service: &str, image: u8, node: &str) -> InstanceRecord {
        let mut one = record(node);
        one.service = service.parse().unwrap();
        one.id = format!("{service}-web-0").parse().unwrap();
        one.spec.image.digest = Digest::of_sha256(&[image; 32]);
        one
    }

    fn failure(one: &InstanceRecord, reason: &str) -> EventRecord {
        EventRecord {
            time: WallTime::EPOCH,
            reason: reason.to_owned(),
            message: String::new(),
            warning: true,
            subject_kind: SubjectKind::Instance,
            subject: one.id.to_string(),
            source: "n1".to_owned(),
            because: None,
        }
    }

    /// All of these fail again and again where they are.
    fn fail(of: &[InstanceRecord]) -> BTreeMap<NodeId, Failures> {
        let mut failures: BTreeMap<NodeId, Failures> = BTreeMap::new();
        for one in of {
            let on = failures.entry(one.node.clone().unwrap()).or_default();
            for _ in 0..4 {
                on.note(one, &failure(one, "VmRestarting"), at(0));
            }
        }
        failures
    }

    /// How many speak against each node.
    fn counts(failing: &[InstanceRecord], well: &[InstanceRecord]) -> Vec<(String, u32)> {
        let placed = [failing, well].concat();
        let all = blame(&fail(failing), &placed, at(1)).into_iter();
        all.map(|(node, blame)| (node.to_string(), blame.count))
            .collect()
    }

    #[test]
    fn a_node_on_which_unrelated_services_fail_is_to_blame() {
        let failing = ["a", "b", "c"].map(|service| instance(service, 1, "n1"));
        let well = [instance("d", 1, "n2")];
        assert_eq!(counts(&failing, &well), [("n1".to_owned(), 3)]);
        let several = [instance("a", 1, "n1"), instance("b", 2, "n1")];
        assert_eq!(counts(&several, &[]), [("n1".to_owned(), 2)]);
    }

    #[test]
    fn one_service_or_one_image_speaks_against_itself() {
        let one = ["n1", "n2", "n3"].map(|node| instance("a", 1, node));
        assert!(counts(&one, &[]).is_empty());
        assert!(counts(&[instance("a", 1, "n1")], &[]).is_empty());
        // A bad image that is nowhere else yet, and one that is everywhere.
        let here = ["a", "b", "c"].map(|service| instance(service, 9, "n1"));
        assert!(counts(&here, &[instance("d", 1, "n2")]).is_empty());
        let everywhere = [("a", "n1"), ("b", "n1"), ("c", "n1"), ("d", "n2")];
        let everywhere = everywhere.map(|(service, node)| instance(service, 9, node));
        assert!(counts(&everywhere, &[]).is_empty());
    }

    #[test]
    fn what_fails_everywhere_does_not_hide_what_fails_here() {
        let bad = ["n1", "n2", "n3"].map(|node| instance("bad", 9, node));
        let here = ["a", "b", "c"].map(|service| instance(service, 1, "n1"));
        let well = ["n2", "n3"].map(|node| instance("d", 1, node));
        let failing = [&bad[..], &here[..]].concat();
        assert_eq!(counts(&failing, &well), [("n1".to_owned(), 3)]);
    }

    #[test]
    fn failures_are_forgotten_and_a_single_one_is_none() {
        let here = ["a", "b", "c"].map(|service| instance(service, 1, "n1"));
        let placed = [&here[..], &[instance("d", 1, "n2")]].concat();
        let failures = fail(&here);
        let blamed = |minutes| blame(&failures, &placed, at(minutes)).len();
        assert_eq!([1, 20, 60].map(blamed), [1, 1, 0]);
        let mut once: BTreeMap<NodeId, Failures> = BTreeMap::new();
        let n1 = once.entry(id("n1")).or_default();
        for one in &here {
            n1.note(one, &failure(one, "VmRestarting"), at(0));
        }
        assert!(blame(&once, &placed, at(0)).is_empty());
    }

    #[test]
    fn only_failures_of_virtual_machines_count_and_so_many_of_a_node() {
        let one = instance("a", 1, "n1");
        let counts = |reason: &str| is_failure(&failure(&one, reason));
        assert!(counts("VmRestarting") && counts("GaveUp") && !counts("RoleUnhealthy"));
        let asked = EventRecord {
            warning: false,
            ..failure(&one, "VmRestarting")
        };
        assert!(!is_failure(&asked));
        let mut failures = Failures::default();
        for number in 0..100 {
            let one = instance(&format!("s{number}"), 1, "n1");
            failures.note(&one, &failure(&one, "GaveUp"), at(0));
        }
        assert_eq!(failures.of.len(), REMEMBERED);
    }

    const NODES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];

    /// Services "a" to "h", each with one of three images, on some of six nodes.
    fn clusters() -> impl Strategy<Value = Vec<InstanceRecord>> {
        let service = ((1_u8..4), proptest::collection::vec(0_usize..6, 1..6));
        proptest::collection::vec(service, 1..8).prop_map(|services| {
            let named = ('a'..).zip(services);
            let instances = named.flat_map(|(name, (image, nodes))| {
                let of = move |node: usize| instance(&name.to_string(), image, NODES[node]);
                nodes.into_iter().map(of)
            });
            instances.collect()
        })
    }

    proptest! {
        /// In whatever order the nodes come to notice it.
        #[test]
        fn one_service_that_fails_blames_nobody(
            all in clusters(), failing in proptest::collection::vec(any::<bool>(), 50),
        ) {
            let of_a = all.iter().filter(|one| one.service.as_str() == "a").zip(failing);
            let fails: Vec<_> = of_a.filter(|(_, fails)| *fails).map(|(one, _)| one.clone()).collect();
            prop_assert!(blame(&fail(&fails), &all, at(1)).is_empty());
        }

        #[test]
        fn an_image_that_fails_wherever_it_is_blames_nobody(all in clusters()) {
            let bad = Digest::of_sha256(&[1; 32]);
            let fails: Vec<_> =
                all.iter().filter(|one| one.spec.image.digest == bad).cloned().collect();
            prop_assert!(blame(&fail(&fails), &all, at(1)).is_empty());
        }

        #[test]
        fn a_node_on_which_everything_fails_is_found_if_all_of_it_is_elsewhere_too(
            services in 3_usize..8,
        ) {
            let names: Vec<_> = ('a'..).take(services).map(|name| name.to_string()).collect();
            let on = |node: &str| names.iter().map(|name| instance(name, 1, node)).collect::<Vec<_>>();
            let found = counts(&on("n1"), &[on("n2"), on("n3")].concat());
            prop_assert_eq!(found, [("n1".to_owned(), services as u32)]);
        }
    }
}
