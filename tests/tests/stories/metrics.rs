//! What a controller and a host agent that really run serve for Prometheus, of a guest that
//! really runs.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, ensure};
use fabric_tests::{Cluster, Options, SOON, ServiceFile, Story, eventually, story};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

pub(crate) const STORIES: &[Story] = &[
    story!(a_controller_serves_what_it_knows_of_nodes_and_instances),
    story!(a_host_agent_serves_what_it_its_vmm_and_its_guest_agent_count),
];

async fn a_controller_serves_what_it_knows_of_nodes_and_instances() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("metrics.sock");
    let mut cluster = Cluster::start_with(Options {
        controller: listening_on(&socket),
        ..Options::default()
    })
    .await?;
    is_for_its_user_alone(&socket)?;
    let before = scraped(&socket).await?;
    has(&before, "fabric_controller_info{version=")?;
    has(&before, "fabric_controller_nodes{state=\"connected\"} 1.0")?;
    has(&before, "fabric_controller_services 0.0")?;

    cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    // That it is Ready can be seen a moment before that is an event.
    let counted = [
        "fabric_controller_services 1.0",
        "fabric_controller_sessions 1.0",
        "fabric_controller_instances{state=\"Ready\"} 1.0",
        "fabric_controller_placements_total{outcome=\"placed\"} 1",
        "fabric_controller_events_total{reason=\"RoleReady\"} 1",
        "fabric_controller_calls_total{method=\"fabric.v1.ServiceService/ApplyService\",code=\"Ok\"} 1",
    ];
    eventually(SOON, "all of that to be counted", || async {
        let now = scraped(&socket).await.map_err(|error| error.to_string())?;
        let mut counted = counted.iter();
        let has_all = counted.try_for_each(|line| has(&now, line));
        has_all.map_err(|error| error.to_string())
    })
    .await?;

    // A node that goes away is seen there as well.
    cluster.host_agent.end();
    eventually(SOON, "the node to be seen to be silent", || async {
        let now = scraped(&socket).await.map_err(|error| error.to_string())?;
        has(&now, "fabric_controller_nodes{state=\"connected\"} 0.0")
            .and_then(|()| has(&now, "fabric_controller_sessions 0.0"))
            .map_err(|error| error.to_string())
    })
    .await
}

async fn a_host_agent_serves_what_it_its_vmm_and_its_guest_agent_count() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("metrics.sock");
    let cluster = Cluster::start_with(Options {
        host_agent: listening_on(&socket),
        ..Options::default()
    })
    .await?;
    is_for_its_user_alone(&socket)?;
    let before = scraped(&socket).await?;
    has(&before, "fabric_node_info{version=")?;
    ensure!(!before.contains("shop-web-0"), "{before}");

    cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    let now = scraped(&socket).await?;
    for line in [
        // Its own,
        "fabric_node_lease_needed 1",
        "fabric_node_instances{state=\"running\"} 1",
        "fabric_node_events_total{reason=\"RoleReady\"} 1",
        // the VMM's, by its control socket,
        "fabric_node_vm_unanswering 0",
        "fabric_node_vm_bus_connections{instance=\"shop-web-0\"} ",
        "fabric_node_vm_exits_total{instance=\"shop-web-0\",kind=",
        // and the guest agent's.
        "fabric_node_role_state{instance=\"shop-web-0\",state=\"ready\"} 1",
        "fabric_node_role_restarts_total{instance=\"shop-web-0\"} 0",
    ] {
        has(&now, line)?;
    }

    cluster.fault("shop-web-0", "kill-role web").await?;
    eventually(SOON, "the restart to be counted", || async {
        let now = scraped(&socket).await.map_err(|error| error.to_string())?;
        let restarts = "fabric_node_role_restarts_total{instance=\"shop-web-0\"} 1";
        has(&now, restarts).map_err(|error| error.to_string())
    })
    .await
}

fn listening_on(socket: &Path) -> Vec<String> {
    let address = format!("unix:{}", socket.display());
    vec!["--metrics-listen".into(), address]
}

fn is_for_its_user_alone(socket: &Path) -> anyhow::Result<()> {
    let mode = std::fs::metadata(socket)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{} has mode {mode:o}", socket.display());
    Ok(())
}

fn has(text: &str, line: &str) -> anyhow::Result<()> {
    ensure!(text.contains(line), "{line} is not in\n{text}");
    Ok(())
}

/// What is at /metrics there.
async fn scraped(socket: &Path) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    let (head, body) = said.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    ensure!(body.ends_with("# EOF\n"), "{body}");
    Ok(body.to_owned())
}
