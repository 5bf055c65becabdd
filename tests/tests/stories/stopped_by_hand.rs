//! A stop that an operator asked for is never undone, and says how it went.

use std::fs;

use anyhow::ensure;
use fabric_proto::{node::v1::VmEndCause, vmbus::SESSION_PORT};
use fabric_tests::{
    BOOT, Cluster, ServiceFile, Story, control, eventually, last_end, status, story, vmms_in,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

const ID: &str = "shop-web-0";

/// Says whether its disk was here before, and leaves a mark on it.
const MARKS: &str = "test -e /var/tmp/mark && echo found || echo fresh; \
     echo mark > /var/tmp/mark; sync; echo marked; exec sleep 1000000";
/// Says whether it has parted in order before, and does so when it is asked to.
const PARTS: &str = "cat /var/tmp/parted; \
     trap 'echo parted in order > /var/tmp/parted; sync; cat /var/tmp/parted; exit' TERM; \
     echo up; sleep 1000000 & wait";
/// Takes its time to end.
const SLOW: &str = "trap 'sleep 4; exit' TERM; echo up; sleep 1000000 & wait";
/// Does not end when it is asked to.
const DEAF: &str = "trap '' TERM; echo deaf; while :; do sleep 1000; done";

pub(crate) const STORIES: &[Story] = &[
    story!(a_stopped_instance_stays_down_whoever_is_killed_until_it_is_started),
    story!(a_role_that_does_not_end_is_killed_at_the_deadline_and_that_is_shown),
    story!(a_role_has_the_time_that_the_stop_gives_it),
    story!(a_power_button_that_is_pressed_by_hand_has_the_guest_go_in_order),
    story!(a_guest_whose_agent_has_no_session_is_stopped_by_its_power_button),
];

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

async fn a_role_has_the_time_that_the_stop_gives_it() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    // By its service's file it has two seconds, and it takes four.
    cluster
        .run(&ServiceFile::web("shop").script(SLOW), ID)
        .await?;
    says(&cluster, "up").await?;
    let refused = cluster.fabctl_output(&["instance", "stop", ID, "--grace", "2h"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success(), "{refused:?}");
    ensure!(said.contains("must be 0s to 1h"), "{said}");
    cluster.fabctl(&["instance", "stop", ID, "--grace", "1s", "--wait"])?;
    let killed = shown(&cluster)?;
    ensure!(killed["last_end"] == "stopped_by_force", "{killed}");
    let reason = killed["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("within 1s and was killed"), "{killed}");

    cluster.fabctl(&["instance", "start", ID, "--wait"])?;
    cluster.fabctl(&["instance", "stop", ID, "--grace", "1m", "--wait"])?;
    let ended = shown(&cluster)?;
    ensure!(ended["last_end"] == "stopped", "{ended}");
    ensure!(ended["last_exit"]["power_button"].is_null(), "{ended}");
    Ok(())
}

async fn a_power_button_that_is_pressed_by_hand_has_the_guest_go_in_order() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster
        .run(&ServiceFile::web("shop").script(PARTS), ID)
        .await?;
    says(&cluster, "up").await?;
    let socket = cluster.instance_dir(ID).join("control.sock");
    control(&socket, &json!({"op": "power_button"}))?;
    // Nobody has asked the fabric for it: the guest's own end, which is told as that.
    says(&cluster, "parted in order").await?;
    let after = cluster
        .until(ID, "to be Ready again", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|status| status.boots == 2)
        })
        .await?;
    let end = last_end(&after)?;
    ensure!(end.cause() == VmEndCause::PoweredOff, "{end:?}");
    ensure!(
        end.detail.contains("after its power button was pressed"),
        "{end:?}"
    );
    let exit = shown(&cluster)?["last_exit"].take();
    ensure!(exit["power_button"] == true, "{exit}");
    ensure!(exit["reason"] == "guest_power_off", "{exit}");
    Ok(())
}

async fn a_guest_whose_agent_has_no_session_is_stopped_by_its_power_button() -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster
        .run(&ServiceFile::web("shop").script(PARTS), ID)
        .await?;
    says(&cluster, "up").await?;
    // The session ends with its host agent, and the next one's door is gone before the
    // guest can knock at it.
    let session = cluster
        .instance_dir(ID)
        .join(format!("jail/vsock.sock_{SESSION_PORT}"));
    cluster.host_agent.kill()?;
    fs::remove_file(&session)?;
    let vmm = Pid::from_raw(cluster.vmm(ID)?.pid);
    kill(vmm, Signal::SIGSTOP)?;
    cluster.host_agent.start_again()?;
    eventually(BOOT, "the next host agent to listen", || async {
        fs::remove_file(&session).map_err(|error| error.to_string())
    })
    .await?;
    kill(vmm, Signal::SIGCONT)?;
    cluster.fabctl(&["instance", "stop", ID, "--wait"])?;
    let stopped = cluster.instance(ID).await?;
    let end = last_end(&stopped)?;
    ensure!(end.cause() == VmEndCause::Stopped, "{end:?}");
    ensure!(
        end.detail.contains("after its power button was pressed"),
        "{end:?}"
    );
    let shown = shown(&cluster)?;
    ensure!(shown["last_exit"]["power_button"] == true, "{shown}");
    ensure!(shown["last_exit"]["cause"] == "stopped", "{shown}");
    // What its role did at its end is on its disk.
    cluster.host_agent.kill()?;
    cluster.host_agent.start_again()?;
    cluster.fabctl(&["instance", "start", ID, "--wait"])?;
    says(&cluster, "parted in order").await
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
