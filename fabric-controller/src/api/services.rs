//! `fabric.v1.ServiceService`

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fabric_proto::{
    id::ServiceName,
    v1::{
        ApplyServiceRequest, ApplyServiceResponse, DeleteServiceRequest, DeleteServiceResponse,
        GetServiceRequest, GetServiceResponse, ListServicesRequest, ListServicesResponse, Service,
        service_service_server::ServiceService,
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
        definition::{self, ServiceDefinition},
        event::{EventRecord, Reason, SubjectKind},
        instance::InstanceRecord,
        service::{self, ServiceRecord, ServiceRole},
        time::WallTime,
    },
    records::{self, Kept},
    store::Txn,
};

/// How long an answer waits for the reconciler, so that who applies a service
/// and then lists its instances sees them.
const SETTLE: Duration = Duration::from_secs(2);
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
        Ok(Response::new(self.apply(request.into_inner()).await?))
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
                .map(|one| convert::instance(one, registry))
                .collect(),
        }))
    }

    async fn delete_service(
        &self,
        request: Request<DeleteServiceRequest>,
    ) -> Result<Response<DeleteServiceResponse>, Status> {
        Ok(Response::new(self.delete(request.into_inner()).await?))
    }
}

/// What applying a service file would do.
struct Planned {
    record: ServiceRecord,
    changes: Vec<service::Change>,
    txn: Txn,
}

impl ServiceApi {
    async fn find(&self, name: &str) -> ControllerResult<Option<Kept<ServiceRecord>>> {
        let Ok(name) = name.parse::<ServiceName>() else {
            return Ok(None);
        };
        records::get(&*self.controller.store, &records::service(&name)).await
    }

    /// The instances of a service, or all.
    async fn instances(&self, service: &str) -> ControllerResult<Vec<InstanceRecord>> {
        let all: Vec<Kept<InstanceRecord>> =
            records::list(&*self.controller.store, records::INSTANCES).await?;
        let values = all.into_iter().map(|kept| kept.value);
        Ok(values
            .filter(|record| service.is_empty() || record.service.as_str() == service)
            .collect())
    }

    fn shown(&self, record: &ServiceRecord, instances: &[InstanceRecord]) -> Service {
        let ready = |role: &str| {
            let ready = instances.iter().filter(|one| {
                one.service == record.name
                    && one.role.as_str() == role
                    && convert::is_ready(one, &self.controller.registry)
            });
            u32::try_from(ready.count()).unwrap_or(u32::MAX)
        };
        convert::service(record, ready)
    }

    async fn apply(&self, request: ApplyServiceRequest) -> ControllerResult<ApplyServiceResponse> {
        let file_name: String = request.file_name.chars().take(FILE_NAME).collect();
        let definition = definition::parse(&request.definition_toml, &file_name)?;
        let instances = self.instances(definition.name.as_str()).await?;
        let (definition, text) = (&definition, &request.definition_toml);
        let instances = &instances;
        let now = clock::now();
        let answer = |planned: Planned| ApplyServiceResponse {
            changes: planned.changes.into_iter().map(convert::change).collect(),
            service: Some(self.shown(&planned.record, instances)),
        };
        if request.dry_run {
            return Ok(answer(self.plan(definition, text, now).await?));
        }
        let content = ApplyServiceRequest {
            request_id: String::new(),
            ..request.clone()
        };
        let once = Once::new("ApplyService", &request.request_id, &content)?;
        let answer = &answer;
        let answered = once
            .commit(&*self.controller.store, now, || async move {
                let mut planned = self.plan(definition, text, now).await?;
                let txn = std::mem::take(&mut planned.txn);
                Ok((txn, answer(planned)))
            })
            .await?;
        self.controller.waker.settle(SETTLE).await;
        Ok(answered)
    }

    /// Finds out what a definition changes, and the transaction that does it;
    /// empty if nothing changes.
    async fn plan(
        &self,
        definition: &ServiceDefinition,
        text: &str,
        now: WallTime,
    ) -> ControllerResult<Planned> {
        let name = &definition.name;
        let (roles, blobs) = self.resolve(definition).await?;
        let old = self.find(name.as_str()).await?;
        let before = old
            .as_ref()
            .map(|kept| kept.value.roles.as_slice())
            .unwrap_or_default();
        let changes = service::changes(name, before, &roles);
        let unchanged = old.as_ref().filter(|kept| {
            changes.is_empty() && kept.value.definition_toml == text && kept.value.roles == roles
        });
        if let Some(kept) = unchanged {
            return Ok(Planned {
                record: kept.value.clone(),
                changes,
                txn: Txn::new(),
            });
        }
        let record = ServiceRecord {
            name: name.clone(),
            generation: old.as_ref().map_or(1, |kept| kept.value.generation + 1),
            definition_toml: text.to_owned(),
            roles,
            created: old.as_ref().map_or(now, |kept| kept.value.created),
            updated: now,
        };
        self.check_clash(&record).await?;
        let key = records::service(name);
        let mut txn = records::replace(Txn::new(), &key, old.map(|kept| kept.modified), &record)?;
        // Whoever deletes one of them at the same moment must look again.
        for kept in blobs.values() {
            let key = records::blob(kept.value.kind, &kept.value.name);
            txn = records::replace(txn, &key, Some(kept.modified), &kept.value)?;
        }
        let message = format!(
            "generation {}, {} changes",
            record.generation,
            changes.len()
        );
        let event = EventRecord::new(
            now,
            Reason::ServiceApplied,
            SubjectKind::Service,
            name,
            message,
        );
        Ok(Planned {
            record,
            changes,
            txn: records::add_event(txn, &event)?,
        })
    }

    /// Finds the images and packages that the definition names.
    pub(super) async fn resolve(
        &self,
        definition: &ServiceDefinition,
    ) -> ControllerResult<(Vec<ServiceRole>, BTreeMap<String, Kept<BlobRecord>>)> {
        let mut blobs = BTreeMap::new();
        let mut roles = Vec::new();
        for role in &definition.roles {
            let name = role.role.name.as_str();
            let image = self
                .blob(name, BlobKind::Image, &role.image, &mut blobs)
                .await?;
            let package = match &role.package {
                Some(package) => Some(
                    self.blob(name, BlobKind::Package, package, &mut blobs)
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
        role: &str,
        kind: BlobKind,
        name: &str,
        found: &mut BTreeMap<String, Kept<BlobRecord>>,
    ) -> ControllerResult<BlobRef> {
        let kept = self
            .controller
            .blobs
            .find(kind, name)
            .await
            .map_err(|error| match error {
                Error::NotFound { .. } => Error::Precondition(format!(
                    "role {role:?}: there is no {kind} {name:?}; \
                 `fabctl {kind} list` shows what there is, `fabctl {kind} upload` brings one"
                )),
                other => other,
            })?;
        let BlobRecord {
            digest, size_bytes, ..
        } = kept.value.clone();
        found.insert(records::blob(kind, &kept.value.name), kept);
        Ok(BlobRef {
            name: name.to_owned(),
            digest,
            size_bytes,
        })
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
    ) -> ControllerResult<DeleteServiceResponse> {
        let content = DeleteServiceRequest {
            request_id: String::new(),
            ..request.clone()
        };
        let once = Once::new("DeleteService", &request.request_id, &content)?;
        let name = &request.name;
        let now = clock::now();
        let answer = once
            .commit(&*self.controller.store, now, || async move {
                let kept = self
                    .find(name)
                    .await?
                    .ok_or_else(|| Error::no_service(name))?;
                let key = records::service(&kept.value.name);
                let instances: u32 = kept.value.roles.iter().map(|role| role.instances).sum();
                let message = format!("its {instances} instances are being removed");
                let event = EventRecord::new(
                    now,
                    Reason::ServiceDeleted,
                    SubjectKind::Service,
                    name,
                    message,
                );
                let txn = Txn::new().when(&key, Some(kept.modified)).delete(key);
                Ok((records::add_event(txn, &event)?, DeleteServiceResponse {}))
            })
            .await?;
        self.controller.waker.settle(SETTLE).await;
        Ok(answer)
    }
}
