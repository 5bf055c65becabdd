//! `fabctl instance`

use fabric_proto::{
    node::v1::{OutputKind, RestartScope},
    v1::{GetInstanceRequest, ListInstancesRequest, RestartInstanceRequest, StreamOutputRequest},
};

use super::{Context, keep};
use crate::{
    cli::{Format, InstanceCommand, Output, Scope},
    client::request_id,
    error::{Failure, Result},
    show::{self, json, table},
};

pub(super) async fn run(context: &Context, command: InstanceCommand) -> Result<()> {
    match command {
        InstanceCommand::List { service } => list(context, service.unwrap_or_default()).await,
        InstanceCommand::Show { id } => show_one(context, id).await,
        InstanceCommand::Restart { id, scope } => restart(context, id, scope).await,
        InstanceCommand::Pause(one) => keep::pause(context, one).await,
        InstanceCommand::Resume(one) => keep::resume(context, one).await,
        InstanceCommand::Stop(one) => keep::stop(context, one).await,
        InstanceCommand::Start(one) => keep::start(context, one).await,
        InstanceCommand::Snapshot(one) => keep::snapshot(context, one).await,
        InstanceCommand::Snapshots { id } => keep::list(context, id).await,
        InstanceCommand::Restore(one) => keep::restore(context, one).await,
        InstanceCommand::DeleteSnapshot { id, name } => keep::delete(context, id, name).await,
        InstanceCommand::Logs(output) => stream(context, output, OutputKind::Log).await,
        InstanceCommand::Console(output) => stream(context, output, OutputKind::Console).await,
    }
}

async fn list(context: &Context, service: String) -> Result<()> {
    let request = ListInstancesRequest { service };
    let instances = context
        .client
        .instances()
        .list_instances(request)
        .await?
        .into_inner()
        .instances;
    match context.format {
        Format::Table => show::print_line(&table::instances(&instances)),
        Format::Json => show::print_json(&instances.iter().map(json::instance).collect()),
    }
}

async fn show_one(context: &Context, instance_id: String) -> Result<()> {
    let request = GetInstanceRequest { instance_id };
    let answer = context
        .client
        .instances()
        .get_instance(request)
        .await?
        .into_inner();
    let shown = json::instance(&answer.instance.ok_or(Failure::Answer("instance"))?);
    match context.format {
        Format::Table => show::print_line(&table::details(&shown)),
        Format::Json => show::print_json(&shown),
    }
}

async fn restart(context: &Context, id: String, scope: Scope) -> Result<()> {
    let (scope, what) = match scope {
        Scope::Role => (RestartScope::Role, "the role"),
        Scope::Vm => (RestartScope::Vm, "the virtual machine"),
        Scope::Reset => (RestartScope::Reset, "the guest in place"),
        Scope::Reimage => (RestartScope::Reimage, "the virtual machine on a fresh disk"),
    };
    let request = RestartInstanceRequest {
        instance_id: id.clone(),
        scope: scope.into(),
        request_id: request_id(),
    };
    let answer = context
        .client
        .instances()
        .restart_instance(request)
        .await?
        .into_inner();
    match context.format {
        Format::Table => show::print_line(&format!("restarting {what} of {id}")),
        Format::Json => show::print_json(&serde_json::json!({
            "instance_id": id,
            "restart_generation": answer.restart_generation,
        })),
    }
}

/// Bytes as they are: what a role writes is its own business, as with any log.
async fn stream(context: &Context, output: Output, kind: OutputKind) -> Result<()> {
    let request = StreamOutputRequest {
        instance_id: output.id,
        kind: kind.into(),
        tail_bytes: output.tail.map_or(0, |tail| tail.as_u64().max(1)),
        follow: output.follow,
    };
    let mut pieces = context
        .client
        .instances()
        .stream_output(request)
        .await?
        .into_inner();
    loop {
        tokio::select! {
            piece = pieces.message() => match piece? {
                Some(piece) => show::print_bytes(&piece.data)?,
                None => return Ok(()),
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}
