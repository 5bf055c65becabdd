//! A role that dies or hangs is restarted by its guest agent; the guest runs on.

use anyhow::ensure;
use fabric_proto::v1::Instance;
use fabric_tests::{Cluster, ServiceFile, Story, same_vmm, status, story};

pub(crate) const STORIES: &[Story] = &[story!(
    a_role_that_is_killed_or_hangs_comes_back_in_the_same_guest
)];

fn restarts(instance: &Instance) -> u32 {
    let role = instance
        .status
        .as_ref()
        .and_then(|status| status.role.as_ref());
    role.map_or(0, |role| role.restarts)
}

async fn a_role_that_is_killed_or_hangs_comes_back_in_the_same_guest() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let before = cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;

    cluster.fault("shop-web-0", "kill-role web").await?;
    let killed = cluster
        .until(
            "shop-web-0",
            "to be Ready after its role was killed",
            |now| now.state == "Ready" && restarts(now) > restarts(&before),
        )
        .await?;

    cluster.fault("shop-web-0", "hang-role web").await?;
    let hung = cluster
        .until("shop-web-0", "to be Ready after its role hung", |now| {
            now.state == "Ready" && restarts(now) > restarts(&killed)
        })
        .await?;

    ensure!(
        status(&hung)?.boots == 1,
        "the guest was restarted: {hung:#?}"
    );
    same_vmm(&before, &hung)?;
    cluster.until_event("shop-web-0", "RoleUnhealthy").await?;
    Ok(())
}
