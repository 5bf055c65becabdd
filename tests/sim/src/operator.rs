//! Who makes calls: each until it is answered, under one request id, and who remembers
//! what was acknowledged. Once faults are over it does what the fabric leaves to
//! operators: it restarts what has failed for good, resumes updates that stand still,
//! starts what it has stopped where an update waits for that, and takes nodes back.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fabric_controller::model::deployment;
use fabric_proto::{
    node::v1::{InstancePower, RestartScope},
    v1::{
        ApplyServiceRequest, ControlUpdateRequest, DeleteServiceRequest, Deployment,
        DrainNodeRequest, GetUpdateRequest, Instance, ListInstancesRequest, ListNodesRequest,
        ListServicesRequest, Node, RemoveNodeRequest, RestartInstanceRequest,
        RollbackServiceRequest, Service, Slot, StartInstanceRequest, StopInstanceRequest,
        SwapSlotsRequest, UncordonNodeRequest, UpdateAction, UpdateState,
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
    /// How many calls were acknowledged, by kind.
    pub made: BTreeMap<&'static str, u64>,
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
                    let mut noted = self.notes.lock();
                    noted.acknowledged.insert(id.to_owned(), effect);
                    *noted.made.entry(call.word()).or_default() += 1;
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
            Call::Apply { text, slot } => {
                let request = ApplyServiceRequest {
                    slot: wire(*slot).into(),
                    definition_toml: text.clone(),
                    file_name: "service.toml".to_owned(),
                    request_id,
                    ..ApplyServiceRequest::default()
                };
                let answer = self.services().apply_service(request).await?.into_inner();
                Ok(applied(answer.service))
            }
            Call::Swap { service } => {
                let request = SwapSlotsRequest {
                    name: service.clone(),
                    request_id,
                };
                let answer = self.services().swap_slots(request).await?.into_inner();
                Ok(applied(answer.service))
            }
            Call::Rollback { service } => {
                let request = RollbackServiceRequest {
                    name: service.clone(),
                    request_id,
                    ..RollbackServiceRequest::default()
                };
                let answer = self.services().rollback_service(request).await?;
                let answer = answer.into_inner().applied.unwrap_or_default();
                Ok(applied(answer.service))
            }
            Call::Control {
                service,
                slot,
                action,
            } => {
                let request = ControlUpdateRequest {
                    name: service.clone(),
                    slot: wire(*slot).into(),
                    action: (*action).into(),
                    request_id,
                };
                self.services().control_update(request).await?;
                Ok(Effect::Done)
            }
            Call::Stop { instance } => {
                let request = StopInstanceRequest {
                    grace: None,
                    instance_id: instance.clone(),
                    request_id,
                };
                self.instances().stop_instance(request).await?;
                Ok(Effect::Done)
            }
            Call::Start { instance } => {
                let request = StartInstanceRequest {
                    instance_id: instance.clone(),
                    request_id,
                };
                self.instances().start_instance(request).await?;
                Ok(Effect::Done)
            }
            Call::Remove(node) => {
                let node_id = node.to_string();
                let request = RemoveNodeRequest {
                    node_id,
                    request_id,
                };
                self.nodes().remove_node(request).await?;
                Ok(Effect::Done)
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
            Call::Delete { service, slot } => {
                let request = DeleteServiceRequest {
                    name: service.clone(),
                    request_id,
                    slot: slot.map_or(Slot::Unspecified, wire).into(),
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
        let instances = instances.into_inner().instances;
        for instance in instances.iter().filter(|one| one.state == "Failed") {
            let id = format!("tidy-{number}-{}", instance.instance_id);
            let instance = instance.instance_id.clone();
            self.make(&id, &Call::Restart { instance }).await;
        }
        let request = ListServicesRequest::default();
        let services = self.services().list_services(request).await?;
        for service in services.into_inner().services {
            for slot in service.deployments.iter().map(Deployment::slot) {
                self.see_to_update(number, &service, slot, &instances)
                    .await?;
            }
        }
        Ok(())
    }

    /// Resumes an update that stands still, and starts what one may wait for.
    async fn see_to_update(
        &self,
        number: u32,
        service: &Service,
        slot: Slot,
        instances: &[Instance],
    ) -> Result<(), Status> {
        let name = &service.name;
        let request = GetUpdateRequest {
            name: name.clone(),
            slot: slot.into(),
        };
        let update = self.services().get_update(request).await?.into_inner();
        let state = update.update.map(|update| update.state());
        if matches!(state, Some(UpdateState::Stopped | UpdateState::Paused)) {
            let request = ControlUpdateRequest {
                name: name.clone(),
                slot: slot.into(),
                action: UpdateAction::Resume.into(),
                ..ControlUpdateRequest::default()
            };
            self.services().control_update(request).await?;
            self.notes.tell(format!("resumed the update of {name}"));
        }
        if matches!(state, None | Some(UpdateState::Done)) {
            return Ok(());
        }
        let stopped =
            |one: &&Instance| one.service == *name && one.power() == InstancePower::Stopped;
        for instance in instances.iter().filter(stopped) {
            let id = format!("tidy-{number}-start-{}", instance.instance_id);
            let instance = instance.instance_id.clone();
            self.make(&id, &Call::Start { instance }).await;
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

const fn wire(slot: deployment::Slot) -> Slot {
    match slot {
        deployment::Slot::Production => Slot::Production,
        deployment::Slot::Staging => Slot::Staging,
    }
}

fn applied(service: Option<Service>) -> Effect {
    let service = service.unwrap_or_default();
    Effect::Applied {
        service: service.name,
        generation: service.generation,
    }
}

fn describe(call: &Call) -> String {
    let word = call.word();
    match call {
        Call::Apply { text, .. } => {
            let interesting = [
                "name",
                "instances",
                "image",
                "command",
                "settings",
                "node_labels",
                "spread",
            ];
            let lines = text.lines().filter(|line| {
                let key = line.split_once('=').map_or("", |(key, _)| key.trim());
                interesting.contains(&key)
            });
            let values = lines.filter_map(|line| Some(line.split_once('=')?.1.trim()));
            let values: Vec<_> = values.map(|value| value.trim_matches('"')).collect();
            format!("{word} {}", values.join(" "))
        }
        Call::Swap { service } | Call::Rollback { service } | Call::Delete { service, .. } => {
            format!("{word} {service}")
        }
        Call::Control { service, slot, .. } => format!("{word} {service} in {slot}"),
        Call::Restart { instance } | Call::Stop { instance } | Call::Start { instance } => {
            format!("{word} {instance}")
        }
        Call::Drain(node) | Call::Uncordon(node) | Call::Remove(node) => format!("{word} {node}"),
    }
}
