//! A guest that panics, reboots or powers off is told apart, and started again.

use anyhow::ensure;
use fabric_proto::node::v1::VmEndCause;
use fabric_tests::{Cluster, ServiceFile, Story, last_end, status, story};

pub(crate) const STORIES: &[Story] = &[story!(
    panic_reboot_and_power_off_are_told_apart_and_end_in_ready
)];

async fn panic_reboot_and_power_off_are_told_apart_and_end_in_ready() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;

    let ways = [
        ("panic", "kernel_panic", VmEndCause::Panicked),
        ("reboot", "guest_reset", VmEndCause::Rebooted),
        ("power-off", "guest_power_off", VmEndCause::PoweredOff),
    ];
    for (boots, (fault, reason, cause)) in (2..).zip(ways) {
        cluster.fault("shop-web-0", fault).await?;
        let after = cluster
            .until("shop-web-0", &format!("to be Ready after {fault}"), |now| {
                now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == boots)
            })
            .await?;
        let exit: serde_json::Value = serde_json::from_str(&status(&after)?.last_exit_json)?;
        ensure!(exit["reason"] == reason, "after {fault}: {exit}");
        let end = last_end(&after)?;
        ensure!(end.cause() == cause, "after {fault}: {end:?}");
        let word = cause.as_str_name().to_lowercase();
        let kept = exit["cause"].as_str().unwrap_or("none");
        ensure!(word.ends_with(&format!("cause_{kept}")), "{exit}");
        ensure!(exit["why"] == *end.detail, "{exit}");
        ensure!(exit["since"].is_string(), "{exit}");
        ensure!(end.time.is_some() && !end.detail.is_empty(), "{end:?}");
    }
    Ok(())
}
