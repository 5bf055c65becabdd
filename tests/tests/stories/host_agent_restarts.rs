//! A host agent that is killed and started again finds its guests undisturbed.

use anyhow::ensure;
use fabric_tests::{Cluster, ServiceFile, Story, status, story};

pub(crate) const STORIES: &[Story] = &[
    story!(guests_run_on_while_their_host_agent_is_away),
    story!(what_was_removed_while_it_was_away_is_removed_when_it_is_back),
];

async fn guests_run_on_while_their_host_agent_is_away() -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await?;
    let before = cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;

    cluster.host_agent.kill()?;
    let process = format!("/proc/{}", status(&before)?.vmm_pid);
    ensure!(
        std::path::Path::new(&process).exists(),
        "the VMM died with its host agent"
    );
    cluster.host_agent.start_again()?;

    cluster.until_event("shop-web-0", "InstanceAdopted").await?;
    let after = cluster.until_ready("shop-web-0").await?;
    let (before, after) = (status(&before)?, status(&after)?);
    ensure!(after.vmm_pid == before.vmm_pid, "another VMM: {after:#?}");
    ensure!(
        after.boot_id == before.boot_id,
        "the guest has booted again: {after:#?}"
    );
    ensure!(after.boots == before.boots, "{after:#?}");

    // It is as well looked after as before.
    cluster.fault("shop-web-0", "panic").await?;
    cluster
        .until("shop-web-0", "to be Ready again", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 2)
        })
        .await?;
    Ok(())
}

async fn what_was_removed_while_it_was_away_is_removed_when_it_is_back() -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await?;
    let before = cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    cluster.host_agent.kill()?;
    cluster.fabctl(&["service", "delete", "shop"])?;
    cluster.host_agent.start_again()?;

    fabric_tests::eventually(fabric_tests::SOON, "the orphan to be gone", || async {
        let process = format!(
            "/proc/{}",
            status(&before).map_err(|e| e.to_string())?.vmm_pid
        );
        let runs = std::path::Path::new(&process).exists();
        let dir = cluster.instance_dir("shop-web-0").exists();
        if runs || dir {
            Err(format!("process {runs}, directory {dir}"))
        } else {
            Ok(())
        }
    })
    .await
}
