//! `fabctl update`, and waiting for one.

use std::time::Duration;

use fabric_proto::v1::{
    ControlUpdateRequest, GetServiceRequest, GetUpdateRequest, Service, Update, UpdateAction,
    UpdateState,
};
use tokio::time::{self, Instant};
use tonic::Code;

use super::{Context, service};
use crate::{
    cli::{Format, OneUpdate, Slot, UpdateCommand},
    client::request_id,
    error::{Failure, Result},
    show::{self, clean, json as shown, table},
};

/// Before it is asked again how an update stands.
const AGAIN: Duration = Duration::from_millis(300);

pub(super) async fn run(context: &Context, command: UpdateCommand) -> Result<()> {
    match command {
        UpdateCommand::Status(one) => status(context, one).await,
        UpdateCommand::Pause(one) => control(context, one, UpdateAction::Pause).await,
        UpdateCommand::Resume(one) => control(context, one, UpdateAction::Resume).await,
        UpdateCommand::Abort(one) => control(context, one, UpdateAction::Abort).await,
        UpdateCommand::Advance(one) => control(context, one, UpdateAction::Advance).await,
    }
}

async fn status(context: &Context, one: OneUpdate) -> Result<()> {
    let update = get(context, &one.name, one.slot).await?;
    match (context.format, update) {
        (Format::Table, Some(update)) => show::print_line(&table::update(&update)),
        (Format::Table, None) => {
            show::print_line(&format!("service {} was never updated", one.name))
        }
        (Format::Json, update) => show::print_json(
            &update
                .as_ref()
                .map_or(serde_json::Value::Null, shown::update),
        ),
    }
}

async fn control(context: &Context, one: OneUpdate, action: UpdateAction) -> Result<()> {
    let request = ControlUpdateRequest {
        name: one.name.clone(),
        slot: service::slot(one.slot).into(),
        action: action.into(),
        request_id: request_id(),
    };
    let answer = context.client.services().control_update(request).await?;
    let update = answer
        .into_inner()
        .update
        .ok_or(Failure::Answer("update"))?;
    let what = match action {
        UpdateAction::Pause => "is paused",
        UpdateAction::Resume => "goes on",
        UpdateAction::Abort => "is given up; what was changed is changed back",
        UpdateAction::Advance | UpdateAction::Unspecified => {
            "does not wait for the bake time of its upgrade domain"
        }
    };
    match context.format {
        Format::Table => show::print_line(&format!("the update of service {} {what}", one.name)),
        Format::Json => show::print_json(&shown::update(&update)),
    }
}

async fn get(context: &Context, name: &str, slot: Slot) -> Result<Option<Update>> {
    let request = GetUpdateRequest {
        name: name.to_owned(),
        slot: service::slot(slot).into(),
    };
    let answer = context.client.services().get_update(request).await?;
    Ok(answer.into_inner().update)
}

/// Waits until a slot of a service that was just applied has no update under way.
///
/// # Errors
///
/// The update has stopped, something else is to be there now, or it takes too long.
pub(super) async fn wait(
    context: &Context,
    applied: &Service,
    slot: Slot,
    at_most: Duration,
) -> Result<()> {
    let deadline = Instant::now() + at_most;
    let revision = revision_of(applied, slot);
    loop {
        let looked = look(context, applied, slot, revision).await;
        match looked {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // A controller that is restarted is asked again.
            Err(Failure::Call(status)) if status.code() == Code::Unavailable => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= deadline {
            let waits_for = get(context, &applied.name, slot).await?;
            let waits_for = waits_for.map(|update| update.waits_for).unwrap_or_default();
            return Err(Failure::TimedOut(format!(
                "the update of service {} is not done after {}; it waits for {}",
                applied.name,
                humantime::format_duration(at_most),
                clean(&waits_for)
            )));
        }
        time::sleep(AGAIN).await;
    }
}

fn revision_of(service: &Service, slot: Slot) -> Option<u64> {
    let found = service.deployments.iter();
    let mut found = found.filter(|one| one.slot() == service::slot(slot));
    found.next().map(|one| one.revision)
}

/// Whether it is done.
async fn look(
    context: &Context,
    applied: &Service,
    slot: Slot,
    revision: Option<u64>,
) -> Result<bool> {
    let name = applied.name.clone();
    let request = GetServiceRequest { name };
    let answer = context.client.services().get_service(request).await?;
    let now = answer.into_inner().service.unwrap_or_default();
    let there = now.deployments.iter();
    let mut there = there.filter(|one| one.slot() == service::slot(slot));
    let there = there.next();
    let update = there.and_then(|one| one.update.as_ref());
    if there.map(|one| one.revision) != revision {
        let why = update.map_or_else(String::new, |update| clean(&update.cause));
        return Err(Failure::Node(format!(
            "service {} is to be something else by now: {why}",
            applied.name
        )));
    }
    match update.map(Update::state) {
        None | Some(UpdateState::Done | UpdateState::Unspecified) => Ok(true),
        Some(UpdateState::Walking | UpdateState::Paused) => Ok(false),
        Some(UpdateState::Stopped) => Err(Failure::Node(format!(
            "the update of service {} has stopped: {}",
            applied.name,
            clean(
                &update
                    .map(|update| update.stopped_because.clone())
                    .unwrap_or_default()
            )
        ))),
    }
}
