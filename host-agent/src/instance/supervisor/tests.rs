//! A supervisor over a hypervisor that runs nothing and a guest agent that is a
//! gRPC client: the paths that need files, sockets and tasks. Everything about
//! time and order is in the machine's own tests.

use std::{path::PathBuf, time::SystemTime};

use fabric_proto::{guest::v1 as wire, id::Digest, node::v1 as node_wire};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use wire::{guest_service_client::GuestServiceClient, session_request::Report};

use super::*;
use crate::{
    blobs::{BlobCache, source::tests::Shelf},
    events::{EventLog, Reason},
    goal::{NodeGoal, tests::instance},
    hypervisor::{
        Origin, PackageDisk,
        fake::{FakeHypervisor, FakeVm},
    },
    instance::{
        directory::TEMPLATE_DISK,
        state::{Cause, ExitKind},
        turn::Turns,
    },
    template::{self, Templates, host::Host, prune::Keep},
};

const ID: &str = "shop-web-0";
/// Nothing here takes long; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node with one instance, and the means to restart its host agent.
struct Stage {
    data: TempDir,
    hypervisor: FakeHypervisor,
    node: Node,
    goal: node_wire::InstanceGoal,
    shelf: Arc<Shelf>,
    running: Option<(watch::Sender<Order>, JoinHandle<()>)>,
}

impl Stage {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Shelf::default());
        let (digest, bytes) = shelf.put_vhd();
        let mut goal = instance(ID);
        goal.image_digest = digest.to_string();
        goal.image_bytes = bytes;
        let hypervisor = FakeHypervisor::default();
        let limits = Limits {
            boot: PATIENCE,
            heartbeat: PATIENCE,
            power_off: Duration::from_millis(100),
            order: Duration::from_millis(100),
            ..Limits::default()
        };
        let workshop = Workshop {
            blobs: BlobCache::open(data.path().join("blobs"), Arc::clone(&shelf) as _).unwrap(),
            events: Arc::new(EventLog::open(data.path()).unwrap()),
            templates: None,
            turns: Turns::of_this_machine(),
        };
        let node = Node {
            hypervisor: Arc::new(hypervisor.clone()),
            workshop: Arc::new(workshop),
            board: Arc::new(Board::default()),
            clock: Clock::system(),
            lease: lease::unneeded(),
            host_boot_id: "boot".to_owned(),
            limits: Arc::new(limits),
        };
        Self {
            data,
            hypervisor,
            node,
            goal,
            shelf,
            running: None,
        }
    }

    /// Instances are copied from templates from now on.
    fn with_templates(mut self) -> Self {
        let path = |name: &str| self.data.path().join(name);
        for program in ["vmm", "kernel"] {
            std::fs::write(path(program), program).unwrap();
        }
        let host = Host::look(&path("vmm"), &path("kernel"), "", "hardware");
        let limits = template::Limits {
            boot: Duration::from_millis(200),
            wait: PATIENCE,
            keep: Keep::default(),
        };
        let templates = Templates::open(
            &path("templates"),
            Arc::new(self.hypervisor.clone()),
            host,
            "boot".to_owned(),
            limits,
        );
        self.node.workshop = Arc::new(Workshop {
            blobs: BlobCache::open(path("blobs"), Arc::clone(&self.shelf) as _).unwrap(),
            events: Arc::clone(&self.node.workshop.events),
            templates: Some(Arc::new(templates.unwrap())),
            turns: Turns::new(1),
        });
        self.goal.role.as_mut().unwrap().kind = wire::RoleKind::Web.into();
        self
    }

    /// The instance has a package, which is as its image.
    fn with_package(mut self) -> Self {
        self.goal.package_digest.clone_from(&self.goal.image_digest);
        self.goal.package_bytes = self.goal.image_bytes;
        self
    }

    fn limits(&mut self, change: impl FnOnce(&mut Limits)) {
        change(Arc::make_mut(&mut self.node.limits));
    }

    fn directory(&self) -> PathBuf {
        self.data.path().join(ID)
    }

    fn order(&self) -> Order {
        let goal = node_wire::NodeGoal {
            instances: vec![self.goal.clone()],
            ..node_wire::NodeGoal::default()
        };
        let checked = NodeGoal::check(goal)
            .instances
            .into_values()
            .next()
            .unwrap();
        Order::Follow(checked.unwrap())
    }

    /// Starts the host agent's part in this.
    fn start(&mut self) {
        self.start_with(self.order());
    }

    fn start_with(&mut self, order: Order) {
        let directory = Arc::new(InstanceDirectory::open(self.directory()).unwrap());
        let manifest = Manifest::load(&directory.file(MANIFEST)).unwrap();
        let (orders, receiver) = watch::channel(order);
        let beginning = Beginning {
            log: Arc::new(RoleLog::open(&directory.file("role.log")).unwrap()),
            manifest: manifest.unwrap_or_else(|| Manifest::new(3, "boot".to_owned())),
            directory,
            orders: receiver,
        };
        let supervisor = Supervisor::new(ID.parse().unwrap(), self.node.clone(), beginning);
        self.running = Some((orders, tokio::spawn(supervisor.run())));
    }

    /// Ends the host agent's part without any notice.
    async fn kill(&mut self) {
        let (_orders, task) = self.running.take().unwrap();
        task.abort();
        task.await.ok();
    }

    fn follow(&mut self, change: impl FnOnce(&mut node_wire::InstanceGoal)) {
        change(&mut self.goal);
        self.running.as_ref().unwrap().0.send_replace(self.order());
    }

    /// Gives the instance a fresh disk, and waits for its start of that number.
    async fn reimage(&mut self, boots: u32) {
        self.follow(|goal| {
            goal.restart_generation += 1;
            goal.restart_scope = node_wire::RestartScope::Reimage.into();
        });
        self.until("reimaged", |report| report.boots == boots).await;
    }

    /// Waits until the instance is reported like that.
    async fn until(
        &self,
        what: &str,
        like: impl Fn(&node_wire::InstanceStatus) -> bool,
    ) -> node_wire::InstanceStatus {
        let id: InstanceId = ID.parse().unwrap();
        let mut board = self.node.board.subscribe();
        let waiting = board.wait_for(|reports| reports.get(&id).is_some_and(&like));
        let outcome = tokio::time::timeout(PATIENCE, waiting).await;
        let found = outcome.ok().map(|reports| reports.unwrap()[&id].clone());
        found.unwrap_or_else(|| panic!("never {what}: {:#?}", self.node.board.subscribe().borrow()))
    }

    async fn until_state(&self, state: node_wire::VmState) -> node_wire::InstanceStatus {
        self.until(state.as_str_name(), |report| report.vm_state() == state)
            .await
    }

    fn vm(&self) -> FakeVm {
        self.hypervisor
            .machine(&self.directory())
            .expect("a machine runs")
    }

    async fn until_gone(&mut self) {
        let (_orders, task) = self.running.take().unwrap();
        tokio::time::timeout(PATIENCE, task)
            .await
            .expect("gone in time")
            .unwrap();
    }

    fn told(&self) -> Vec<Reason> {
        self.node
            .workshop
            .events
            .after(0)
            .iter()
            .map(|event| event.reason)
            .collect()
    }

    async fn guest(&self) -> Guest {
        Guest::call(&self.directory()).await
    }

    /// A machine with a guest agent that said hello and a role that is ready.
    async fn ready(&self) -> Guest {
        self.until_state(node_wire::VmState::Booting).await;
        let mut guest = self.guest().await;
        guest.hello().await;
        guest.role(wire::RoleState::Ready, 0).await;
        self.until("ready", |report| {
            report
                .role
                .as_ref()
                .is_some_and(|role| role.state() == wire::RoleState::Ready)
        })
        .await;
        guest
    }
}

/// A guest agent.
struct Guest {
    reports: mpsc::Sender<wire::SessionRequest>,
    goals: tonic::Streaming<wire::SessionResponse>,
}

impl Guest {
    /// Calls, again and again, until somebody listens.
    async fn call(directory: &std::path::Path) -> Self {
        let socket = directory.join(crate::instance::directory::guest_socket(
            fabric_proto::vmbus::SESSION_PORT,
        ));
        let endpoint = tonic::transport::Endpoint::from_static("http://host");
        let call = || {
            let socket = socket.clone();
            endpoint.connect_with_connector(tower::service_fn(move |_| {
                let socket = socket.clone();
                async {
                    tokio::net::UnixStream::connect(socket)
                        .await
                        .map(TokioIo::new)
                }
            }))
        };
        let channel = tokio::time::timeout(PATIENCE, async {
            loop {
                match call().await {
                    Ok(channel) => return channel,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await
        .expect("somebody listens in time");
        let (reports, receiver) = mpsc::channel(8);
        let session = GuestServiceClient::new(channel)
            .session(ReceiverStream::new(receiver))
            .await
            .unwrap();
        Self {
            reports,
            goals: session.into_inner(),
        }
    }

    async fn say(&self, report: Report) {
        self.reports
            .send(wire::SessionRequest {
                report: Some(report),
            })
            .await
            .unwrap();
    }

    /// Says hello, and again with the identity that the goal gave it.
    async fn hello(&mut self) -> wire::Goal {
        self.say_hello("").await;
        let goal = self.goal().await;
        self.say_hello("a-boot").await;
        goal
    }

    async fn say_hello(&self, boot_id: &str) {
        self.say(Report::Hello(wire::Hello {
            protocol_version: 1,
            boot_id: boot_id.to_owned(),
            ..wire::Hello::default()
        }))
        .await;
    }

    async fn has_been_told_nothing(&mut self) -> bool {
        let next = tokio::time::timeout(Duration::ZERO, self.goals.next());
        next.await.is_err()
    }

    async fn goal(&mut self) -> wire::Goal {
        let next = tokio::time::timeout(PATIENCE, self.goals.next())
            .await
            .expect("a goal in time");
        next.expect("a goal").unwrap().goal.unwrap()
    }

    async fn role(&self, state: wire::RoleState, consecutive_failures: u32) {
        self.say(Report::RoleStatus(wire::RoleStatus {
            role: "web".to_owned(),
            state: state.into(),
            reason: "as told".to_owned(),
            consecutive_failures,
            ..wire::RoleStatus::default()
        }))
        .await;
    }
}

#[tokio::test]
async fn a_goal_becomes_a_machine_with_a_ready_role() {
    let mut stage = Stage::new().with_package();
    stage.start();
    stage.until_state(node_wire::VmState::Booting).await;
    let spec = stage.vm().spec;
    assert!(stage.directory().join(spec.os_disk).exists());
    let package = spec.os_parents.first().cloned().map(PackageDisk::Image);
    assert_eq!(spec.package, package);

    let mut guest = stage.guest().await;
    let goal = guest.hello().await;
    assert_eq!(goal.hostname, ID);
    assert_eq!(goal.roles[0].package_disk_serial, "package");
    assert_eq!(goal.power(), wire::GuestPower::Run);
    assert!(goal.incarnation > 0 && goal.entropy.len() == 64 && goal.wall_clock.is_some());
    assert_eq!(goal.machine_id.len(), 32);

    guest.role(wire::RoleState::Starting, 0).await;
    guest.role(wire::RoleState::Ready, 0).await;
    let report = stage
        .until("ready", |report| {
            report
                .role
                .as_ref()
                .is_some_and(|role| role.state() == wire::RoleState::Ready)
        })
        .await;
    assert_eq!(report.vm_state(), node_wire::VmState::Running);
    assert_eq!((report.boots, report.boot_id.as_str()), (1, "a-boot"));
    assert_ne!(report.vmm_pid, 0);
    assert_eq!(
        stage.told(),
        [
            Reason::ImageFetched,
            Reason::DiskCreated,
            Reason::VmmStarted,
            Reason::GuestHello,
            Reason::RoleStarting,
            Reason::RoleReady,
        ]
    );
}

#[tokio::test]
async fn a_vmm_that_is_killed_comes_back_with_another_process() {
    let mut stage = Stage::new();
    stage.start();
    let _guest = stage.ready().await;
    let first = stage.vm();
    first.kill();
    let report = stage
        .until("booting again", |report| {
            report.vm_state() == node_wire::VmState::Booting && report.boots == 2
        })
        .await;
    assert_ne!(report.vmm_pid, first.record().pid);
    assert_eq!(report.vm_restarts, 1);
    assert!(
        report.role.is_none(),
        "nothing is known of the role of this boot"
    );
    stage.ready().await;
}

#[tokio::test]
async fn a_guest_that_falls_silent_is_restarted() {
    let mut stage = Stage::new();
    stage.limits(|limits| limits.heartbeat = Duration::from_millis(100));
    stage.start();
    let _silent = stage.ready().await;
    stage.until("restarted", |report| report.boots == 2).await;
    assert!(stage.told().contains(&Reason::HeartbeatsMissed));
}

#[tokio::test]
async fn a_crash_loop_ends_in_failure_and_only_asking_helps() {
    let mut stage = Stage::new();
    stage.limits(|limits| limits.ladder.wait_initial = Duration::from_millis(1));
    stage.start();
    for boot in 1..=6 {
        stage
            .until("booting", |report| {
                report.vm_state() == node_wire::VmState::Booting && report.boots == boot
            })
            .await;
        stage
            .vm()
            .end(ExitKind::KernelPanic, "VFS: Unable to mount root fs");
    }
    let report = stage.until_state(node_wire::VmState::Failed).await;
    assert_eq!((report.boots, report.reimages), (6, 1));
    assert!(
        report.vm_reason.contains("Unable to mount root fs"),
        "{}",
        report.vm_reason
    );
    let made = stage
        .told()
        .into_iter()
        .filter(|one| *one == Reason::DiskCreated)
        .count();
    assert_eq!(made, 2, "one disk, and one fresh one");

    // A restart of the host agent is not asking.
    stage.kill().await;
    stage.start();
    stage.until_state(node_wire::VmState::Failed).await;
    stage.follow(|goal| {
        goal.restart_generation += 1;
        goal.restart_scope = node_wire::RestartScope::Vm.into();
    });
    stage.ready().await;
}

#[tokio::test]
async fn a_stop_is_asked_of_the_guest_and_never_undone() {
    let mut stage = Stage::new();
    stage.start();
    let mut guest = stage.ready().await;
    stage.limits(|_| {});
    stage.follow(|goal| goal.power = node_wire::InstancePower::Stopped.into());
    assert_eq!(guest.goal().await.power(), wire::GuestPower::Off);
    stage.vm().end(ExitKind::GuestPowerOff, "");
    let report = stage.until_state(node_wire::VmState::Stopped).await;
    assert_eq!(report.vmm_pid, 0);
    stage.kill().await;
    stage.start();
    stage.until_state(node_wire::VmState::Stopped).await;
    assert_eq!(stage.hypervisor.launched(), 1);

    stage.follow(|goal| goal.power = node_wire::InstancePower::Running.into());
    stage.ready().await;
    let made = stage
        .told()
        .into_iter()
        .filter(|one| *one == Reason::DiskCreated)
        .count();
    assert_eq!(made, 1, "the disk stays");
}

#[tokio::test]
async fn a_stop_and_how_it_went_outlive_a_rest_of_the_node() {
    let mut stage = Stage::new();
    stage.start();
    let _guest = stage.ready().await;
    stage.follow(|goal| goal.power = node_wire::InstancePower::Stopped.into());
    stage.until_state(node_wire::VmState::Stopping).await;
    stage.vm().end(ExitKind::GuestPowerOff, "");
    let stopped = stage.until_state(node_wire::VmState::Stopped).await;
    stage.kill().await;
    stage.node.board.take_down(&ID.parse().unwrap());
    stage.start_with(Order::Rest);
    let rests = stage.until_state(node_wire::VmState::Stopped).await;
    assert_eq!(rests.vm_reason, stopped.vm_reason);
    stage.follow(|_| {});
    stage.follow(|goal| goal.power = node_wire::InstancePower::Running.into());
    stage.until_state(node_wire::VmState::Booting).await;
    let told = stage.told();
    let stops = told
        .iter()
        .filter(|one| **one == Reason::InstanceStopped)
        .count();
    assert_eq!(stops, 1, "{told:?}");
}

#[tokio::test]
async fn a_guest_that_does_not_power_off_is_stopped_all_the_same() {
    let mut stage = Stage::new();
    stage.start();
    let _deaf = stage.ready().await;
    stage.follow(|goal| goal.power = node_wire::InstancePower::Stopped.into());
    stage.until_state(node_wire::VmState::Stopped).await;
    assert_eq!(stage.hypervisor.running(), 0);
}

#[tokio::test]
async fn a_guest_that_is_not_back_in_session_is_stopped_by_its_power_button() {
    let mut stage = Stage::new();
    stage.start();
    let _guest = stage.ready().await;
    stage.kill().await;
    stage.start();
    stage
        .until("taken over", |report| report.vmm_pid != 0)
        .await;
    stage.follow(|goal| goal.power = node_wire::InstancePower::Stopped.into());
    let report = stage.until_state(node_wire::VmState::Stopped).await;
    let end = report.last_end.unwrap();
    assert_eq!(end.cause(), node_wire::VmEndCause::Stopped);
    assert!(end.detail.contains("power button"), "{end:?}");
}

#[tokio::test]
async fn a_guest_is_told_the_time_that_an_operator_gives_its_role_to_end() {
    let mut stage = Stage::new();
    stage.start();
    let mut guest = stage.ready().await;
    let grace = prost_types::Duration {
        seconds: 7,
        nanos: 0,
    };
    stage.follow(|goal| {
        goal.power = node_wire::InstancePower::Stopped.into();
        goal.stop_grace = Some(grace);
    });
    let goal = guest.goal().await;
    assert_eq!(goal.power(), wire::GuestPower::Off);
    assert_eq!(goal.roles[0].stop_grace, Some(grace));
}

#[tokio::test]
async fn a_restarted_host_agent_takes_over_what_runs() {
    let mut stage = Stage::new();
    stage.start();
    let mut guest = stage.ready().await;
    let pid = stage.vm().record().pid;
    let before = guest.goals.message();
    stage.kill().await;
    assert!(
        tokio::time::timeout(PATIENCE, before).await.is_ok(),
        "the session ends"
    );

    stage.start();
    let mut guest = stage.guest().await;
    let goal = guest.hello().await;
    assert!(
        goal.incarnation > 1,
        "the guest would ignore a lower number than it has seen"
    );
    let report = stage.until_state(node_wire::VmState::Running).await;
    assert_eq!((report.vmm_pid, report.boots), (pid, 1));
    assert!(report.role.is_some(), "the last report stays");
    assert_eq!(stage.hypervisor.launched(), 1);
    assert!(stage.told().contains(&Reason::InstanceAdopted));
    // And it is watched like its own.
    stage.vm().kill();
    stage.until("restarted", |report| report.boots == 2).await;
}

#[tokio::test]
async fn what_died_while_nobody_watched_is_started_again() {
    let mut stage = Stage::new();
    stage.start();
    let _guest = stage.ready().await;
    stage.kill().await;
    stage.vm().end(ExitKind::KernelPanic, "unnoticed");
    stage.start();
    let report = stage.until("restarted", |report| report.boots == 2).await;
    assert!(report.last_exit_json.contains("panicked"));
}

#[tokio::test]
async fn a_machine_that_was_started_but_not_recorded_is_taken_over() {
    let mut stage = Stage::new();
    stage.start();
    stage.until_state(node_wire::VmState::Booting).await;
    stage.kill().await;
    // As if the host agent had died between the spawn and the record of it.
    let path = stage.directory().join(MANIFEST);
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["machine"]["state"] = "Launching".into();
    manifest["process"] = serde_json::Value::Null;
    std::fs::write(&path, manifest.to_string()).unwrap();
    stage.start();
    let report = stage.until("adopted", |report| report.vmm_pid != 0).await;
    assert_eq!(report.boots, 1);
    assert_eq!(stage.hypervisor.launched(), 1);
}

#[tokio::test]
async fn what_is_to_go_leaves_nothing_behind() {
    let mut stage = Stage::new();
    stage.start();
    let _guest = stage.ready().await;
    stage.running.as_ref().unwrap().0.send_replace(Order::Go);
    stage.until_gone().await;
    assert!(!stage.directory().exists());
    assert_eq!(stage.hypervisor.running(), 0);
    assert!(stage.node.board.subscribe().borrow().is_empty());
}

#[tokio::test]
async fn an_image_that_is_no_disk_is_refused_and_the_next_one_works() {
    let mut stage = Stage::new();
    let sound = (stage.goal.image_digest.clone(), stage.goal.image_bytes);
    let junk = vec![7; 4096];
    let digest = Digest::of_sha256(&Sha256::digest(&junk).into());
    stage.shelf.put(&digest, junk);
    stage.goal.image_digest = digest.to_string();
    stage.goal.image_bytes = 4096;
    stage.start();
    let report = stage.until_state(node_wire::VmState::Failed).await;
    assert!(
        report.vm_reason.contains("is not a VHD that can be used"),
        "{}",
        report.vm_reason
    );
    stage.follow(|goal| (goal.image_digest, goal.image_bytes) = sound);
    stage.ready().await;
}

#[tokio::test]
async fn a_vmm_that_cannot_be_started_is_tried_again() {
    let mut stage = Stage::new();
    stage.limits(|limits| limits.ladder.wait_initial = Duration::from_millis(300));
    stage.hypervisor.refuse(true);
    stage.start();
    let report = stage.until_state(node_wire::VmState::Backoff).await;
    assert!(
        report.vm_reason.starts_with("cannot start fabric-vmm"),
        "{}",
        report.vm_reason
    );
    stage.hypervisor.refuse(false);
    stage.ready().await;
}

#[tokio::test]
async fn a_guest_can_speak_only_of_its_own_role_and_only_after_hello() {
    let mut stage = Stage::new();
    stage.start();
    stage.until_state(node_wire::VmState::Booting).await;
    let mut rude = stage.guest().await;
    rude.role(wire::RoleState::Ready, 0).await;
    let refusal = tokio::time::timeout(PATIENCE, rude.goals.next())
        .await
        .unwrap();
    assert_eq!(
        refusal.unwrap().unwrap_err().code(),
        tonic::Code::FailedPrecondition
    );

    let mut guest = stage.guest().await;
    guest.hello().await;
    guest
        .say(Report::RoleStatus(wire::RoleStatus {
            role: "somebody-else".to_owned(),
            state: wire::RoleState::Ready.into(),
            ..wire::RoleStatus::default()
        }))
        .await;
    guest.role(wire::RoleState::Busy, 0).await;
    let report = stage.until("busy", |report| report.role.is_some()).await;
    assert_eq!(report.role.unwrap().role, "web");
    assert!(!stage.told().contains(&Reason::RoleReady));
}

#[tokio::test]
async fn the_end_of_a_session_is_heard_unless_there_is_another() {
    let data = tempfile::tempdir().unwrap();
    let directory = InstanceDirectory::open(data.path().join(ID)).unwrap();
    let (_goal, goals) = watch::channel(None);
    let (heard_by, mut heard) = mpsc::channel(8);
    let link = GuestLink {
        goal: goals,
        heard: heard_by,
        log: Arc::new(RoleLog::open(&directory.file("role.log")).unwrap()),
        clock: Clock::system(),
    };
    let _server = GuestServer::listen(&directory, link).unwrap();
    let mut hears = async |what: &str| {
        let said = tokio::time::timeout(PATIENCE, heard.recv()).await;
        said.expect(what).expect(what).said
    };
    let path = data.path().join(ID);
    let mut first = Guest::call(&path).await;
    first.say_hello("").await;
    let hello = hears("a hello").await;
    assert!(matches!(hello, GuestSaid::Hello { .. }), "{hello:?}");
    let second = Guest::call(&path).await;
    // The first has no end of its own.
    _ = tokio::time::timeout(PATIENCE, first.goals.next())
        .await
        .expect("it ends");
    second.say_hello("again").await;
    let hello = hears("another hello").await;
    assert!(matches!(hello, GuestSaid::Hello { .. }), "{hello:?}");
    drop((first, second));
    let end = hears("its end").await;
    assert!(matches!(end, GuestSaid::Gone), "{end:?}");
}

#[tokio::test]
async fn a_newer_session_ends_the_one_before() {
    let mut stage = Stage::new();
    stage.start();
    stage.until_state(node_wire::VmState::Booting).await;
    let mut first = stage.guest().await;
    first.hello().await;
    let mut second = stage.guest().await;
    second.hello().await;
    let end = tokio::time::timeout(PATIENCE, first.goals.next())
        .await
        .expect("it ends");
    assert!(end.is_none_or(|end| end.is_err()));
}

/// Whether a machine goes on from a template.
fn is_copy(vm: &FakeVm) -> bool {
    let copy = matches!(vm.spec.origin, Origin::Template(_));
    let parents = if vm.place().join(TEMPLATE_DISK).exists() {
        2
    } else {
        1
    };
    assert_eq!(vm.spec.os_parents.len(), parents, "{:?}", vm.spec);
    copy
}

#[tokio::test]
async fn an_instance_is_copied_restarted_on_its_disk_and_copied_again_when_reimaged() {
    let mut stage = Stage::new().with_templates();
    stage.start();
    let _guest = stage.ready().await;
    assert!(is_copy(&stage.vm()));
    assert_eq!(
        stage.told(),
        [
            Reason::ImageFetched,
            Reason::TemplateMade,
            Reason::DiskCreated,
            Reason::VmmStarted,
            Reason::GuestHello,
            Reason::RoleReady,
        ]
    );

    stage.vm().kill();
    stage.until("restarted", |report| report.boots == 2).await;
    let _guest = stage.ready().await;
    let again = stage.vm();
    assert!(!is_copy(&again), "its memory would not know its disk");
    assert_eq!(again.spec.os_parents.len(), 2);
    let Origin::Booted(booted) = &again.spec.origin else {
        panic!("{:?}", again.spec.origin);
    };
    assert_eq!(again.spec.booted.as_ref(), Some(booted), "for resets, too");

    stage.reimage(3).await;
    let _guest = stage.ready().await;
    assert!(is_copy(&stage.vm()));
    assert_eq!(stage.hypervisor.templates(), 1);
}

#[tokio::test]
async fn one_with_a_package_has_a_template_with_that_made_when_it_is_ready() {
    let mut stage = Stage::new().with_templates().with_package();
    stage.start();
    let mut guest = stage.guest().await;
    guest.say_hello("").await;
    guest.goal().await;
    let of_image = stage.vm().spec.origin;
    assert_eq!(stage.hypervisor.templates(), 1, "that of the image");
    guest.role(wire::RoleState::Ready, 0).await;
    let made = |told: &Vec<Reason>| {
        let made = told.iter().filter(|told| **told == Reason::TemplateMade);
        made.count()
    };
    let second = async {
        while made(&stage.told()) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, second).await.unwrap();
    assert_eq!(stage.hypervisor.templates(), 2);

    stage.reimage(2).await;
    let _guest = stage.ready().await;
    assert!(is_copy(&stage.vm()));
    assert_ne!(stage.vm().spec.origin, of_image);
    assert_eq!(stage.hypervisor.templates(), 2);
}

#[tokio::test]
async fn a_copy_waits_for_its_turn_and_its_role_for_another() {
    let mut stage = Stage::new().with_templates();
    let turns = stage.node.workshop.turns.clone();
    let other = turns.announce().arrive(true).await;
    stage.start();
    let preparing = node_wire::VmState::Preparing;
    stage
        .until("being made ready", |report| report.vm_state() == preparing)
        .await;
    while !stage.told().contains(&Reason::DiskCreated) {
        tokio::task::yield_now().await;
    }
    assert_eq!(stage.hypervisor.launched(), 0);
    let next = tokio::spawn(async move {
        drop(other);
        turns.announce().arrive(true).await
    });
    stage.until_state(node_wire::VmState::Booting).await;
    assert!(is_copy(&stage.vm()));
    let mut guest = stage.guest().await;
    guest.say_hello("").await;
    // Another guest is to arrive first.
    let next = next.await.unwrap();
    assert!(guest.has_been_told_nothing().await);
    drop(next);
    let goal = guest.goal().await;
    assert_eq!(goal.instance_id, ID);
    assert_eq!(goal.roles.len(), 1);
    guest.role(wire::RoleState::Ready, 0).await;
    // Now others may have it.
    stage.node.workshop.turns.announce().arrive(true).await;
}

#[tokio::test]
async fn a_guest_without_a_processor_is_waited_for() {
    let mut stage = Stage::new();
    stage.limits(|limits| limits.heartbeat = Duration::from_millis(20));
    stage.limits(|limits| limits.starved = Duration::ZERO);
    stage.start();
    let _guest = stage.ready().await;
    let vm = stage.vm();
    let starving = tokio::spawn(async move {
        loop {
            *vm.waited.lock().unwrap() += Duration::from_millis(20);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let silent = tokio::time::timeout(
        Duration::from_millis(500),
        stage.until("given up", |report| report.boots > 1),
    );
    assert!(silent.await.is_err(), "it starved all the time");
    starving.abort();
    stage
        .until("started again", |report| report.boots > 1)
        .await;
}

#[tokio::test]
async fn a_virtual_machine_of_its_own_is_not_copied() {
    let mut stage = Stage::new().with_templates();
    stage.goal.role.as_mut().unwrap().kind = wire::RoleKind::Vm.into();
    stage.start();
    let _guest = stage.ready().await;
    assert!(!is_copy(&stage.vm()));
    assert_eq!(stage.hypervisor.templates(), 0);
}

#[tokio::test]
async fn an_instance_boots_when_there_can_be_no_template() {
    let mut stage = Stage::new().with_templates();
    stage.hypervisor.hang_templates(true);
    stage.start();
    let _guest = stage.ready().await;
    assert!(!is_copy(&stage.vm()));
    assert!(stage.told().contains(&Reason::TemplateFailed));
    assert_eq!(
        stage.hypervisor.running(),
        1,
        "the template's guest is ended"
    );
}

#[tokio::test]
async fn an_instance_boots_when_its_template_is_damaged() {
    let mut stage = Stage::new().with_templates();
    stage.start();
    let _guest = stage.ready().await;
    let Origin::Template(snapshot) = stage.vm().spec.origin else {
        panic!("not copied");
    };
    let memory = snapshot.join("memory");
    std::fs::remove_file(&memory).unwrap();
    std::fs::write(&memory, "something else").unwrap();
    stage.reimage(2).await;
    let _guest = stage.ready().await;
    assert!(!is_copy(&stage.vm()));
    assert!(stage.told().contains(&Reason::TemplateRefused));
}

#[tokio::test]
async fn an_instance_boots_on_a_fresh_disk_when_the_vmm_refuses_its_template() {
    let mut stage = Stage::new().with_templates();
    stage.start();
    stage.until_state(node_wire::VmState::Booting).await;
    assert!(is_copy(&stage.vm()));
    stage
        .vm()
        .end(ExitKind::Failed, "`vcpus` is 1: the snapshot has 2");
    stage.until("booting", |report| report.boots == 2).await;
    let _guest = stage.ready().await;
    assert!(!is_copy(&stage.vm()));
    assert_eq!(stage.vm().spec.os_parents.len(), 1);
    let events = stage.node.workshop.events.after(0);
    let refusal = events
        .iter()
        .find(|event| event.reason == Reason::TemplateRefused)
        .unwrap();
    assert!(
        refusal.message.contains("`vcpus` is 1"),
        "{}",
        refusal.message
    );
}

/// What it is to have, and what it is to go back to.
fn snapshot(generation: u64) -> node_wire::SnapshotGoal {
    let name = "early".to_owned();
    node_wire::SnapshotGoal { name, generation }
}

#[tokio::test]
async fn a_pause_outlives_the_host_agent_and_ends_with_the_time_of_day() {
    let mut stage = Stage::new();
    stage.start();
    let _guest = stage.ready().await;
    stage.follow(|goal| goal.power = node_wire::InstancePower::Paused.into());
    stage.until_state(node_wire::VmState::Paused).await;
    assert!(*stage.vm().paused.borrow());
    stage.kill().await;
    stage.start();
    let mut guest = stage.guest().await;
    guest.hello().await;
    stage.until_state(node_wire::VmState::Paused).await;

    stage.follow(|goal| goal.power = node_wire::InstancePower::Running.into());
    stage.until_state(node_wire::VmState::Running).await;
    assert!(!*stage.vm().paused.borrow());
    assert!(guest.goal().await.wall_clock.is_some());
    assert_eq!(stage.hypervisor.launched(), 1);
}

#[tokio::test]
async fn an_instance_goes_back_to_its_snapshot_and_loses_it_with_its_goal() {
    let mut stage = Stage::new();
    stage.start();
    let _guest = stage.ready().await;
    stage.follow(|goal| goal.snapshots.push(snapshot(1)));
    let taken = |report: &node_wire::InstanceStatus| {
        let state = report
            .snapshots
            .first()
            .map(node_wire::SnapshotStatus::state);
        state == Some(node_wire::SnapshotState::Ready)
            && report.vm_state() == node_wire::VmState::Running
    };
    stage.until("taken, and running again", taken).await;
    let place = stage.directory().join("snapshots/early");
    assert!(place.join("snapshot/memory").exists());

    stage.follow(|goal| {
        goal.restart_generation += 1;
        goal.restart_scope = node_wire::RestartScope::Restore.into();
        goal.restore_snapshot = "early".to_owned();
    });
    stage
        .until("started again", |report| report.boots == 2)
        .await;
    let back = Origin::Snapshot(place.join("snapshot"));
    assert_eq!(stage.vm().spec.origin, back);
    let report = stage.until_state(node_wire::VmState::Booting).await;
    assert_eq!(
        report.restored_generation, 0,
        "its guest has not been heard"
    );
    let _guest = stage.ready().await;
    let report = stage.until_state(node_wire::VmState::Running).await;
    assert_eq!(
        (report.restored_generation, report.restore_error),
        (1, String::new())
    );
    let end = report.last_end.unwrap();
    assert_eq!(end.cause(), node_wire::VmEndCause::Stopped);
    assert!(end.detail.contains("snapshot"), "{end:?}");

    stage.follow(|goal| goal.snapshots.clear());
    stage
        .until("without it", |report| report.snapshots.is_empty())
        .await;
    assert!(!place.exists());
}

#[tokio::test]
async fn a_snapshot_that_a_restart_of_the_host_agent_cut_off_is_taken_by_the_next() {
    let mut stage = Stage::new();
    stage.start();
    let _guest = stage.ready().await;
    stage.kill().await;
    // As if it had died while the machine stood still and was written down.
    let path = stage.directory().join(MANIFEST);
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let wanted = serde_json::json!({ "name": "early", "generation": 1 });
    manifest["machine"]["state"] =
        serde_json::json!({ "Handling": { "what": { "Snapshot": wanted } } });
    std::fs::write(&path, manifest.to_string()).unwrap();
    stage.vm().paused.send_replace(true);
    std::fs::create_dir_all(stage.directory().join("snapshots/.taking-cut-off")).unwrap();
    stage.goal.snapshots.push(snapshot(1));
    stage.start();
    let taken = |report: &node_wire::InstanceStatus| {
        report.snapshots.iter().any(|one| one.bytes > 0)
            && report.vm_state() == node_wire::VmState::Running
    };
    stage.until("taken", taken).await;
    assert!(!*stage.vm().paused.borrow());
    let names = std::fs::read_dir(stage.directory().join("snapshots")).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["early"]);
}

#[tokio::test]
async fn without_a_lease_nothing_runs_and_with_one_it_does_again() {
    let mut stage = Stage::new();
    let lease = Arc::clone(&stage.node.lease);
    lease.require(Some(Duration::from_millis(1_500)));
    stage.start();
    let report = stage.until_state(node_wire::VmState::Stopped).await;
    assert!(report.vm_reason.contains("lease"), "{report:?}");

    lease.granted(lease.request());
    stage.until_state(node_wire::VmState::Booting).await;
    let report = stage.until_state(node_wire::VmState::Stopped).await;
    let end = report.last_end.unwrap();
    assert_eq!(end.cause(), node_wire::VmEndCause::LeaseEnded);
    assert_eq!(report.vm_restarts, 0, "it has not failed");

    lease.granted(lease.request());
    stage.until_state(node_wire::VmState::Booting).await;
    assert!(stage.told().contains(&Reason::LeaseEnded));
}

#[tokio::test]
async fn a_machine_that_somebody_else_has_killed_without_a_lease_is_not_started_again() {
    let mut stage = Stage::new();
    let clock = Arc::new(std::sync::Mutex::new(Duration::from_secs(100)));
    let read = Arc::clone(&clock);
    let now = Arc::new(move || *read.lock().unwrap());
    stage.node.lease = Arc::new(Lease::unrecorded(now));
    let lease = Arc::clone(&stage.node.lease);
    lease.require(Some(PATIENCE));
    lease.granted(lease.request());
    stage.start();
    stage.until_state(node_wire::VmState::Booting).await;
    // It ends while nothing here is looked at, as for a process that was stopped.
    *clock.lock().unwrap() += PATIENCE;
    stage.vm().kill();
    let report = stage.until_state(node_wire::VmState::Stopped).await;
    let cause = report.last_end.unwrap().cause();
    assert_eq!(cause, node_wire::VmEndCause::LeaseEnded);
}

#[tokio::test]
async fn what_is_cut_off_by_a_panic_has_failed_and_is_tried_again() {
    let mut stage = Stage::new();
    stage.start();
    let guest = stage.ready().await;
    stage.hypervisor.panic(true);
    stage.follow(|goal| goal.power = node_wire::InstancePower::Paused.into());
    stage
        .until("not paused", |report| {
            report.vm_reason.contains("cannot be paused")
        })
        .await;
    assert!(stage.told().contains(&Reason::PauseFailed));
    stage.hypervisor.panic(false);
    guest
        .say(Report::Heartbeat(wire::Heartbeat::default()))
        .await;
    stage.until_state(node_wire::VmState::Paused).await;
}

/// A machine that is ready, and ends in that way.
async fn ends(cause: Cause) -> Stage {
    let mut stage = Stage::new();
    if cause == Cause::NotUp {
        stage.limits(|limits| limits.boot = Duration::from_millis(50));
        stage.start();
        return stage;
    }
    if cause == Cause::LeaseEnded {
        let lease = Arc::clone(&stage.node.lease);
        lease.require(Some(Duration::from_millis(1_500)));
        lease.granted(lease.request());
    }
    stage.start();
    if cause == Cause::LeaseEnded {
        return stage;
    }
    let guest = stage.ready().await;
    let stop = |goal: &mut node_wire::InstanceGoal| {
        goal.power = node_wire::InstancePower::Stopped.into();
    };
    let reset = |goal: &mut node_wire::InstanceGoal| {
        goal.restart_generation += 1;
        goal.restart_scope = node_wire::RestartScope::Reset.into();
    };
    match cause {
        Cause::PoweredOff => stage.vm().end(ExitKind::GuestPowerOff, ""),
        Cause::Rebooted => stage.vm().end(ExitKind::GuestReset, ""),
        Cause::Panicked => stage.vm().end(ExitKind::KernelPanic, "no init"),
        Cause::TripleFault => stage.vm().end(ExitKind::TripleFault, "at 0x0"),
        Cause::Killed => stage.vm().kill(),
        Cause::OutOfMemory => stage.vm().end(ExitKind::OutOfMemory, ""),
        Cause::ForbiddenCall => stage.vm().end(ExitKind::ForbiddenCall, ""),
        Cause::Refused => stage.vm().end(ExitKind::Refused, "no kernel"),
        Cause::VmmFailed => stage.vm().end(ExitKind::Failed, "a bug"),
        Cause::Stopped => {
            stage.follow(stop);
            stage.until_state(node_wire::VmState::Stopping).await;
            stage.vm().end(ExitKind::GuestPowerOff, "");
        }
        Cause::StoppedByForce => stage.follow(stop),
        Cause::Reset => stage.follow(reset),
        Cause::RoleFailed => {
            let failures = stage.node.limits.role_failures;
            guest.role(wire::RoleState::Unhealthy, failures).await;
        }
        Cause::Hung => {
            // Silent from now on, and not waited for as long as until now.
            stage.kill().await;
            stage.limits(|limits| {
                limits.heartbeat = Duration::from_millis(20);
                limits.reconnect = Duration::from_millis(100);
            });
            stage.start();
        }
        Cause::NotUp | Cause::LeaseEnded => unreachable!("seen to above"),
    }
    let ended = |report: &node_wire::InstanceStatus| report.last_end.is_some();
    stage.until("ended", ended).await;
    drop(guest);
    stage
}

#[tokio::test]
async fn every_end_is_told_apart_wherever_it_is_told() {
    let causes = [
        Cause::PoweredOff,
        Cause::Rebooted,
        Cause::Panicked,
        Cause::TripleFault,
        Cause::Hung,
        Cause::NotUp,
        Cause::RoleFailed,
        Cause::Stopped,
        Cause::StoppedByForce,
        Cause::Reset,
        Cause::LeaseEnded,
        Cause::Killed,
        Cause::OutOfMemory,
        Cause::ForbiddenCall,
        Cause::Refused,
        Cause::VmmFailed,
    ];
    let (mut kept, mut shown, mut told) = (Vec::new(), Vec::new(), Vec::new());
    for cause in causes {
        let stage = ends(cause).await;
        let ended = |report: &node_wire::InstanceStatus| report.last_end.is_some();
        let report = stage.until("ended", ended).await;
        let end = report.last_end.unwrap();
        let exit: serde_json::Value = serde_json::from_str(&report.last_exit_json).unwrap();
        let word = cause.word();
        assert_eq!(exit["cause"], word, "{exit}");
        assert_eq!(exit["why"], end.detail.as_str(), "{exit}");
        let since = humantime::parse_rfc3339(exit["since"].as_str().unwrap()).unwrap();
        let (shown_as, number) = (end.cause(), end.cause);
        let time = SystemTime::try_from(end.time.unwrap()).unwrap();
        assert!(time.duration_since(since).unwrap() < Duration::from_millis(1));
        // What its VMM said is there as well, unless it had nothing to say.
        assert_eq!(exit["kind"].is_string(), cause != Cause::Reset, "{exit}");
        let wire = format!("VM_END_CAUSE_{}", word.to_uppercase());
        assert_eq!(shown_as.as_str_name(), wire);
        let events = stage.node.workshop.events.after(0);
        let event = events
            .iter()
            .find(|one| matches!(one.reason, Reason::VmmExited | Reason::VmReset));
        let event = event.unwrap_or_else(|| panic!("{word}: not told"));
        let is_reset = event.reason == Reason::VmReset;
        assert_eq!(is_reset, cause == Cause::Reset, "{event:?}");
        let message = &event.message;
        assert!(message.starts_with(word), "{message} is not {word}");
        kept.push(exit["cause"].to_string());
        shown.push(number);
        told.push(message.split(':').next().unwrap().to_owned());
    }
    for words in [&mut kept, &mut told] {
        words.sort();
        words.dedup();
        assert_eq!(words.len(), causes.len(), "{words:?}");
    }
    shown.sort_unstable();
    shown.dedup();
    assert_eq!(shown.len(), causes.len());
}
