//! Controller and host agent killed at once, and a guest that dies meanwhile.

use anyhow::ensure;
use fabric_tests::{Cluster, ServiceFile, Story, same_guest, status, story};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub(crate) const STORIES: &[Story] = &[
    story!(guests_run_on_while_everything_above_them_is_away),
    story!(what_died_meanwhile_is_started_again_even_before_the_controller_is_back),
];

async fn guests_run_on_while_everything_above_them_is_away() -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await?;
    let before = cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    cluster.controller.kill()?;
    cluster.host_agent.kill()?;
    cluster.host_agent.start_again()?;
    cluster.controller.start_again()?;
    cluster.until_node_is_connected().await?;
    cluster.until_event("shop-web-0", "InstanceAdopted").await?;
    let after = cluster.until_ready("shop-web-0").await?;
    same_guest(&before, &after)?;
    Ok(())
}

async fn what_died_meanwhile_is_started_again_even_before_the_controller_is_back()
-> anyhow::Result<()> {
    let mut cluster = Cluster::start().await?;
    let before = cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    cluster.controller.kill()?;
    cluster.host_agent.kill()?;
    kill(
        Pid::from_raw(i32::try_from(status(&before)?.vmm_pid)?),
        Signal::SIGKILL,
    )?;
    cluster.host_agent.start_again()?;

    // No controller: the host agent goes by the goal that it kept.
    fabric_tests::eventually(fabric_tests::BOOT, "a new console", || async {
        let console = cluster.instance_dir("shop-web-0").join("vmm.out");
        let host_agent = cluster.host_agent.log();
        if console.exists() && host_agent.contains("shop-web-0") {
            Ok(())
        } else {
            Err(host_agent)
        }
    })
    .await?;
    cluster.controller.start_again()?;
    let after = cluster
        .until("shop-web-0", "to be Ready again", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 2)
        })
        .await?;
    ensure!(
        status(&after)?.vmm_pid != status(&before)?.vmm_pid,
        "{after:#?}"
    );
    Ok(())
}
