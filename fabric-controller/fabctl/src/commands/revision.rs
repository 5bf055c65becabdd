//! `fabctl service swap|history|rollback`

use fabric_proto::v1::{ListRevisionsRequest, RollbackServiceRequest, SwapSlotsRequest};

use super::{Context, service};
use crate::{
    cli::{Format, Rollback},
    client::request_id,
    error::{Failure, Result},
    show::{self, json as shown, table},
};

pub(super) async fn swap(context: &Context, name: String) -> Result<()> {
    let request = SwapSlotsRequest {
        name: name.clone(),
        request_id: request_id(),
    };
    let answer = context.client.services().swap_slots(request).await?;
    let service = answer
        .into_inner()
        .service
        .ok_or(Failure::Answer("service"))?;
    match context.format {
        Format::Table => show::print_line(&format!(
            "what service {name} had in staging is in production, generation {}",
            service.generation
        )),
        Format::Json => show::print_json(&shown::service(&service)),
    }
}

pub(super) async fn history(context: &Context, name: String) -> Result<()> {
    let request = ListRevisionsRequest { name };
    let answer = context.client.services().list_revisions(request).await?;
    let revisions = answer.into_inner().revisions;
    match context.format {
        Format::Table => show::print_line(&table::revisions(&revisions)),
        Format::Json => show::print_json(&revisions.iter().map(shown::revision).collect()),
    }
}

pub(super) async fn rollback(context: &Context, rollback: Rollback) -> Result<()> {
    let request = RollbackServiceRequest {
        name: rollback.name,
        to: rollback.to,
        slot: service::slot(rollback.slot).into(),
        dry_run: rollback.dry_run,
        request_id: request_id(),
    };
    let answer = context.client.services().rollback_service(request).await?;
    let answer = answer.into_inner();
    let applied = answer.applied.ok_or(Failure::Answer("service"))?;
    if context.format == Format::Table {
        show::print_line(&format!("back to revision {}:", answer.to))?;
    }
    let Rollback {
        slot,
        dry_run,
        wait,
        ..
    } = rollback;
    service::show_applied(context, &applied, slot, dry_run, wait).await
}
