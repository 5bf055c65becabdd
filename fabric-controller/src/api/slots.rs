//! `fabric.v1.ServiceService`: the swap of the slots, and going back.

use fabric_proto::v1::{
    ListRevisionsRequest, ListRevisionsResponse, RollbackServiceRequest, RollbackServiceResponse,
    SwapSlotsRequest, SwapSlotsResponse,
};

use super::{
    convert,
    services::{SETTLE, ServiceApi, Wanted, service_event},
};
use crate::{
    clock,
    error::{Error, Result},
    idempotency::Once,
    model::{
        deployment::{Slot, Version},
        event::Reason,
        revision::Revision,
        service::ServiceRecord,
    },
    records::{self, Kept},
};

impl ServiceApi {
    pub(super) async fn found(&self, name: &str) -> Result<Kept<ServiceRecord>> {
        let found = self.find(name).await?;
        found.ok_or_else(|| Error::no_service(name))
    }

    /// One record changes, and nothing about any instance.
    pub(super) async fn swap(
        &self,
        request: SwapSlotsRequest,
        who: String,
    ) -> Result<SwapSlotsResponse> {
        let once = Once::of("SwapSlots", &request, |it| &mut it.request_id)?;
        let (name, who) = (&request.name, &who);
        let now = clock::now();
        once.commit(&*self.controller.store, now, || async move {
            let kept = self.found(name).await?;
            let mut record = kept.value;
            let Some(staging) = record.slots.remove(&Slot::Staging) else {
                return Err(Error::Precondition(format!(
                    "service {name} has nothing in staging; `fabctl service apply --slot staging` \
                     brings something"
                )));
            };
            if let Some(production) = record.slots.insert(Slot::Production, staging) {
                record.slots.insert(Slot::Staging, production);
            }
            record.generation += 1;
            record.updated = now;
            let revision = Revision {
                number: record.generation,
                time: now,
                who: who.clone(),
                what: "swapped".to_owned(),
                slot: Slot::Production,
                version: record
                    .deployment(Slot::Production)
                    .map(|one| one.version.clone()),
            };
            let txn = self.replace(Some(kept.modified), &record, revision).await?;
            let message = "what was in staging is in production".to_owned();
            let event = service_event(now, Reason::SlotsSwapped, &record.name, message);
            let instances = self.instances(name).await?;
            let service = Some(self.shown(&record, &instances));
            Ok((
                records::add_event(txn, &event)?,
                SwapSlotsResponse { service },
            ))
        })
        .await
    }

    async fn revisions(&self, record: &ServiceRecord) -> Result<Vec<Kept<Revision>>> {
        let mut all =
            records::list(&*self.controller.store, &records::revisions(&record.name)).await?;
        all.reverse();
        Ok(all)
    }

    pub(super) async fn history(
        &self,
        request: ListRevisionsRequest,
    ) -> Result<ListRevisionsResponse> {
        let record = self.found(&request.name).await?.value;
        let revisions = self.revisions(&record).await?;
        let revisions = revisions
            .into_iter()
            .map(|kept| convert::revision(kept.value));
        Ok(ListRevisionsResponse {
            revisions: revisions.collect(),
        })
    }

    pub(super) async fn rollback(
        &self,
        request: RollbackServiceRequest,
        who: String,
    ) -> Result<RollbackServiceResponse> {
        let once = Once::of("RollbackService", &request, |it| &mut it.request_id)?;
        let slot = convert::slot(request.slot)?;
        let instances = self.instances(&request.name).await?;
        let (request, instances, who) = (&request, &instances, &who);
        let now = clock::now();
        let plan = async || {
            let record = self.found(&request.name).await?.value;
            let kept = self.target(&record, slot, request.to).await?;
            let Some(version) = kept.value.version.clone() else {
                return Err(Error::Precondition(format!(
                    "revision {} of service {} is of nothing that could be gone back to",
                    kept.value.number, record.name
                )));
            };
            self.check_files(&version)?;
            let wanted = Wanted {
                name: &record.name,
                slot,
                version,
                instances,
                who,
                what: format!("back to revision {}", kept.value.number),
                now,
            };
            let planned = self.plan_version(wanted).await?;
            Ok((planned, kept))
        };
        if request.dry_run {
            let (planned, kept) = plan().await?;
            return Ok(RollbackServiceResponse {
                applied: Some(self.applied(planned, instances)),
                to: kept.value.number,
            });
        }
        let plan = &plan;
        let answer = once
            .commit(&*self.controller.store, now, || async move {
                let (mut planned, kept) = plan().await?;
                let mut txn = std::mem::take(&mut planned.txn);
                if !txn.ops.is_empty() {
                    // What it needs is kept for as long as this is.
                    let key = records::revision(&planned.record.name, kept.value.number);
                    txn = txn.when(key, Some(kept.modified));
                }
                let answer = RollbackServiceResponse {
                    applied: Some(self.applied(planned, instances)),
                    to: kept.value.number,
                };
                Ok((txn, answer))
            })
            .await?;
        self.controller.waker.settle(SETTLE).await;
        Ok(answer)
    }

    /// The revision of that number, or the newest one of the slot that is another
    /// version than what the slot has.
    async fn target(&self, record: &ServiceRecord, slot: Slot, to: u64) -> Result<Kept<Revision>> {
        let all = self.revisions(record).await?;
        let has = record.deployment(slot).map(|one| &one.version);
        let is_it = |kept: &Kept<Revision>| {
            let revision = &kept.value;
            if to == 0 {
                let version = revision.version.as_ref();
                revision.slot == slot && version.is_some() && version != has
            } else {
                revision.number == to
            }
        };
        let numbers = match (all.last(), all.first()) {
            (Some(first), Some(last)) => format!("{} to {}", first.value.number, last.value.number),
            _ => "none".to_owned(),
        };
        all.into_iter().find(is_it).ok_or_else(|| {
            let which = match to {
                0 => format!("revision before what is in {slot}"),
                to => format!("revision {to}"),
            };
            let name = &record.name;
            Error::Precondition(format!(
                "service {name} has no {which}; kept are {numbers}: `fabctl service history {name}`"
            ))
        })
    }

    /// Whether all files of a version are there.
    fn check_files(&self, version: &Version) -> Result<()> {
        for digest in version.digests() {
            if !self.controller.blobs.file(digest).exists() {
                return Err(Error::Precondition(format!(
                    "the image or package {digest} of that revision is not there any more"
                )));
            }
        }
        Ok(())
    }
}
