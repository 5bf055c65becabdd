//! A controller with many nodes and instances.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use fabric_proto::{
    PROTOCOL_VERSION,
    guest::v1::{RoleState, RoleStatus},
    id::Digest,
    node::v1::{
        InstanceStatus, Inventory, NodeGoal, NodeStatus, Register, SessionRequest, VmState,
        node_service_client::NodeServiceClient as HostAgentClient, session_request::Report,
        session_response::Message,
    },
    v1::{
        ApplyServiceRequest, BeginUploadRequest, BlobKind, ListInstancesRequest, ListNodesRequest,
        UploadRequest, blob_service_client::BlobServiceClient,
        instance_service_client::InstanceServiceClient, node_service_client::NodeServiceClient,
        service_service_client::ServiceServiceClient,
    },
};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinSet, time};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Error};

/// Instances of one service.
const OF_A_SERVICE: usize = 100;
/// Sessions over one connection.
const OF_A_CONNECTION: usize = 250;
/// Biggest answer.
const ANSWER: usize = 64 << 20;

/// See the [module](self).
pub struct Fabric {
    dir: TempDir,
    program: PathBuf,
    child: Child,
}

/// Talks to the controller.
pub struct Client(Channel);

impl Fabric {
    /// Makes one.
    pub async fn build(program: PathBuf, nodes: usize, instances: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let child = launch(&program, &dir);
        let fabric = Self {
            dir,
            program,
            child,
        };
        let client = fabric.connected().await;
        eprintln!("{nodes} nodes register");
        let mut sessions = JoinSet::new();
        for first in (0..nodes).step_by(OF_A_CONNECTION) {
            let client = fabric.connected().await;
            for node in first..nodes.min(first + OF_A_CONNECTION) {
                sessions.spawn(session(client.0.clone(), node));
            }
        }
        while client.nodes().await < nodes {
            time::sleep(Duration::from_millis(100)).await;
        }
        eprintln!("{instances} instances are placed");
        client.upload().await;
        for first in (0..instances).step_by(OF_A_SERVICE) {
            let count = OF_A_SERVICE.min(instances - first);
            client.apply(first / OF_A_SERVICE, count).await;
        }
        while client.ready().await < instances {
            time::sleep(Duration::from_millis(100)).await;
        }
        fabric
    }

    /// Ends the controller, which has no time to prepare for it.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Starts the next one, and connects.
    pub async fn start(&mut self) -> Client {
        self.child = launch(&self.program, &self.dir);
        self.connected().await
    }

    /// Size of the store, with its log.
    pub fn store_bytes(&self) -> u64 {
        let files = ["d/store.db", "d/store.db-wal"].map(|name| self.dir.path().join(name));
        let sizes = files.iter().filter_map(|file| std::fs::metadata(file).ok());
        sizes.map(|facts| facts.len()).sum()
    }

    /// A connection, as soon as there can be one.
    async fn connected(&self) -> Client {
        loop {
            match self.connect().await {
                Ok(channel) => return Client(channel),
                Err(_) => time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    async fn connect(&self) -> Result<Channel, Error> {
        let socket = self.dir.path().join("d/controller.sock");
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
        endpoint.connect().await
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A controller that neither loses nodes nor moves anything while it is measured.
fn launch(program: &PathBuf, dir: &TempDir) -> Child {
    Command::new(program)
        .args(["serve", "--listen", "127.0.0.1:0", "--lost-after", "1h"])
        .args(["--lease", "off", "--data-dir"])
        .arg(dir.path().join("d"))
        .stderr(Stdio::null())
        .spawn()
        .expect("the program can be started")
}

impl Client {
    /// How many instances are listed.
    pub async fn instances(&self) -> usize {
        self.list(|_| true).await
    }

    async fn ready(&self) -> usize {
        self.list(|state| state == "Ready").await
    }

    async fn list(&self, counts: fn(&str) -> bool) -> usize {
        let client = InstanceServiceClient::new(self.0.clone());
        let answer = client
            .max_decoding_message_size(ANSWER)
            .list_instances(ListInstancesRequest::default())
            .await;
        let all = answer.expect("a list").into_inner().instances;
        all.iter().filter(|one| counts(&one.state)).count()
    }

    /// How many nodes are listed.
    pub async fn nodes(&self) -> usize {
        let client = NodeServiceClient::new(self.0.clone());
        let answer = client
            .max_decoding_message_size(ANSWER)
            .list_nodes(ListNodesRequest {})
            .await;
        answer.expect("a list").into_inner().nodes.len()
    }

    /// Uploads the image that all have.
    async fn upload(&self) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.vhd");
        vhd::create_fixed(&path, &vhd::CreateOptions::new(64 * 1024)).expect("an image");
        let data = std::fs::read(path).expect("the image");
        let digest = Digest::of_sha256(&Sha256::digest(&data).into()).to_string();
        let mut client = BlobServiceClient::new(self.0.clone());
        let begin = BeginUploadRequest {
            name: "guest-os".to_owned(),
            kind: BlobKind::Image.into(),
            digest: digest.clone(),
            size_bytes: data.len() as u64,
            ..BeginUploadRequest::default()
        };
        client.begin_upload(begin).await.expect("a beginning");
        let piece = UploadRequest {
            digest,
            offset: 0,
            data: Bytes::from(data),
        };
        let sent = client.upload(tokio_stream::once(piece)).await;
        sent.expect("an upload");
    }

    /// Applies a service.
    async fn apply(&self, number: usize, instances: usize) {
        let request = ApplyServiceRequest {
            definition_toml: format!(
                "name = \"shop-{number}\"\n[sizes.tiny]\nvcpus = 1\nmemory = \"128MiB\"\n\
                 [[role]]\nname = \"web\"\nkind = \"web\"\nsize = \"tiny\"\n\
                 instances = {instances}\nimage = \"guest-os\"\ncommand = [\"/bin/true\"]\n"
            ),
            file_name: "service.toml".to_owned(),
            request_id: format!("shop-{number}"),
            ..ApplyServiceRequest::default()
        };
        let mut client = ServiceServiceClient::new(self.0.clone());
        client.apply_service(request).await.expect("a service");
    }
}

/// A node that has all that it is told to have, until the controller is gone.
async fn session(channel: Channel, number: usize) {
    let (reports, sent) = mpsc::channel(4);
    let report = |report| SessionRequest {
        report: Some(report),
    };
    let register = Register {
        node_id: format!("node-{number}"),
        protocol_version: PROTOCOL_VERSION,
        agent_version: "bench".to_owned(),
        inventory: Some(Inventory {
            cpus: 16,
            memory_bytes: 64 << 30,
            ..Inventory::default()
        }),
        labels: [("fault-domain".to_owned(), format!("rack-{}", number % 40))].into(),
        seen_incarnation: 0,
    };
    if reports
        .send(report(Report::Register(register)))
        .await
        .is_err()
    {
        return;
    }
    let mut client = HostAgentClient::new(channel);
    let Ok(answers) = client.session(ReceiverStream::new(sent)).await else {
        return;
    };
    let mut answers = answers.into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        if let Some(Message::Goal(goal)) = answer.message
            && reports
                .send(report(Report::Status(has(&goal))))
                .await
                .is_err()
        {
            return;
        }
    }
}

/// All that is wanted.
fn has(goal: &NodeGoal) -> NodeStatus {
    let instances = goal.instances.iter().map(|wanted| InstanceStatus {
        instance_id: wanted.instance_id.clone(),
        epoch: wanted.epoch,
        vm_state: VmState::Running.into(),
        vmm_pid: 1,
        boots: 1,
        role: Some(RoleStatus {
            role: "web".to_owned(),
            state: RoleState::Ready.into(),
            ..RoleStatus::default()
        }),
        ..InstanceStatus::default()
    });
    NodeStatus {
        applied_incarnation: goal.incarnation,
        instances: instances.collect(),
        ..NodeStatus::default()
    }
}
