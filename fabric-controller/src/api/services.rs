//! `fabric.v1.ServiceService`: applying files, and what there is.
//!
//! [`super::slots`] swaps and goes back, [`super::updates`] shows and controls updates.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fabric_proto::{
    id::{RoleName, ServiceName},
    v1::{
        ApplyServiceRequest, ApplyServiceResponse, ControlUpdateRequest, ControlUpdateResponse,
        DeleteServiceRequest, DeleteServiceResponse, GetServiceRequest, GetServiceResponse,
        GetUpdateRequest, GetUpdateResponse, ListRevisionsRequest, ListRevisionsResponse,
        ListServicesRequest, ListServicesResponse, RollbackServiceRequest, RollbackServiceResponse,
        Service, SwapSlotsRequest, SwapSlotsResponse, service_service_server::ServiceService,
    },
};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    clock,
    controller::Controller,
    error::{Error, Result as ControllerResult},
    idempotency::Once,
    model::{
        blob::{BlobKind, BlobRecord, BlobRef},
        change::{self, Change},
        definition::{self, ServiceDefinition},
        deployment::{Deployment, Slot, Version},
        event::{EventRecord, Reason, SubjectKind},
        instance::InstanceRecord,
        node::NodeRecord,
        os_line,
        revision::{MOST_REVISIONS, Revision},
        service::{ServiceRecord, ServiceRole},
        time::WallTime,
        update::Cause,
    },
    reconcile::{
        foreseen::{self, Step},
        health,
    },
    records::{self, Kept},
    store::{Range, Txn},
    trust::caller::Caller,
};

/// How long an answer waits for the reconciler, so that who applies a service
/// and then lists its instances sees them.
pub(super) const SETTLE: Duration = Duration::from_secs(2);
/// Longest name of a file in errors.
const FILE_NAME: usize = 200;

/// See the [module](self).
pub struct ServiceApi {
    /// The controller.
    pub controller: Arc<Controller>,
}

#[tonic::async_trait]
impl ServiceService for ServiceApi {
    async fn apply_service(
        &self,
        request: Request<ApplyServiceRequest>,
    ) -> Result<Response<ApplyServiceResponse>, Status> {
        let who = Caller::of(&request)?.to_string();
        Ok(Response::new(self.apply(request.into_inner(), who).await?))
    }

    async fn list_services(
        &self,
        _request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let services: Vec<Kept<ServiceRecord>> =
            records::list(&*self.controller.store, records::SERVICES)
                .await
                .map_err(Status::from)?;
        let instances = self.instances("").await?;
        let services = services
            .iter()
            .map(|kept| self.shown(&kept.value, &instances))
            .collect();
        Ok(Response::new(ListServicesResponse { services }))
    }

    async fn get_service(
        &self,
        request: Request<GetServiceRequest>,
    ) -> Result<Response<GetServiceResponse>, Status> {
        let name = request.into_inner().name;
        let kept = self
            .find(&name)
            .await?
            .ok_or_else(|| Error::no_service(&name))?;
        let instances = self.instances(&name).await?;
        let registry = &self.controller.registry;
        Ok(Response::new(GetServiceResponse {
            service: Some(self.shown(&kept.value, &instances)),
            instances: instances
                .iter()
                .map(|one| {
                    let shown = convert::instance(one, registry);
                    convert::placed_in(shown, one, Some(&kept.value))
                })
                .collect(),
        }))
    }

    async fn delete_service(
        &self,
        request: Request<DeleteServiceRequest>,
    ) -> Result<Response<DeleteServiceResponse>, Status> {
        let who = Caller::of(&request)?.to_string();
        Ok(Response::new(self.delete(request.into_inner(), who).await?))
    }

    async fn swap_slots(
        &self,
        request: Request<SwapSlotsRequest>,
    ) -> Result<Response<SwapSlotsResponse>, Status> {
        let who = Caller::of(&request)?.to_string();
        Ok(Response::new(self.swap(request.into_inner(), who).await?))
    }

    async fn list_revisions(
        &self,
        request: Request<ListRevisionsRequest>,
    ) -> Result<Response<ListRevisionsResponse>, Status> {
        Ok(Response::new(self.history(request.into_inner()).await?))
    }

    async fn rollback_service(
        &self,
        request: Request<RollbackServiceRequest>,
    ) -> Result<Response<RollbackServiceResponse>, Status> {
        let who = Caller::of(&request)?.to_string();
        Ok(Response::new(
            self.rollback(request.into_inner(), who).await?,
        ))
    }

    async fn get_update(
        &self,
        request: Request<GetUpdateRequest>,
    ) -> Result<Response<GetUpdateResponse>, Status> {
        Ok(Response::new(self.update(request.into_inner()).await?))
    }

    async fn control_update(
        &self,
        request: Request<ControlUpdateRequest>,
    ) -> Result<Response<ControlUpdateResponse>, Status> {
        let who = Caller::of(&request)?.to_string();
        Ok(Response::new(
            self.control(request.into_inner(), who).await?,
        ))
    }
}

/// What giving a slot another version would do.
pub(super) struct Planned {
    pub(super) record: ServiceRecord,
    changes: Vec<Change>,
    steps: Vec<Step>,
    under_way: String,
    pub(super) txn: Txn,
}

/// Another version for a slot, and who wants it why.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a ServiceName,
    pub(super) slot: Slot,
    pub(super) version: Version,
    /// The instances of the service that there are.
    pub(super) instances: &'a [InstanceRecord],
    pub(super) who: &'a str,
    pub(super) what: String,
    pub(super) now: WallTime,
}

impl ServiceApi {
    pub(super) async fn find(&self, name: &str) -> ControllerResult<Option<Kept<ServiceRecord>>> {
        let Ok(name) = name.parse::<ServiceName>() else {
            return Ok(None);
        };
        records::get(&*self.controller.store, &records::service(&name)).await
    }

    /// The instances of a service, or all.
    pub(super) async fn instances(&self, service: &str) -> ControllerResult<Vec<InstanceRecord>> {
        let all: Vec<Kept<InstanceRecord>> =
            records::list(&*self.controller.store, records::INSTANCES).await?;
        let values = all.into_iter().map(|kept| kept.value);
        Ok(values
            .filter(|record| service.is_empty() || record.service.as_str() == service)
            .collect())
    }

    /// All nodes.
    pub(super) async fn nodes(&self) -> ControllerResult<Vec<NodeRecord>> {
        let all = records::list(&*self.controller.store, records::NODES).await?;
        let all: Vec<Kept<NodeRecord>> = all;
        Ok(all.into_iter().map(|kept| kept.value).collect())
    }

    pub(super) fn shown(&self, record: &ServiceRecord, instances: &[InstanceRecord]) -> Service {
        let ready = |deployment: &Deployment, role: &ServiceRole| {
            let ready = instances.iter().filter(|one| {
                one.service == record.name
                    && one.colour == deployment.colour
                    && one.role == *role.name()
                    && convert::is_ready(one, &self.controller.registry)
            });
            u32::try_from(ready.count()).unwrap_or(u32::MAX)
        };
        convert::service(record, ready)
    }

    /// What is told of a plan, before or after it is carried out.
    pub(super) fn applied(
        &self,
        planned: Planned,
        instances: &[InstanceRecord],
    ) -> ApplyServiceResponse {
        ApplyServiceResponse {
            changes: planned.changes.into_iter().map(convert::change).collect(),
            service: Some(self.shown(&planned.record, instances)),
            steps: planned.steps.into_iter().map(convert::step).collect(),
            under_way: planned.under_way,
        }
    }

    async fn apply(
        &self,
        request: ApplyServiceRequest,
        who: String,
    ) -> ControllerResult<ApplyServiceResponse> {
        let file_name: String = request.file_name.chars().take(FILE_NAME).collect();
        let definition = definition::parse(&request.definition_toml, &file_name)?;
        let slot = convert::slot(request.slot)?;
        let instances = self.instances(definition.name.as_str()).await?;
        let (definition, text) = (&definition, &request.definition_toml);
        let (instances, who) = (&instances, &who);
        let now = clock::now();
        let plan = || self.plan((definition, text), slot, instances, who, now);
        if request.dry_run {
            return Ok(self.applied(plan().await?, instances));
        }
        let once = Once::of("ApplyService", &request, |it| &mut it.request_id)?;
        let answered = once
            .commit(&*self.controller.store, now, || async move {
                let mut planned = plan().await?;
                let txn = std::mem::take(&mut planned.txn);
                Ok((txn, self.applied(planned, instances)))
            })
            .await?;
        self.controller.waker.settle(SETTLE).await;
        Ok(answered)
    }

    /// Finds out what a definition changes, and the transaction that does it;
    /// empty if nothing changes.
    async fn plan(
        &self,
        (definition, text): (&ServiceDefinition, &str),
        slot: Slot,
        instances: &[InstanceRecord],
        who: &str,
        now: WallTime,
    ) -> ControllerResult<Planned> {
        let there = self.find(definition.name.as_str()).await?;
        let there = there.as_ref().and_then(|kept| kept.value.deployment(slot));
        let (roles, blobs) = self.resolve(definition, there).await?;
        let wanted = Wanted {
            name: &definition.name,
            slot,
            version: Version {
                definition_toml: text.to_owned(),
                roles,
                policy: definition.policy,
            },
            instances,
            who,
            what: "applied".to_owned(),
            now,
        };
        let mut planned = self.plan_version(wanted).await?;
        if !planned.txn.ops.is_empty() {
            // Whoever deletes one of them at the same moment must look again.
            for kept in blobs.values() {
                let key = records::blob(kept.value.kind, &kept.value.name);
                let revision = Some(kept.modified);
                planned.txn = records::replace(planned.txn, &key, revision, &kept.value)?;
            }
        }
        Ok(planned)
    }

    /// The same for a version whose images and packages have been found.
    pub(super) async fn plan_version(&self, wanted: Wanted<'_>) -> ControllerResult<Planned> {
        let Wanted {
            name,
            slot,
            version,
            instances,
            who,
            what,
            now,
        } = wanted;
        let old = self.find(name.as_str()).await?;
        let before = old.as_ref().map(|kept| &kept.value);
        let there = before.and_then(|record| record.deployment(slot));
        let colour = match (there, before) {
            (Some(there), _) => there.colour,
            (None, Some(record)) => record.free_colour(),
            (None, None) => Default::default(),
        };
        let roles = there.map_or(&[][..], |there| &there.version.roles);
        let changes = change::changes(name, colour, roles, &version.roles);
        if let Some(record) = before
            && there.is_some_and(|there| there.version == version)
        {
            return Ok(Planned {
                record: record.clone(),
                changes,
                steps: match there {
                    Some(there) => self.steps(there, instances, now).await?,
                    None => Vec::new(),
                },
                under_way: there.map_or_else(String::new, |one| foreseen::under_way(one, one)),
                txn: Txn::new(),
            });
        }
        let generation = before.map_or(1, |record| record.generation + 1);
        let deployment = match there {
            Some(there) => there.with(generation, version, Cause::Operator, now),
            None => Deployment::new(colour, generation, version),
        };
        if let Err(error) = deployment.instances(name) {
            return Err(Error::Precondition(format!("{error}; take shorter names")));
        }
        let steps = self.steps(&deployment, instances, now).await?;
        let under_way =
            there.map_or_else(String::new, |there| foreseen::under_way(there, &deployment));
        let mut slots = before
            .map(|record| record.slots.clone())
            .unwrap_or_default();
        slots.insert(slot, deployment);
        let record = ServiceRecord {
            name: name.clone(),
            generation,
            slots,
            created: before.map_or(now, |record| record.created),
            updated: now,
        };
        self.check_clash(&record).await?;
        let message = format!("generation {generation}, {} changes", changes.len());
        let message = match slot {
            Slot::Production => message,
            Slot::Staging => format!("{slot}: {message}"),
        };
        let event = service_event(now, Reason::ServiceApplied, name, message);
        let revision = Revision {
            number: generation,
            time: now,
            who: who.to_owned(),
            what,
            slot,
            version: record.deployment(slot).map(|one| one.version.clone()),
        };
        let txn = self
            .replace(old.map(|kept| kept.modified), &record, revision)
            .await?;
        Ok(Planned {
            record,
            changes,
            steps,
            under_way,
            txn: records::add_event(txn, &event)?,
        })
    }

    /// What becomes of the instances that there are, as they are now.
    async fn steps(
        &self,
        deployment: &Deployment,
        instances: &[InstanceRecord],
        now: WallTime,
    ) -> ControllerResult<Vec<Step>> {
        let nodes = self.nodes().await?;
        let nodes = nodes.iter().collect();
        let registry = &self.controller.registry;
        let own: Vec<_> = instances
            .iter()
            .filter(|one| one.colour == deployment.colour)
            .collect();
        // What its node has not taken up yet is a matter of moments.
        let health = |one: &InstanceRecord| health::health(one, registry, true);
        Ok(foreseen::steps(deployment, &own, &nodes, &health, now))
    }

    /// Puts a service and remembers what it was to be; forgets the oldest of that.
    pub(super) async fn replace(
        &self,
        old: Option<crate::store::Revision>,
        record: &ServiceRecord,
        revision: Revision,
    ) -> ControllerResult<Txn> {
        let key = records::service(&record.name);
        let mut txn = records::replace(Txn::new(), &key, old, record)?;
        txn = txn.put(
            records::revision(&record.name, revision.number),
            records::encode(&revision)?,
        );
        let range = Range::prefix(records::revisions(&record.name));
        let kept = self.controller.store.range(range).await?.entries;
        let too_many = (kept.len() + 1).saturating_sub(MOST_REVISIONS);
        for entry in kept.iter().take(too_many) {
            txn = txn.delete(&entry.key);
        }
        Ok(txn)
    }

    /// Finds the images and packages that the definition names; `there` is what it is to
    /// be applied to.
    pub(super) async fn resolve(
        &self,
        definition: &ServiceDefinition,
        there: Option<&Deployment>,
    ) -> ControllerResult<(Vec<ServiceRole>, BTreeMap<String, Kept<BlobRecord>>)> {
        let mut blobs = BTreeMap::new();
        let mut roles = Vec::new();
        for role in &definition.roles {
            let name = &role.role.name;
            let image = self
                .blob(name, BlobKind::Image, &role.image, there, &mut blobs)
                .await?;
            let package = match &role.package {
                Some(package) => Some(
                    self.blob(name, BlobKind::Package, package, there, &mut blobs)
                        .await?,
                ),
                None => None,
            };
            roles.push(ServiceRole::new(role.clone(), image, package));
        }
        Ok((roles, blobs))
    }

    async fn blob(
        &self,
        role: &RoleName,
        kind: BlobKind,
        name: &str,
        there: Option<&Deployment>,
        found: &mut BTreeMap<String, Kept<BlobRecord>>,
    ) -> ControllerResult<BlobRef> {
        let blobs = &self.controller.blobs;
        let (kept, name) = match blobs.find(kind, name).await {
            Ok(kept) => (kept, name.to_owned()),
            Err(Error::NotFound { .. }) => {
                let all = blobs.list(Some(kind)).await?;
                let newest = newest_of_line(name, role, &all, there);
                let newest = newest.filter(|_| kind == BlobKind::Image);
                let newest = newest.ok_or_else(|| {
                    let role = role.as_str();
                    Error::Precondition(format!(
                        "role {role:?}: there is no {kind} {name:?}; `fabctl {kind} list` \
                         shows what there is, `fabctl {kind} upload` brings one"
                    ))
                })?;
                (blobs.find(kind, &newest).await?, newest)
            }
            Err(other) => return Err(other),
        };
        let blob = BlobRef::of(name, &kept.value);
        found.insert(records::blob(kind, &kept.value.name), kept);
        Ok(blob)
    }

    /// No two services may have instances of the same id.
    async fn check_clash(&self, record: &ServiceRecord) -> ControllerResult<()> {
        let all: Vec<Kept<ServiceRecord>> =
            records::list(&*self.controller.store, records::SERVICES).await?;
        for other in all.iter().filter(|other| other.value.name != record.name) {
            if let Some((mine, theirs)) = record.clash(&other.value) {
                return Err(Error::Precondition(format!(
                    "role {mine:?} of service {} and role {theirs:?} of service {} would have \
                     instances of the same id; give one of them another name",
                    record.name, other.value.name
                )));
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        request: DeleteServiceRequest,
        who: String,
    ) -> ControllerResult<DeleteServiceResponse> {
        let once = Once::of("DeleteService", &request, |it| &mut it.request_id)?;
        let slot = convert::optional_slot(request.slot)?;
        let (name, who) = (&request.name, &who);
        let now = clock::now();
        let answer = once
            .commit(&*self.controller.store, now, || async move {
                let kept = self
                    .find(name)
                    .await?
                    .ok_or_else(|| Error::no_service(name))?;
                let txn = match slot {
                    Some(slot) => self.without(kept, slot, who, now).await?,
                    None => self.without_all(kept, now).await?,
                };
                Ok((txn, DeleteServiceResponse {}))
            })
            .await?;
        self.controller.waker.settle(SETTLE).await;
        Ok(answer)
    }

    /// Removes a service.
    async fn without_all(&self, kept: Kept<ServiceRecord>, now: WallTime) -> ControllerResult<Txn> {
        let name = &kept.value.name;
        let key = records::service(name);
        let instances: u32 = kept.value.roles().map(|role| role.instances).sum();
        let message = format!("its {instances} instances are being removed");
        let event = service_event(now, Reason::ServiceDeleted, name, message);
        let mut txn = Txn::new().when(&key, Some(kept.modified)).delete(key);
        let range = Range::prefix(records::revisions(name));
        for entry in self.controller.store.range(range).await?.entries {
            txn = txn.delete(entry.key);
        }
        records::add_event(txn, &event)
    }

    /// Removes what is in a slot.
    async fn without(
        &self,
        kept: Kept<ServiceRecord>,
        slot: Slot,
        who: &str,
        now: WallTime,
    ) -> ControllerResult<Txn> {
        let mut record = kept.value.clone();
        let Some(deployment) = record.slots.remove(&slot) else {
            let name = &record.name;
            return Err(Error::Precondition(format!(
                "service {name} has nothing in {slot}"
            )));
        };
        if record.slots.is_empty() {
            return self.without_all(kept, now).await;
        }
        record.generation += 1;
        record.updated = now;
        let instances: u32 = deployment
            .version
            .roles
            .iter()
            .map(|role| role.instances)
            .sum();
        let message = format!("{slot}: its {instances} instances are being removed");
        let event = service_event(now, Reason::ServiceDeleted, &record.name, message);
        let revision = Revision {
            number: record.generation,
            time: now,
            who: who.to_owned(),
            what: "deleted".to_owned(),
            slot,
            version: None,
        };
        let txn = self.replace(Some(kept.modified), &record, revision).await?;
        records::add_event(txn, &event)
    }
}

/// Name of the newest image of a line, but for those that what is there was taken back
/// from. A role that is there gets one for the processors that its own is for, as long as
/// the line has any: others are only for who names them.
fn newest_of_line(
    line: &str,
    role: &RoleName,
    images: &[Kept<BlobRecord>],
    there: Option<&Deployment>,
) -> Option<String> {
    let is_refused =
        |image: &&BlobRecord| there.is_some_and(|there| there.refused.contains(&image.digest));
    let images = images.iter().map(|kept| &kept.value);
    let images = images.filter(|image| !is_refused(image));
    let has = there.and_then(|there| there.version.role(role));
    let has = has.map(|role| role.spec.image.architecture);
    let newest = os_line::newest(line, has, images.clone());
    let newest = newest.or_else(|| os_line::newest(line, None, images));
    newest.map(|image| image.name.to_string())
}

/// Something that happened to a service.
pub(super) fn service_event(
    now: WallTime,
    reason: Reason,
    name: &ServiceName,
    message: String,
) -> EventRecord {
    EventRecord::new(now, reason, SubjectKind::Service, name, message)
}
