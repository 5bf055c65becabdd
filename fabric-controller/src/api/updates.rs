//! `fabric.v1.ServiceService`: how updates stand, and an operator's say in them.

use fabric_proto::v1::{
    ControlUpdateRequest, ControlUpdateResponse, GetUpdateRequest, GetUpdateResponse, UpdateAction,
};

use super::{
    convert,
    services::{SETTLE, ServiceApi, service_event},
};
use crate::{
    clock,
    error::{Error, Result},
    idempotency::Once,
    model::{
        deployment::{Deployment, Slot},
        event::Reason,
        revision::Revision,
        service::ServiceRecord,
        time::WallTime,
        update::{Current, Update, UpdateState},
    },
    records,
    store::Txn,
};

/// What an operator says, and to which deployment.
struct Order<'a> {
    service: &'a ServiceRecord,
    slot: Slot,
    deployment: &'a Deployment,
    update: &'a Update,
    now: WallTime,
}

impl ServiceApi {
    pub(super) async fn update(&self, request: GetUpdateRequest) -> Result<GetUpdateResponse> {
        let slot = convert::slot(request.slot)?;
        let service = self.found(&request.name).await?.value;
        let deployment = in_slot(&service, slot)?;
        let Some(update) = &deployment.update else {
            return Ok(GetUpdateResponse { update: None });
        };
        let instances = self.instances(&request.name).await?;
        let nodes = self.nodes().await?;
        let (nodes, registry) = (nodes.iter().collect(), &self.controller.registry);
        let progress = convert::progress(deployment, update, &instances, &nodes, registry);
        Ok(GetUpdateResponse {
            update: Some(progress),
        })
    }

    pub(super) async fn control(
        &self,
        request: ControlUpdateRequest,
        who: String,
    ) -> Result<ControlUpdateResponse> {
        let once = Once::of("ControlUpdate", &request, |it| &mut it.request_id)?;
        let slot = convert::slot(request.slot)?;
        let action = request.action;
        let (name, who) = (&request.name, &who);
        let now = clock::now();
        let answer = once
            .commit(&*self.controller.store, now, || async move {
                let kept = self.found(name).await?;
                let service = &kept.value;
                let deployment = in_slot(service, slot)?;
                let Some(update) = deployment.under_way() else {
                    return Err(Error::Precondition(format!(
                        "no update of service {name} is under way in {slot}; \
                         `fabctl service rollback` goes back to an older revision"
                    )));
                };
                let order = Order {
                    service,
                    slot,
                    deployment,
                    update,
                    now,
                };
                let (record, reason) = match UpdateAction::try_from(action) {
                    Ok(UpdateAction::Pause) => (order.pause()?, Reason::UpdatePaused),
                    Ok(UpdateAction::Resume) => (order.resume()?, Reason::UpdateResumed),
                    Ok(UpdateAction::Abort) => (order.abort(who)?, Reason::UpdateAborted),
                    Ok(UpdateAction::Advance) => (order.advance()?, Reason::UpdateAdvanced),
                    Ok(UpdateAction::Unspecified) | Err(_) => {
                        return Err(Error::Invalid(format!(
                            "action: {action} is not one; it is 1 to 4"
                        )));
                    }
                };
                let update = record.deployment(slot).and_then(|one| one.update.as_ref());
                let answer = ControlUpdateResponse {
                    update: update.map(convert::update),
                };
                let txn = if record.generation > service.generation {
                    let revision = Revision {
                        number: record.generation,
                        time: now,
                        who: who.clone(),
                        what: "back to the version before: the update was aborted".to_owned(),
                        slot,
                        version: record.deployment(slot).map(|one| one.version.clone()),
                    };
                    self.replace(Some(kept.modified), &record, revision).await?
                } else {
                    let key = records::service(&service.name);
                    records::replace(Txn::new(), &key, Some(kept.modified), &record)?
                };
                let message = format!("{slot}: by {who}");
                let event = service_event(now, reason, &service.name, message);
                Ok((records::add_event(txn, &event)?, answer))
            })
            .await?;
        self.controller.waker.settle(SETTLE).await;
        Ok(answer)
    }
}

fn in_slot(service: &ServiceRecord, slot: Slot) -> Result<&Deployment> {
    service.deployment(slot).ok_or_else(|| {
        Error::Precondition(format!("service {} has nothing in {slot}", service.name))
    })
}

impl Order<'_> {
    /// The service with that update.
    fn with(&self, update: Update) -> ServiceRecord {
        let mut service = self.service.clone();
        if let Some(deployment) = service.slots.get_mut(&self.slot) {
            deployment.update = Some(update);
        }
        service
    }

    fn refuse<T>(&self, what: &str) -> Result<T> {
        let name = &self.service.name;
        Err(Error::Precondition(format!(
            "the update of service {name} in {} {what}",
            self.slot
        )))
    }

    fn pause(&self) -> Result<ServiceRecord> {
        match &self.update.state {
            UpdateState::Walking | UpdateState::Paused => Ok(self.with(Update {
                state: UpdateState::Paused,
                ..self.update.clone()
            })),
            UpdateState::Stopped(why) => self.refuse(&format!("stands still already: {why}")),
            UpdateState::Done => self.refuse("is done"),
        }
    }

    fn resume(&self) -> Result<ServiceRecord> {
        match &self.update.state {
            UpdateState::Paused | UpdateState::Stopped(_) => {
                Ok(self.with(self.update.resumed(self.now)))
            }
            UpdateState::Walking => self.refuse("is going on already"),
            UpdateState::Done => self.refuse("is done"),
        }
    }

    fn abort(&self, who: &str) -> Result<ServiceRecord> {
        let why = format!("aborted by {who}");
        let revision = self.service.generation + 1;
        match self.deployment.back(revision, why, self.now) {
            Some(back) => {
                let (service, slot) = (self.service, self.slot);
                Ok(crate::reconcile::rollout::with(
                    service, slot, back, self.now,
                ))
            }
            None => self
                .refuse("has no version to go back to; pause it, or apply the file that should be"),
        }
    }

    fn advance(&self) -> Result<ServiceRecord> {
        match (&self.update.state, self.update.current) {
            (UpdateState::Walking, Some(current)) => Ok(self.with(Update {
                current: Some(Current {
                    hurried: true,
                    ..current
                }),
                ..self.update.clone()
            })),
            (UpdateState::Walking, None) => {
                self.refuse("is in no upgrade domain now; `fabctl update status` says why")
            }
            _ => self.refuse("stands still; `fabctl update resume` lets it go on"),
        }
    }
}
