//! What a guest writes to its disk outlives a restart of the guest and goes with
//! the instance; the image under it never changes.

use std::fs;

use anyhow::ensure;
use fabric_tests::{BOOT, Cluster, ServiceFile, Story, eventually, story};
use sha2::{Digest as _, Sha256};

/// Says whether it has been here before, and leaves a mark.
const SCRIPT: &str = "test -e /var/tmp/mark && echo found $(cat /var/tmp/mark) || echo fresh; \
     echo a mark > /var/tmp/mark; sync; echo marked; exec sleep 1000000";

pub(crate) const STORIES: &[Story] = &[story!(writes_outlive_a_restart_and_vanish_with_the_disk)];

async fn writes_outlive_a_restart_and_vanish_with_the_disk() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let service = ServiceFile::web("shop").script(SCRIPT);
    cluster.run(&service, "shop-web-0").await?;
    says(&cluster, &["fresh", "marked"]).await?;
    let image = image_digest(&cluster)?;

    cluster.fabctl(&["instance", "restart", "shop-web-0", "--scope", "vm"])?;
    says(&cluster, &["fresh", "marked", "found a mark", "marked"]).await?;

    cluster.fabctl(&["instance", "restart", "shop-web-0", "--scope", "reimage"])?;
    says(
        &cluster,
        &[
            "fresh",
            "marked",
            "found a mark",
            "marked",
            "fresh",
            "marked",
        ],
    )
    .await?;

    cluster.fabctl(&["service", "delete", "shop"])?;
    eventually(BOOT, "the instance to be gone", || async {
        match cluster.instances().await {
            Ok(instances) if instances.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    cluster.apply(&service)?;
    cluster.until_ready("shop-web-0").await?;
    says(&cluster, &["fresh", "marked"]).await?;
    ensure!(
        image_digest(&cluster)? == image,
        "the image on the node has changed"
    );
    Ok(())
}

/// Waits until the role has said these lines, in this order, and no other.
async fn says(cluster: &Cluster, lines: &[&str]) -> anyhow::Result<()> {
    eventually(
        BOOT,
        &format!("the role to have said {lines:?}"),
        || async {
            let log = cluster
                .fabctl(&["instance", "logs", "shop-web-0"])
                .map_err(|e| e.to_string())?;
            let said: Vec<_> = log
                .lines()
                .filter_map(|line| {
                    ["fresh", "found a mark", "marked"]
                        .into_iter()
                        .find(|w| line.ends_with(w))
                })
                .collect();
            if said == lines { Ok(()) } else { Err(log) }
        },
    )
    .await
}

/// Digest of the one image in the node's cache, by its bytes.
fn image_digest(cluster: &Cluster) -> anyhow::Result<Vec<u8>> {
    let uploaded = fs::read(&cluster.place.guest_os)?;
    let digest = Sha256::digest(&uploaded);
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let cached = fs::read(cluster.path("node/blobs").join(name))?;
    ensure!(
        cached == uploaded,
        "the image on the node is not the one that was uploaded"
    );
    Ok(Sha256::digest(&cached).to_vec())
}
