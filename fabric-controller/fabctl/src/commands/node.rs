//! `fabctl node`

use fabric_proto::v1::ListNodesRequest;

use super::Context;
use crate::{
    cli::{Format, NodeCommand},
    error::Result,
    show::{self, json, table},
};

pub(super) async fn run(context: &Context, command: NodeCommand) -> Result<()> {
    match command {
        NodeCommand::List => {
            let answer = context
                .client
                .nodes()
                .list_nodes(ListNodesRequest {})
                .await?;
            let nodes = answer.into_inner().nodes;
            match context.format {
                Format::Table => show::print_line(&table::nodes(&nodes)),
                Format::Json => show::print_json(&nodes.iter().map(json::node).collect()),
            }
        }
    }
}
