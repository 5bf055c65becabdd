//! A service file becomes a role that is `Ready` in a real guest, and leaves
//! nothing when it goes.

use std::path::Path;

use anyhow::ensure;
use fabric_tests::{Cluster, SOON, ServiceFile, Story, eventually, same_vmm, status, story};

pub(crate) const STORIES: &[Story] = &[story!(
    a_service_becomes_ready_can_be_looked_at_and_leaves_nothing
)];

async fn a_service_becomes_ready_can_be_looked_at_and_leaves_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.upload_guest_os()?;
    cluster.upload_package("greeter", &[("index.html", "hello from the package\n")])?;

    let service = ServiceFile::web("shop")
        .package("greeter")
        .env("GREETING", "good morning")
        .script("cat index.html; echo \"$GREETING\"; id -u; exec sleep 1000000");
    let plan = cluster.apply(&service)?;
    ensure!(
        plan.contains("shop-web-0"),
        "the plan names the instance: {plan}"
    );

    let ready = cluster.until_ready("shop-web-0").await?;
    ensure!(
        status(&ready)?.boots == 1 && status(&ready)?.vmm_pid > 0,
        "{ready:#?}"
    );
    for reason in ["VmmStarted", "GuestHello", "RoleReady"] {
        cluster.until_event("shop-web-0", reason).await?;
    }

    // The role ran in its package, with its environment, as nobody special.
    let log = eventually(SOON, "the role's output", || async {
        let log = cluster
            .fabctl(&["instance", "logs", "shop-web-0"])
            .map_err(|e| e.to_string())?;
        if log.contains("good morning") {
            Ok(log)
        } else {
            Err(log)
        }
    })
    .await?;
    ensure!(log.contains("hello from the package"), "{log}");
    ensure!(
        !log.lines().any(|line| line.trim() == "0"),
        "the role ran as root: {log}"
    );
    let console = cluster.fabctl(&["instance", "console", "shop-web-0"])?;
    ensure!(!console.trim().is_empty(), "the console is empty");

    // Applying the same file again changes nothing.
    cluster.apply(&service)?;
    let same = cluster.until_ready("shop-web-0").await?;
    same_vmm(&ready, &same)?;

    cluster.fabctl(&["service", "delete", "shop"])?;
    eventually(SOON, "the instance to be gone", || async {
        match cluster.instances().await {
            Ok(instances) if instances.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    let process = format!("/proc/{}", status(&ready)?.vmm_pid);
    ensure!(!Path::new(&process).exists(), "the VMM still runs");
    ensure!(
        !cluster.instance_dir("shop-web-0").exists(),
        "the instance's directory is still there"
    );
    Ok(())
}
