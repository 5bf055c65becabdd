//! Two guests at once: what happens to one is nothing to the other.

use anyhow::ensure;
use fabric_tests::{Cluster, ServiceFile, Story, status, story};

pub(crate) const STORIES: &[Story] =
    &[story!(one_guest_panics_and_the_other_does_not_notice, alone: true)];

async fn one_guest_panics_and_the_other_does_not_notice() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let one = cluster
        .run(&ServiceFile::web("shop").instances(2), "shop-web-0")
        .await?;
    let other = cluster.until_ready("shop-web-1").await?;
    ensure!(
        status(&one)?.vmm_pid != status(&other)?.vmm_pid,
        "one process for two guests"
    );

    cluster.fault("shop-web-0", "panic").await?;
    cluster
        .until("shop-web-0", "to be Ready again", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 2)
        })
        .await?;
    let same = cluster.instance("shop-web-1").await?;
    ensure!(
        same.state == "Ready" && status(&same)?.boots == 1,
        "{same:#?}"
    );
    ensure!(
        status(&same)?.boot_id == status(&other)?.boot_id,
        "{same:#?}"
    );

    // Scaling in takes the last and leaves the first.
    cluster.apply(&ServiceFile::web("shop").instances(1))?;
    fabric_tests::eventually(fabric_tests::SOON, "one instance to be left", || async {
        let left = cluster
            .instances()
            .await
            .map_err(|error| format!("{error:#}"))?;
        let ids: Vec<_> = left.iter().map(|i| i.instance_id.clone()).collect();
        if ids == ["shop-web-0"] {
            Ok(())
        } else {
            Err(format!("{ids:?}"))
        }
    })
    .await
}
