//! Who makes calls: each until it is answered, under one request id, and who remembers
//! what was acknowledged. Once faults are over it does what the fabric leaves to
//! operators: it restarts what has failed for good, resumes updates that have stopped,
//! and takes nodes back.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fabric_proto::{
    node::v1::RestartScope,
    v1::{
        ApplyServiceRequest, ControlUpdateRequest, DeleteServiceRequest, DrainNodeRequest,
        GetUpdateRequest, ListInstancesRequest, ListNodesRequest, ListServicesRequest, Node,
        RestartInstanceRequest, UncordonNodeRequest, UpdateAction, UpdateState,
        instance_service_client::InstanceServiceClient, node_service_client::NodeServiceClient,
        service_service_client::ServiceServiceClient,
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Code, Status, transport::Channel};

use crate::plan::Call;

/// How long a call may take before it is made again.
const PATIENCE: Duration = Duration::from_secs(8);
/// Before that.
const AGAIN: Duration = Duration::from_millis(700);
/// How often is looked for what there is to tidy up.
const LOOK: Duration = Duration::from_secs(5);

/// What the operator knows, for others to see.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<Noted>>);

/// What has been noted.
#[derive(Debug, Default)]
pub struct Noted {
    /// Request ids of calls that were acknowledged, and what they did.
    pub acknowledged: BTreeMap<String, Effect>,
    /// What there is to tell, since it was asked last.
    pub told: Vec<String>,
    /// Whether every call of the plan has been made.
    pub done: bool,
}

/// What an acknowledged call has brought about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The service is at this generation, or a later one.
    Applied {
        /// Its name.
        service: String,
        /// Its generation.
        generation: u64,
    },
    /// It is gone, or came anew.
    Deleted,
    /// Something else.
    Done,
}

impl Notes {
    /// Looks at them.
    pub fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, what: String) {
        self.lock().told.push(what);
    }
}

/// The operator.
pub struct Operator {
    /// The way to the controller.
    pub channel: Channel,
    /// What is to be done.
    pub calls: Vec<(Duration, Call)>,
    /// Where it notes things down.
    pub notes: Notes,
    /// Whether faults are over.
    pub calm: watch::Receiver<bool>,
}

impl Operator {
    /// Does what it has to do.
    ///
    /// # Errors
    ///
    /// None: what fails is tried again.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.calls.sort_by_key(|(at, _)| *at);
        let calls = std::mem::take(&mut self.calls);
        for (number, (at, call)) in calls.into_iter().enumerate() {
            sleep_until(begun + at).await;
            self.make(&format!("call-{number}"), &call).await;
        }
        self.notes.lock().done = true;
        if self.calm.wait_for(|calm| *calm).await.is_err() {
            return Ok(());
        }
        let mut number = 0;
        loop {
            number += 1;
            if let Err(status) = self.tidy_up(number).await {
                self.notes
                    .tell(format!("cannot look: {}", status.message()));
            }
            sleep(LOOK).await;
        }
    }

    /// Makes a call until it is answered.
    async fn make(&self, id: &str, call: &Call) {
        loop {
            let status = match timeout(PATIENCE, self.attempt(id, call)).await {
                Ok(Ok(effect)) => {
                    self.notes.tell(format!("{}: acknowledged", describe(call)));
                    self.notes.lock().acknowledged.insert(id.to_owned(), effect);
                    return;
                }
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer"),
            };
            let passes = [
                Code::Unavailable,
                Code::Cancelled,
                Code::Unknown,
                Code::DeadlineExceeded,
                Code::Aborted,
                Code::ResourceExhausted,
                Code::Internal,
            ];
            if !passes.contains(&status.code()) {
                let (call, why) = (describe(call), status.message());
                self.notes.tell(format!("{call}: refused: {why}"));
                return;
            }
            sleep(AGAIN).await;
        }
    }

    async fn attempt(&self, id: &str, call: &Call) -> Result<Effect, Status> {
        let request_id = id.to_owned();
        match call {
            Call::Apply { text } => {
                let request = ApplyServiceRequest {
                    definition_toml: text.clone(),
                    file_name: "service.toml".to_owned(),
                    request_id,
                    ..ApplyServiceRequest::default()
                };
                let answer = self.services().apply_service(request).await?.into_inner();
                let service = answer.service.unwrap_or_default();
                Ok(Effect::Applied {
                    service: service.name,
                    generation: service.generation,
                })
            }
            Call::Restart { instance } => {
                let request = RestartInstanceRequest {
                    instance_id: instance.clone(),
                    scope: RestartScope::Vm.into(),
                    request_id,
                };
                self.instances().restart_instance(request).await?;
                Ok(Effect::Done)
            }
            Call::Drain(node) => {
                let node_id = node.to_string();
                let request = DrainNodeRequest {
                    node_id,
                    request_id,
                };
                self.nodes().drain_node(request).await?;
                Ok(Effect::Done)
            }
            Call::Uncordon(node) => {
                let node_id = node.to_string();
                let request = UncordonNodeRequest {
                    node_id,
                    request_id,
                };
                self.nodes().uncordon_node(request).await?;
                Ok(Effect::Done)
            }
            Call::Delete { service } => {
                let request = DeleteServiceRequest {
                    name: service.clone(),
                    request_id,
                    ..DeleteServiceRequest::default()
                };
                self.services().delete_service(request).await?;
                Ok(Effect::Deleted)
            }
        }
    }

    /// What the fabric leaves to operators.
    async fn tidy_up(&self, number: u32) -> Result<(), Status> {
        let request = ListNodesRequest::default();
        let nodes = self.nodes().list_nodes(request).await?.into_inner().nodes;
        let is_closed =
            |node: &Node| node.cordoned || node.condemned || node.unsteady_until.is_some();
        for node in nodes.into_iter().filter(is_closed) {
            if let Ok(node_id) = node.node_id.parse() {
                let id = format!("tidy-{number}-{}", node.node_id);
                self.make(&id, &Call::Uncordon(node_id)).await;
            }
        }
        let request = ListInstancesRequest::default();
        let instances = self.instances().list_instances(request).await?;
        let instances = instances.into_inner().instances.into_iter();
        for instance in instances.filter(|one| one.state == "Failed") {
            let id = format!("tidy-{number}-{}", instance.instance_id);
            let instance = instance.instance_id;
            self.make(&id, &Call::Restart { instance }).await;
        }
        let request = ListServicesRequest::default();
        let services = self.services().list_services(request).await?;
        for service in services.into_inner().services {
            let request = GetUpdateRequest {
                name: service.name.clone(),
                ..GetUpdateRequest::default()
            };
            let update = self.services().get_update(request).await?.into_inner();
            let state = update.update.map(|update| update.state());
            if state == Some(UpdateState::Stopped) {
                let request = ControlUpdateRequest {
                    name: service.name.clone(),
                    action: UpdateAction::Resume.into(),
                    ..ControlUpdateRequest::default()
                };
                self.services().control_update(request).await?;
                self.notes
                    .tell(format!("resumed the update of {}", service.name));
            }
        }
        Ok(())
    }

    fn services(&self) -> ServiceServiceClient<Channel> {
        ServiceServiceClient::new(self.channel.clone())
    }

    fn instances(&self) -> InstanceServiceClient<Channel> {
        InstanceServiceClient::new(self.channel.clone())
    }

    fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }
}

fn describe(call: &Call) -> String {
    match call {
        Call::Apply { text } => {
            let interesting = ["name", "instances", "image", "command"];
            let lines = text.lines().filter(|line| {
                let key = line.split_once('=').map_or("", |(key, _)| key.trim());
                interesting.contains(&key)
            });
            let values = lines.filter_map(|line| Some(line.split_once('=')?.1.trim()));
            let values: Vec<_> = values.map(|value| value.trim_matches('"')).collect();
            format!("apply {}", values.join(" "))
        }
        Call::Restart { instance } => format!("restart {instance}"),
        Call::Drain(node) => format!("drain {node}"),
        Call::Uncordon(node) => format!("uncordon {node}"),
        Call::Delete { service } => format!("delete {service}"),
    }
}
