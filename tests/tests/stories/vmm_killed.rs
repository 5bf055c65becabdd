//! A VMM that is killed is started again.

use anyhow::ensure;
use fabric_proto::node::v1::VmEndCause;
use fabric_tests::{Cluster, ServiceFile, Story, last_end, status, story};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub(crate) const STORIES: &[Story] = &[story!(a_vmm_that_is_killed_is_started_again)];

async fn a_vmm_that_is_killed_is_started_again() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let before = cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    let vmm = status(&before)?.vmm_pid;

    kill(Pid::from_raw(i32::try_from(vmm)?), Signal::SIGKILL)?;
    let after = cluster
        .until(
            "shop-web-0",
            "to be Ready after its VMM was killed",
            |now| now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 2),
        )
        .await?;
    ensure!(status(&after)?.vmm_pid != vmm, "{after:#?}");
    let end = last_end(&after)?;
    ensure!(end.cause() == VmEndCause::Killed, "{end:?}");
    let shown = cluster.fabctl(&["instance", "show", "shop-web-0"])?;
    ensure!(shown.contains("killed: by signal 9"), "{shown}");
    cluster.until_event("shop-web-0", "VmmExited").await?;
    Ok(())
}
