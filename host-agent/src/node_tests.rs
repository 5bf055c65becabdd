//! The node over a hypervisor that runs nothing: which instances there are.

use fabric_proto::node::v1::VmState;
use tempfile::TempDir;

use super::*;
use crate::{
    blobs::{BlobCache, source::tests::Shelf},
    clock::Clock,
    events::EventLog,
    goal::tests::instance,
    hypervisor::fake::FakeHypervisor,
    instance::{directory::OS_DISK, disks::Workshop, machine::Limits, status::Board, turn::Turns},
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Stage {
    data: TempDir,
    hypervisor: FakeHypervisor,
    shelf: Arc<Shelf>,
    image: (String, u64),
    node: Node,
}

impl Stage {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Shelf::default());
        let (digest, bytes) = shelf.put_vhd();
        let hypervisor = FakeHypervisor::default();
        let node = open(&data, &hypervisor, &shelf);
        Self {
            data,
            hypervisor,
            shelf,
            image: (digest.to_string(), bytes),
            node,
        }
    }

    /// Another process of the host agent in the place of this one.
    async fn restart(&mut self) {
        self.node.supervisors.shutdown().await;
        self.node = open(&self.data, &self.hypervisor, &self.shelf);
        self.node.resume().await.unwrap();
    }

    fn goal(&mut self, incarnation: u64, ids: &[&str]) {
        self.goal_with(incarnation, ids, |_| {});
    }

    fn goal_with(
        &mut self,
        incarnation: u64,
        ids: &[&str],
        change: impl Fn(&mut wire::InstanceGoal),
    ) {
        let instances = ids.iter().map(|id| {
            let mut goal = instance(id);
            (goal.image_digest, goal.image_bytes) = self.image.clone();
            change(&mut goal);
            goal
        });
        let instances = instances.collect();
        self.node.take(wire::NodeGoal {
            incarnation,
            instances,
            ..wire::NodeGoal::default()
        });
    }

    /// Runs the node until its reports are like that.
    async fn until(&mut self, what: &str, like: impl Fn(&Reports) -> bool) -> Reports {
        let mut board = self.node.lent.board.subscribe();
        let (_goals, mut none) = mpsc::channel(1);
        let waiting = async {
            let found = board.wait_for(|reports| like(reports)).await;
            found.unwrap();
        };
        let running = self.node.run(&mut none, waiting);
        tokio::time::timeout(PATIENCE, running)
            .await
            .unwrap_or_else(|_| panic!("never {what}"));
        self.reports()
    }

    async fn until_booting(&mut self, ids: &[&str]) -> Reports {
        self.until("booting", |reports| {
            reports.len() == ids.len()
                && ids.iter().all(|id| {
                    let report = reports.get(&id.parse().unwrap());
                    report.is_some_and(|report| report.vm_state() == VmState::Booting)
                })
        })
        .await
    }

    fn reports(&self) -> Reports {
        self.node.lent.board.subscribe().borrow().clone()
    }

    fn directories(&self) -> Vec<String> {
        self.node
            .directories()
            .into_iter()
            .map(String::from)
            .collect()
    }

    fn refusals(&self) -> Vec<String> {
        let events = self.node.lent.workshop.events.after(0).into_iter();
        events
            .filter(|one| one.reason == Reason::GoalRefused)
            .map(|one| one.message)
            .collect()
    }
}

type Reports = BTreeMap<InstanceId, wire::InstanceStatus>;

fn open(data: &TempDir, hypervisor: &FakeHypervisor, shelf: &Arc<Shelf>) -> Node {
    fs::create_dir_all(data.path().join("journal")).unwrap();
    let workshop = Workshop {
        blobs: BlobCache::open(data.path().join("blobs"), Arc::clone(shelf) as _).unwrap(),
        events: Arc::new(EventLog::open(&data.path().join("journal")).unwrap()),
        templates: None,
        turns: Turns::of_this_machine(),
    };
    let lent = Lent {
        hypervisor: Arc::new(hypervisor.clone()),
        workshop: Arc::new(workshop),
        board: Arc::new(Board::default()),
        clock: Clock::system(),
        lease: crate::lease::unneeded(),
        host_boot_id: "boot".to_owned(),
        limits: Arc::new(Limits::default()),
    };
    Node::open(data.path(), lent, Duration::from_secs(1)).unwrap()
}

#[tokio::test]
async fn there_is_what_the_goal_names_and_nothing_else() {
    let mut stage = Stage::new();
    stage.goal(1, &["a", "b"]);
    stage.until_booting(&["a", "b"]).await;
    let cids: BTreeSet<u32> = stage.node.instances.values().map(|one| one.cid).collect();
    assert_eq!(cids, BTreeSet::from([3, 4]));

    stage.goal(2, &["b", "c"]);
    stage.until_booting(&["b", "c"]).await;
    assert_eq!(stage.hypervisor.running(), 2);
    stage.goal(3, &[]);
    stage.until("empty", BTreeMap::is_empty).await;
    assert!(stage.directories().is_empty());
    assert_eq!(stage.hypervisor.running(), 0);
}

#[tokio::test]
async fn one_that_goes_and_is_wanted_again_comes_back() {
    let mut stage = Stage::new();
    stage.goal(1, &["a"]);
    stage.until_booting(&["a"]).await;
    stage.goal(2, &[]);
    stage.goal(3, &["a"]);
    stage.until_booting(&["a"]).await;
    stage.goal(4, &[]);
    stage.until("empty", BTreeMap::is_empty).await;
    stage.goal(5, &["a"]);
    stage.until_booting(&["a"]).await;
    assert_eq!(stage.hypervisor.running(), 1);
}

#[tokio::test]
async fn a_lower_incarnation_and_a_lower_epoch_are_refused_and_told() {
    let mut stage = Stage::new();
    stage.goal_with(5, &["a"], |goal| goal.epoch = 3);
    stage.until_booting(&["a"]).await;
    stage.goal(4, &[]);
    stage.goal_with(6, &["a"], |goal| {
        goal.epoch = 2;
        goal.power = wire::InstancePower::Stopped.into();
    });
    let report = stage.until_booting(&["a"]).await;
    assert_eq!(
        report[&"a".parse().unwrap()].epoch,
        3,
        "it goes on as it was"
    );
    assert_eq!(
        stage.refusals(),
        [
            "goal incarnation 4 is lower than 5, which this node has seen",
            "epoch 2 is lower than 3, which this node has seen for it",
        ]
    );

    // What has been seen is known to the next process, too.
    stage.restart().await;
    stage.goal(5, &[]);
    stage.goal_with(7, &["a"], |goal| goal.epoch = 2);
    assert_eq!(stage.refusals().len(), 4);
    // And to one that comes after it was removed.
    stage.goal_with(8, &["a"], |goal| goal.epoch = 4);
    stage.until_booting(&["a"]).await;
    stage.goal(9, &[]);
    stage.until("empty", BTreeMap::is_empty).await;
    stage.goal_with(10, &["a"], |goal| goal.epoch = 3);
    let reports = stage.until("refused", |reports| !reports.is_empty()).await;
    assert_eq!(reports.values().next().unwrap().vm_state(), VmState::Failed);
    assert_eq!(stage.hypervisor.running(), 0);

    // And to a process that comes after that.
    stage.restart().await;
    stage.goal_with(11, &["a"], |goal| goal.epoch = 3);
    let reports = stage.until("refused", |reports| !reports.is_empty()).await;
    assert_eq!(reports.values().next().unwrap().vm_state(), VmState::Failed);
    assert_eq!(stage.hypervisor.running(), 0);
}

#[tokio::test]
async fn one_that_is_wanted_again_while_it_goes_has_a_disk_of_its_own() {
    let mut stage = Stage::new();
    stage.goal(1, &["a"]);
    stage.until_booting(&["a"]).await;
    let disk = stage.node.instances_in.join("a").join(OS_DISK);
    fs::write(&disk, "what another one wrote").unwrap();
    stage.goal(2, &[]);
    stage.goal_with(3, &["a"], |goal| goal.epoch = 2);
    stage
        .until("another", |reports| {
            let report = reports.get(&"a".parse().unwrap());
            report.is_some_and(|one| one.epoch == 2 && one.boots == 2)
        })
        .await;
    let disk = fs::read(disk).unwrap();
    assert!(disk.starts_with(b"conectix"), "it has the disk of before");
}

#[tokio::test]
async fn a_refused_instance_is_reported_and_goes_when_the_goal_drops_it() {
    let mut stage = Stage::new();
    stage.goal_with(1, &["a"], |goal| goal.vcpus = 99);
    let reports = stage.until("reported", |reports| !reports.is_empty()).await;
    let report = &reports[&"a".parse().unwrap()];
    assert_eq!(
        report.vm_reason,
        "its goal was refused: vcpus is 99, must be 1 to 8"
    );
    stage.goal(2, &[]);
    assert!(stage.reports().is_empty());
}

#[tokio::test]
async fn what_ran_runs_on_without_a_controller() {
    let mut stage = Stage::new();
    stage.goal(1, &["a", "b"]);
    let before = stage.until_booting(&["a", "b"]).await;
    stage.restart().await;
    let after = stage.until_booting(&["a", "b"]).await;
    let pids =
        |reports: &Reports| -> Vec<u32> { reports.values().map(|report| report.vmm_pid).collect() };
    assert_eq!(pids(&before), pids(&after));
    assert_eq!(
        (
            stage.hypervisor.launched(),
            *stage.node.view().applied.borrow()
        ),
        (2, 1)
    );
}

#[tokio::test]
async fn what_belongs_to_no_instance_is_removed() {
    let mut stage = Stage::new();
    stage.goal(1, &["a", "gone"]);
    stage.until_booting(&["a", "gone"]).await;
    stage.node.supervisors.shutdown().await;
    // A goal that this process never saw.
    let goal = wire::NodeGoal {
        incarnation: 2,
        instances: vec![{
            let mut goal = instance("a");
            (goal.image_digest, goal.image_bytes) = stage.image.clone();
            goal
        }],
        ..wire::NodeGoal::default()
    };
    stage.node.store.save(&goal).unwrap();
    fs::create_dir_all(stage.node.instances_in.join("stranger")).unwrap();
    // A machine whose directory is gone.
    stage.restart().await;
    stage.until_booting(&["a"]).await;
    stage.until("alone", |reports| reports.len() == 1).await;
    while stage.directories() != ["a"] {
        stage.until_booting(&["a"]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(stage.hypervisor.running(), 1);
}

#[tokio::test]
async fn a_disk_that_is_on_no_record_is_nobodys() {
    let mut stage = Stage::new();
    stage.goal(1, &["a"]);
    stage.until_booting(&["a"]).await;
    stage.node.supervisors.shutdown().await;
    // As where a host agent is killed while it removes an instance.
    let directory = stage.node.instances_in.join("a");
    fs::remove_file(directory.join(MANIFEST)).unwrap();
    fs::write(directory.join(OS_DISK), "what another one wrote").unwrap();
    stage.restart().await;
    stage.until_booting(&["a"]).await;
    let disk = fs::read(directory.join(OS_DISK)).unwrap();
    assert!(disk.starts_with(b"conectix"), "it has the disk of before");
    assert_eq!(stage.hypervisor.running(), 1);
}

#[tokio::test]
async fn without_any_goal_nothing_is_touched() {
    let mut stage = Stage::new();
    stage.goal(1, &["a"]);
    stage.until_booting(&["a"]).await;
    fs::write(stage.data.path().join("journal/goal.pb"), [0xff; 9]).unwrap();
    stage.restart().await;
    assert!(stage.reports().is_empty());
    assert_eq!(stage.hypervisor.running(), 1);
    stage.goal(1, &["a"]);
    stage.until_booting(&["a"]).await;
    assert_eq!(stage.hypervisor.launched(), 1);
}

#[tokio::test]
async fn on_the_way_out_everything_can_be_stopped_and_comes_back_later() {
    let mut stage = Stage::new();
    stage.goal(1, &["a", "b"]);
    stage.until_booting(&["a", "b"]).await;
    stage.node.stop_all(PATIENCE).await;
    assert_eq!(stage.hypervisor.running(), 0);
    assert_eq!(stage.directories().len(), 2);
    stage.restart().await;
    stage.until_booting(&["a", "b"]).await;
}
