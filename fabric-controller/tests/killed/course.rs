//! What the controller does by itself once it has begun: where it begins, and how it should
//! have come out.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use fabric_controller::{
    model::{
        event::EventRecord,
        instance::{InstanceRecord, Phase},
        node::{GoalRecord, NodeRecord},
        time::WallTime,
    },
    records,
    store::{Store as _, Txn, sqlite::SqliteStore},
};
use tempfile::TempDir;

use crate::{
    framework::*,
    said::kept,
    stage::{CALM, INSTANCES, Stage, files_of, has_its_goal, live, service, start, surely_settled},
};

/// The services that fail on a node, of those that the stage has there.
pub const FAILING: [&str; 3] = ["shop", "snap", "walk"];
/// How often each of them fails: that is again and again.
pub const OFTEN: usize = 3;

/// Something that goes on by itself once it has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// The node that has everything is silent.
    Failover,
    /// A service has another version, and one instance more.
    Update,
    /// The node that has something of everything is drained.
    Drain,
    /// A node comes when all of two roles is on another.
    Rebalance,
    /// Unrelated services keep failing on a node until the controller cordons it.
    Condemn,
}

impl Course {
    pub const fn arguments(self) -> [&'static str; 6] {
        match self {
            Self::Failover => [
                "--lost-after",
                "1s",
                "--lease",
                "1s",
                "--listen",
                "127.0.0.1:0",
            ],
            Self::Update | Self::Drain | Self::Rebalance | Self::Condemn => CALM,
        }
    }

    /// The nodes that live, in the order in which they come; once it has begun.
    pub const fn nodes(self, has_begun: bool) -> &'static [&'static str] {
        match (self, has_begun) {
            (Self::Failover, false) => &["n1", "n2", "n3"],
            (Self::Failover, true) => &["n2", "n3"],
            (Self::Update, _) | (Self::Rebalance, false) => &["n1"],
            (Self::Drain | Self::Condemn, _) => &["n1", "n2"],
            // Were n1 the first, what is on its way would find no other, and stay.
            (Self::Rebalance, true) => &["n2", "n1"],
        }
    }

    /// The services that it takes beside those of the stage, and how many instances of each.
    const fn more(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::Failover | Self::Update => &[],
            Self::Drain => &[("wide", 4)],
            Self::Rebalance => &[("deep", 2), ("wide", 4)],
            Self::Condemn => &[("well", 1)],
        }
    }

    /// The stage with what else it takes.
    pub async fn scene(self, stage: &Stage) -> TempDir {
        let dir = stage.files();
        if self.more().is_empty() {
            return dir;
        }
        let (mut program, client) = start(dir.path()).await;
        let mut nodes = Vec::new();
        for name in self.nodes(false) {
            nodes.push(live(&client, name).await.unwrap());
            has_its_goal(&client, name).await;
        }
        for (name, instances) in self.more() {
            let text = service(name, *instances, "/v1");
            client.apply(&text).await.unwrap();
        }
        let of_them = async || {
            let mut words = client.words().await;
            words.retain(|(id, _)| self.more().iter().any(|(name, _)| id.starts_with(name)));
            words
        };
        until("them to be there", of_them, |words| {
            words.iter().all(|(_, word)| word == "Ready")
        })
        .await;
        surely_settled(dir.path()).await;
        drop(nodes);
        program.ask_to_end();
        assert!(program.ended().await.success(), "{}", program.log());
        if self == Self::Rebalance {
            self.have_been_there_for_long(dir.path()).await;
        }
        files_of(dir.path())
    }

    /// Has its services be what and where they are for long: what is new is not moved for
    /// minutes.
    async fn have_been_there_for_long(self, dir: &Path) {
        let mut txn = Txn::new();
        for one in kept::<InstanceRecord>(dir, records::INSTANCES) {
            if self
                .more()
                .iter()
                .any(|(name, _)| one.service.as_str() == *name)
            {
                let record = InstanceRecord {
                    changed: WallTime::EPOCH,
                    updated: WallTime::EPOCH,
                    ..one
                };
                let value = records::encode(&record).unwrap();
                txn = txn.put(records::instance(&record.id), value);
            }
        }
        let store = SqliteStore::open(&dir.join("d/store.db")).unwrap();
        store.txn(txn).await.unwrap();
    }

    /// Whether there is nothing left of it to be done.
    pub fn is_over(self, dir: &Path) -> bool {
        let instances = kept::<InstanceRecord>(dir, records::INSTANCES);
        let is_on = |one: &InstanceRecord, node: &str| {
            let there = one.node.as_ref().is_some_and(|it| it.as_str() == node);
            there && one.phase == Phase::Wanted
        };
        let on_n2 = || instances.iter().filter(|one| is_on(one, "n2"));
        match self {
            // What an operator has stopped stays where it is.
            Self::Failover => instances
                .iter()
                .all(|one| is_on(one, "n2") || one.keep.stopped),
            Self::Update => {
                let events = kept::<EventRecord>(dir, records::EVENTS);
                events.iter().any(|event| event.reason == "UpdateFinished")
            }
            Self::Drain => on_n2().count() == INSTANCES + 4,
            Self::Rebalance => on_n2().count() == 3,
            Self::Condemn => instances
                .iter()
                .any(|one| one.service.as_str() == "late" && one.node.is_some()),
        }
    }

    /// It has come out as it should, and on the way no more was taken from where it was than
    /// may be.
    pub fn assert_came_out(self, dir: &Path, what: &str) {
        let places = places(dir);
        let of = |service: &str| -> Vec<_> {
            let of = places.iter().filter(|(id, _)| id.starts_with(service));
            of.map(|(_, node)| node.as_str()).collect()
        };
        let of_stage = ["down", "shop", "snap", "still", "walk"];
        let of_stage: Vec<_> = of_stage.iter().flat_map(|service| of(service)).collect();
        let what = &format!("{what}: {places:?}");
        let told = ["n1", "n2"].map(|node| told_to_have(dir, node));
        match self {
            // What is compared with when nobody is killed says it all.
            Self::Failover | Self::Update => {}
            Self::Drain => {
                assert_eq!(of_stage, ["n2"; INSTANCES], "{what}");
                assert_eq!(of("wide"), ["n2"; 4], "{what}");
                assert_eq!(told, [0, INSTANCES + 4], "{what}");
                // Two of it were there, and have left one after the other.
                assert_eq!(moves(dir, "wide"), (2, 1), "{what}");
                assert_eq!(moves(dir, "").0, INSTANCES + 2, "{what}");
            }
            Self::Rebalance => {
                assert_eq!(of_stage, ["n1"; INSTANCES], "{what}");
                assert_eq!(of("wide"), ["n1", "n1", "n2", "n2"], "{what}");
                assert_eq!(of("deep"), ["n1", "n2"], "{what}");
                assert_eq!(told, [INSTANCES + 3, 3], "{what}");
                assert_eq!(moves(dir, "wide"), (2, 1), "{what}");
                assert_eq!(moves(dir, "deep"), (1, 1), "{what}");
                let (all, at_once) = moves(dir, "");
                assert!(all == 3 && at_once <= 2, "{what}");
            }
            Self::Condemn => {
                let n1 = node(dir, "n1").unwrap();
                assert!(n1.condemned && !n1.cordoned, "{what}: {n1:?}");
                let services: Vec<_> = n1.blamed_for.iter().map(ToString::to_string).collect();
                assert_eq!(services, FAILING, "{what}");
                // One of them would be on each of the two nodes otherwise.
                assert_eq!(of("late"), ["n2"; 2], "{what}");
                // What it has is left alone.
                assert_eq!(of_stage, ["n1"; INSTANCES], "{what}");
                assert_eq!(told, [INSTANCES, 3], "{what}");
                assert_eq!(moves(dir, "").0, 0, "{what}");
            }
        }
    }
}

/// A node's record.
pub fn node(dir: &Path, name: &str) -> Option<NodeRecord> {
    let nodes = kept::<NodeRecord>(dir, records::NODES);
    nodes.into_iter().find(|one| one.node_id.as_str() == name)
}

/// Where every instance is; of one that is on its way that it is.
fn places(dir: &Path) -> BTreeMap<String, String> {
    let instances = kept::<InstanceRecord>(dir, records::INSTANCES).into_iter();
    let place = |one: &InstanceRecord| match (&one.node, one.phase) {
        (Some(node), Phase::Wanted) => node.to_string(),
        (_, phase) => format!("{phase:?}"),
    };
    instances
        .map(|one| (one.id.to_string(), place(&one)))
        .collect()
}

/// How many instances a node is told to have.
fn told_to_have(dir: &Path, node: &str) -> usize {
    let key = format!("{}{node}", records::GOALS);
    let goals = kept::<GoalRecord>(dir, &key);
    goals.iter().map(|goal| goal.instances.len()).sum()
}

/// How many moves there have been of instances with that before their ids, and of how many
/// at once.
fn moves(dir: &Path, of: &str) -> (usize, usize) {
    let (mut all, mut at_once, mut away) = (0, 0, BTreeSet::new());
    for event in kept::<EventRecord>(dir, records::EVENTS) {
        if !event.subject.starts_with(of) {
            continue;
        }
        match event.reason.as_str() {
            "InstanceMoving" => {
                assert!(away.insert(event.subject), "it is told to move twice");
                all += 1;
            }
            "InstancePlaced" => drop(away.remove(&event.subject)),
            _ => {}
        }
        at_once = at_once.max(away.len());
    }
    (all, at_once)
}
