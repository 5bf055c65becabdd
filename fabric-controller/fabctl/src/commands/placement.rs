//! `fabctl explain` and `fabctl simulate`

use fabric_proto::{
    label::each_once,
    v1::{ExplainPlacementRequest, SimulatePlacementRequest},
};

use super::{Context, service};
use crate::{
    cli::{Architecture, Explain, Format, Simulate},
    error::{Failure, Result},
    show::{self, placement},
};

pub(super) async fn explain(context: &Context, explain: Explain) -> Result<()> {
    let request = ExplainPlacementRequest {
        instance_id: explain.id,
    };
    let answer = context
        .client
        .placement()
        .explain_placement(request)
        .await?;
    let answer = answer.into_inner();
    match context.format {
        Format::Table => show::print_line(&placement::explanation(&answer)),
        Format::Json => show::print_json(&placement::explanation_json(&answer)),
    }
}

pub(super) async fn simulate(context: &Context, simulate: Simulate) -> Result<()> {
    let (definition_toml, file_name) = match &simulate.apply {
        Some(path) => service::read(path)?,
        None => Default::default(),
    };
    let (shape, architecture) = (simulate.shape.unwrap_or_default(), simulate.architecture);
    let request = SimulatePlacementRequest {
        kill_nodes: simulate.kill_node,
        kill_domains: simulate.kill_domain,
        add_nodes: simulate.add_nodes,
        add_cpus: shape.cpus,
        add_memory_bytes: shape.memory_bytes,
        add_fault_domain: simulate.domain.unwrap_or_default(),
        definition_toml,
        file_name,
        add_architecture: architecture.map_or("", Architecture::word).to_owned(),
        add_disk_bytes: simulate.disk.map_or(0, |disk| disk.as_u64()),
        add_labels: each_once("--label", simulate.labels).map_err(Failure::Input)?,
        add_resources: each_once("--resource", simulate.resources).map_err(Failure::Input)?,
    };
    let answer = context
        .client
        .placement()
        .simulate_placement(request)
        .await?;
    let answer = answer.into_inner();
    match context.format {
        Format::Table => show::print_line(&placement::outcome(&answer)),
        Format::Json => show::print_json(&placement::outcome_json(&answer)),
    }
}
