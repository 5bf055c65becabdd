//! A host agent, or a VMM, that is killed at any step of an instance's life: whoever
//! comes after it goes on, nothing is left over, and other guests notice nothing.

use std::{fs, process::ExitCode};

use anyhow::ensure;
use fabric_proto::{node::v1::VmEndCause, v1::Instance};
use fabric_tests::{BOOT, Cluster, Identity, Options, ServiceFile, last_end, run, status, story};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval};

/// The instance that comes and goes.
const SHOP: &str = "shop-web-0";
/// The one that stays, and should notice nothing.
const STAY: &str = "stay-web-0";

fn main() -> ExitCode {
    run(&[
        story!(a_host_agent_killed_at_any_step_leaves_nothing_behind),
        story!(a_vmm_killed_at_any_step_leaves_nothing_behind),
    ])
}

async fn a_host_agent_killed_at_any_step_leaves_nothing_behind() -> anyhow::Result<()> {
    let mut cluster = start().await?;
    let stays = cluster.vmm(STAY)?;
    let steps = cluster.fail_points("host-agent")?;
    for step in &steps {
        cluster.arm(step)?;
        cluster.apply(&idle("shop"))?;
        let mut ran = None;
        let ready = live_on(&mut cluster, &mut ran, "Ready", is_ready).await?;
        cluster.until_all_agree_on(&[SHOP, STAY]).await?;
        ensure!(status(&ready)?.boots == 1, "{step}: {ready:#?}");
        // One that ran when its host agent was killed is still the same.
        let runs = cluster.vmm(SHOP)?;
        ensure!(
            ran.is_none_or(|ran| ran == runs),
            "{step}: {ran:?} became {runs:?}"
        );

        cluster.fabctl(&["service", "delete", "shop"])?;
        live_on(&mut cluster, &mut ran, "gone", is_gone).await?;
        cluster.until_all_agree_on(&[STAY]).await?;
        ensure!(!cluster.is_armed(step), "nobody came to {step}");
        ensure!(cluster.vmm(STAY)? == stays, "{step}: another VMM");
    }
    let stayed = cluster.until_ready(STAY).await?;
    ensure!(status(&stayed)?.boots == 1, "{stayed:#?}");

    // That it is gone has been said each time; twice where it was killed just then.
    let removals = cluster.removals(SHOP).await?;
    let times = steps.len()..=steps.len() + 1;
    ensure!(
        times.contains(&removals),
        "{removals} removals, not {times:?}"
    );
    Ok(())
}

async fn a_vmm_killed_at_any_step_leaves_nothing_behind() -> anyhow::Result<()> {
    let mut cluster = start().await?;
    let stays = cluster.vmm(STAY)?;
    for step in cluster.fail_points("fabric-vmm")? {
        cluster.arm(&step)?;
        cluster.apply(&idle("shop"))?;
        let mut ran = None;
        let ready = live_on(&mut cluster, &mut ran, "Ready", is_ready).await?;
        cluster.until_all_agree_on(&[SHOP, STAY]).await?;
        if let Some(killed) = ran {
            let end = last_end(&ready)?;
            ensure!(end.cause() == VmEndCause::Killed, "{step}: {end:?}");
            ensure!(cluster.vmm(SHOP)? != killed, "{step}: it was not killed");
        }

        cluster.fabctl(&["service", "delete", "shop"])?;
        live_on(&mut cluster, &mut ran, "gone", is_gone).await?;
        cluster.until_all_agree_on(&[STAY]).await?;
        ensure!(ran.is_some(), "nobody came to {step}");
        ensure!(cluster.vmm(STAY)? == stays, "{step}: another VMM");
    }
    Ok(())
}

/// A cluster with the instance that stays, and with it the template of all.
async fn start() -> anyhow::Result<Cluster> {
    let options = Options {
        fail_points: true,
        // Nobody is to be taken for hung where others are busy.
        host_agent: ["--guest-heartbeat", "10s"].map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let cluster = Cluster::start_with(options).await?;
    cluster.run(&idle("stay"), STAY).await?;
    cluster.until_all_agree_on(&[STAY]).await?;
    Ok(cluster)
}

/// A service that costs its guest next to nothing.
fn idle(name: &str) -> ServiceFile {
    ServiceFile::web(name).script("exec sleep 1000000")
}

fn is_ready(shop: Option<Instance>) -> Result<Instance, String> {
    let ready = |shop: &Instance| shop.state == "Ready";
    let seen = format!("{shop:#?}");
    shop.filter(ready).ok_or(seen)
}

fn is_gone(shop: Option<Instance>) -> Result<(), String> {
    shop.map_or(Ok(()), |shop| Err(format!("{shop:#?}")))
}

/// Waits until the instance is as `wanted`. Starts the host agent again when it has
/// been killed, and kills a VMM that stands still for that; `ran` is the VMM that was
/// there then.
async fn live_on<T>(
    cluster: &mut Cluster,
    ran: &mut Option<Identity>,
    what: &str,
    wanted: impl Fn(Option<Instance>) -> Result<T, String>,
) -> anyhow::Result<T> {
    let end = Instant::now() + BOOT;
    let mut ticks = interval(Duration::from_millis(50));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if cluster.host_agent.revive()? {
            *ran = cluster.vmm(SHOP).ok();
        }
        let said = cluster.instance_dir(SHOP).join("vmm.err");
        let said = fs::read_to_string(said).unwrap_or_default();
        if ran.is_none() && said.contains("stands still") {
            let vmm = cluster.vmm(SHOP)?;
            kill(Pid::from_raw(vmm.pid), Signal::SIGKILL)?;
            *ran = Some(vmm);
        }
        let shop = cluster.instances().await?;
        let shop = shop.into_iter().find(|one| one.instance_id == SHOP);
        match wanted(shop) {
            Ok(found) => return Ok(found),
            Err(seen) => ensure!(
                Instant::now() < end,
                "waited {BOOT:?} for {SHOP} to be {what}; last seen: {seen}"
            ),
        }
    }
}
