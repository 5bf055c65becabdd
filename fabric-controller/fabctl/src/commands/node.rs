//! `fabctl node`

use std::time::Duration;

use fabric_proto::v1::{
    CordonNodeRequest, DrainNodeRequest, LabelNodeRequest, ListNodesRequest, Node,
    RemoveNodeRequest, UncordonNodeRequest,
};
use tokio::time::{self, Instant};
use tonic::Status;

use super::Context;
use crate::{
    cli::{DrainNode, Format, LabelChange, LabelNode, NodeCommand},
    client::request_id,
    error::{Failure, Result},
    show::{self, json, table},
};

/// Before it is asked again how a node stands.
const AGAIN: Duration = Duration::from_millis(300);

pub(super) async fn run(context: &Context, command: NodeCommand) -> Result<()> {
    match command {
        NodeCommand::List => list(context).await,
        NodeCommand::Show(one) => show_details(context, &one.name).await,
        NodeCommand::Cordon(one) => {
            let request = CordonNodeRequest {
                node_id: one.name,
                request_id: request_id(),
            };
            let answer = context.client.nodes().cordon_node(request).await?;
            show_one(context, answer.into_inner().node)
        }
        NodeCommand::Uncordon(one) => {
            let request = UncordonNodeRequest {
                node_id: one.name,
                request_id: request_id(),
            };
            let answer = context.client.nodes().uncordon_node(request).await?;
            show_one(context, answer.into_inner().node)
        }
        NodeCommand::Drain(settings) => drain(context, settings).await,
        NodeCommand::Label(settings) => label(context, settings).await,
        NodeCommand::Remove(one) => {
            let request = RemoveNodeRequest {
                node_id: one.name.clone(),
                request_id: request_id(),
            };
            context.client.nodes().remove_node(request).await?;
            match context.format {
                Format::Table => show::print_line(&format!("node {} removed", one.name)),
                Format::Json => show::print_json(&serde_json::json!({ "removed": one.name })),
            }
        }
    }
}

async fn list(context: &Context) -> Result<()> {
    let nodes = nodes(context).await?;
    match context.format {
        Format::Table => show::print_line(&table::nodes(&nodes)),
        Format::Json => show::print_json(&nodes.iter().map(json::node).collect()),
    }
}

async fn show_details(context: &Context, name: &str) -> Result<()> {
    let mut nodes = nodes(context).await?.into_iter();
    let node = nodes.find(|one| one.node_id == name);
    let node = node.ok_or_else(|| Status::not_found(format!("there is no node {name:?}")))?;
    let value = json::node(&node);
    match context.format {
        Format::Table => show::print_line(&table::details(&value)),
        Format::Json => show::print_json(&value),
    }
}

async fn nodes(context: &Context) -> Result<Vec<Node>> {
    let mut nodes = context.client.nodes();
    let answer = nodes.list_nodes(ListNodesRequest {}).await?;
    Ok(answer.into_inner().nodes)
}

fn show_one(context: &Context, node: Option<Node>) -> Result<()> {
    let node = node.ok_or(Failure::Answer("node"))?;
    match context.format {
        Format::Table => show::print_line(&table::nodes(&[node])),
        Format::Json => show::print_json(&json::node(&node)),
    }
}

async fn label(context: &Context, settings: LabelNode) -> Result<()> {
    let mut request = LabelNodeRequest {
        node_id: settings.name,
        request_id: request_id(),
        fault_domain: settings.fault_domain,
        ..LabelNodeRequest::default()
    };
    if settings.no_fault_domain {
        request.fault_domain = Some(String::new());
    }
    for change in settings.changes {
        match change {
            LabelChange::Remove(key) => request.remove.push(key),
            LabelChange::Set(key, value) => {
                let last = request.set.insert(key.clone(), value.clone());
                if last.is_some_and(|last| last != value) {
                    return Err(Failure::Input(format!("label {key} is given two values")));
                }
            }
        }
    }
    let answer = context.client.nodes().label_node(request).await?;
    let node = answer.into_inner().node.ok_or(Failure::Answer("node"))?;
    match context.format {
        Format::Table => show::print_line(&table::labels(&node)),
        Format::Json => show::print_json(&json::node(&node)),
    }
}

async fn drain(context: &Context, settings: DrainNode) -> Result<()> {
    let request = DrainNodeRequest {
        node_id: settings.name.clone(),
        request_id: request_id(),
    };
    let answer = context.client.nodes().drain_node(request).await?;
    let mut node = answer.into_inner().node;
    let end = Instant::now() + settings.wait.timeout.into();
    while settings.wait.wait && node.as_ref().is_some_and(|node| node.instances > 0) {
        if Instant::now() >= end {
            let left = node.map_or(0, |node| node.instances);
            return Err(Failure::TimedOut(format!(
                "node {} still has {left} instances after {}; it goes on being drained",
                settings.name, settings.wait.timeout
            )));
        }
        time::sleep(AGAIN).await;
        let found = nodes(context).await?.into_iter();
        node = found.into_iter().find(|one| one.node_id == settings.name);
    }
    show_one(context, node)
}
