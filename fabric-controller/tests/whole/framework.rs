//! A controller in this process, a node that does what the test says, and waits
//! that have an end.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use fabric_controller::{
    controller::Config,
    listen::Address,
    model::lease::LeasePolicy,
    serve::{Serve, ServeError},
    trust::ca::{Ca, Requested},
};
use fabric_proto::{
    guest::v1::{RoleState, RoleStatus},
    id::Digest,
    node::v1::{
        InstanceGoal, InstanceStatus, Inventory, LeaseGrant, NodeEvent, NodeGoal, NodeStatus,
        Register, RestartScope, SessionRequest, SessionResponse, VmState,
        node_service_client::NodeServiceClient as HostAgentClient, session_request::Report,
        session_response::Message,
    },
    v1::{
        ApplyServiceRequest, ApplyServiceResponse, BeginUploadRequest, BeginUploadResponse, Blob,
        BlobKind, Event, Instance, ListEventsRequest, ListInstancesRequest, ListNodesRequest,
        Node as NodeMessage, RestartInstanceRequest, UploadRequest,
        audit_service_client::AuditServiceClient, blob_service_client::BlobServiceClient,
        event_service_client::EventServiceClient, instance_service_client::InstanceServiceClient,
        node_service_client::NodeServiceClient, placement_service_client::PlacementServiceClient,
        service_service_client::ServiceServiceClient, trust_service_client::TrustServiceClient,
    },
};
use fabric_trust::{context::Context, dial::Dial, identity::Role, key::NewKey};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

/// How long anything may take that should happen at once.
pub const SOON: Duration = Duration::from_secs(10);
/// How long a node may be silent in these tests.
pub const LOST: Duration = Duration::from_millis(1500);
/// How nodes are held to their leases in tests.
pub const LEASE: LeasePolicy = LeasePolicy {
    kill: Duration::from_millis(100),
    slack: Duration::from_millis(250),
    ..LeasePolicy::of(LOST)
};

/// Waits until what `look` sees is as wished.
pub async fn until<T: Debug, F: Future<Output = T>>(
    what: &str,
    mut look: impl FnMut() -> F,
    wished: impl Fn(&T) -> bool,
) -> T {
    let deadline = time::Instant::now() + SOON;
    loop {
        let seen = look().await;
        if wished(&seen) {
            return seen;
        }
        assert!(
            time::Instant::now() < deadline,
            "{what} did not come about; seen: {seen:#?}"
        );
        time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client of everything, over a unix socket.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        Ok(Self {
            channel: endpoint.connect_with_connector(connector).await?,
        })
    }

    /// On a channel.
    pub const fn of(channel: Channel) -> Self {
        Self { channel }
    }

    /// Over TCP, as a context says.
    pub async fn over_tls(context: &Context) -> Result<Self, String> {
        let connected = Dial::new(context).unwrap().connect().await;
        let channel = connected.map_err(|error| {
            let mut said = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                said = format!("{said}: {error}");
                cause = error.source();
            }
            said
        })?;
        Ok(Self { channel })
    }

    pub fn trust(&self) -> TrustServiceClient<Channel> {
        TrustServiceClient::new(self.channel.clone())
    }

    pub fn audit(&self) -> AuditServiceClient<Channel> {
        AuditServiceClient::new(self.channel.clone())
    }

    pub fn blobs(&self) -> BlobServiceClient<Channel> {
        BlobServiceClient::new(self.channel.clone())
    }

    pub fn services(&self) -> ServiceServiceClient<Channel> {
        ServiceServiceClient::new(self.channel.clone())
    }

    pub fn instances(&self) -> InstanceServiceClient<Channel> {
        InstanceServiceClient::new(self.channel.clone())
    }

    pub fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    pub fn placement(&self) -> PlacementServiceClient<Channel> {
        PlacementServiceClient::new(self.channel.clone())
    }

    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    pub fn host_agent(&self) -> HostAgentClient<Channel> {
        HostAgentClient::new(self.channel.clone())
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub async fn apply(&self, text: &str) -> Result<ApplyServiceResponse, Status> {
        self.apply_with_id(text, "").await
    }

    pub async fn apply_with_id(
        &self,
        text: &str,
        request_id: &str,
    ) -> Result<ApplyServiceResponse, Status> {
        let request = ApplyServiceRequest {
            definition_toml: text.to_owned(),
            file_name: "service.toml".to_owned(),
            request_id: request_id.to_owned(),
            ..ApplyServiceRequest::default()
        };
        self.services()
            .apply_service(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// Asks for a restart of that kind; its number.
    pub async fn restart(&self, instance_id: &str, scope: RestartScope) -> u64 {
        let request = RestartInstanceRequest {
            instance_id: instance_id.to_owned(),
            scope: scope.into(),
            request_id: String::new(),
        };
        let answer = self.instances().restart_instance(request).await.unwrap();
        answer.into_inner().restart_generation
    }

    pub async fn list(&self) -> Vec<Instance> {
        let request = ListInstancesRequest::default();
        self.instances()
            .list_instances(request)
            .await
            .unwrap()
            .into_inner()
            .instances
    }

    /// A node that is known.
    pub async fn node(&self, name: &str) -> NodeMessage {
        let answer = self.nodes().list_nodes(ListNodesRequest {}).await.unwrap();
        let mut nodes = answer.into_inner().nodes.into_iter();
        nodes.find(|one| one.node_id == name).unwrap()
    }

    /// Ids and words of all instances.
    pub async fn words(&self) -> Vec<(String, String)> {
        self.list()
            .await
            .into_iter()
            .map(|one| (one.instance_id, one.state))
            .collect()
    }

    /// Waits until these are the instances and their words.
    pub async fn wait_for_words(&self, wished: &[(&str, &str)]) {
        until(
            "the instances' states",
            async || self.words().await,
            |seen| {
                seen.iter()
                    .map(|(id, word)| (id.as_str(), word.as_str()))
                    .eq(wished.iter().copied())
            },
        )
        .await;
    }

    pub async fn all_events(&self) -> Vec<Event> {
        let mut all: Vec<Event> = Vec::new();
        loop {
            let request = ListEventsRequest {
                after_cursor: all.last().map_or(0, |event| event.cursor),
                ..ListEventsRequest::default()
            };
            let page = self.events().list_events(request).await.unwrap();
            let events = page.into_inner().events;
            if events.is_empty() {
                return all;
            }
            all.extend(events);
        }
    }

    /// Reasons of all events about one thing.
    pub async fn reasons(&self, subject: &str) -> Vec<String> {
        let all = self.all_events().await.into_iter();
        all.filter(|event| event.subject == subject)
            .map(|event| event.reason)
            .collect()
    }

    pub async fn begin(
        &self,
        kind: BlobKind,
        name: &str,
        bytes: &[u8],
    ) -> Result<BeginUploadResponse, Status> {
        self.begin_for("", kind, name, bytes).await
    }

    /// Begins with what is for those processors.
    async fn begin_for(
        &self,
        architecture: &str,
        kind: BlobKind,
        name: &str,
        bytes: &[u8],
    ) -> Result<BeginUploadResponse, Status> {
        let request = BeginUploadRequest {
            name: name.to_owned(),
            kind: kind.into(),
            digest: digest(bytes).to_string(),
            size_bytes: bytes.len() as u64,
            architecture: architecture.to_owned(),
            ..BeginUploadRequest::default()
        };
        self.blobs()
            .begin_upload(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// Sends these bytes of the file of that digest, from that offset on.
    pub async fn send(&self, digest: &Digest, offset: usize, bytes: &[u8]) -> Result<Blob, Status> {
        let pieces: Vec<_> = pieces(digest, offset, bytes);
        let answer = self.blobs().upload(tokio_stream::iter(pieces)).await?;
        Ok(answer.into_inner().blob.unwrap())
    }

    pub async fn upload(&self, kind: BlobKind, name: &str, bytes: &[u8]) -> Result<Blob, Status> {
        self.upload_for("", kind, name, bytes).await
    }

    /// Uploads what is for those processors.
    pub async fn upload_for(
        &self,
        architecture: &str,
        kind: BlobKind,
        name: &str,
        bytes: &[u8],
    ) -> Result<Blob, Status> {
        let begun = self.begin_for(architecture, kind, name, bytes).await?;
        if let Some(blob) = begun.blob {
            return Ok(blob);
        }
        let offset = usize::try_from(begun.offset).unwrap();
        self.send(&digest(bytes), offset, &bytes[offset..]).await
    }

    /// What a first service needs.
    pub async fn upload_guest_os(&self) -> Blob {
        self.upload(BlobKind::Image, "guest-os", &vhd())
            .await
            .unwrap()
    }
}

/// An upload in pieces: one at least, as its first says what is uploaded.
pub fn pieces(digest: &Digest, offset: usize, bytes: &[u8]) -> Vec<UploadRequest> {
    let piece = |(index, data)| UploadRequest {
        digest: String::new(),
        offset: (offset + index * 10_000) as u64,
        data: Bytes::copy_from_slice(data),
    };
    let mut pieces: Vec<_> = bytes.chunks(10_000).enumerate().map(piece).collect();
    if pieces.is_empty() {
        pieces.push(piece((0, bytes)));
    }
    pieces[0].digest = digest.to_string();
    pieces
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::of_sha256(&Sha256::digest(bytes).into())
}

/// A small VHD, another one every time.
pub fn vhd() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhd");
    vhd::create_fixed(&path, &vhd::CreateOptions::new(64 * 1024)).unwrap();
    std::fs::read(path).unwrap()
}

/// A service file with one role of so many instances.
pub fn shop(instances: u32) -> String {
    format!(
        "name = \"shop\"\n[sizes.tiny]\nvcpus = 1\nmemory = \"128MiB\"\n[[role]]\nname = \"web\"\n\
         kind = \"web\"\nsize = \"tiny\"\ninstances = {instances}\nimage = \"guest-os\"\n\
         command = [\"/bin/true\"]\n"
    )
}

/// A controller that runs in this process until it is dropped.
pub struct Controller {
    pub data: TempDir,
    /// Where it listens for TLS.
    pub tcp: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ServeError>>,
}

impl Controller {
    pub async fn start() -> (Self, Client) {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub async fn start_in(data: TempDir) -> (Self, Client) {
        let config = Config {
            heartbeat_period: Duration::from_millis(50),
            lost_after: LOST,
            lease: Some(LEASE),
            metrics_listen: Some(fabric_metrics::serve::Address::Unix(metrics_of(&data))),
            ..Config::default()
        };
        let socket = data.path().join("s");
        let address = Address::Unix(socket.clone());
        let addresses = vec![address, "127.0.0.1:0".parse().unwrap()];
        let server = Serve::prepare(&data.path().join("d"), addresses, config)
            .await
            .unwrap();
        let tcp = server.addresses().find_map(|address| match address {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        });
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        let client = Client::connect(&socket).await.unwrap();
        (
            Self {
                data,
                tcp: tcp.unwrap(),
                stop,
                running,
            },
            client,
        )
    }

    /// The socket where its metrics are.
    pub fn metrics(&self) -> PathBuf {
        metrics_of(&self.data)
    }

    /// The CA, as the controller has it.
    pub fn ca(&self) -> Ca {
        Ca::open(&self.data.path().join("d/trust")).unwrap().0
    }

    /// A context for whoever that is, for so long.
    pub fn context(&self, role: Role, name: &str, ttl: Duration) -> Context {
        context(&self.ca(), self.tcp, role, name, ttl)
    }

    /// A client with a certificate of that role.
    pub async fn client(&self, role: Role, name: &str) -> Client {
        let hour = Duration::from_secs(3600);
        Client::over_tls(&self.context(role, name, hour))
            .await
            .unwrap()
    }

    /// Ends it; everything that it has is closed then.
    pub async fn stop(self) -> TempDir {
        self.stop.cancel();
        time::timeout(SOON, self.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        self.data
    }

    pub async fn restart(self) -> (Self, Client) {
        Self::start_in(self.stop().await).await
    }
}

fn metrics_of(data: &TempDir) -> PathBuf {
    data.path().join("m")
}

/// A context for a controller, with a certificate of some CA.
pub fn context(ca: &Ca, tcp: SocketAddr, role: Role, name: &str, ttl: Duration) -> Context {
    let key = NewKey::generate().unwrap();
    let requested = Requested::read(&key.request).unwrap();
    Context {
        server: tcp.to_string().parse().unwrap(),
        ca: ca.pem().to_owned(),
        certificate: ca.issue(&requested, role, name, ttl).unwrap().pem,
        key: key.key_pem,
    }
}

/// A host agent that does what the test says.
pub struct Node {
    pub reports: mpsc::Sender<SessionRequest>,
    answers: Streaming<SessionResponse>,
    pub goal: NodeGoal,
    pub acknowledged: u64,
    pub lease: Option<LeaseGrant>,
}

impl Node {
    /// Registers a node of 4 processors and 2 GiB, takes its first goal, and
    /// reports that it has no instance.
    pub async fn join(client: &Client, name: &str) -> Self {
        let mut node = Self::register(client, register(name, 0)).await.unwrap();
        node.next_goal().await;
        node.status(vec![]).await;
        node
    }

    pub async fn register(client: &Client, register: Register) -> Result<Self, Status> {
        let (reports, sent) = mpsc::channel(16);
        let first = SessionRequest {
            report: Some(Report::Register(register)),
        };
        reports.send(first).await.unwrap();
        let answers = client
            .host_agent()
            .session(ReceiverStream::new(sent))
            .await?
            .into_inner();
        Ok(Self {
            reports,
            answers,
            goal: NodeGoal::default(),
            acknowledged: 0,
            lease: None,
        })
    }

    /// The next answer; an error if the session has ended.
    pub async fn answer(&mut self) -> Result<Message, Status> {
        let answer = time::timeout(SOON, self.answers.message())
            .await
            .expect("no answer came");
        Ok(answer?.expect("the session ended").message.unwrap())
    }

    /// Takes in answers until a goal comes.
    pub async fn next_goal(&mut self) {
        loop {
            match self.answer().await.unwrap() {
                Message::Goal(goal) => {
                    assert!(
                        goal.incarnation > self.goal.incarnation,
                        "an older goal came"
                    );
                    self.goal = goal;
                    return;
                }
                Message::AcknowledgedEvent(sequence) => self.acknowledged = sequence,
                Message::Lease(grant) => self.lease = Some(grant),
            }
        }
    }

    /// Asks for a lease until one is granted.
    pub async fn lease(&mut self) -> LeaseGrant {
        self.lease = None;
        loop {
            let status = NodeStatus {
                applied_incarnation: self.goal.incarnation,
                lease_request: 1,
                ..NodeStatus::default()
            };
            self.report(Report::Status(status)).await;
            let soon = time::timeout(LOST / 10, self.answers.message()).await;
            if let Ok(answer) = soon {
                match answer.unwrap().expect("the session ended").message.unwrap() {
                    Message::Goal(goal) => self.goal = goal,
                    Message::AcknowledgedEvent(sequence) => self.acknowledged = sequence,
                    Message::Lease(grant) => return grant,
                }
            }
        }
    }

    /// Goes on by itself: follows every goal and reports that everything is Ready,
    /// until it is aborted.
    pub fn live(self) -> AbortOnDropHandle<()> {
        self.live_as(ready_as)
    }

    /// The same, reporting of each instance what that says, until the session ends.
    pub fn live_as(mut self, is: fn(&InstanceGoal) -> InstanceStatus) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let status = NodeStatus {
                    applied_incarnation: self.goal.incarnation,
                    instances: self.goal.instances.iter().map(is).collect(),
                    ..NodeStatus::default()
                };
                let report = Some(Report::Status(status));
                if self.reports.send(SessionRequest { report }).await.is_err() {
                    return;
                }
                match time::timeout(LOST / 10, self.answers.message()).await {
                    Ok(Ok(Some(answer))) => {
                        if let Some(Message::Goal(goal)) = answer.message {
                            self.goal = goal;
                        }
                    }
                    Ok(_) => return,
                    Err(_) => {}
                }
            }
        }))
    }

    /// Takes in goals until the programs of its instances are these.
    pub async fn goal_of(&mut self, programs: &[(&str, &str)]) {
        while programs_of(&self.goal) != programs {
            self.next_goal().await;
        }
    }

    /// Takes in goals until one has exactly these instances.
    pub async fn goal_with(&mut self, ids: &[&str]) {
        while !self
            .goal
            .instances
            .iter()
            .map(|one| one.instance_id.as_str())
            .eq(ids.iter().copied())
        {
            self.next_goal().await;
        }
    }

    /// Takes in answers until so many events are acknowledged.
    pub async fn acknowledged(&mut self, sequence: u64) {
        while self.acknowledged < sequence {
            match self.answer().await.unwrap() {
                Message::Goal(goal) => self.goal = goal,
                Message::AcknowledgedEvent(sequence) => self.acknowledged = sequence,
                Message::Lease(grant) => self.lease = Some(grant),
            }
        }
    }

    pub async fn report(&self, report: Report) {
        self.reports
            .send(SessionRequest {
                report: Some(report),
            })
            .await
            .expect("session ended");
    }

    /// Reports these instances under the goal it has.
    pub async fn status(&self, instances: Vec<InstanceStatus>) {
        let status = NodeStatus {
            applied_incarnation: self.goal.incarnation,
            instances,
            ..NodeStatus::default()
        };
        self.report(Report::Status(status)).await;
    }

    /// Reports that everything in its goal is Ready.
    pub async fn all_ready(&self) {
        self.all_ready_but(&[]).await;
    }

    /// Reports that everything in its goal is Ready, but for what has this instead.
    pub async fn all_ready_but(&self, others: &[(&str, VmState)]) {
        let all = self.goal.instances.iter().map(|one| {
            let other = others.iter().find(|(id, _)| *id == one.instance_id);
            match other {
                None => ready_as(one),
                Some((_, state)) => InstanceStatus {
                    vm_state: (*state).into(),
                    ..ready_as(one)
                },
            }
        });
        self.status(all.collect()).await;
    }

    pub async fn event(&self, sequence: u64, instance_id: &str, reason: &str) {
        let event = NodeEvent {
            sequence,
            instance_id: instance_id.to_owned(),
            reason: reason.to_owned(),
            message: format!("number {sequence}"),
            ..NodeEvent::default()
        };
        self.report(Report::Event(event)).await;
    }
}

/// The instances of a goal, and the programs of their roles.
pub fn programs_of(goal: &NodeGoal) -> Vec<(&str, &str)> {
    let instances = goal.instances.iter();
    let programs = instances.map(|one| {
        let role = one.role.as_ref().unwrap();
        (one.instance_id.as_str(), role.command[0].as_str())
    });
    programs.collect()
}

pub fn register(name: &str, seen_incarnation: u64) -> Register {
    Register {
        node_id: name.to_owned(),
        protocol_version: 1,
        agent_version: "test".to_owned(),
        inventory: Some(Inventory {
            cpus: 4,
            memory_bytes: 2 << 30,
            kvm_kind: "interpreted".to_owned(),
            ..Inventory::default()
        }),
        seen_incarnation,
        labels: BTreeMap::new(),
    }
}

/// An instance that is Ready as the goal wants it.
pub fn ready_as(goal: &InstanceGoal) -> InstanceStatus {
    let mut status = ready(&goal.instance_id, goal.epoch);
    if let (Some(is), Some(wanted)) = (&mut status.role, &goal.role) {
        is.restart_generation = wanted.restart_generation;
    }
    status
}

/// An instance whose role is Ready.
pub fn ready(instance_id: &str, epoch: u64) -> InstanceStatus {
    InstanceStatus {
        instance_id: instance_id.to_owned(),
        epoch,
        vm_state: VmState::Running.into(),
        vmm_pid: 42,
        boots: 1,
        role: Some(RoleStatus {
            role: "web".to_owned(),
            state: RoleState::Ready.into(),
            ..RoleStatus::default()
        }),
        ..InstanceStatus::default()
    }
}
