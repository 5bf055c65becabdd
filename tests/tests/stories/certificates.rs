//! A node that has joined over TCP, and its certificate: renewed by itself, for as long as
//! it runs.

use std::{os::unix::fs::PermissionsExt as _, time::SystemTime};

use anyhow::{Context as _, ensure};
use fabric_tests::{Cluster, Options, SOON, Story, eventually, story};
use fabric_trust::{context, dial::Dial, identity::Identity};

/// How long certificates last: a controller is started again in less.
const LIFE: &str = "12s";

pub(crate) const STORIES: &[Story] = &[story!(
    a_host_agent_renews_its_certificate_while_its_session_goes_on,
    needs_kvm: false
)];

async fn a_host_agent_renews_its_certificate_while_its_session_goes_on() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with(Options {
        certificates: Some(LIFE),
        ..Options::default()
    })
    .await?;
    let first = identity(&cluster)?;
    ensure!(first.to_string() == "node node-1", "{first}");
    let second = renewed(&cluster, &first).await?;
    let third = renewed(&cluster, &second).await?;
    until_expired(&first).await?;
    ensure!(connections(&cluster).await? == 1, "it came anew");

    // Who comes with the first one is refused by now: what it shows is what it has got.
    cluster.controller.kill()?;
    cluster.controller.start_again()?;
    eventually(SOON, "the node to come again", || async {
        match connections(&cluster).await {
            Ok(2) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    renewed(&cluster, &third).await?;
    ensure!(connections(&cluster).await? == 2, "it came anew");
    Ok(())
}

/// How often the node has begun a session.
async fn connections(cluster: &Cluster) -> anyhow::Result<usize> {
    let events = cluster.events("node-1").await?;
    let begun = events.iter().filter(|one| one.reason == "NodeConnected");
    Ok(begun.count())
}

/// Who the node is by its file, which is for nobody else.
fn identity(cluster: &Cluster) -> anyhow::Result<Identity> {
    let file = cluster.node_dir().join("identity.toml");
    let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{} has mode {mode:o}", file.display());
    let context = context::read(&file)?.context("it has not joined")?;
    // The key is the certificate's, or they could not be used.
    Dial::new(&context)?;
    Ok(context.identity()?)
}

/// Waits until the node has another certificate than that one: the same name, for longer.
async fn renewed(cluster: &Cluster, before: &Identity) -> anyhow::Result<Identity> {
    let what = format!("another certificate than {}", before.serial);
    let now = eventually(SOON, &what, || async {
        match identity(cluster) {
            Ok(now) if now.serial != before.serial => Ok(now),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    ensure!(now.name == before.name, "{now:?}");
    ensure!(now.not_after > before.not_after, "{now:?} after {before:?}");
    ensure!(before.not_after > SystemTime::now(), "renewed too late");
    Ok(now)
}

async fn until_expired(identity: &Identity) -> anyhow::Result<()> {
    eventually(SOON, "the end of a certificate", || async {
        match identity.not_after.duration_since(SystemTime::now()) {
            Ok(left) => Err(format!("{left:?} are left")),
            Err(_) => Ok(()),
        }
    })
    .await
}
