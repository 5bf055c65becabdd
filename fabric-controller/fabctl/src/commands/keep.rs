//! `fabctl instance pause|resume|stop|start|snapshot|snapshots|restore|delete-snapshot`

use fabric_proto::{
    node::v1::{SnapshotState, SnapshotStatus, VmState},
    v1::{
        DeleteSnapshotRequest, GetInstanceRequest, Instance, PauseInstanceRequest,
        RestoreInstanceRequest, ResumeInstanceRequest, SnapshotInstanceRequest,
        StartInstanceRequest, StopInstanceRequest,
    },
};
use serde_json::{Value, json};

use super::{Context, wait};
use crate::{
    cli::{Format, OneInstance, OneSnapshot, Stop, Wait},
    client::request_id,
    error::{Failure, Result},
    show::{self, json as shown, table},
};

pub(super) async fn pause(context: &Context, one: OneInstance) -> Result<()> {
    let request = PauseInstanceRequest {
        instance_id: one.id.clone(),
        request_id: request_id(),
    };
    context.client.instances().pause_instance(request).await?;
    let id = &one.id;
    let paused = |it: Option<&Instance>| Ok(it.is_some_and(|it| it.state == "Paused"));
    wait_if(context, &one.wait, id, "paused", paused).await?;
    let line = format!("{id} {}", said(&one.wait, "is paused", "is being paused"));
    say(context, &line, json!({ "instance_id": id }))
}

pub(super) async fn resume(context: &Context, one: OneInstance) -> Result<()> {
    let request = ResumeInstanceRequest {
        instance_id: one.id.clone(),
        request_id: request_id(),
    };
    context.client.instances().resume_instance(request).await?;
    let id = &one.id;
    wait_if(context, &one.wait, id, "ready", |it| Ok(is_ready(it))).await?;
    let line = format!("{id} {}", said(&one.wait, "is ready", "is about to go on"));
    say(context, &line, json!({ "instance_id": id }))
}

pub(super) async fn stop(context: &Context, stop: Stop) -> Result<()> {
    let Stop { one, grace } = stop;
    // What does not even fit is out of range, which the controller says.
    let endless = prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    };
    let grace = grace.map(|grace| (*grace).try_into().unwrap_or(endless));
    let request = StopInstanceRequest {
        instance_id: one.id.clone(),
        request_id: request_id(),
        grace,
    };
    context.client.instances().stop_instance(request).await?;
    let id = &one.id;
    // A role that has ended is called Stopped as well, in a guest that runs.
    let stopped = |it: Option<&Instance>| {
        let down = |it: &Instance| {
            let status = it.status.as_ref();
            status.is_some_and(|status| status.vm_state() == VmState::Stopped)
        };
        Ok(it.is_some_and(|it| it.state == "Stopped" && down(it)))
    };
    wait_if(context, &one.wait, id, "stopped", stopped).await?;
    let line = format!("{id} {}", said(&one.wait, "is stopped", "is being stopped"));
    say(context, &line, json!({ "instance_id": id }))
}

pub(super) async fn start(context: &Context, one: OneInstance) -> Result<()> {
    let request = StartInstanceRequest {
        instance_id: one.id.clone(),
        request_id: request_id(),
    };
    context.client.instances().start_instance(request).await?;
    let id = &one.id;
    wait_if(context, &one.wait, id, "ready", |it| Ok(is_ready(it))).await?;
    let line = format!("{id} {}", said(&one.wait, "is ready", "is being started"));
    say(context, &line, json!({ "instance_id": id }))
}

pub(super) async fn snapshot(context: &Context, one: OneSnapshot) -> Result<()> {
    let request = SnapshotInstanceRequest {
        instance_id: one.id.clone(),
        snapshot: one.name.clone(),
        request_id: request_id(),
    };
    context
        .client
        .instances()
        .snapshot_instance(request)
        .await?;
    let (id, name) = (&one.id, &one.name);
    let taken = |it: Option<&Instance>| {
        let Some(snapshot) = it.and_then(|it| find(it, name)) else {
            return Err(gone(id, name));
        };
        match snapshot.state() {
            SnapshotState::Failed => Err(Failure::Node(format!(
                "snapshot {name} of {id} was not taken: {}",
                show::clean(&snapshot.reason)
            ))),
            state => Ok(state == SnapshotState::Ready),
        }
    };
    wait_if(context, &one.wait, id, "in the snapshot", taken).await?;
    let what = said(&one.wait, "is there", "is being taken");
    let line = format!("snapshot {name} of {id} {what}");
    say(
        context,
        &line,
        json!({ "instance_id": id, "snapshot": name }),
    )
}

pub(super) async fn list(context: &Context, id: String) -> Result<()> {
    let request = GetInstanceRequest { instance_id: id };
    let answer = context.client.instances().get_instance(request).await?;
    let instance = answer.into_inner().instance;
    let snapshots = instance.ok_or(Failure::Answer("instance"))?.snapshots;
    match context.format {
        Format::Table => show::print_line(&table::snapshots(&snapshots)),
        Format::Json => show::print_json(&snapshots.iter().map(shown::snapshot).collect()),
    }
}

pub(super) async fn restore(context: &Context, one: OneSnapshot) -> Result<()> {
    let request = RestoreInstanceRequest {
        instance_id: one.id.clone(),
        snapshot: one.name.clone(),
        request_id: request_id(),
    };
    let answer = context.client.instances().restore_instance(request).await?;
    let generation = answer.into_inner().restart_generation;
    let (id, name) = (&one.id, &one.name);
    let restored = |it: Option<&Instance>| {
        let status = it.and_then(|it| it.status.as_ref());
        let Some(status) = status.filter(|it| it.restored_generation >= generation) else {
            return Ok(false);
        };
        if status.restored_generation == generation && !status.restore_error.is_empty() {
            let why = show::clean(&status.restore_error);
            return Err(Failure::Node(format!("{id} was not restored: {why}")));
        }
        Ok(is_ready(it))
    };
    wait_if(context, &one.wait, id, "restored and ready", restored).await?;
    let what = said(&one.wait, "is back at", "goes back to");
    let line = format!("{id} {what} snapshot {name}");
    let shown = json!({ "instance_id": id, "snapshot": name, "restart_generation": generation });
    say(context, &line, shown)
}

pub(super) async fn delete(context: &Context, id: String, name: String) -> Result<()> {
    let request = DeleteSnapshotRequest {
        instance_id: id.clone(),
        snapshot: name.clone(),
        request_id: request_id(),
    };
    context.client.instances().delete_snapshot(request).await?;
    let line = format!("snapshot {name} of {id} is being deleted");
    say(
        context,
        &line,
        json!({ "instance_id": id, "deleted": name }),
    )
}

/// What is true once it was waited for, or what is going on.
fn said(how: &Wait, done: &'static str, doing: &'static str) -> &'static str {
    if how.wait { done } else { doing }
}

fn say(context: &Context, line: &str, shown: Value) -> Result<()> {
    match context.format {
        Format::Table => show::print_line(line),
        Format::Json => show::print_json(&shown),
    }
}

async fn wait_if(
    context: &Context,
    how: &Wait,
    id: &str,
    words: &'static str,
    holds: impl Fn(Option<&Instance>) -> Result<bool> + Sync,
) -> Result<()> {
    if !how.wait {
        return Ok(());
    }
    let awaited = wait::Awaited {
        subject: &format!("instance {id}"),
        words,
        service: "",
        only: Some(id),
        holds: &|instances| holds(instances.get(id)),
    };
    wait::wait_for(context, awaited, how.timeout.into()).await
}

fn is_ready(instance: Option<&Instance>) -> bool {
    instance.is_some_and(|it| it.state == "Ready")
}

fn find<'a>(instance: &'a Instance, name: &str) -> Option<&'a SnapshotStatus> {
    instance.snapshots.iter().find(|one| one.name == name)
}

fn gone(id: &str, name: &str) -> Failure {
    Failure::Node(format!("snapshot {name} of {id} was deleted meanwhile"))
}
