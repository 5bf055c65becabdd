//! A guest agent that hangs or dies is noticed by its host, and the guest is
//! started again.

use anyhow::ensure;
use fabric_proto::node::v1::VmEndCause;
use fabric_tests::{Cluster, ServiceFile, Story, last_end, status, story};

pub(crate) const STORIES: &[Story] = &[story!(
    a_guest_agent_that_hangs_or_dies_costs_a_restart_of_its_guest
)];

async fn a_guest_agent_that_hangs_or_dies_costs_a_restart_of_its_guest() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let first = cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;

    cluster.fault("shop-web-0", "hang-agent").await?;
    cluster
        .until_event("shop-web-0", "HeartbeatsMissed")
        .await?;
    let second = cluster
        .until("shop-web-0", "to be Ready after its agent hung", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 2)
        })
        .await?;
    ensure!(
        status(&second)?.boot_id != status(&first)?.boot_id,
        "{second:#?}"
    );

    let end = last_end(&second)?;
    ensure!(end.cause() == VmEndCause::Hung, "{end:?}");

    cluster.fault("shop-web-0", "exit-agent").await?;
    let third = cluster
        .until("shop-web-0", "to be Ready after its agent died", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 3)
        })
        .await?;
    let exit = &status(&third)?.last_exit_json;
    ensure!(
        exit.contains("Attempted to kill init"),
        "the VMM saw the panic: {exit}"
    );
    Ok(())
}
