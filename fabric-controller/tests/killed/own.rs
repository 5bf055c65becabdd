//! What the controller does by itself, killed at every step of every transaction of it.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use fabric_controller::fail_point::Step;
use fabric_proto::{
    node::v1::{NodeEvent, SessionRequest, session_request::Report},
    v1::DrainNodeRequest,
};
use futures_util::{StreamExt as _, stream};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    course::{Course, FAILING, OFTEN, node},
    framework::*,
    program::*,
    said::{entries, kept, said, says},
    stage::{Live, Stage, arm, assert_sound, files_of, has_its_goal, live, service, settled},
};

/// The id of the call with which it begins, the first time and again.
const ID: &str = "the-call";
/// How many are tried at a time.
const AT_ONCE: usize = 6;
/// The steps of a transaction that nobody waits for an answer of.
const STEPS: [Step; 3] = [
    Step::TransactionTaken,
    Step::TransactionWritten,
    Step::Committed,
];
/// More transactions than there are.
const MANY: usize = 10_000;
/// As long as nothing is written, nothing more is to come.
const QUIET: Duration = Duration::from_secs(2);
/// How long it may take from one end to the other, twice waiting for a lease to end.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_is_carried_on_by_the_next_controller() {
    walk(Course::Failover).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_carried_on_by_the_next_controller() {
    walk(Course::Drain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mending_of_a_spread_is_carried_on_by_the_next_controller() {
    walk(Course::Rebalance).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_which_services_keep_failing_is_cordoned_by_the_next_controller() {
    walk(Course::Condemn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_carried_on_by_the_next_controller() {
    walk(Course::Update).await;
}

/// A controller, and the nodes that live.
struct Fabric {
    dir: TempDir,
    program: Program,
    client: Client,
    nodes: Vec<Live>,
}

impl Fabric {
    async fn up(dir: TempDir, course: Course, has_begun: bool) -> Self {
        let (program, client) = Program::start_as(&[], dir.path(), &course.arguments()).await;
        let mut nodes = Vec::new();
        for name in course.nodes(has_begun) {
            nodes.push(live(&client, name).await.unwrap());
            has_its_goal(&client, name).await;
        }
        Self {
            dir,
            program,
            client,
            nodes,
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Has it begin, or begins it again where that is somebody's call.
    async fn begin(&mut self, course: Course) {
        match course {
            Course::Failover if self.nodes.len() == 3 => drop(self.nodes.remove(0)),
            Course::Failover => {}
            // None of these is answered if that is where it is killed.
            Course::Update => {
                let text = service("shop", 2, "/v2") + "[update]\nbake = \"0s\"\n";
                let _ = self.client.apply_with_id(&text, ID).await;
            }
            Course::Drain => {
                let request = DrainNodeRequest {
                    node_id: "n1".to_owned(),
                    request_id: ID.to_owned(),
                };
                let _ = self.client.nodes().drain_node(request).await;
            }
            Course::Rebalance if self.nodes.len() == 1 => {
                self.nodes.extend(live(&self.client, "n2").await);
            }
            Course::Rebalance => {}
            Course::Condemn => {
                if self.fail().await {
                    let text = service("late", 2, "/v1");
                    let _ = self.client.apply_with_id(&text, ID).await;
                }
            }
        }
    }

    /// Services fail on the first node one after another; a failure is told when the one
    /// before it is stored, and all are told again to the next controller, as by a host
    /// agent that was not answered. Waits until the node is cordoned, or the controller has
    /// been killed; whether it is cordoned.
    async fn fail(&mut self) -> bool {
        let failures = FAILING.iter().flat_map(|service| [service; OFTEN]);
        for (sequence, service) in (1..).zip(failures) {
            // By then two of them keep failing, and it is told to be to blame.
            let is_last = sequence > OFTEN as u64 * 2;
            if is_last && !self.comes("blame", |dir| blame_of(dir) >= 2).await {
                return false;
            }
            let event = NodeEvent {
                sequence,
                instance_id: format!("{service}-web-0"),
                reason: "VmRestarting".to_owned(),
                warning: true,
                ..NodeEvent::default()
            };
            let report = Some(Report::Event(event));
            // There is nobody there if the controller has been killed.
            let _ = self.nodes[0].reports.send(SessionRequest { report }).await;
            let stored = |dir: &Path| kept::<u64>(dir, "node-events/n1").first().copied();
            if !self
                .comes("a failure", |dir| stored(dir) >= Some(sequence))
                .await
            {
                return false;
            }
        }
        let condemned = |dir: &Path| node(dir, "n1").is_some_and(|node| node.condemned);
        self.comes("a cordon", condemned).await
    }

    /// Waits for something in the store; false if the controller has been killed before.
    async fn comes(&mut self, what: &str, is_there: impl Fn(&Path) -> bool) -> bool {
        let deadline = Instant::now() + LONG;
        while !is_there(self.path()) {
            if self.program.has_ended().is_some() {
                return false;
            }
            let so_far = || said(self.path());
            assert!(Instant::now() < deadline, "{what}: {:#?}", so_far());
            sleep(Duration::from_millis(10)).await;
        }
        true
    }

    /// Waits until it is over, or the controller has been killed; whether it is over.
    async fn over(&mut self, course: Course) -> bool {
        let deadline = Instant::now() + LONG;
        let mut seen = (0, Instant::now());
        loop {
            if self.program.has_ended().is_some() {
                return false;
            }
            let revision = entries(self.path()).1;
            if revision != seen.0 {
                seen = (revision, Instant::now());
            } else if seen.1.elapsed() > QUIET && course.is_over(self.path()) {
                return true;
            }
            let so_far = || said(self.path());
            assert!(Instant::now() < deadline, "{course:?}: {:#?}", so_far());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn walk(course: Course) {
    let scene = course.scene(&Stage::set().await).await;
    let scene = scene.path();
    let (done, count) = &undisturbed(scene, course).await;
    assert!(*count > 2, "{course:?} takes {count} transactions");
    let all = STEPS.map(|step| (0..*count).map(move |passed| (step, passed)));
    let runs = stream::iter(all.into_iter().flatten());
    let runs = runs.map(|(step, passed)| killed_at(step, passed, scene, course, done));
    let reached: Vec<bool> = runs.buffer_unordered(AT_ONCE).collect().await;
    let missed = reached.iter().filter(|reached| !**reached).count();
    // Transactions that come at the same time share a commit.
    assert!(missed * 3 <= reached.len(), "{missed} of {}", reached.len());
}

/// What the store says when nobody is killed, and after how many commits.
async fn undisturbed(scene: &Path, course: Course) -> (Vec<String>, usize) {
    let mut fabric = Fabric::up(files_of(scene), course, false).await;
    settled(fabric.path()).await;
    let armed = arm(Step::Committed, fabric.path());
    fs::write(&armed, MANY.to_string()).unwrap();
    fabric.begin(course).await;
    assert!(fabric.over(course).await);
    course.assert_came_out(fabric.path(), "undisturbed");
    let left: usize = fs::read_to_string(&armed).unwrap().parse().unwrap();
    (said(fabric.path()), MANY - left)
}

/// Whether it was killed there.
async fn killed_at(
    step: Step,
    passed: usize,
    scene: &Path,
    course: Course,
    done: &[String],
) -> bool {
    let mut fabric = Fabric::up(files_of(scene), course, false).await;
    settled(fabric.path()).await;
    let armed = arm(step, fabric.path());
    fs::write(&armed, passed.to_string()).unwrap();
    fabric.begin(course).await;
    let reached = !fabric.over(course).await;
    let what = format!("{course:?}, killed at {step:?} after {passed}");
    assert_ne!(armed.exists(), reached, "{what}");
    if reached {
        assert_sound(&fabric.path().join("d"));
        fabric = Fabric::up(fabric.dir, course, true).await;
        fabric.begin(course).await;
        assert!(fabric.over(course).await, "{what}: it has ended again");
    }
    says(fabric.path(), done, &what).await;
    course.assert_came_out(fabric.path(), &what);
    reached
}

/// How many unrelated services keep failing on the first node.
fn blame_of(dir: &Path) -> u32 {
    node(dir, "n1").map_or(0, |node| node.blame)
}
