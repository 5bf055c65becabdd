//! A guest stands still and goes on, and goes back to what it was once.

use std::fs;

use anyhow::{Context as _, ensure};
use fabric_tests::{BOOT, Cluster, ServiceFile, Story, eventually, same_vmm, status, story};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const ID: &str = "shop-web-0";

/// Counts, in memory and on its disk, and says both, with the time.
const COUNTER: &str = "\
    n=0; while :; do n=$((n + 1)); echo $n > /var/tmp/n; read m < /var/tmp/n; \
    echo count $n $m at $(date +%s); done";

pub(crate) const STORIES: &[Story] = &[
    story!(a_paused_guest_stands_still_until_it_is_resumed_whoever_is_restarted),
    story!(a_paused_guest_that_dies_is_not_brought_back_until_it_is_resumed),
    story!(a_guest_goes_back_to_a_snapshot_with_its_memory_and_its_disk),
    story!(a_snapshot_that_cannot_be_used_costs_the_guest_nothing),
];

async fn a_paused_guest_stands_still_until_it_is_resumed_whoever_is_restarted() -> anyhow::Result<()>
{
    let mut cluster = Cluster::start().await?;
    let before = cluster.run(&counter(), ID).await?;
    counts_beyond(&cluster, 3).await?;

    cluster.fabctl(&["instance", "pause", ID, "--wait"])?;
    let paused = cluster.instance(ID).await?;
    ensure!(paused.state == "Paused", "{paused:#?}");
    ensure!(paused.reason.contains("operator"), "{paused:#?}");
    ensure!(paused.since.is_some(), "{paused:#?}");
    let refused = cluster.fabctl_output(&["instance", "restart", ID])?;
    ensure!(refused.status.code() == Some(3), "{refused:?}");
    let counted = count(&cluster)?;

    // The agent and the controller come and go; silence is not held against it.
    cluster.host_agent.kill()?;
    cluster.host_agent.start_again()?;
    cluster.until_event(ID, "InstanceAdopted").await?;
    cluster.controller.kill()?;
    cluster.controller.start_again()?;
    let still = cluster
        .until(ID, "to be Paused again", |now| now.state == "Paused")
        .await?;
    same_vmm(&before, &still)?;
    ensure!(count(&cluster)? == counted, "it has counted on");

    cluster.fabctl(&["instance", "resume", ID, "--wait"])?;
    counts_beyond(&cluster, counted.number).await?;
    let after = cluster.until_ready(ID).await?;
    let (before, after) = (status(&before)?, status(&after)?);
    ensure!(after.vmm_pid == before.vmm_pid, "{after:#?}");
    ensure!(after.boot_id == before.boot_id, "{after:#?}");
    ensure!(after.vm_restarts == 0, "{after:#?}");
    // It is told what time it is.
    eventually(BOOT, "its clock to be right", || async {
        let now = count(&cluster).map_err(|error| format!("{error:#}"))?;
        let host = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_err(|error| error.to_string())?
            .as_secs();
        if now.time.abs_diff(host) <= 3 {
            Ok(())
        } else {
            Err(format!("{now:?}, host {host}"))
        }
    })
    .await?;
    ensure!(
        cluster
            .events(ID)
            .await?
            .iter()
            .all(|event| event.reason != "HeartbeatsMissed"),
        "its silence was held against it"
    );
    Ok(())
}

async fn a_paused_guest_that_dies_is_not_brought_back_until_it_is_resumed() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let before = cluster.run(&counter(), ID).await?;
    cluster.fabctl(&["instance", "pause", ID, "--wait"])?;
    let vmm = Pid::from_raw(i32::try_from(status(&before)?.vmm_pid)?);
    kill(vmm, Signal::SIGKILL)?;
    let down = cluster
        .until(ID, "to be Stopped", |now| now.state == "Stopped")
        .await?;
    ensure!(down.reason.contains("resumed"), "{down:#?}");
    cluster.fabctl(&["instance", "resume", ID, "--wait"])?;
    let after = cluster.instance(ID).await?;
    ensure!(status(&after)?.boots == 2, "{after:#?}");
    Ok(())
}

async fn a_guest_goes_back_to_a_snapshot_with_its_memory_and_its_disk() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let before = cluster.run(&counter(), ID).await?;
    counts_beyond(&cluster, 3).await?;
    cluster.fabctl(&["instance", "snapshot", ID, "early", "--wait"])?;
    let at_most = count(&cluster)?.number;
    holds_what_the_guest_believes(&cluster)?;
    let again = cluster.fabctl_output(&["instance", "snapshot", ID, "early"])?;
    ensure!(again.status.code() == Some(3), "{again:?}");
    let listed = cluster.fabctl(&["instance", "snapshots", ID, "--output", "json"])?;
    ensure!(listed.contains(r#""state":"ready""#), "{listed}");

    // It goes on in the same process, and what it does then is undone.
    counts_beyond(&cluster, at_most + 4).await?;
    let same = cluster.instance(ID).await?;
    same_vmm(&before, &same)?;
    for round in 1..=2 {
        let gone = count(&cluster)?.number;
        cluster.fabctl(&["instance", "restore", ID, "early", "--wait"])?;
        let back = eventually(BOOT, "it to count anew", || async {
            let now = count(&cluster).map_err(|error| format!("{error:#}"))?;
            if now.number < gone {
                Ok(now)
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await?;
        ensure!(back.disk == back.number, "its disk is another's: {back:?}");
        let now = cluster.instance(ID).await?;
        let (now, before) = (status(&now)?, status(&before)?);
        ensure!(now.vmm_pid != before.vmm_pid, "{now:#?}");
        ensure!(now.boot_id == before.boot_id, "it has booted: {now:#?}");
        ensure!(now.boots == 1 + round, "{now:#?}");
        counts_beyond(&cluster, at_most + 4).await?;
    }

    cluster.fabctl(&["instance", "delete-snapshot", ID, "early"])?;
    let place = cluster.instance_dir(ID).join("snapshots/early");
    eventually(BOOT, "its files to be gone", || async {
        if place.exists() {
            Err("they are there".to_owned())
        } else {
            Ok(())
        }
    })
    .await?;
    let unknown = cluster.fabctl_output(&["instance", "restore", ID, "early"])?;
    ensure!(unknown.status.code() == Some(3), "{unknown:?}");
    Ok(())
}

async fn a_snapshot_that_cannot_be_used_costs_the_guest_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let before = cluster.run(&counter(), ID).await?;
    counts_beyond(&cluster, 0).await?;
    cluster.fabctl(&["instance", "snapshot", ID, "newer", "--wait"])?;
    let state = cluster
        .instance_dir(ID)
        .join("snapshots/newer/snapshot/state.json");
    let text = fs::read_to_string(&state)?.replacen("\"version\":1", "\"version\":2", 1);
    fs::write(&state, text)?;

    let refused = cluster.fabctl_output(&["instance", "restore", ID, "newer", "--wait"])?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        said.contains("snapshot newer") && said.contains("version 2") && said.contains("up to 1"),
        "{said}"
    );
    let told = cluster.until_event(ID, "RestoreFailed").await?;
    ensure!(told.warning, "{told:?}");
    let after = cluster.until_ready(ID).await?;
    same_vmm(&before, &after)?;
    let counted = count(&cluster)?.number;
    counts_beyond(&cluster, counted).await
}

/// Where SYSCALL is repaired, the hardware is given a target that is no address; the
/// snapshot has the guest's own, which is one of its kernel.
fn holds_what_the_guest_believes(cluster: &Cluster) -> anyhow::Result<()> {
    const HARDWARE: u64 = 0x0000_8000_0000_0000;
    const KERNEL: u64 = 0xffff_8000_0000_0000;
    const MSR_LSTAR: u64 = 0xc000_0082;
    let state = cluster
        .instance_dir(ID)
        .join("snapshots/early/snapshot/state.json");
    let state: Value = serde_json::from_slice(&fs::read(state)?)?;
    let mut targets = Vec::new();
    let mut look = |value: &Value| {
        let number = |name: &str| value[name].as_u64();
        targets.extend(number("lstar"));
        targets.extend(number("data").filter(|_| number("index") == Some(MSR_LSTAR)));
        value.as_u64() != Some(HARDWARE)
    };
    ensure!(
        all(&state, &mut look),
        "what the hardware was given is in it"
    );
    ensure!(
        !targets.is_empty() && targets.iter().all(|&target| target >= KERNEL),
        "SYSCALL goes to {targets:x?}"
    );
    Ok(())
}

/// Whether something holds of a value and all that is in it.
fn all(value: &Value, holds: &mut dyn FnMut(&Value) -> bool) -> bool {
    holds(value)
        && match value {
            Value::Array(values) => values.iter().all(|one| all(one, holds)),
            Value::Object(fields) => fields.values().all(|one| all(one, holds)),
            _ => true,
        }
}

fn counter() -> ServiceFile {
    ServiceFile::web("shop").script(COUNTER)
}

/// What the role has said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    number: u64,
    disk: u64,
    time: u64,
}

fn count(cluster: &Cluster) -> anyhow::Result<Count> {
    let log = cluster.fabctl(&["instance", "logs", ID])?;
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let last = whole.lines().rev().find_map(|line| {
        let mut words = line.strip_prefix("count ")?.split(' ');
        let mut next = || words.next()?.parse().ok();
        let (number, disk) = (next()?, next()?);
        let _at = words.next()?;
        let time = words.next()?.parse().ok()?;
        Some(Count { number, disk, time })
    });
    last.context(log)
}

async fn counts_beyond(cluster: &Cluster, number: u64) -> anyhow::Result<()> {
    eventually(BOOT, &format!("it to count beyond {number}"), || async {
        match count(cluster) {
            Ok(count) if count.number > number => Ok(()),
            Ok(count) => Err(format!("{count:?}")),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await
}
