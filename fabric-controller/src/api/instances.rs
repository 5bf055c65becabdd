//! `fabric.v1.InstanceService`

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fabric_proto::{
    id::InstanceId,
    node::v1::OutputKind,
    v1::{
        DeleteSnapshotRequest, DeleteSnapshotResponse, GetInstanceRequest, GetInstanceResponse,
        Instance, ListInstancesRequest, ListInstancesResponse, PauseInstanceRequest,
        PauseInstanceResponse, RestartInstanceRequest, RestartInstanceResponse,
        RestoreInstanceRequest, RestoreInstanceResponse, ResumeInstanceRequest,
        ResumeInstanceResponse, SnapshotInstanceRequest, SnapshotInstanceResponse,
        StartInstanceRequest, StartInstanceResponse, StopInstanceRequest, StopInstanceResponse,
        StreamOutputRequest, StreamOutputResponse, WatchInstancesRequest, WatchInstancesResponse,
        instance_service_server::InstanceService,
    },
};
use tokio::time;
use tonic::{Request, Response, Status};

use super::{Answers, Gone, Operator, convert, keeps::check_is_not_stopped, stream};
use crate::{
    clock,
    controller::Controller,
    error::{Error, Result as ControllerResult},
    idempotency::Once,
    model::{
        event::{EventRecord, Reason, SubjectKind},
        instance::{InstanceRecord, Phase},
        service::ServiceRecord,
    },
    output::{Receiver, Wanted},
    records::{self, Kept},
    store::{StoreError, Txn, Watch},
};

/// How long a node may take to send what was asked of it.
const CLAIM: Duration = Duration::from_secs(15);
/// Changes that come so close together are sent as one.
const GATHER: Duration = Duration::from_millis(20);
/// A node that goes silent changes nothing by itself; looked at so often.
const LOOK: Duration = Duration::from_secs(1);

/// See the [module](self).
pub struct InstanceApi {
    /// The controller.
    pub controller: Arc<Controller>,
}

#[tonic::async_trait]
impl InstanceService for InstanceApi {
    async fn list_instances(
        &self,
        request: Request<ListInstancesRequest>,
    ) -> Result<Response<ListInstancesResponse>, Status> {
        let instances = list(&self.controller, &request.into_inner().service).await?;
        Ok(Response::new(ListInstancesResponse { instances }))
    }

    async fn get_instance(
        &self,
        request: Request<GetInstanceRequest>,
    ) -> Result<Response<GetInstanceResponse>, Status> {
        let kept = self.find(&request.into_inner().instance_id).await?;
        let key = records::service(&kept.value.service);
        let service: Option<Kept<ServiceRecord>> =
            records::get(&*self.controller.store, &key).await?;
        let shown = convert::instance(&kept.value, &self.controller.registry);
        let service = service.as_ref().map(|kept| &kept.value);
        let instance = Some(convert::placed_in(shown, &kept.value, service));
        Ok(Response::new(GetInstanceResponse { instance }))
    }

    async fn restart_instance(
        &self,
        request: Request<RestartInstanceRequest>,
    ) -> Result<Response<RestartInstanceResponse>, Status> {
        Ok(Response::new(self.restart(request.into_inner()).await?))
    }

    async fn pause_instance(
        &self,
        request: Request<PauseInstanceRequest>,
    ) -> Result<Response<PauseInstanceResponse>, Status> {
        Ok(Response::new(self.pause(request.into_inner()).await?))
    }

    async fn resume_instance(
        &self,
        request: Request<ResumeInstanceRequest>,
    ) -> Result<Response<ResumeInstanceResponse>, Status> {
        Ok(Response::new(self.resume(request.into_inner()).await?))
    }

    async fn stop_instance(
        &self,
        request: Request<StopInstanceRequest>,
    ) -> Result<Response<StopInstanceResponse>, Status> {
        Ok(Response::new(self.stop(request.into_inner()).await?))
    }

    async fn start_instance(
        &self,
        request: Request<StartInstanceRequest>,
    ) -> Result<Response<StartInstanceResponse>, Status> {
        Ok(Response::new(self.start(request.into_inner()).await?))
    }

    async fn snapshot_instance(
        &self,
        request: Request<SnapshotInstanceRequest>,
    ) -> Result<Response<SnapshotInstanceResponse>, Status> {
        Ok(Response::new(self.snapshot(request.into_inner()).await?))
    }

    async fn restore_instance(
        &self,
        request: Request<RestoreInstanceRequest>,
    ) -> Result<Response<RestoreInstanceResponse>, Status> {
        Ok(Response::new(self.restore(request.into_inner()).await?))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        Ok(Response::new(self.delete(request.into_inner()).await?))
    }

    type WatchInstancesStream = Answers<WatchInstancesResponse>;

    async fn watch_instances(
        &self,
        request: Request<WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        let service = request.into_inner().service;
        let controller = Arc::clone(&self.controller);
        Ok(stream(&self.controller, |operator| {
            watch(controller, service, operator)
        }))
    }

    type StreamOutputStream = Answers<StreamOutputResponse>;

    async fn stream_output(
        &self,
        request: Request<StreamOutputRequest>,
    ) -> Result<Response<Self::StreamOutputStream>, Status> {
        let output = self.output(request.into_inner()).await?;
        Ok(stream(&self.controller, |operator| relay(output, operator)))
    }
}

impl InstanceApi {
    pub(super) async fn find(&self, id: &str) -> ControllerResult<Kept<InstanceRecord>> {
        let Ok(id) = id.parse::<InstanceId>() else {
            return Err(Error::no_instance(id));
        };
        let kept = records::get(&*self.controller.store, &records::instance(&id)).await?;
        kept.ok_or_else(|| Error::no_instance(id.as_str()))
    }

    async fn restart(
        &self,
        request: RestartInstanceRequest,
    ) -> ControllerResult<RestartInstanceResponse> {
        let once = Once::of("RestartInstance", &request, |it| &mut it.request_id)?;
        let scope = convert::restart_scope(request.scope)?;
        let id = &request.instance_id;
        let now = clock::now();
        once.commit(&*self.controller.store, now, || async move {
            let kept = self.find(id).await?;
            if kept.value.phase != Phase::Wanted {
                let why = format!("instance {id} is being removed; there is nothing to restart");
                return Err(Error::Precondition(why));
            }
            check_is_not_stopped(&kept.value)?;
            if kept.value.keep.paused {
                let why = format!(
                    "instance {id} is paused, and would stay as it is; resume it first: \
                     `fabctl instance resume {id}`"
                );
                return Err(Error::Precondition(why));
            }
            let restart = kept.value.restart.again(scope);
            let record = InstanceRecord {
                restart,
                ..kept.value
            };
            let key = records::instance(&record.id);
            let txn = records::replace(Txn::new(), &key, Some(kept.modified), &record)?;
            let message = format!("an operator restarts {}", scope.what());
            let event = EventRecord::new(
                now,
                Reason::RestartRequested,
                SubjectKind::Instance,
                id,
                message,
            );
            let answer = RestartInstanceResponse {
                restart_generation: restart.generation,
            };
            Ok((records::add_event(txn, &event)?, answer))
        })
        .await
    }

    async fn output(&self, request: StreamOutputRequest) -> ControllerResult<Receiver> {
        let kind = match OutputKind::try_from(request.kind) {
            Ok(OutputKind::Unspecified) | Err(_) => {
                return Err(Error::Invalid(
                    "kind: it is missing; it is log or console".to_owned(),
                ));
            }
            Ok(kind) => kind,
        };
        let record = self.find(&request.instance_id).await?.value;
        let Some(node) = record.node else {
            return Err(Error::Precondition(format!(
                "instance {} has no node yet, so that there is no output: {}",
                record.id, record.unplaceable
            )));
        };
        if !self.controller.registry.sight(&node).connected {
            return Err(Error::Unavailable(format!(
                "node {node} of instance {} is not connected; its output cannot be had now",
                record.id
            )));
        }
        self.controller.outputs.open(Wanted {
            node,
            instance_id: record.id.to_string(),
            kind,
            tail_bytes: request.tail_bytes,
            follow: request.follow,
        })
    }
}

/// All instances, or those of a service, by id.
async fn list(controller: &Controller, service: &str) -> ControllerResult<Vec<Instance>> {
    let all: Vec<Kept<InstanceRecord>> =
        records::list(&*controller.store, records::INSTANCES).await?;
    let services: Vec<Kept<ServiceRecord>> =
        records::list(&*controller.store, records::SERVICES).await?;
    let services: BTreeMap<_, _> = services
        .iter()
        .map(|kept| (&kept.value.name, &kept.value))
        .collect();
    let asked = all
        .iter()
        .map(|kept| &kept.value)
        .filter(|record| service.is_empty() || record.service.as_str() == service);
    Ok(asked
        .map(|record| {
            let shown = convert::instance(record, &controller.registry);
            convert::placed_in(shown, record, services.get(&record.service).copied())
        })
        .collect())
}

/// Sends every instance now, and each whenever it changes or is gone: the state
/// as it is, never the steps in between.
async fn watch(
    controller: Arc<Controller>,
    service: String,
    operator: Operator<WatchInstancesResponse>,
) -> ControllerResult<Result<(), Gone>> {
    let mut nodes = controller.registry.changes();
    let mut sent: BTreeMap<String, Instance> = BTreeMap::new();
    let mut stored = None;
    loop {
        nodes.mark_unchanged();
        let mut changes = match stored.take() {
            Some(changes) => changes,
            None => watch_store(&controller).await?,
        };
        let now = list(&controller, &service).await?;
        if let Err(Gone) = send_changes(&now, &mut sent, &operator).await {
            return Ok(Err(Gone));
        }
        let closed = tokio::select! {
            _ = nodes.changed() => false,
            changed = changes.next() => match changed {
                Ok(_) => false,
                Err(StoreError::Compacted { .. }) => true,
                Err(error) => return Err(error.into()),
            },
            () = time::sleep(LOOK) => false,
        };
        if !closed {
            stored = Some(changes);
        }
        time::sleep(GATHER).await;
    }
}

async fn watch_store(controller: &Controller) -> ControllerResult<Box<dyn Watch>> {
    loop {
        let range = crate::store::Range::prefix(records::INSTANCES).limit(0);
        let revision = controller.store.range(range).await?.revision;
        match controller.store.watch(records::INSTANCES, revision) {
            Err(StoreError::Compacted { .. }) => {}
            other => return Ok(other?),
        }
    }
}

async fn send_changes(
    now: &[Instance],
    sent: &mut BTreeMap<String, Instance>,
    operator: &Operator<WatchInstancesResponse>,
) -> Result<(), Gone> {
    let there: BTreeSet<_> = now.iter().map(|one| one.instance_id.clone()).collect();
    let gone: Vec<_> = sent
        .keys()
        .filter(|id| !there.contains(*id))
        .cloned()
        .collect();
    for id in gone {
        let instance = sent.remove(&id);
        operator
            .send(WatchInstancesResponse {
                instance,
                deleted: true,
            })
            .await?;
    }
    for instance in now {
        if sent.get(&instance.instance_id) != Some(instance) {
            sent.insert(instance.instance_id.clone(), instance.clone());
            let instance = Some(instance.clone());
            operator
                .send(WatchInstancesResponse {
                    instance,
                    deleted: false,
                })
                .await?;
        }
    }
    Ok(())
}

/// Passes on what the node sends.
async fn relay(
    mut output: Receiver,
    operator: Operator<StreamOutputResponse>,
) -> ControllerResult<Result<(), Gone>> {
    // Until the node has opened its call, silence means that it does not.
    let first = time::timeout(CLAIM, output.next()).await;
    let mut next = match first {
        Ok(first) => first,
        Err(_) if output.is_claimed() => output.next().await,
        Err(_) => {
            return Err(Error::Unavailable(format!(
                "the node has not begun to send within {} s",
                CLAIM.as_secs()
            )));
        }
    };
    while let Some(piece) = next {
        if operator
            .send(StreamOutputResponse { data: piece? })
            .await
            .is_err()
        {
            return Ok(Err(Gone));
        }
        next = output.next().await;
    }
    Ok(Ok(()))
}
