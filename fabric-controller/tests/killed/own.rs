//! What the controller does by itself, killed at every step of every transaction of it.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use fabric_controller::fail_point::Step;
use futures_util::{StreamExt as _, stream};
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    framework::*,
    program::*,
    said::{entries, said, says},
    stage::{CALM, Stage, arm, assert_sound, is, service, settled},
};

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
async fn an_update_is_carried_on_by_the_next_controller() {
    walk(Course::Update).await;
}

/// Something that goes on by itself once it has begun.
#[derive(Debug, Clone, Copy)]
enum Course {
    /// The node that has everything is silent.
    Failover,
    /// A service has another version, and one instance more.
    Update,
}

impl Course {
    const fn arguments(self) -> [&'static str; 6] {
        match self {
            Self::Failover => [
                "--lost-after",
                "1s",
                "--lease",
                "1s",
                "--listen",
                "127.0.0.1:0",
            ],
            Self::Update => CALM,
        }
    }

    /// The nodes that live; once it has begun.
    const fn nodes(self, has_begun: bool) -> &'static [&'static str] {
        match (self, has_begun) {
            (Self::Failover, false) => &["n1", "n2", "n3"],
            (Self::Failover, true) => &["n2", "n3"],
            (Self::Update, _) => &["n1"],
        }
    }

    fn is_over(self, said: &[String]) -> bool {
        let instances = || said.iter().filter(|line| line.starts_with("instances/"));
        match self {
            // What an operator has stopped stays where it is.
            Self::Failover => instances()
                .all(|line| line.contains("\"node\":\"n2\"") || line.contains("\"stopped\":true")),
            Self::Update => said.iter().any(|line| line == "event UpdateFinished shop"),
        }
    }
}

/// A controller, and the nodes that live.
struct Fabric {
    dir: TempDir,
    program: Program,
    client: Client,
    nodes: Vec<AbortOnDropHandle<()>>,
}

impl Fabric {
    async fn up(dir: TempDir, course: Course, has_begun: bool) -> Self {
        let (program, client) = Program::start_as(&[], dir.path(), &course.arguments()).await;
        let mut nodes = Vec::new();
        for name in course.nodes(has_begun) {
            let node = Node::register(&client, register(name, 0)).await.unwrap();
            nodes.push(node.live_as(is));
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
            Course::Update => {
                let text = service("shop", 2, "/v2") + "[update]\nbake = \"0s\"\n";
                // Not answered if that is where it is killed.
                let _ = self.client.apply_with_id(&text, "the-call").await;
            }
        }
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
            } else if seen.1.elapsed() > QUIET && course.is_over(&said(self.path())) {
                return true;
            }
            let so_far = || said(self.path());
            assert!(Instant::now() < deadline, "{course:?}: {:#?}", so_far());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn walk(course: Course) {
    let stage = &Stage::set().await;
    let (done, count) = &undisturbed(stage, course).await;
    assert!(*count > 2, "{course:?} takes {count} transactions");
    let all = STEPS.map(|step| (0..*count).map(move |passed| (step, passed)));
    let runs = stream::iter(all.into_iter().flatten());
    let runs = runs.map(|(step, passed)| killed_at(step, passed, stage, course, done));
    let reached: Vec<bool> = runs.buffer_unordered(AT_ONCE).collect().await;
    let missed = reached.iter().filter(|reached| !**reached).count();
    // Transactions that come at the same time share a commit.
    assert!(missed * 3 <= reached.len(), "{missed} of {}", reached.len());
}

/// What the store says when nobody is killed, and after how many commits.
async fn undisturbed(stage: &Stage, course: Course) -> (Vec<String>, usize) {
    let mut fabric = Fabric::up(stage.files(), course, false).await;
    settled(fabric.path()).await;
    let armed = arm(Step::Committed, fabric.path());
    fs::write(&armed, MANY.to_string()).unwrap();
    fabric.begin(course).await;
    assert!(fabric.over(course).await);
    let left: usize = fs::read_to_string(&armed).unwrap().parse().unwrap();
    (said(fabric.path()), MANY - left)
}

/// Whether it was killed there.
async fn killed_at(
    step: Step,
    passed: usize,
    stage: &Stage,
    course: Course,
    done: &[String],
) -> bool {
    let mut fabric = Fabric::up(stage.files(), course, false).await;
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
    reached
}
