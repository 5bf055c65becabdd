//! Host agent and VMM are replaced by newer ones while guests run.

use std::{fs, path::Path};

use anyhow::ensure;
use fabric_proto::node::v1::VmEndCause;
use fabric_tests::{
    Cluster, Identity, Options, Place, SOON, ServiceFile, Story, control, eventually, last_end,
    status, story,
};
use serde_json::json;

pub(crate) const STORIES: &[Story] = &[story!(
    a_guest_goes_on_under_a_newer_host_agent_and_is_stopped_by_it
)];

async fn a_guest_goes_on_under_a_newer_host_agent_and_is_stopped_by_it() -> anyhow::Result<()> {
    let place = Place::find()?;
    let programs = tempfile::tempdir()?;
    install(&place, programs.path())?;
    let mut cluster = Cluster::start_with(Options {
        node_programs: Some(programs.path().to_owned()),
        // The guest is not to be taken for hung where others are busy.
        host_agent: ["--guest-heartbeat", "10s"].map(str::to_owned).to_vec(),
        ..Options::default()
    })
    .await?;
    let service = ServiceFile::web("shop").script("exec sleep 1000000");
    let before = cluster.run(&service, "shop-web-0").await?;
    let vmm = cluster.vmm("shop-web-0")?;

    install(&place, programs.path())?;
    cluster.host_agent.kill()?;
    cluster.host_agent.start_again()?;
    cluster.until_event("shop-web-0", "InstanceAdopted").await?;
    let after = cluster.until_ready("shop-web-0").await?;
    ensure!(cluster.vmm("shop-web-0")? == vmm, "another VMM: {after:#?}");
    ensure!(
        status(&after)?.boot_id == status(&before)?.boot_id,
        "the guest has booted again: {after:#?}"
    );
    cluster.until_all_agree_on(&["shop-web-0"]).await?;
    // It is the program of before, of which there is no file any longer.
    let program = fs::read_link(format!("/proc/{}/exe", vmm.pid))?;
    let program = program.to_string_lossy();
    ensure!(program.ends_with("(deleted)"), "the VMM runs {program}");
    let socket = cluster.instance_dir("shop-web-0").join("control.sock");
    control(&socket, &json!({"op": "status"}))?;

    // It is stopped when that is wanted, and that is seen.
    cluster.fabctl(&["instance", "restart", "shop-web-0", "--scope", "vm"])?;
    let again = cluster
        .until("shop-web-0", "to be Ready again", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 2)
        })
        .await?;
    let end = last_end(&again)?;
    ensure!(end.cause() == VmEndCause::Stopped, "{end:?}");
    // Its host agent is gone: whoever has its processes now collects them in their own time.
    eventually(SOON, "the VMM of before to be gone", || async {
        match Identity::of(vmm.pid) {
            Some(same) if same == vmm => Err(format!("{vmm:?} runs on")),
            _ => Ok(()),
        }
    })
    .await?;
    cluster.until_all_agree_on(&["shop-web-0"]).await?;
    // The next one is of the newer program.
    let newer = fs::read_link(format!("/proc/{}/exe", cluster.vmm("shop-web-0")?.pid))?;
    ensure!(newer.exists(), "the VMM runs {}", newer.display());
    Ok(())
}

/// Puts the node's programs there as package managers do: whoever runs the file of
/// before keeps it.
fn install(place: &Place, programs: &Path) -> anyhow::Result<()> {
    for name in ["host-agent", "fabric-vmm"] {
        let new = programs.join(format!("{name}.new"));
        fs::copy(place.program(name), &new)?;
        fs::rename(new, programs.join(name))?;
    }
    Ok(())
}
