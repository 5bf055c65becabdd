//! A fabric in which every call has something to do, and copies of it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use fabric_controller::{fail_point::Step, maintenance};
use fabric_proto::{
    node::v1::{
        InstanceGoal, InstancePower, InstanceStatus, SessionRequest, SnapshotState, SnapshotStatus,
        VmState,
    },
    v1::{
        ApplyServiceRequest, BlobKind, CertificateRole, CordonNodeRequest,
        CreateCertificateRequest, CreateTokenRequest, PauseInstanceRequest, Slot,
        SnapshotInstanceRequest, StopInstanceRequest,
    },
};
use fabric_trust::key::NewKey;
use tempfile::TempDir;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::{framework::*, program::*, said};

/// No node is lost, and none has a lease, while a test takes its time.
pub const CALM: [&str; 6] = [
    "--lost-after",
    "1h",
    "--lease",
    "off",
    "--listen",
    "127.0.0.1:0",
];

/// After so long without a write there is none to come: whatever follows from a call
/// follows at once.
const QUIET: Duration = Duration::from_millis(100);

/// A data directory with something of everything in it, and what was told of that.
pub struct Stage {
    dir: TempDir,
    /// With which node n4 may join.
    pub token: String,
    /// An image of which an upload has begun.
    pub arriving: Vec<u8>,
}

/// A copy of it, and a controller there.
pub struct Copy {
    dir: TempDir,
    pub program: Program,
    pub client: Client,
    _node: AbortOnDropHandle<()>,
}

impl Stage {
    pub async fn set() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut program, client) = start(dir.path()).await;
        client.upload_guest_os().await;
        client
            .upload(BlobKind::Image, "spare", &vhd())
            .await
            .unwrap();
        let arriving = vhd();
        client
            .begin(BlobKind::Image, "arriving", &arriving)
            .await
            .unwrap();
        let node = Node::join(&client, "n1").await.live_as(is);
        for name in ["n2", "n3"] {
            Node::join(&client, name).await;
        }
        client
            .nodes()
            .cordon_node(CordonNodeRequest {
                node_id: "n3".to_owned(),
                ..CordonNodeRequest::default()
            })
            .await
            .unwrap();
        services(&client).await;
        let token = CreateTokenRequest {
            node_id: "n4".to_owned(),
            ttl: Some(prost_types::Duration::try_from(Duration::from_secs(3600)).unwrap()),
            ..CreateTokenRequest::default()
        };
        let token = client.trust().create_token(token).await.unwrap();
        let bob = certificate("bob", "");
        client.trust().create_certificate(bob).await.unwrap();
        surely_settled(dir.path()).await;
        drop(node);
        program.ask_to_end();
        assert!(program.ended().await.success(), "{}", program.log());
        Self {
            dir,
            token: token.into_inner().token,
            arriving,
        }
    }

    /// A copy of it, with a controller that has taken everything up.
    pub async fn copy(&self) -> Copy {
        let dir = self.files();
        Copy::up(dir).await
    }

    /// A copy of its files.
    pub fn files(&self) -> TempDir {
        files_of(self.dir.path())
    }
}

impl Copy {
    async fn up(dir: TempDir) -> Self {
        let (program, client) = start(dir.path()).await;
        let Live { task, .. } = live(&client, "n1").await.unwrap();
        has_its_goal(&client, "n1").await;
        settled(dir.path()).await;
        Self {
            dir,
            program,
            client,
            _node: task,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Has the controller end at a step.
    pub fn arm(&self, step: Step) -> PathBuf {
        arm(step, self.path())
    }

    /// Once it is dead: looks at what it has left, and starts the next one.
    pub async fn again(mut self) -> Self {
        let status = self.program.ended().await;
        assert!(!status.success(), "{status}");
        assert_sound(&self.path().join("d"));
        Self::up(self.dir).await
    }
}

/// A copy of what is kept in a directory.
pub fn files_of(dir: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    copy(&dir.join("d"), &to.path().join("d"));
    to
}

/// A node that lives.
pub struct Live {
    /// Where its host agent tells what happens.
    pub reports: mpsc::Sender<SessionRequest>,
    pub task: AbortOnDropHandle<()>,
}

/// A node of the stage comes back, and does as it is told. It has seen a goal before.
pub async fn live(client: &Client, name: &str) -> Result<Live, Status> {
    let node = Node::register(client, register(name, 1)).await?;
    Ok(Live {
        reports: node.reports.clone(),
        task: node.live_as(is),
    })
}

/// Waits until a node is as it was told to be.
pub async fn has_its_goal(client: &Client, name: &str) {
    until(
        "a node with its goal",
        async || client.node(name).await,
        |node| node.goal_incarnation > 0 && node.applied_incarnation == node.goal_incarnation,
    )
    .await;
}

/// Has whoever is started in the directory end at a step. The file is there until somebody
/// has come to it.
pub fn arm(step: Step, dir: &Path) -> PathBuf {
    let armed = dir.join(ARMED);
    fs::create_dir(&armed).unwrap();
    let file = armed.join(format!("{step:?}"));
    fs::write(&file, "").unwrap();
    file
}

/// How many instances the stage has.
pub const INSTANCES: usize = 5;

/// The stage's instances, and what they are.
const WORDS: [(&str, &str); INSTANCES] = [
    ("down-web-0", "Stopped"),
    ("shop-web-0", "Ready"),
    ("snap-web-0", "Ready"),
    ("still-web-0", "Paused"),
    ("walk-web-0", "Starting"),
];

async fn services(client: &Client) {
    for (name, program) in [
        ("old", "/v1"),
        ("old", "/v2"),
        ("walk", "/v1"),
        ("walk", "/v2"),
    ] {
        let count = u32::from(name == "walk");
        client.apply(&service(name, count, program)).await.unwrap();
    }
    client
        .services()
        .apply_service(ApplyServiceRequest {
            definition_toml: service("old", 0, "/v3"),
            file_name: "service.toml".to_owned(),
            slot: Slot::Staging.into(),
            ..ApplyServiceRequest::default()
        })
        .await
        .unwrap();
    for name in ["down", "shop", "snap", "still"] {
        client.apply(&service(name, 1, "/v1")).await.unwrap();
    }
    let ready = WORDS.map(|(id, word)| match word {
        "Paused" | "Stopped" => (id, "Ready"),
        _ => (id, word),
    });
    client.wait_for_words(&ready).await;
    let pause = PauseInstanceRequest {
        instance_id: "still-web-0".to_owned(),
        request_id: String::new(),
    };
    client.instances().pause_instance(pause).await.unwrap();
    let stop = StopInstanceRequest {
        instance_id: "down-web-0".to_owned(),
        ..StopInstanceRequest::default()
    };
    client.instances().stop_instance(stop).await.unwrap();
    let snapshot = SnapshotInstanceRequest {
        instance_id: "snap-web-0".to_owned(),
        snapshot: "early".to_owned(),
        request_id: String::new(),
    };
    client
        .instances()
        .snapshot_instance(snapshot)
        .await
        .unwrap();
    client.wait_for_words(&WORDS).await;
}

/// A service of one role that runs that program.
pub fn service(name: &str, instances: u32, program: &str) -> String {
    shop(instances)
        .replace("shop", name)
        .replace("/bin/true", program)
}

pub fn certificate(name: &str, request_id: &str) -> CreateCertificateRequest {
    CreateCertificateRequest {
        name: name.to_owned(),
        role: CertificateRole::Reader.into(),
        ttl: Some(prost_types::Duration::try_from(Duration::from_secs(3600)).unwrap()),
        csr: NewKey::generate().unwrap().request.into(),
        request_id: request_id.to_owned(),
    }
}

/// What the node makes of an instance: all that is wanted, but for a role that never is
/// ready.
pub fn is(goal: &InstanceGoal) -> InstanceStatus {
    let snapshots = goal.snapshots.iter().map(|one| SnapshotStatus {
        name: one.name.clone(),
        generation: one.generation,
        state: SnapshotState::Ready.into(),
        ..SnapshotStatus::default()
    });
    let mut is = InstanceStatus {
        snapshots: snapshots.collect(),
        ..ready_as(goal)
    };
    match goal.power() {
        InstancePower::Paused => is.vm_state = VmState::Paused.into(),
        InstancePower::Stopped => is.vm_state = VmState::Stopped.into(),
        InstancePower::Running | InstancePower::Unspecified => {}
    }
    if goal.instance_id.starts_with("walk")
        && let Some(role) = &mut is.role
    {
        role.state = fabric_proto::guest::v1::RoleState::Starting.into();
    }
    is
}

/// Starts a controller that does nothing by itself in the time of a test.
pub async fn start(dir: &Path) -> (Program, Client) {
    Program::start_as(&[], dir, &CALM).await
}

/// Where a controller listens for TLS.
pub async fn tcp(program: &Program) -> SocketAddr {
    let listens = |log: &String| {
        let port = log.split("listening on 127.0.0.1:").nth(1)?;
        port.split_whitespace().next()?.parse().ok()
    };
    let look = async || program.log();
    let log = until("its port", look, |log| listens(log).is_some()).await;
    SocketAddr::from(([127, 0, 0, 1], listens(&log).unwrap()))
}

/// Waits until nothing more is written.
pub async fn settled(dir: &Path) {
    quiet_for(dir, QUIET).await;
}

/// The same, and longer, for what others are compared with: what follows from a call may
/// be late on a busy machine.
pub async fn surely_settled(dir: &Path) {
    quiet_for(dir, 20 * QUIET).await;
}

async fn quiet_for(dir: &Path, quiet: Duration) {
    let deadline = Instant::now() + SOON;
    let mut seen = (said::entries(dir).1, Instant::now());
    while seen.1.elapsed() < quiet {
        assert!(Instant::now() < deadline, "it is written all the time");
        sleep(QUIET / 10).await;
        let revision = said::entries(dir).1;
        if revision != seen.0 {
            seen = (revision, Instant::now());
        }
    }
}

/// Nothing is wrong with a data directory, to the last byte.
pub fn assert_sound(data_dir: &Path) {
    let found = maintenance::check(data_dir, true).unwrap();
    assert_eq!(found.problems, Vec::<String>::new());
}

/// Copies a directory.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry
            .map(|entry| (entry.path(), entry.file_name()))
            .unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else if path.is_file() {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}
