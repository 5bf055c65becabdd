//! Each thing that can be wrong, alone.

use fabric_proto::{
    node::v1::Inventory,
    v1::{ExplainPlacementResponse, Update},
};
use fabric_trust::identity::Role;

use super::*;
use crate::doctor::Severity;

const PATIENCE: Duration = Duration::from_secs(120);

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

fn node(name: &str) -> Node {
    Node {
        node_id: name.to_owned(),
        connected: true,
        last_seen: Some(at(999_999)),
        inventory: Some(Inventory {
            kvm_kind: "hardware".to_owned(),
            disk_bytes: 100 << 30,
            ..Inventory::default()
        }),
        disk_free_bytes: 50 << 30,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        instances: 2,
        ..Node::default()
    }
}

fn instance(id: &str, state: &str, since: i64) -> Instance {
    Instance {
        instance_id: id.to_owned(),
        node_id: "n1".to_owned(),
        state: state.to_owned(),
        since: Some(at(since)),
        ..Instance::default()
    }
}

/// A fabric in which all is well, at 1,000,000 s.
fn well() -> Facts {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    Facts {
        identity: Some(Identity {
            role: Role::Operator,
            name: "bob".to_owned(),
            serial: "1".to_owned(),
            not_before: now,
            not_after: now + Duration::from_secs(90 * 24 * 3600),
        }),
        now: Some(now),
        controller: Some(GetControllerResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            disk_bytes: 100 << 30,
            disk_free_bytes: 50 << 30,
            ..GetControllerResponse::default()
        }),
        nodes: vec![node("n1"), node("n2")],
        instances: vec![
            instance("shop-web-0", "Ready", 0),
            instance("shop-web-1", "Booting", 999_950),
        ],
        ..Facts::default()
    }
}

/// What is found when that is so, and nothing else is wrong.
fn found(change: impl FnOnce(&mut Facts)) -> Vec<(String, String)> {
    let mut facts = well();
    change(&mut facts);
    let found = findings(&facts, PATIENCE);
    for finding in &found {
        assert!(!finding.remedy.is_empty(), "{finding:?} has no remedy");
    }
    found
        .into_iter()
        .map(|finding| (finding.subject, finding.what))
        .collect()
}

/// The one thing that is found.
fn one(change: impl FnOnce(&mut Facts)) -> (String, String) {
    let found = found(change);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().unwrap()
}

#[test]
fn nothing_is_found_where_all_is_well() {
    assert_eq!(found(|_| {}), []);
}

#[test]
fn the_way_to_the_controller_and_the_controller_itself() {
    let (subject, what) = one(|facts| {
        let identity = facts.identity.as_mut().unwrap();
        identity.not_after = identity.not_before + Duration::from_secs(24 * 3600);
    });
    assert_eq!(subject, "context");
    assert!(what.contains("ends at 1970-01-13"), "{what}");
    let controller = |change: fn(&mut GetControllerResponse)| {
        one(|facts| change(facts.controller.as_mut().unwrap())).1
    };
    let newer = |facts: &mut Facts| {
        facts.controller.as_mut().unwrap().version = "9.9.9".to_owned();
        facts.nodes.truncate(1);
        facts.nodes[0].agent_version = "9.9.9".to_owned();
    };
    let (_, what) = one(newer);
    assert!(what.contains("9.9.9"), "{what}");
    let what = controller(|one| one.disk_free_bytes = 1 << 30);
    assert!(what.contains("1.0 GiB of 100.0 GiB"), "{what}");
    let (_, what) = one(|facts| facts.ahead_millis = -5_000);
    assert_eq!(what, "its clock is 5.0 s behind this machine's");
    // As far as the way there and back lets one tell.
    let slow = |facts: &mut Facts| {
        facts.ahead_millis = 5_000;
        facts.round_trip = Duration::from_secs(8);
    };
    assert_eq!(found(slow), []);
    let (_, what) = one(|facts| {
        facts.missing.push(Missing {
            what: "the nodes".to_owned(),
            why: "not for you".to_owned(),
        });
    });
    assert!(what.contains("the nodes: not for you"), "{what}");
    assert_eq!(one(|facts| facts.nodes.clear()).0, "nodes");
}

#[test]
fn nodes() {
    let node = |change: fn(&mut Node)| {
        let (subject, what) = one(|facts| change(&mut facts.nodes[0]));
        assert_eq!(subject, "node n1");
        what
    };
    let lost = |one: &mut Node| {
        one.connected = false;
        one.last_seen = Some(at(999_700));
    };
    let what = node(lost);
    assert!(
        what.starts_with("is not heard for 5m; 2 instances"),
        "{what}"
    );
    let what = node(|one| {
        one.connected = false;
        one.fenced = true;
        one.instances = 0;
    });
    assert!(what.contains("started elsewhere"), "{what}");
    assert!(node(|one| one.cordoned = true).contains("cordoned"));
    let what = node(|one| {
        one.cordoned = true;
        one.draining = true;
    });
    assert_eq!(what, "is being drained, and still has 2 instances");
    assert!(node(|one| one.unsteady_until = Some(at(1_000_600))).contains("come and gone"));
    assert!(node(|one| one.blame = 3).contains("3 unrelated services"));
    assert!(node(|one| one.disk_free_bytes = 1 << 20).contains("1.0 MiB of"));
    assert!(node(|one| one.agent_version = "0.0.1".to_owned()).contains("0.0.1"));
    let no_kvm = |one: &mut Node| one.inventory.as_mut().unwrap().kvm_kind.clear();
    assert!(node(no_kvm).contains("no KVM"));
}

#[test]
fn instances() {
    let state = |state: &str| one(|facts| facts.instances[0].state = state.to_owned()).1;
    for word in [
        "Failed",
        "Unhealthy",
        "Starting",
        "Booting",
        "Paused",
        "Recovering",
    ] {
        assert!(
            state(word).starts_with(&format!("is {word} for 11d")),
            "{word}"
        );
    }
    // What has stopped by itself is as it should be; what was stopped may be forgotten.
    let stopped = |power: InstancePower| {
        found(|facts| {
            facts.instances[0].state = "Stopped".to_owned();
            facts.instances[0].power = power.into();
        })
    };
    assert_eq!(stopped(InstancePower::Running), []);
    assert_eq!(stopped(InstancePower::Stopped).len(), 1);
    // For whatever should go on by itself there is some patience; Failed has had its.
    let recent = |word: &str| {
        found(|facts| {
            facts.instances[0] = instance("shop-web-0", word, 999_990);
        })
    };
    assert_eq!(recent("Unhealthy"), []);
    assert_eq!(recent("Failed").len(), 1);
    let (subject, what) = one(|facts| {
        facts.instances[0].state = "Pending".to_owned();
        facts.instances[0].node_id.clear();
        let explained = ExplainPlacementResponse {
            unplaceable: "3 nodes: too little memory".to_owned(),
            remedies: vec!["a node with 2 GiB".to_owned()],
            ..ExplainPlacementResponse::default()
        };
        facts.explained.insert("shop-web-0".to_owned(), explained);
    });
    assert_eq!(subject, "instance shop-web-0");
    assert_eq!(what, "no node can take it: 3 nodes: too little memory");
}

#[test]
fn an_instance_on_a_node_that_is_not_heard_is_not_told_beside_it() {
    let (subject, _) = one(|facts| {
        facts.nodes[0].connected = false;
        facts.instances[0].state = "Unknown".to_owned();
    });
    assert_eq!(subject, "node n1");
}

#[test]
fn updates() {
    let update = |update: Update| {
        found(|facts| {
            facts.updates.push(UnderWay {
                service: "shop".to_owned(),
                slot: Slot::Production,
                update,
            });
        })
    };
    let of = |state: UpdateState| Update {
        state: state.into(),
        started: Some(at(0)),
        ..Update::default()
    };
    let stopped = Update {
        stopped_because: "shop-web-0 has failed".to_owned(),
        ..of(UpdateState::Stopped)
    };
    assert_eq!(update(stopped)[0].1, "has stopped: shop-web-0 has failed");
    assert_eq!(update(of(UpdateState::Paused)).len(), 1);
    assert_eq!(update(of(UpdateState::Walking)), [], "it waits for nothing");
    let waiting = |started| Update {
        started: Some(at(started)),
        waits_for: "shop-web-1 is Booting".to_owned(),
        ..of(UpdateState::Walking)
    };
    assert!(
        update(waiting(999_000))[0]
            .1
            .starts_with("has waited for 16m 40s")
    );
    assert_eq!(update(waiting(999_900)), []);
}

#[test]
fn problems_come_first() {
    let mut facts = well();
    facts.nodes[0].cordoned = true;
    facts.instances[0].state = "Failed".to_owned();
    let severities: Vec<_> = findings(&facts, PATIENCE)
        .iter()
        .map(|finding| finding.severity)
        .collect();
    assert_eq!(severities, [Severity::Problem, Severity::Notice]);
}
