//! A machine with a real kernel is reset in place: the process stays, connections end,
//! and the guest is back.

use std::{
    io::{Read as _, Write as _},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use fabric_tests::{BOOT, Peer, run, story};
use serde_json::json;

fn main() -> ExitCode {
    run(&[story!(
        a_guest_that_is_reset_is_back_and_its_connections_have_ended
    )])
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
