//! Steps by example, and by property: what is foreseen is what the walk does.

use proptest::prelude::*;

use super::*;
use crate::model::{
    deployment::{Colour, Version},
    instance::{
        InstanceSpec,
        tests::{record, spec},
    },
    node::NodeRecord,
    service::ServiceRole,
    update::{Cause, Current},
};

const NOW: WallTime = WallTime::from_micros(1_000_000);

fn down() -> Health {
    Health::Down("Unhealthy".to_owned())
}

fn unseen() -> Health {
    Health::Unseen("Unknown".to_owned())
}

fn version(roles: Vec<ServiceRole>) -> Version {
    Version {
        definition_toml: String::new(),
        roles,
        policy: UpdatePolicy::default(),
    }
}

/// The role with that command, in two upgrade domains.
fn role(command: &str, instances: u32) -> ServiceRole {
    let mut spec = spec();
    spec.role.command = vec![command.to_owned()];
    ServiceRole {
        upgrade_domains: 2,
        ..ServiceRole::of(spec, instances)
    }
}

fn instance(number: u32, spec: InstanceSpec) -> InstanceRecord {
    InstanceRecord {
        id: format!("shop-web-{number}").parse().unwrap(),
        number,
        spec,
        ..record("n1")
    }
}

/// A deployment of that many instances, on its way to another command.
fn walking(instances: u32) -> (Deployment, Vec<InstanceRecord>) {
    let old = Deployment::new(Colour::Plain, 1, version(vec![role("/v1", instances)]));
    let new = version(vec![role("/v2", instances)]);
    let new = old.with(2, new, Cause::Operator, NOW);
    let there = (0..instances).map(|number| instance(number, role("/v1", 0).spec));
    (new, there.collect())
}

/// Number of its domain, ids and why it is their turn, of each step, as they are.
fn told(health: &[Health]) -> Vec<(u32, String, String)> {
    let (deployment, instances) = walking(u32::try_from(health.len()).unwrap());
    let instances: Vec<_> = instances.iter().collect();
    let of = |one: &InstanceRecord| health[one.number as usize].clone();
    let steps = steps(&deployment, &instances, &Nodes::default(), &of, NOW).into_iter();
    let told = steps.map(|step| {
        assert_eq!(step.effect, Effect::RestartRole);
        assert_eq!(step.why, "command: [\"/v1\"] → [\"/v2\"]");
        (step.domain, ids(&step.instances), step.when)
    });
    told.collect()
}

fn ids(ids: &[InstanceId]) -> String {
    let numbers = ids.iter().map(|id| id.as_str().rsplit('-').next().unwrap());
    numbers.collect::<Vec<_>>().join(" ")
}

fn step(domain: u32, ids: &str, when: &str) -> (u32, String, String) {
    (domain, ids.to_owned(), when.to_owned())
}

#[test]
fn where_all_is_well_it_goes_by_the_numbers_of_domains() {
    let ready = [const { Health::Ready }; 4];
    assert_eq!(told(&ready), [step(0, "0 2", ""), step(1, "1 3", "")]);
}

#[test]
fn what_is_down_already_comes_first() {
    let health = [Health::Ready, Health::Ready, Health::Ready, down()];
    let when = "before others, for instance shop-web-3 is down already (Unhealthy)";
    assert_eq!(told(&health), [step(1, "1 3", when), step(0, "0 2", "")]);
}

#[test]
fn where_two_domains_are_down_what_is_up_waits_until_both_are_mended() {
    let health = [down(), Health::Ready, Health::Ready, down()];
    let when = |id| format!("before others, for instance {id} is down already (Unhealthy)");
    assert_eq!(
        told(&health),
        [
            step(0, "0", &when("shop-web-0")),
            step(1, "3", &when("shop-web-3")),
            step(0, "2", ""),
            step(1, "1", "")
        ]
    );
}

#[test]
fn who_has_no_node_is_changed_at_once_and_waited_for() {
    let health = [Health::Ready, Health::Homeless, Health::Ready];
    let at_once = "at once, for there is no node that runs it";
    let when = "after a wait for instance shop-web-1 (has no node)";
    assert_eq!(told(&health), [step(1, "1", at_once), step(0, "0 2", when)]);
}

#[test]
fn who_nothing_is_known_of_is_waited_for() {
    let health = [Health::Ready, unseen(), Health::Ready];
    let when = "after a wait for instance shop-web-1 (Unknown)";
    assert_eq!(told(&health), [step(0, "0 2", when), step(1, "1", "")]);
}

#[test]
fn each_is_told_what_differs_for_itself() {
    let (deployment, mut instances) = walking(3);
    // One was left behind by an update before.
    instances[2].spec.image.digest = fabric_proto::id::Digest::of_sha256(&[9; 32]);
    let instances: Vec<_> = instances.iter().collect();
    let steps = steps(
        &deployment,
        &instances,
        &Nodes::default(),
        &|_| Health::Ready,
        NOW,
    );
    let told: Vec<_> = steps
        .iter()
        .map(|step| (ids(&step.instances), step.effect))
        .collect();
    assert_eq!(
        told,
        [
            ("0".to_owned(), Effect::RestartRole),
            ("2".to_owned(), Effect::Reimage),
            ("1".to_owned(), Effect::RestartRole),
        ]
    );
    assert!(steps[1].why.contains("image: "), "{}", steps[1].why);
}

/// Two nodes, one of them with a fast disk.
fn two_nodes() -> [NodeRecord; 2] {
    let mut nodes = ["n1", "n2"].map(|name| NodeRecord::new(name.parse().unwrap(), NOW));
    nodes[0].labels = fast();
    nodes
}

fn fast() -> BTreeMap<String, String> {
    [("disk".to_owned(), "nvme".to_owned())].into()
}

#[test]
fn where_rules_for_nodes_change_only_who_must_leave_has_a_turn() {
    let old = Deployment::new(Colour::Plain, 1, version(vec![role("/v1", 4)]));
    let mut picky = role("/v1", 4);
    picky.spec.nodes.labels = fast();
    let new = old.with(2, version(vec![picky.clone()]), Cause::Operator, NOW);
    let at = |number: u32| InstanceRecord {
        node: Some(format!("n{}", number / 2 + 1).parse().unwrap()),
        ..instance(number, role("/v1", 0).spec)
    };
    let instances = [0, 1, 2, 3].map(at);
    let instances: Vec<_> = instances.iter().collect();
    let nodes = two_nodes();
    let nodes = nodes.iter().collect();
    let told = |new: &Deployment| {
        let steps = steps(new, &instances, &nodes, &|_| Health::Ready, NOW).into_iter();
        let told = steps.map(|step| (ids(&step.instances), step.effect));
        told.collect::<Vec<_>>()
    };
    let of = |ids: &str, effect| (ids.to_owned(), effect);
    assert_eq!(
        told(&new),
        [of("2", Effect::Replace), of("3", Effect::Replace)]
    );
    // What else is new reaches the others where they are.
    picky.spec.role.command = vec!["/v2".to_owned()];
    let newer = old.with(2, version(vec![picky]), Cause::Operator, NOW);
    assert_eq!(
        told(&newer),
        [
            of("0", Effect::RestartRole),
            of("2", Effect::Replace),
            of("1", Effect::RestartRole),
            of("3", Effect::Replace),
        ]
    );
}

#[test]
fn an_update_that_is_under_way_is_told_with_what_becomes_of_it() {
    let (mut walking, _) = walking(4);
    let update = walking.update.as_mut().unwrap();
    update.current = Some(Current {
        domain: 1,
        begun: NOW,
        ready_since: None,
        hurried: false,
    });
    update.state = UpdateState::Stopped("instance shop-web-1 has failed".to_owned());
    let scaled = version(vec![role("/v2", 9)]);
    let scaled = walking.with(3, scaled, Cause::Operator, NOW);
    assert_eq!(
        under_way(&walking, &scaled),
        "an update has stopped (instance shop-web-1 has failed) in upgrade domain 1: it stays \
         as it is, and the steps are what is left of it"
    );
    let other = walking.with(3, version(vec![role("/v3", 4)]), Cause::Operator, NOW);
    let told = under_way(&walking, &other);
    assert!(told.ends_with("it ends, and another one takes its place"));
    assert_eq!(
        under_way(&Deployment::new(Colour::Plain, 1, version(vec![])), &other),
        ""
    );
}

proptest! {
    #[test]
    fn everybody_has_one_turn_and_the_first_is_the_walks_next(
        health in prop::collection::vec(
            prop_oneof![
                3 => Just(Health::Ready),
                1 => Just(down()),
                1 => Just(Health::Failed("gone".to_owned())),
                1 => Just(Health::Homeless),
                1 => Just(unseen()),
            ],
            1..12,
        ),
        domains in 1..5u32,
    ) {
        let (mut deployment, instances) = walking(u32::try_from(health.len()).unwrap());
        deployment.version.roles[0].upgrade_domains = domains;
        let instances: Vec<_> = instances.iter().collect();
        let of = |one: &InstanceRecord| health[one.number as usize].clone();
        let steps = steps(&deployment, &instances, &Nodes::default(), &of, NOW);
        let mut all: Vec<_> = steps.iter().flat_map(|step| step.instances.clone()).collect();
        let update = deployment.update.as_ref().unwrap();
        let next = rollout::look(&deployment, update, &instances, &Nodes::default(), &of, NOW).take;
        let first: BTreeSet<_> = all.iter().take(next.len()).cloned().collect();
        prop_assert_eq!(first, next);
        all.sort();
        let mut everybody: Vec<_> = instances.iter().map(|one| one.id.clone()).collect();
        everybody.sort();
        prop_assert_eq!(all, everybody);
    }
}
