//! The same guest with one and with two virtual processors.

use anyhow::ensure;
use fabric_tests::{Cluster, SOON, ServiceFile, Story, eventually, story};

pub(crate) const STORIES: &[Story] = &[story!(a_guest_has_as_many_processors_as_its_size_says)];

async fn a_guest_has_as_many_processors_as_its_size_says() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.upload_guest_os()?;
    for vcpus in [1, 2] {
        let name = format!("shop{vcpus}");
        let instance = format!("{name}-web-0");
        let script = "echo processors $(grep -c ^processor /proc/cpuinfo); exec sleep 1000000";
        cluster.apply(&ServiceFile::web(&name).vcpus(vcpus).script(script))?;
        cluster.until_ready(&instance).await?;
        let log = eventually(SOON, "the role's output", || async {
            let log = cluster
                .fabctl(&["instance", "logs", &instance])
                .map_err(|e| e.to_string())?;
            if log.lines().any(|line| line.starts_with("processors ")) {
                Ok(log)
            } else {
                Err(log)
            }
        })
        .await?;
        ensure!(
            log.lines()
                .any(|line| line == format!("processors {vcpus}")),
            "{vcpus} wanted: {log}"
        );
        cluster.fabctl(&["service", "delete", &name])?;
    }
    Ok(())
}
