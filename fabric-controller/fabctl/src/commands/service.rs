//! `fabctl service`

use std::{io::Read as _, path::Path};

use fabric_proto::v1::{
    ApplyServiceRequest, ApplyServiceResponse, DeleteServiceRequest, GetServiceRequest,
    ListServicesRequest,
};
use serde_json::{Value, json};

use super::{
    Context,
    wait::{Until, wait},
};
use crate::{
    cli::{Apply, DeleteService, Format, ServiceCommand},
    client::request_id,
    error::{Failure, Result},
    show::{self, json as shown, table},
};

pub(super) async fn run(context: &Context, command: ServiceCommand) -> Result<()> {
    match command {
        ServiceCommand::Apply(apply) => self::apply(context, apply).await,
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

async fn apply(context: &Context, apply: Apply) -> Result<()> {
    let (definition_toml, file_name) = read(&apply.file)?;
    let request = ApplyServiceRequest {
        definition_toml,
        file_name,
        dry_run: apply.dry_run,
        request_id: request_id(),
    };
    let answer = context
        .client
        .services()
        .apply_service(request)
        .await?
        .into_inner();
    if context.format == Format::Table {
        show_changes(&answer, apply.dry_run)?;
    }
    let service = answer.service.clone().ok_or(Failure::Answer("service"))?;
    if apply.wait.wait && !apply.dry_run {
        let count: u32 = service.roles.iter().map(|role| role.instances).sum();
        let until = Until::Ready(usize::try_from(count).unwrap_or(usize::MAX));
        wait(context, &service.name, until, apply.wait.timeout.into()).await?;
        if context.format == Format::Table {
            show::print_line(&format!("service {} is ready", service.name))?;
        }
    }
    if context.format == Format::Json {
        let changes: Vec<Value> = answer.changes.iter().map(shown::change).collect();
        show::print_json(&json!({
            "dry_run": apply.dry_run,
            "changes": changes,
            "service": shown::service(&service),
        }))?;
    }
    Ok(())
}

fn show_changes(answer: &ApplyServiceResponse, dry_run: bool) -> Result<()> {
    show::print_line(&table::changes(&answer.changes))?;
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
    };
    context.client.services().delete_service(request).await?;
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
