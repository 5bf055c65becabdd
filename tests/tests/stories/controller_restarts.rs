//! A controller that is killed and started again has forgotten nothing that it
//! acknowledged, and its nodes have not noticed.

use anyhow::ensure;
use fabric_tests::{Cluster, ServiceFile, Story, same_guest, story};

pub(crate) const STORIES: &[Story] = &[story!(nothing_is_lost_and_no_guest_is_disturbed)];

async fn nothing_is_lost_and_no_guest_is_disturbed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await?;
    let before = cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    let events = cluster.events("").await?;

    cluster.controller.kill()?;
    let refused = cluster.fabctl_output(&["node", "list"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && said.contains("api.sock"),
        "names the server: {said}"
    );
    cluster.controller.start_again()?;
    cluster.until_node_is_connected().await?;

    let after = cluster.until_ready("shop-web-0").await?;
    same_guest(&before, &after)?;
    ensure!(after.epoch == before.epoch, "{after:#?}");
    let kept = cluster.events("").await?;
    ensure!(kept.starts_with(&events), "events were lost");
    ensure!(
        cluster.fabctl(&["image", "list"])?.contains("guest-os"),
        "the image was lost"
    );
    Ok(())
}
