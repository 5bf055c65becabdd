//! `fabric.v1.PlacementService`: why, and what if. Reads only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fabric_proto::{
    id::{InstanceId, NodeId},
    v1::{
        ExplainPlacementRequest, ExplainPlacementResponse, PlacementMiss, PlacementMove,
        PlacementRefusal, PlacementVerdict, SimulatePlacementRequest, SimulatePlacementResponse,
        placement_service_server::PlacementService,
    },
};
use tonic::{Request, Response, Status};

use super::{ServiceApi, convert, labels};
use crate::{
    aside,
    controller::Controller,
    error::{Error, Result as ControllerResult},
    model::{
        definition,
        deployment::{Colour, Slot},
        instance::{Effect, InstanceRecord, Phase, instance_id},
        label,
        node::NodeRecord,
        own::OwnResources,
        service::ServiceRecord,
    },
    placement::{
        Cluster, Explanation, FaultDomain, Health, Instance, Node, Remedy, Unplaceable, Verdict,
        rebalance::Move,
        whatif::{Change, Outcome, Snapshot},
    },
    reconcile::placing,
    records::{self, Kept},
};

/// Most nodes that can be added in thought.
const MOST_ADDED: u32 = 10_000;
/// Most processors of one of them.
const MOST_CPUS: u32 = 65_536;
/// Most moves that are proposed.
const MOST_MOVES: usize = 16;

/// See the [module](self).
pub struct PlacementApi {
    /// The controller.
    pub controller: Arc<Controller>,
}

#[tonic::async_trait]
impl PlacementService for PlacementApi {
    async fn explain_placement(
        &self,
        request: Request<ExplainPlacementRequest>,
    ) -> Result<Response<ExplainPlacementResponse>, Status> {
        Ok(Response::new(self.explain(request.into_inner()).await?))
    }

    async fn simulate_placement(
        &self,
        request: Request<SimulatePlacementRequest>,
    ) -> Result<Response<SimulatePlacementResponse>, Status> {
        Ok(Response::new(self.simulate(request.into_inner()).await?))
    }
}

/// What is kept of the cluster.
struct Records {
    nodes: Vec<NodeRecord>,
    instances: Vec<InstanceRecord>,
}

impl PlacementApi {
    /// The cluster as it is, and the records of its nodes and instances.
    async fn snapshot(&self) -> ControllerResult<(Snapshot, Records)> {
        let store = &*self.controller.store;
        let services: Vec<Kept<ServiceRecord>> = records::list(store, records::SERVICES).await?;
        let services: Vec<_> = services.into_iter().map(|kept| kept.value).collect();
        let nodes: Vec<Kept<NodeRecord>> = records::list(store, records::NODES).await?;
        let instances: Vec<Kept<InstanceRecord>> = records::list(store, records::INSTANCES).await?;
        let node = |kept: &Kept<NodeRecord>| {
            let sight = self.controller.registry.sight(&kept.value.node_id);
            placing::node(&kept.value, sight.connected, sight.stock)
        };
        let instances: Vec<_> = instances.into_iter().map(|kept| kept.value).collect();
        let snapshot = Snapshot {
            policy: self.controller.config.policy,
            nodes: nodes.iter().map(node).collect(),
            instances: placing::instances(instances.iter(), &services),
        };
        let nodes = nodes.into_iter().map(|kept| kept.value).collect();
        Ok((snapshot, Records { nodes, instances }))
    }

    async fn explain(
        &self,
        request: ExplainPlacementRequest,
    ) -> ControllerResult<ExplainPlacementResponse> {
        let id = request.instance_id;
        let (snapshot, _) = self.snapshot().await?;
        let found = snapshot.instances.iter().find(|one| one.id.as_str() == id);
        let asked = found.cloned().ok_or_else(|| Error::no_instance(&id))?;
        let explained = think_aside(move || {
            let Snapshot {
                policy,
                nodes,
                instances,
            } = &snapshot;
            Cluster::with(*policy, nodes, instances).explain(&asked)
        });
        Ok(explanation(explained.await?))
    }

    async fn simulate(
        &self,
        request: SimulatePlacementRequest,
    ) -> ControllerResult<SimulatePlacementResponse> {
        let (now, records) = self.snapshot().await?;
        let mut changes = added(&request, &now.nodes)?;
        for id in &request.kill_nodes {
            let node = id.parse().map_err(|_| Error::no_node(id))?;
            changes.push(Change::KillNode(node));
        }
        for domain in &request.kill_domains {
            changes.push(Change::KillDomain(FaultDomain(domain.clone())));
        }
        if !request.definition_toml.is_empty() {
            changes.push(self.applied(&request, &records).await?);
        }
        if changes.is_empty() {
            return Err(Error::Invalid(
                "nothing is to happen; say which nodes or fault domains die, how many nodes \
                 come, or which service file is applied"
                    .to_owned(),
            ));
        }
        let mut then = now.clone();
        for change in changes {
            then = then
                .after(change)
                .map_err(|impossible| Error::Precondition(impossible.to_string()))?;
        }
        Ok(outcome(
            think_aside(move || then.outcome(&now, MOST_MOVES)).await?,
        ))
    }

    /// The instances of a service as its file would have them in production. One of the
    /// same size, on a node that will do, stays where it is.
    async fn applied(
        &self,
        request: &SimulatePlacementRequest,
        Records { nodes, instances }: &Records,
    ) -> ControllerResult<Change> {
        let definition = definition::parse(&request.definition_toml, &request.file_name)?;
        let services = ServiceApi {
            controller: Arc::clone(&self.controller),
        };
        let service = &definition.name;
        let key = records::service(service);
        let there: Option<Kept<ServiceRecord>> =
            records::get(&*self.controller.store, &key).await?;
        let there = there.map(|kept| kept.value);
        let production = there
            .as_ref()
            .and_then(|one| one.deployment(Slot::Production));
        let (roles, _) = services.resolve(&definition, production).await?;
        let colour = match (production, &there) {
            (Some(production), _) => production.colour,
            (None, Some(service)) => service.free_colour(),
            (None, None) => Colour::Plain,
        };
        let nodes = nodes.iter().collect();
        let now: BTreeMap<_, _> = instances
            .iter()
            .map(|record| (&record.id, record))
            .collect();
        let mut wanted = Vec::new();
        for role in &roles {
            for number in 0..role.instances {
                let id = instance_id(service, role.name(), colour, number)
                    .map_err(|error| Error::Invalid(error.to_string()))?;
                let there = now.get(&id).filter(|record| {
                    record.phase == Phase::Wanted
                        && record.effect_of(&role.spec, &nodes) != Effect::Replace
                });
                let node = there.and_then(|record| record.node.clone());
                wanted.push(placing::wanted(id, service, colour, role, number, node));
            }
        }
        let of_service =
            |record: &&InstanceRecord| record.service == *service && record.colour == colour;
        let of_service = instances.iter().filter(of_service);
        let ids: BTreeSet<&InstanceId> = wanted.iter().map(|one: &Instance| &one.id).collect();
        let gone = of_service
            .filter(|record| !ids.contains(&record.id))
            .map(|record| record.id.clone())
            .collect();
        Ok(Change::Replace { gone, wanted })
    }
}

/// Thinks where nobody waits for a turn.
async fn think_aside<T: Send + 'static>(
    think: impl FnOnce() -> T + Send + 'static,
) -> ControllerResult<T> {
    let done = aside::aside(think).await;
    done.map_err(|error| Error::Internal(format!("placement did not end: {error}")))
}

/// The nodes that come: like those of today, under names that none has.
fn added(request: &SimulatePlacementRequest, nodes: &[Node]) -> ControllerResult<Vec<Change>> {
    let SimulatePlacementRequest {
        add_nodes: count,
        add_cpus: cpus,
        add_memory_bytes: memory_bytes,
        add_fault_domain: domain,
        add_architecture: architecture,
        add_disk_bytes: disk_bytes,
        add_labels: asked,
        add_resources: resources,
        ..
    } = request;
    let wrong = |what: String| Err(Error::Invalid(what));
    if *count > MOST_ADDED {
        return wrong(format!("add_nodes: {count} is more than {MOST_ADDED}"));
    }
    if *count > 0 && !(1..=MOST_CPUS).contains(cpus) {
        return wrong(format!("add_cpus: {cpus} is not 1 to {MOST_CPUS}"));
    }
    if *count > 0 && *memory_bytes == 0 {
        return wrong("add_memory_bytes: it is 0".to_owned());
    }
    let architecture = convert::architecture("add_architecture", architecture)?;
    if asked.len() > label::MOST {
        return wrong(format!("add_labels: there are more than {}", label::MOST));
    }
    for text in asked.iter().flat_map(<[&String; 2]>::from) {
        labels::check("add_labels", text)?;
    }
    let own = OwnResources::checked(resources.clone());
    let own = own.map_err(|why| Error::Invalid(format!("add_resources: {why}")))?;
    let taken: BTreeSet<&str> = nodes.iter().map(|node| node.id.as_str()).collect();
    let names = (1_u32..).map(|number| format!("new-{number}"));
    let names = names.filter(|name| !taken.contains(name.as_str()));
    let kvm = nodes.iter().find_map(|node| node.kvm);
    let mut added = Vec::new();
    for name in names.take(usize::try_from(*count).unwrap_or(usize::MAX)) {
        let id: NodeId = name.parse().map_err(|_| Error::no_node(&name))?;
        added.push(Change::AddNode(Box::new(Node {
            id,
            domain: FaultDomain(if domain.is_empty() {
                name
            } else {
                domain.clone()
            }),
            cpus: *cpus,
            memory_bytes: *memory_bytes,
            disk_bytes: *disk_bytes,
            health: Health::Connected,
            cordoned: false,
            condemned: false,
            unsteady: false,
            blame: 0,
            labels: asked.clone(),
            architecture: architecture.unwrap_or_default(),
            kvm,
            stock: Arc::default(),
            own: own.clone(),
        })));
    }
    Ok(added)
}

fn explanation(explained: Explanation) -> ExplainPlacementResponse {
    let Explanation {
        instance,
        node,
        decision,
        verdicts,
    } = explained;
    let chosen = decision.as_ref().ok().map(|placed| placed.node.clone());
    let best = verdicts
        .iter()
        .find(|verdict| Some(&verdict.node) == chosen.as_ref())
        .and_then(|verdict| verdict.outcome.as_ref().ok().copied());
    let verdict = |verdict: &Verdict| {
        let mut shown = PlacementVerdict {
            node_id: verdict.node.to_string(),
            fault_domain: verdict.domain.to_string(),
            ..PlacementVerdict::default()
        };
        match &verdict.outcome {
            Ok(standing) => {
                shown.fits = true;
                shown.in_fault_domain = standing.in_domain;
                shown.in_upgrade_domain = standing.in_cell;
                shown.on_node = standing.on_node;
                shown.points = standing.score.total();
                shown.score = standing.score.to_string();
                if Some(&verdict.node) != chosen.as_ref()
                    && let Some(best) = &best
                {
                    shown.behind = standing.behind(best);
                }
            }
            Err(why) => {
                let refusals = why.iter().map(|why| PlacementRefusal {
                    reason: why.word().to_owned(),
                    message: why.to_string(),
                });
                shown.refusals = refusals.collect();
            }
        }
        shown
    };
    let verdicts = verdicts.iter().map(verdict).collect();
    let mut shown = ExplainPlacementResponse {
        instance_id: instance.to_string(),
        node_id: name(node.as_ref()),
        chosen_node_id: name(chosen.as_ref()),
        verdicts,
        ..ExplainPlacementResponse::default()
    };
    match decision {
        Ok(placed) => {
            shown.relaxed = placed
                .relaxed
                .map(|why| why.to_string())
                .unwrap_or_default();
        }
        Err(why) => {
            shown.unplaceable = why.to_string();
            shown.remedies = remedies(&why);
        }
    }
    shown
}

fn outcome(outcome: Outcome) -> SimulatePlacementResponse {
    let moves = outcome.found.into_iter().map(|found| PlacementMove {
        instance_id: found.instance.to_string(),
        from_node_id: name(found.from.as_ref()),
        to_node_id: found.to.node.to_string(),
        to_fault_domain: found.to.domain.to_string(),
        note: found
            .to
            .relaxed
            .map(|why| why.to_string())
            .unwrap_or_default(),
    });
    let misses = outcome.stranded.into_iter().map(|stranded| PlacementMiss {
        instance_id: stranded.instance.to_string(),
        from_node_id: name(stranded.from.as_ref()),
        reason: stranded.why.to_string(),
        remedies: remedies(&stranded.why),
    });
    let repairs = outcome.moves.iter().map(|one: &Move| PlacementMove {
        instance_id: one.instance.to_string(),
        from_node_id: one.from.to_string(),
        to_node_id: one.to.to_string(),
        to_fault_domain: one.to_domain.0.to_string(),
        note: one.to_string(),
    });
    SimulatePlacementResponse {
        moves: moves.collect(),
        misses: misses.collect(),
        staying: u32::try_from(outcome.staying).unwrap_or(u32::MAX),
        repairs: repairs.collect(),
    }
}

fn name(node: Option<&NodeId>) -> String {
    node.map(ToString::to_string).unwrap_or_default()
}

fn remedies(why: &Unplaceable) -> Vec<String> {
    why.remedies.iter().map(Remedy::to_string).collect()
}
