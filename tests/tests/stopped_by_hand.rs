//! A stop that an operator asked for is never undone, and says how it went.

use std::process::ExitCode;

use anyhow::ensure;
use fabric_proto::node::v1::VmEndCause;
use fabric_tests::{BOOT, Cluster, ServiceFile, eventually, last_end, run, status, story, vmms_in};
use serde_json::Value;

const ID: &str = "shop-web-0";

/// Says whether its disk was here before, and leaves a mark on it.
const MARKS: &str = "test -e /var/tmp/mark && echo found || echo fresh; \
     echo mark > /var/tmp/mark; sync; echo marked; exec sleep 1000000";
/// Does not end when it is asked to.
const DEAF: &str = "trap '' TERM; echo deaf; while :; do sleep 1000; done";

fn main() -> ExitCode {
    run(&[
        story!(a_stopped_instance_stays_down_whoever_is_killed_until_it_is_started),
        story!(a_role_that_does_not_end_is_killed_at_the_deadline_and_that_is_shown),
    ])
}

async fn a_stopped_instance_stays_down_whoever_is_killed_until_it_is_started() -> anyhow::Result<()>
{
    let mut cluster = Cluster::start().await?;
    let service = ServiceFile::web("shop").script(MARKS);
    cluster.run(&service, ID).await?;
    says(&cluster, "marked").await?;

    cluster.fabctl(&["instance", "stop", ID, "--wait"])?;
    let stopped = cluster.instance(ID).await?;
    ensure!(stopped.state == "Stopped", "{stopped:#?}");
    ensure!(stopped.reason.contains("operator"), "{stopped:#?}");
    ensure!(stopped.since.is_some(), "{stopped:#?}");
    let end = last_end(&stopped)?;
    ensure!(end.cause() == VmEndCause::Stopped, "{end:?}");
    let exit = shown(&cluster)?["last_exit"].take();
    ensure!(exit["reason"] == "guest_power_off", "{exit}");
    ensure!(exit["cause"] == "stopped", "{exit}");
    let restarted = cluster.fabctl_output(&["instance", "restart", ID])?;
    ensure!(restarted.status.code() == Some(3), "{restarted:?}");

    cluster.controller.kill()?;
    cluster.host_agent.kill()?;
    cluster.controller.start_again()?;
    cluster.host_agent.start_again()?;
    let still = cluster
        .until(ID, "to be Stopped again", |now| now.state == "Stopped")
        .await?;
    ensure!(status(&still)?.boots == 1, "{still:#?}");
    ensure!(still.reason == stopped.reason, "{still:#?}");
    let vmms = vmms_in(&cluster.instance_dir(ID));
    ensure!(vmms.is_empty(), "{vmms:?} run");

    cluster.fabctl(&["instance", "start", ID, "--wait"])?;
    says(&cluster, "found").await?;
    let after = cluster.instance(ID).await?;
    let after = status(&after)?;
    ensure!(
        (after.boots, after.vm_restarts, after.reimages) == (2, 0, 0),
        "{after:#?}"
    );
    for (reason, cause) in [
        ("InstanceStopped", "StopRequested"),
        ("InstanceStarted", "StartRequested"),
    ] {
        let event = cluster.until_event(ID, reason).await?;
        let because = event.cause.as_ref().map(|cause| cause.reason.as_str());
        ensure!(because == Some(cause), "{event:?}");
    }
    Ok(())
}

async fn a_role_that_does_not_end_is_killed_at_the_deadline_and_that_is_shown() -> anyhow::Result<()>
{
    let cluster = Cluster::start().await?;
    let service = ServiceFile::web("shop").script(DEAF);
    cluster.run(&service, ID).await?;
    says(&cluster, "deaf").await?;
    cluster.fabctl(&["instance", "stop", ID, "--wait"])?;
    let stopped = cluster.instance(ID).await?;
    let end = last_end(&stopped)?;
    ensure!(end.cause() == VmEndCause::StoppedByForce, "{end:?}");
    let shown = shown(&cluster)?;
    ensure!(shown["state"] == "Stopped", "{shown}");
    ensure!(shown["power"] == "stopped", "{shown}");
    ensure!(shown["last_end"] == "stopped_by_force", "{shown}");
    ensure!(shown["last_exit"]["cause"] == "stopped_by_force", "{shown}");
    let reason = shown["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("within 2s and was killed"), "{shown}");
    Ok(())
}

fn shown(cluster: &Cluster) -> anyhow::Result<Value> {
    let text = cluster.fabctl(&["instance", "show", ID, "--output", "json"])?;
    Ok(serde_json::from_str(&text)?)
}

async fn says(cluster: &Cluster, line: &str) -> anyhow::Result<()> {
    eventually(BOOT, "its role to say so", || async {
        let log = cluster
            .fabctl(&["instance", "logs", ID])
            .map_err(|error| format!("{error:#}"))?;
        if log.lines().any(|one| one.ends_with(line)) {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await
}
