//! The walk by example, and by property: a role whose instances start, fail and
//! come back while it is updated.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::model::{deployment::Version, update::Cause, update::OnFailure};

const POLICY: UpdatePolicy = UpdatePolicy {
    bake: Duration::from_secs(10),
    timeout: Duration::from_secs(60),
    on_failure: OnFailure::Stop,
};

fn second(number: u64) -> WallTime {
    WallTime::from_micros(1_000_000 * (1000 + number))
}

fn role(name: &str) -> RoleName {
    name.parse().unwrap()
}

/// A role that is updated, and what is done to it.
struct World {
    update: Update,
    all: Vec<Seen>,
    now: u64,
}

impl World {
    /// So many instances, all up, to be changed, in so many upgrade domains.
    fn new(instances: u32, domains: u32) -> Self {
        Self::of(&["web"], instances, domains)
    }

    fn of(roles: &[&str], instances: u32, domains: u32) -> Self {
        let each = roles.iter().flat_map(|name| {
            (0..instances).map(move |number| Seen {
                id: format!("shop-{name}-{number}").parse().unwrap(),
                role: role(name),
                domain: number % domains,
                old: true,
                changed: None,
                health: Health::Ready,
            })
        });
        let all = each.collect();
        let roles = roles.iter().map(|name| role(name)).collect();
        let update = Update::new(Cause::Operator, 2, roles, None::<Version>, second(0));
        let now = 0;
        Self { update, all, now }
    }

    /// One step; who was changed by it goes down.
    fn step(&mut self) -> Step {
        let step = step(&POLICY, &self.update, &self.all, second(self.now));
        self.update = step.update.clone();
        for one in self
            .all
            .iter_mut()
            .filter(|one| step.take.contains(&one.id))
        {
            one.old = false;
            one.changed = Some(second(self.now));
            if one.health != Health::Homeless {
                one.health = Health::Down("Starting".to_owned());
            }
        }
        step
    }

    fn taken(&mut self) -> Vec<String> {
        let take = self.step().take;
        take.into_iter().map(String::from).collect()
    }

    fn set(&mut self, number: usize, health: Health) {
        self.all[number].health = health;
    }

    fn all_ready(&mut self) {
        for one in &mut self.all {
            one.health = Health::Ready;
        }
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now += seconds;
        self
    }
}

fn down() -> Health {
    Health::Down("Unhealthy".to_owned())
}

const NOBODY: [&str; 0] = [];

#[test]
fn it_goes_by_domain_and_waits_until_each_has_been_ready_for_the_bake_time() {
    let mut world = World::new(4, 2);
    assert_eq!(world.taken(), ["shop-web-0", "shop-web-2"]);
    world.set(0, Health::Ready);
    assert_eq!(world.after(5).taken(), NOBODY, "one is not up yet");
    world.set(2, Health::Ready);
    let step = world.after(5).step();
    assert_eq!(step.again, Some(second(20)));
    assert_eq!(
        step.waits_for,
        "upgrade domain 0 to have been Ready for 10s"
    );
    assert_eq!(world.after(9).taken(), NOBODY);
    assert_eq!(world.after(1).taken(), ["shop-web-1", "shop-web-3"]);
    world.all_ready();
    assert_eq!(world.after(1).step().fate, Fate::On);
    let step = world.after(10).step();
    assert_eq!((step.fate, step.update.current), (Fate::Done, None));
}

#[test]
fn a_clock_that_was_ahead_and_is_right_again_holds_nothing_up() {
    let mut world = World::new(2, 2);
    world.now = 1_000;
    assert_eq!(world.taken(), ["shop-web-0"]);
    world.all_ready();
    assert_eq!(world.taken(), NOBODY, "it is baked");
    world.now = 10;
    assert_eq!(world.taken(), NOBODY, "it is baked from now on");
    assert_eq!(world.after(10).taken(), ["shop-web-1"]);
}

#[test]
fn the_bake_time_begins_anew_when_one_goes_down() {
    let mut world = World::new(2, 2);
    world.step();
    world.all_ready();
    world.after(1).step();
    world.set(0, down());
    world.after(5).step();
    world.all_ready();
    world.after(1).step();
    assert_eq!(world.after(5).taken(), NOBODY);
    assert_eq!(world.after(5).taken(), ["shop-web-1"]);
}

#[test]
fn an_accident_elsewhere_makes_it_wait() {
    let mut world = World::new(5, 5);
    world.step();
    world.all_ready();
    world.set(
        3,
        Health::Unseen("Unknown: node n1 is not heard".to_owned()),
    );
    world.after(1).step();
    let step = world.after(10).step();
    assert_eq!(step.take.len(), 0);
    assert!(step.waits_for.contains("shop-web-3"), "{}", step.waits_for);
    world.all_ready();
    assert_eq!(world.after(100).taken(), ["shop-web-1"]);
}

#[test]
fn who_is_down_goes_first_and_a_bad_version_everywhere_can_be_mended() {
    let mut world = World::new(3, 3);
    world.set(2, down());
    assert_eq!(world.taken(), ["shop-web-2"]);
    let mut world = World::new(3, 3);
    for number in 0..3 {
        world.set(number, down());
    }
    assert_eq!(world.taken(), ["shop-web-0"]);
    world.set(0, Health::Ready);
    world.after(1).step();
    assert_eq!(world.after(10).taken(), ["shop-web-1"]);
}

#[test]
fn what_is_up_in_a_domain_stays_up_while_another_domain_is_down() {
    let mut world = World::new(4, 2);
    world.set(0, down());
    world.set(1, down());
    assert_eq!(
        world.taken(),
        ["shop-web-0"],
        "2 is up, and 1 is down elsewhere"
    );
    assert_eq!(world.after(1).taken(), NOBODY, "0 is not up yet");
    world.set(0, Health::Ready);
    assert_eq!(
        world.after(1).taken(),
        ["shop-web-1"],
        "who else should mend it?"
    );
    assert_eq!(world.after(1).taken(), NOBODY);
    world.set(1, Health::Ready);
    assert_eq!(world.after(1).taken(), ["shop-web-2"]);
}

#[test]
fn roles_go_in_step_and_are_held_up_by_their_own_accidents_alone() {
    let mut world = World::of(&["web", "worker"], 2, 2);
    let bystander = Seen {
        id: "shop-other-0".parse().unwrap(),
        role: role("other"),
        health: down(),
        ..world.all[0].clone()
    };
    world.all.push(bystander);
    assert_eq!(world.taken(), ["shop-web-0", "shop-worker-0"]);
    let mut world = World::of(&["web", "worker"], 2, 2);
    world.set(3, Health::Unseen("Paused".to_owned()));
    assert_eq!(world.taken(), ["shop-web-0"]);
    world.all_ready();
    assert_eq!(world.taken(), ["shop-worker-0"]);
}

#[test]
fn it_fails_when_a_changed_instance_fails_or_is_not_ready_in_time() {
    let mut world = World::new(2, 2);
    world.step();
    assert_eq!(world.after(59).step().fate, Fate::On);
    let why = "instance shop-web-0 is not Ready 1m after it was changed: Starting";
    assert_eq!(world.after(1).step().fate, Fate::Failed(why.to_owned()));
    let mut world = World::new(2, 2);
    world.step();
    world.set(0, Health::Failed("Failed: its disk is full".to_owned()));
    let why = "instance shop-web-0 has failed: Failed: its disk is full";
    assert_eq!(world.after(1).step().fate, Fate::Failed(why.to_owned()));
}

#[test]
fn a_machine_that_is_lost_is_not_the_versions_fault() {
    let mut world = World::new(2, 2);
    world.step();
    world.set(
        0,
        Health::Unseen("Unknown: node n1 is not heard".to_owned()),
    );
    assert_eq!(world.after(1000).step().fate, Fate::On);
    // Placed anew, it has its time again.
    world.all[0].changed = Some(second(1000));
    world.set(0, down());
    assert_eq!(world.after(10).step().fate, Fate::On);
    assert!(matches!(world.after(60).step().fate, Fate::Failed(_)));
}

#[test]
fn one_that_goes_down_for_good_after_its_domain_was_through_is_a_failure_too() {
    let mut world = World::new(3, 3);
    world.step();
    world.all_ready();
    world.step();
    world.after(10).step();
    world.all_ready();
    world.set(0, down());
    assert_eq!(world.after(1).step().fate, Fate::On);
    assert_eq!(world.after(59).step().fate, Fate::On);
    assert!(matches!(world.after(1).step().fate, Fate::Failed(_)));
}

#[test]
fn an_operator_can_hurry_it_but_not_past_one_that_is_down() {
    let mut world = World::new(2, 2);
    world.step();
    let hurry = |world: &mut World| world.update.current.as_mut().unwrap().hurried = true;
    hurry(&mut world);
    assert_eq!(world.after(1).taken(), NOBODY);
    world.all_ready();
    assert_eq!(world.after(1).taken(), ["shop-web-1"]);
}

#[test]
fn resumed_after_a_failure_everybody_has_their_time_anew() {
    let mut world = World::new(2, 2);
    world.step();
    assert!(matches!(world.after(60).step().fate, Fate::Failed(_)));
    world.update.state = UpdateState::Stopped("why".to_owned());
    assert_eq!(world.after(60).step().fate, Fate::On);
    world.update = world.update.resumed(second(world.now));
    assert_eq!(world.after(59).step().fate, Fate::On);
}

#[test]
fn one_without_a_node_is_changed_at_once_and_waited_for() {
    let mut world = World::new(3, 3);
    world.set(2, Health::Homeless);
    assert_eq!(world.taken(), ["shop-web-2"]);
    assert_eq!(world.after(1000).taken(), NOBODY);
    world.all_ready();
    assert_eq!(world.after(1).taken(), ["shop-web-0"]);
}

#[test]
fn instances_without_a_node_are_waited_for_and_are_no_failure() {
    let mut world = World::new(2, 2);
    world.set(0, Health::Homeless);
    world.set(1, Health::Homeless);
    assert_eq!(world.taken(), ["shop-web-0", "shop-web-1"]);
    let step = world.after(1000).step();
    assert_eq!(step.fate, Fate::On);
    assert!(
        step.waits_for
            .starts_with("a place for instance shop-web-0")
    );
    world.all_ready();
    assert_eq!(world.after(1).step().fate, Fate::Done);
}

/// What the world does between two steps.
#[derive(Debug, Clone)]
enum Happens {
    Passes(u64),
    Comes(usize),
    Goes(usize),
    Vanishes(usize),
    Pause(bool),
    Hurry,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (1u64..15).prop_map(Happens::Passes),
        6 => (0usize..12).prop_map(Happens::Comes),
        1 => (0usize..12).prop_map(Happens::Goes),
        1 => (0usize..12).prop_map(Happens::Vanishes),
        1 => any::<bool>().prop_map(Happens::Pause),
        1 => Just(Happens::Hurry),
    ]
}

fn happen(world: &mut World, what: &Happens) {
    let at = |index: &usize| index % world.all.len();
    match what {
        Happens::Passes(seconds) => world.now += seconds,
        Happens::Comes(index) => world.set(at(index), Health::Ready),
        Happens::Goes(index) => world.set(at(index), down()),
        Happens::Vanishes(index) => world.set(at(index), Health::Unseen("Unknown".to_owned())),
        Happens::Pause(pause) => {
            world.update.state = match (pause, world.update.state.clone()) {
                (true, UpdateState::Walking) => UpdateState::Paused,
                (false, UpdateState::Paused) => UpdateState::Walking,
                (_, state) => state,
            };
        }
        Happens::Hurry => {
            if let Some(current) = &mut world.update.current {
                current.hurried = true;
            }
        }
    }
}

/// The domains of each role in which something is not Ready.
fn domains_down(world: &World) -> BTreeMap<RoleName, BTreeSet<u32>> {
    let mut down: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for one in world.all.iter().filter(|one| one.health != Health::Ready) {
        down.entry(one.role.clone()).or_default().insert(one.domain);
    }
    down
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn it_never_takes_a_second_domain_of_a_role_down(
        instances in 1u32..9,
        domains in 1u32..6,
        roles in 1usize..3,
        story in prop::collection::vec(happens(), 1..120),
    ) {
        let mut world = World::of(&["web", "worker"][..roles], instances, domains);
        for what in &story {
            happen(&mut world, what);
            let before = domains_down(&world);
            let was = world.all.clone();
            let state = world.update.state.clone();
            let step = world.step();
            if state != UpdateState::Walking {
                prop_assert!(step.take.is_empty(), "it moves though it is {state:?}");
            }
            for (role, after) in domains_down(&world) {
                let before = before.get(&role).cloned().unwrap_or_default();
                prop_assert!(
                    after == before || after.len() <= 1,
                    "{role}: from {before:?} to {after:?}"
                );
            }
            for one in was.iter().filter(|one| step.take.contains(&one.id)) {
                prop_assert!(one.old, "changed twice");
                prop_assert!(!matches!(one.health, Health::Unseen(_)));
            }
        }
    }

    #[test]
    fn no_domain_begins_before_the_last_has_been_ready_for_the_bake_time(
        instances in 1u32..9,
        domains in 1u32..6,
        story in prop::collection::vec(happens(), 1..120),
    ) {
        let mut world = World::new(instances, domains);
        for what in story.iter().filter(|what| !matches!(what, Happens::Hurry)) {
            happen(&mut world, what);
            let before = world.update.current;
            let step = world.step();
            if let Some(before) = before
                && step.update.done.contains(&before.domain)
                && step.update.current.map(|current| current.begun) != Some(before.begun)
            {
                let since = before.ready_since.expect("never seen Ready");
                prop_assert!(second(world.now).since(since) >= POLICY.bake);
            }
        }
    }

    #[test]
    fn it_is_done_where_only_the_new_version_mends_what_is_down(
        instances in 1u32..9,
        domains in 1u32..6,
        are_down in prop::collection::vec(any::<bool>(), 8),
    ) {
        let mut world = World::new(instances, domains);
        for (one, is_down) in world.all.iter_mut().zip(are_down) {
            if is_down {
                one.health = down();
            }
        }
        for _ in 0..4 * instances + 4 {
            if world.after(10).step().fate == Fate::Done {
                break;
            }
            for one in world.all.iter_mut().filter(|one| !one.old) {
                one.health = Health::Ready;
            }
        }
        prop_assert_eq!(world.step().fate, Fate::Done);
    }

    #[test]
    fn it_is_done_once_everything_is_well(
        instances in 1u32..9,
        domains in 1u32..6,
        story in prop::collection::vec(happens(), 0..60),
    ) {
        let mut world = World::of(&["web", "worker"], instances, domains);
        for what in &story {
            happen(&mut world, what);
            world.step();
        }
        world.update = world.update.resumed(second(world.now));
        for _ in 0..4 * domains + 4 {
            world.all_ready();
            if world.after(10).step().fate == Fate::Done {
                break;
            }
        }
        world.all_ready();
        prop_assert_eq!(world.step().fate, Fate::Done);
        prop_assert!(world.all.iter().all(|one| !one.old));
    }
}
