//! Everything that is looked at. What cannot be had is noted, and the rest goes on.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use fabric_proto::v1::{
    ExplainPlacementRequest, ExplainPlacementResponse, GetControllerRequest, GetControllerResponse,
    GetUpdateRequest, Instance, ListInstancesRequest, ListNodesRequest, ListServicesRequest, Node,
    Service, Slot, Update, UpdateState,
};
use fabric_trust::{context::Context as Trusted, identity::Identity};
use tonic::Status;

use crate::{client::Client, error::Failure};

/// Most instances without a node for which is asked what would make them fit.
const EXPLAINED: usize = 20;

/// Something that could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// An update that is under way.
#[derive(Debug, Clone, PartialEq)]
pub struct UnderWay {
    /// Of which service.
    pub service: String,
    /// In which slot.
    pub slot: Slot,
    /// It.
    pub update: Update,
}

/// See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Where the controller is.
    pub server: String,
    /// Who we are to it, unless it is reached by its unix socket.
    pub identity: Option<Identity>,
    /// Our own clock.
    pub now: Option<SystemTime>,
    /// The controller.
    pub controller: Option<GetControllerResponse>,
    /// How far its clock is ahead of ours, in milliseconds; less than 0 if it is behind.
    pub ahead_millis: i64,
    /// How far that may be off.
    pub round_trip: Duration,
    /// The machines.
    pub nodes: Vec<Node>,
    /// The services.
    pub services: Vec<Service>,
    /// Their updates that are not done.
    pub updates: Vec<UnderWay>,
    /// The instances.
    pub instances: Vec<Instance>,
    /// Why instances have no node, by id.
    pub explained: BTreeMap<String, ExplainPlacementResponse>,
    /// What could not be had.
    pub missing: Vec<Missing>,
}

impl Facts {
    /// What is known before anybody is asked.
    #[must_use]
    pub fn of(context: &Trusted) -> Self {
        Self {
            server: context.server.to_string(),
            identity: context.identity().ok(),
            now: Some(SystemTime::now()),
            ..Self::default()
        }
    }

    /// With everything that the controller says.
    pub async fn gather(mut self, client: &Client) -> Self {
        self.ask_controller(client).await;
        let nodes = client.nodes().list_nodes(ListNodesRequest {}).await;
        let answer = self.take("the nodes", nodes);
        self.nodes = answer.map(|answer| answer.nodes).unwrap_or_default();
        let mut services = client.services();
        let services = services.list_services(ListServicesRequest {}).await;
        let answer = self.take("the services", services);
        self.services = answer.map(|answer| answer.services).unwrap_or_default();
        let request = ListInstancesRequest::default();
        let instances = client.instances().list_instances(request).await;
        let answer = self.take("the instances", instances);
        self.instances = answer.map(|answer| answer.instances).unwrap_or_default();
        self.ask_updates(client).await;
        self.ask_placement(client).await;
        self
    }

    /// Notes that something could not be had.
    pub fn miss(&mut self, what: impl Into<String>, why: &Failure) {
        self.missing.push(Missing {
            what: what.into(),
            why: crate::show::clean(&why.to_string()),
        });
    }

    /// The answer; what could not be had is noted.
    fn take<T>(&mut self, what: &str, answer: Result<tonic::Response<T>, Status>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer.into_inner()),
            Err(status) => {
                self.miss(what, &status.into());
                None
            }
        }
    }

    async fn ask_controller(&mut self, client: &Client) {
        let begun = SystemTime::now();
        let answer = client
            .controller()
            .get_controller(GetControllerRequest {})
            .await;
        self.round_trip = begun.elapsed().unwrap_or_default();
        let Some(answer) = self.take("what the controller is", answer) else {
            return;
        };
        let theirs = answer.now.and_then(|time| SystemTime::try_from(time).ok());
        if let Some(theirs) = theirs {
            // It has read its clock half-way between.
            let ours = begun + self.round_trip / 2;
            self.ahead_millis = match theirs.duration_since(ours) {
                Ok(ahead) => millis(ahead),
                Err(behind) => -millis(behind.duration()),
            };
        }
        self.controller = Some(answer);
    }

    async fn ask_updates(&mut self, client: &Client) {
        let mut under_way = Vec::new();
        for service in &self.services {
            for deployment in &service.deployments {
                let state = deployment.update.as_ref().map(Update::state);
                if !matches!(state, None | Some(UpdateState::Done)) {
                    under_way.push((service.name.clone(), deployment.slot()));
                }
            }
        }
        for (name, slot) in under_way {
            let request = GetUpdateRequest {
                name: name.clone(),
                slot: slot.into(),
            };
            let answer = client.services().get_update(request).await;
            let what = format!("the update of service {name}");
            let update = self.take(&what, answer).and_then(|answer| answer.update);
            self.updates.extend(update.map(|update| UnderWay {
                service: name,
                slot,
                update,
            }));
        }
    }

    async fn ask_placement(&mut self, client: &Client) {
        let homeless = self.instances.iter().filter(|one| one.node_id.is_empty());
        let ids = homeless.map(|one| one.instance_id.clone());
        let ids: Vec<String> = ids.take(EXPLAINED).collect();
        for instance_id in ids {
            let request = ExplainPlacementRequest {
                instance_id: instance_id.clone(),
            };
            let answer = client.placement().explain_placement(request).await;
            let what = format!("why instance {instance_id} has no node");
            if let Some(answer) = self.take(&what, answer) {
                self.explained.insert(instance_id, answer);
            }
        }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
