//! `fabctl service`

use std::{io::Read as _, path::Path};

use fabric_proto::v1::{
    self as proto, ApplyServiceRequest, ApplyServiceResponse, DeleteServiceRequest,
    GetServiceRequest, ListServicesRequest,
};
use serde_json::{Value, json};

use super::{
    Context, revision, update,
    wait::{Awaited, Until, wait, wait_for as wait_for_instances},
};
use crate::{
    cli::{Apply, DeleteService, Format, Plan, ServiceCommand, Slot, Wait},
    client::request_id,
    error::{Failure, Result},
    show::{self, json as shown, table},
};

pub(super) async fn run(context: &Context, command: ServiceCommand) -> Result<()> {
    match command {
        ServiceCommand::Apply(apply) => self::apply(context, apply).await,
        ServiceCommand::Plan(plan) => self::plan(context, plan).await,
        ServiceCommand::Diff(plan) => diff(context, plan).await,
        ServiceCommand::Swap { name } => revision::swap(context, name).await,
        ServiceCommand::History { name } => revision::history(context, name).await,
        ServiceCommand::Rollback(rollback) => revision::rollback(context, rollback).await,
        ServiceCommand::List => list(context).await,
        ServiceCommand::Show { name } => show_one(context, name).await,
        ServiceCommand::Delete(delete) => self::delete(context, delete).await,
    }
}

/// The file's text, and what errors call it.
pub(super) fn read(path: &Path) -> Result<(String, String)> {
    let mut text = String::new();
    if path == Path::new("-") {
        let read = std::io::stdin().read_to_string(&mut text);
        read.map_err(Failure::file("read", "standard input"))?;
        return Ok((text, "standard input".to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(Failure::file("read", path))?;
    Ok((text, path.display().to_string()))
}

/// The slot, as the controller is told it.
pub(super) const fn slot(slot: Slot) -> proto::Slot {
    match slot {
        Slot::Production => proto::Slot::Production,
        Slot::Staging => proto::Slot::Staging,
    }
}

async fn apply(context: &Context, apply: Apply) -> Result<()> {
    let (definition_toml, file_name) = read(&apply.file)?;
    let request = ApplyServiceRequest {
        definition_toml,
        file_name,
        dry_run: apply.dry_run,
        request_id: request_id(),
        slot: slot(apply.slot).into(),
    };
    let answer = context
        .client
        .services()
        .apply_service(request)
        .await?
        .into_inner();
    show_applied(context, &answer, apply.slot, apply.dry_run, apply.wait).await
}

/// Shows what has changed or would change, and waits for it.
pub(super) async fn show_applied(
    context: &Context,
    answer: &ApplyServiceResponse,
    slot: Slot,
    dry_run: bool,
    wait: Wait,
) -> Result<()> {
    if context.format == Format::Table {
        show_changes(answer, dry_run)?;
    }
    let service = answer.service.clone().ok_or(Failure::Answer("service"))?;
    if wait.wait && !dry_run {
        wait_for(context, &service, slot, wait.timeout.into()).await?;
        if context.format == Format::Table {
            show::print_line(&format!("service {} is ready", service.name))?;
        }
    }
    if context.format == Format::Json {
        show::print_json(&as_json(answer, dry_run))?;
    }
    Ok(())
}

/// Waits until an update is through, and then until every instance is Ready.
async fn wait_for(
    context: &Context,
    service: &proto::Service,
    slot: Slot,
    at_most: std::time::Duration,
) -> Result<()> {
    let begun = std::time::Instant::now();
    update::wait(context, service, slot, at_most).await?;
    let roles = service.deployments.iter().flat_map(|one| &one.roles);
    let count: u32 = roles.map(|role| role.instances).sum();
    let until = Until::Ready(usize::try_from(count).unwrap_or(usize::MAX));
    let left = at_most.saturating_sub(begun.elapsed());
    wait(context, &service.name, until, left).await
}

fn as_json(answer: &ApplyServiceResponse, dry_run: bool) -> Value {
    let changes: Vec<Value> = answer.changes.iter().map(shown::change).collect();
    let steps: Vec<Value> = answer.steps.iter().map(shown::step).collect();
    json!({
        "dry_run": dry_run,
        "changes": changes,
        "steps": steps,
        "under_way": answer.under_way,
        "service": answer.service.as_ref().map(shown::service),
    })
}

/// What applying a file would do.
async fn dry_run(context: &Context, plan: Plan) -> Result<ApplyServiceResponse> {
    let (definition_toml, file_name) = read(&plan.file)?;
    let request = ApplyServiceRequest {
        definition_toml,
        file_name,
        dry_run: true,
        request_id: String::new(),
        slot: slot(plan.slot).into(),
    };
    let answer = context.client.services().apply_service(request).await?;
    Ok(answer.into_inner())
}

async fn plan(context: &Context, plan: Plan) -> Result<()> {
    let answer = dry_run(context, plan).await?;
    match context.format {
        Format::Json => show::print_json(&as_json(&answer, true)),
        Format::Table => show_changes(&answer, true),
    }
}

async fn diff(context: &Context, plan: Plan) -> Result<()> {
    let answer = dry_run(context, plan).await?;
    match context.format {
        Format::Json => show::print_json(&as_json(&answer, true)),
        Format::Table => show::print_line(&table::changes(&answer.changes)),
    }
}

fn show_changes(answer: &ApplyServiceResponse, dry_run: bool) -> Result<()> {
    show::print_line(&table::changes(&answer.changes))?;
    if !answer.under_way.is_empty() {
        show::print_line(&show::clean(&answer.under_way))?;
    }
    if !answer.steps.is_empty() {
        show::print_line("one upgrade domain after another, each when the last is Ready:")?;
        show::print_line(&table::steps(&answer.steps))?;
    }
    let Some(service) = answer
        .service
        .as_ref()
        .filter(|_| !answer.changes.is_empty())
    else {
        return Ok(());
    };
    show::print_line(&if dry_run {
        "this is what would change; nothing was done".to_owned()
    } else {
        format!(
            "service {} applied, generation {}",
            service.name, service.generation
        )
    })
}

async fn list(context: &Context) -> Result<()> {
    let answer = context
        .client
        .services()
        .list_services(ListServicesRequest {})
        .await?;
    let services = answer.into_inner().services;
    match context.format {
        Format::Table => show::print_line(&table::services(&services)),
        Format::Json => show::print_json(&services.iter().map(shown::service).collect()),
    }
}

async fn show_one(context: &Context, name: String) -> Result<()> {
    let answer = context
        .client
        .services()
        .get_service(GetServiceRequest { name })
        .await?;
    let answer = answer.into_inner();
    let service = answer.service.ok_or(Failure::Answer("service"))?;
    match context.format {
        Format::Table => {
            show::print_line(&table::services(std::slice::from_ref(&service)))?;
            show::print_line("")?;
            show::print_line(&table::instances(&answer.instances))
        }
        Format::Json => {
            let mut value = shown::service(&service);
            value["instance_list"] = answer.instances.iter().map(shown::instance).collect();
            show::print_json(&value)
        }
    }
}

async fn delete(context: &Context, delete: DeleteService) -> Result<()> {
    let name = delete.name;
    let request = DeleteServiceRequest {
        name: name.clone(),
        request_id: request_id(),
        slot: delete.slot.map_or(0, |slot| self::slot(slot).into()),
    };
    context.client.services().delete_service(request).await?;
    if delete.slot.is_some() {
        return delete_slot(context, name, delete.wait).await;
    }
    if delete.wait.wait {
        wait(context, &name, Until::Gone, delete.wait.timeout.into()).await?;
    }
    let what = if delete.wait.wait {
        "is gone"
    } else {
        "is being removed"
    };
    match context.format {
        Format::Table => show::print_line(&format!("service {name} {what}")),
        Format::Json => show::print_json(&json!({ "deleted": name })),
    }
}

/// What is left to do when only what was in a slot is deleted.
async fn delete_slot(context: &Context, name: String, wait: Wait) -> Result<()> {
    if wait.wait {
        let awaited = Awaited {
            subject: &format!("what service {name} had in that slot"),
            words: "gone",
            service: &name,
            only: None,
            holds: &|instances| {
                let mut all = instances.values();
                Ok(all.all(|one| one.slot() != proto::Slot::Unspecified))
            },
        };
        wait_for_instances(context, awaited, wait.timeout.into()).await?;
    }
    let what = if wait.wait {
        "is gone"
    } else {
        "is being removed"
    };
    match context.format {
        Format::Table => show::print_line(&format!("what service {name} had in that slot {what}")),
        Format::Json => show::print_json(&json!({ "deleted": name })),
    }
}
