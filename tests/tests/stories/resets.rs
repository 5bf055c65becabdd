//! A machine with a real kernel is reset in place: the process stays, connections end,
//! and the guest is back.

use std::io::{Read as _, Write as _};

use anyhow::{Result, ensure};
use fabric_proto::node::v1::VmEndCause;
use fabric_tests::{BOOT, Cluster, Peer, ServiceFile, Story, last_end, status, story};
use serde_json::json;

pub(crate) const STORIES: &[Story] = &[
    story!(a_guest_that_is_reset_is_back_and_its_connections_have_ended),
    story!(an_operator_resets_an_instance_in_place),
];

async fn an_operator_resets_an_instance_in_place() -> Result<()> {
    const INSTANCE: &str = "shop-web-0";
    let cluster = Cluster::start().await?;
    let before = cluster.run(&ServiceFile::web("shop"), INSTANCE).await?;
    let before = status(&before)?;
    cluster.fabctl(&["instance", "restart", INSTANCE, "--scope", "reset"])?;
    cluster.until_event(INSTANCE, "VmReset").await?;
    let after = cluster
        .until(INSTANCE, "to be Ready in its next boot", |now| {
            let boots = now.status.as_ref().map(|status| status.boots);
            now.state == "Ready" && boots == Some(before.boots + 1)
        })
        .await?;
    let after_status = status(&after)?;
    ensure!(
        after_status.vmm_pid == before.vmm_pid,
        "it is another process: {after:?}"
    );
    ensure!(after_status.boot_id != before.boot_id, "{after:?}");
    let end = last_end(&after)?;
    ensure!(end.cause() == VmEndCause::Reset, "{end:?}");
    let exit: serde_json::Value = serde_json::from_str(&after_status.last_exit_json)?;
    ensure!(exit["cause"] == "reset", "{exit}");
    ensure!(end.time.is_some() && exit["since"].is_string(), "{exit}");
    Ok(())
}

async fn a_guest_that_is_reset_is_back_and_its_connections_have_ended() -> Result<()> {
    let peer = Peer::start(|_| Ok(json!({"vcpus": 2}))).await?;
    let pid = peer.pid()?;
    let mut stream = peer.tell("echo")?;
    stream.write_all(b"here")?;
    stream.read_exact(&mut [0; 4])?;

    peer.control(&json!({"op": "reset"}))?;
    let ended = stream.read(&mut [0; 4]);
    ensure!(matches!(ended, Ok(0) | Err(_)), "it says {ended:?}");
    peer.until_it_answers(BOOT).await?;
    let status = peer.control(&json!({"op": "status"}))?["status"].take();
    ensure!(status["resets"] == 1, "{status}");
    ensure!(status["pid"] == pid, "{status}");
    ensure!(status["state"] == "running", "{status}");
    Ok(())
}
