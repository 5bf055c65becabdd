//! Pauses, stops, snapshots, and the way back to one: the calls of [`InstanceApi`] that change
//! what is kept of an instance.

use std::time::Duration;

use fabric_proto::{
    id::SnapshotName,
    node::v1::SnapshotState,
    v1::{
        DeleteSnapshotRequest, DeleteSnapshotResponse, PauseInstanceRequest, PauseInstanceResponse,
        RestoreInstanceRequest, RestoreInstanceResponse, ResumeInstanceRequest,
        ResumeInstanceResponse, SnapshotInstanceRequest, SnapshotInstanceResponse,
        StartInstanceRequest, StartInstanceResponse, StopInstanceRequest, StopInstanceResponse,
    },
};
use prost::Message;

use super::{convert, instances::InstanceApi};
use crate::{
    clock,
    error::{Error, Result},
    idempotency::Once,
    model::{
        event::{EventRecord, Reason, SubjectKind},
        instance::{InstanceRecord, Phase, RestartScope},
        keep::{Keep, STOP_GRACE},
        state::{Derived, InstanceState},
    },
    records,
    store::Txn,
};

/// What a call makes of an instance.
struct Change<R> {
    /// The instance as it is to be, and what is told of that; nothing if it is so.
    to: Option<(InstanceRecord, Reason, String)>,
    answer: R,
}

impl InstanceApi {
    pub(super) async fn pause(
        &self,
        request: PauseInstanceRequest,
    ) -> Result<PauseInstanceResponse> {
        let once = Once::of("PauseInstance", &request, |it| &mut it.request_id)?;
        self.change(once, &request.instance_id, |record| {
            let answer = PauseInstanceResponse {};
            check_is_not_stopped(&record)?;
            if record.keep.paused {
                return Ok(Change { to: None, answer });
            }
            self.check_runs(&record, "paused")?;
            let message = "an operator pauses it".to_owned();
            let record = with_keep(record, |keep| keep.paused = true);
            let to = Some((record, Reason::PauseRequested, message));
            Ok(Change { to, answer })
        })
        .await
    }

    pub(super) async fn resume(
        &self,
        request: ResumeInstanceRequest,
    ) -> Result<ResumeInstanceResponse> {
        let once = Once::of("ResumeInstance", &request, |it| &mut it.request_id)?;
        self.change(once, &request.instance_id, |record| {
            let answer = ResumeInstanceResponse {};
            if !record.keep.paused {
                return Ok(Change { to: None, answer });
            }
            let message = "an operator lets it go on".to_owned();
            let record = with_keep(record, |keep| keep.paused = false);
            let to = Some((record, Reason::ResumeRequested, message));
            Ok(Change { to, answer })
        })
        .await
    }

    /// Whatever it does, and wherever it is: what does not run now is not started then.
    pub(super) async fn stop(&self, request: StopInstanceRequest) -> Result<StopInstanceResponse> {
        let once = Once::of("StopInstance", &request, |it| &mut it.request_id)?;
        let grace = request.grace.map(stop_grace).transpose()?;
        self.change(once, &request.instance_id, |record| {
            let answer = StopInstanceResponse {};
            let other = grace.is_some() && grace != record.keep.stop_grace;
            if record.keep.stopped && !other {
                return Ok(Change { to: None, answer });
            }
            let message = match grace {
                None => "an operator stops it".to_owned(),
                Some(grace) => format!(
                    "an operator stops it; its role has {}",
                    humantime::format_duration(grace)
                ),
            };
            let record = with_keep(record, |keep| *keep = keep.to_stop(grace));
            let to = Some((record, Reason::StopRequested, message));
            Ok(Change { to, answer })
        })
        .await
    }

    pub(super) async fn start(
        &self,
        request: StartInstanceRequest,
    ) -> Result<StartInstanceResponse> {
        let once = Once::of("StartInstance", &request, |it| &mut it.request_id)?;
        self.change(once, &request.instance_id, |record| {
            let answer = StartInstanceResponse {};
            if !record.keep.stopped {
                return Ok(Change { to: None, answer });
            }
            let message = "an operator starts it".to_owned();
            let record = with_keep(record, |keep| *keep = keep.to_start());
            let to = Some((record, Reason::StartRequested, message));
            Ok(Change { to, answer })
        })
        .await
    }

    pub(super) async fn snapshot(
        &self,
        request: SnapshotInstanceRequest,
    ) -> Result<SnapshotInstanceResponse> {
        let once = Once::of("SnapshotInstance", &request, |it| &mut it.request_id)?;
        let name = snapshot_name(&request.snapshot)?;
        self.change(once, &request.instance_id, |record| {
            check_is_not_stopped(&record)?;
            self.check_runs(&record, "put into a snapshot")?;
            let keep = record.keep.with(name.clone());
            let keep =
                keep.map_err(|why| Error::Precondition(format!("instance {}: {why}", record.id)))?;
            let message = format!("an operator wants snapshot {name}");
            let record = InstanceRecord { keep, ..record };
            Ok(Change {
                to: Some((record, Reason::SnapshotRequested, message)),
                answer: SnapshotInstanceResponse {},
            })
        })
        .await
    }

    pub(super) async fn restore(
        &self,
        request: RestoreInstanceRequest,
    ) -> Result<RestoreInstanceResponse> {
        let once = Once::of("RestoreInstance", &request, |it| &mut it.request_id)?;
        let name = snapshot_name(&request.snapshot)?;
        self.change(once, &request.instance_id, |record| {
            self.check_ready(&record, &name)?;
            let restart = record.restart.again(RestartScope::Restore);
            let record = with_keep(InstanceRecord { restart, ..record }, |keep| {
                keep.paused = false;
                *keep = keep.to_start();
                keep.restore = Some(name.clone());
            });
            let message = format!("an operator takes it back to snapshot {name}");
            Ok(Change {
                to: Some((record, Reason::RestoreRequested, message)),
                answer: RestoreInstanceResponse {
                    restart_generation: restart.generation,
                },
            })
        })
        .await
    }

    pub(super) async fn delete(
        &self,
        request: DeleteSnapshotRequest,
    ) -> Result<DeleteSnapshotResponse> {
        let once = Once::of("DeleteSnapshot", &request, |it| &mut it.request_id)?;
        let name = snapshot_name(&request.snapshot)?;
        self.change(once, &request.instance_id, |record| {
            if record.keep.find(&name).is_none() {
                return Err(no_snapshot(&record, &name));
            }
            let keep = record.keep.without(&name);
            let message = format!("an operator deletes snapshot {name}");
            let record = InstanceRecord { keep, ..record };
            Ok(Change {
                to: Some((record, Reason::SnapshotDeleted, message)),
                answer: DeleteSnapshotResponse {},
            })
        })
        .await
    }

    /// Changes an instance, once for each request id.
    async fn change<R: Message + Default>(
        &self,
        once: Once,
        id: &str,
        plan: impl Fn(InstanceRecord) -> Result<Change<R>> + Send + Sync,
    ) -> Result<R> {
        let (now, plan) = (clock::now(), &plan);
        once.commit(&*self.controller.store, now, || async move {
            let kept = self.find(id).await?;
            if kept.value.phase != Phase::Wanted {
                let why = format!("instance {id} is being removed; nothing can be done with it");
                return Err(Error::Precondition(why));
            }
            let Change { to, answer } = plan(kept.value)?;
            let Some((record, reason, message)) = to else {
                return Ok((Txn::new(), answer));
            };
            let key = records::instance(&record.id);
            let txn = records::replace(Txn::new(), &key, Some(kept.modified), &record)?;
            let event = EventRecord::new(now, reason, SubjectKind::Instance, id, message);
            Ok((records::add_event(txn, &event)?, answer))
        })
        .await
    }

    /// Only a guest that runs, or stands still, has a memory to keep.
    fn check_runs(&self, record: &InstanceRecord, what: &str) -> Result<()> {
        let (Derived { state, reason, .. }, _) = convert::derive(record, &self.controller.registry);
        if state.has_guest() {
            return Ok(());
        }
        let reason = if reason.is_empty() {
            reason
        } else {
            format!(" ({reason})")
        };
        Err(Error::Precondition(format!(
            "instance {} is {state}{reason}, and only one whose guest runs can be {what}; wait \
             until it is {}",
            record.id,
            InstanceState::Ready
        )))
    }

    /// Only a snapshot that is there can be gone back to.
    fn check_ready(&self, record: &InstanceRecord, name: &SnapshotName) -> Result<()> {
        let all = convert::snapshots(record, &self.controller.registry);
        let Some(snapshot) = all.iter().find(|one| one.name == name.as_str()) else {
            return Err(no_snapshot(record, name));
        };
        let id = &record.id;
        match snapshot.state() {
            SnapshotState::Ready => Ok(()),
            SnapshotState::Failed => Err(Error::Precondition(format!(
                "snapshot {name} of instance {id} was never taken ({}); restore another",
                snapshot.reason
            ))),
            SnapshotState::Taking | SnapshotState::Unspecified => {
                Err(Error::Precondition(format!(
                    "snapshot {name} of instance {id} is not there yet, or its node is not heard; see \
                 `fabctl instance snapshots {id}`"
                )))
            }
        }
    }
}

/// Only a start does anything to what was stopped, or a way back to a snapshot.
pub(super) fn check_is_not_stopped(record: &InstanceRecord) -> Result<()> {
    let id = &record.id;
    if record.keep.stopped {
        return Err(Error::Precondition(format!(
            "instance {id} is stopped, and stays so until it is started: `fabctl instance start \
             {id}`"
        )));
    }
    Ok(())
}

fn with_keep(mut record: InstanceRecord, change: impl FnOnce(&mut Keep)) -> InstanceRecord {
    change(&mut record.keep);
    record
}

/// How long an operator gives a role to end.
fn stop_grace(given: prost_types::Duration) -> Result<Duration> {
    let grace = Duration::try_from(given).ok();
    grace
        .filter(|grace| STOP_GRACE.contains(grace))
        .ok_or_else(|| {
            let low = humantime::format_duration(*STOP_GRACE.start());
            let high = humantime::format_duration(*STOP_GRACE.end());
            let seconds = given.seconds;
            Error::Invalid(format!(
                "grace {seconds}s is out of range; it must be {low} to {high}"
            ))
        })
}

fn snapshot_name(name: &str) -> Result<SnapshotName> {
    name.parse()
        .map_err(|error| Error::Invalid(format!("snapshot: {error}")))
}

fn no_snapshot(record: &InstanceRecord, name: &SnapshotName) -> Error {
    Error::NotFound {
        kind: "snapshot",
        name: format!("{name} of instance {}", record.id),
        hint: "see `fabctl instance snapshots INSTANCE`",
    }
}
