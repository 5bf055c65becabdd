//! A host agent, or a VMM, that is killed at any step of an instance's life: whoever
//! comes after it goes on, nothing is left over, and other guests notice nothing.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, ensure};
use fabric_proto::{
    node::v1::{InstanceStatus, SnapshotState, SnapshotStatus, VmEndCause},
    v1::Instance,
};
use fabric_tests::{
    BOOT, Cluster, Identity, Options, ServiceFile, Story, last_end, status, story, vmms_in,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval};

/// The instance that comes and goes.
const SHOP: &str = "shop-web-0";
/// The one that stays, and should notice nothing.
const STAY: &str = "stay-web-0";
/// A snapshot.
const EARLY: &str = "early";

pub(crate) const STORIES: &[Story] = &[
    story!(a_host_agent_killed_at_any_step_leaves_nothing_behind),
    story!(a_vmm_killed_at_any_step_leaves_nothing_behind),
    story!(a_host_agent_killed_at_any_step_keeps_what_it_was_told_to_keep),
    story!(a_vmm_killed_while_it_is_kept_comes_back_as_its_goal_says),
    story!(whoever_is_killed_while_a_template_is_made_leaves_a_whole_one_or_none),
];

async fn a_host_agent_killed_at_any_step_leaves_nothing_behind() -> anyhow::Result<()> {
    let mut cluster = start(Options::default()).await?;
    let stays = cluster.vmm(STAY)?;
    let steps = cluster.fail_points("host-agent life")?;
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
    let mut cluster = start(Options::default()).await?;
    let stays = cluster.vmm(STAY)?;
    for step in cluster.fail_points("fabric-vmm life")? {
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

/// Pauses, snapshots, and ways back to one.
async fn a_host_agent_killed_at_any_step_keeps_what_it_was_told_to_keep() -> anyhow::Result<()> {
    let mut cluster = start(Options::default()).await?;
    let stays = cluster.vmm(STAY)?;
    cluster.apply(&idle("shop"))?;
    cluster.until_ready(SHOP).await?;
    let runs = cluster.vmm(SHOP)?;
    let mut ran = None;

    for step in cluster.fail_points("host-agent pause")? {
        cluster.arm(&step)?;
        for (order, state) in [("pause", "Paused"), ("resume", "Ready")] {
            cluster.fabctl(&["instance", order, SHOP])?;
            live_on(&mut cluster, &mut ran, state, |shop| is(shop, state)).await?;
        }
        cluster.until_all_agree_on(&[SHOP, STAY]).await?;
        ensure!(!cluster.is_armed(&step), "nobody came to {step}");
        ensure!(cluster.vmm(SHOP)? == runs, "{step}: another VMM");
    }

    for step in cluster.fail_points("host-agent snapshot")? {
        cluster.arm(&step)?;
        cluster.fabctl(&["instance", "snapshot", SHOP, EARLY])?;
        live_on(&mut cluster, &mut ran, "kept", has_snapshot).await?;
        cluster.until_all_agree_on(&[SHOP, STAY]).await?;
        cluster.fabctl(&["instance", "delete-snapshot", SHOP, EARLY])?;
        live_on(&mut cluster, &mut ran, "without it", has_none).await?;
        cluster.until_all_agree_on(&[SHOP, STAY]).await?;
        ensure!(!cluster.is_armed(&step), "nobody came to {step}");
        ensure!(cluster.vmm(SHOP)? == runs, "{step}: another VMM");
    }

    cluster.fabctl(&["instance", "snapshot", SHOP, EARLY, "--wait"])?;
    let mut steps = cluster.fail_points("host-agent restore")?;
    // What comes then is a start like any other.
    steps.extend(["Launching", "Spawned", "LaunchRecorded", "HelloRecorded"].map(str::to_owned));
    let before = cluster.until_ready(SHOP).await?;
    for step in &steps {
        let last = cluster.vmm(SHOP)?;
        let restores = status(&cluster.instance(SHOP).await?)?.restored_generation;
        cluster.arm(step)?;
        cluster.fabctl(&["instance", "restore", SHOP, EARLY])?;
        let again = |shop| has_gone_back(shop, restores);
        let after = live_on(&mut cluster, &mut ran, "back", again).await?;
        cluster.until_all_agree_on(&[SHOP, STAY]).await?;
        ensure!(!cluster.is_armed(step), "nobody came to {step}");
        ensure!(
            status(&after)?.restore_error.is_empty(),
            "{step}: {after:#?}"
        );
        ensure!(
            status(&after)?.boot_id == status(&before)?.boot_id,
            "{step}: it has booted"
        );
        ensure!(cluster.vmm(SHOP)? != last, "{step}: the same VMM");
    }
    ensure!(cluster.vmm(STAY)? == stays, "another VMM");
    Ok(())
}

async fn a_vmm_killed_while_it_is_kept_comes_back_as_its_goal_says() -> anyhow::Result<()> {
    let mut cluster = start(Options::default()).await?;
    let stays = cluster.vmm(STAY)?;
    for of in ["pause", "reset", "snapshot", "restore"] {
        for step in cluster.fail_points(&format!("fabric-vmm {of}"))? {
            if of == "restore" {
                cluster.apply(&idle("shop"))?;
                cluster.until_ready(SHOP).await?;
                cluster.fabctl(&["instance", "snapshot", SHOP, EARLY, "--wait"])?;
                cluster.arm(&step)?;
            } else {
                cluster.arm(&step)?;
                cluster.apply(&idle("shop"))?;
                cluster.until_ready(SHOP).await?;
            }
            let mut ran = None;
            match of {
                "pause" => {
                    cluster.fabctl(&["instance", "pause", SHOP])?;
                    live_on(&mut cluster, &mut ran, "at rest", is_at_rest).await?;
                    cluster.fabctl(&["instance", "resume", SHOP])?;
                }
                "reset" => {
                    cluster.fabctl(&["instance", "restart", SHOP, "--scope", "reset"])?;
                }
                "snapshot" => {
                    cluster.fabctl(&["instance", "snapshot", SHOP, EARLY])?;
                    live_on(&mut cluster, &mut ran, "without one", has_failed).await?;
                }
                _ => {
                    cluster.fabctl(&["instance", "restore", SHOP, EARLY])?;
                    live_on(&mut cluster, &mut ran, "not restored", is_not_restored).await?;
                }
            }
            let again = live_on(&mut cluster, &mut ran, "begun again", has_begun_again).await?;
            let killed = ran.with_context(|| format!("nobody came to {step}"))?;
            let end = last_end(&again)?;
            ensure!(end.cause() == VmEndCause::Killed, "{step}: {end:?}");
            cluster.until_all_agree_on(&[SHOP, STAY]).await?;
            ensure!(cluster.vmm(SHOP)? != killed, "{step}: it was not killed");
            cluster.fabctl(&["service", "delete", "shop", "--wait"])?;
            cluster.until_all_agree_on(&[STAY]).await?;
            ensure!(cluster.vmm(STAY)? == stays, "{step}: another VMM");
        }
    }
    Ok(())
}

async fn whoever_is_killed_while_a_template_is_made_leaves_a_whole_one_or_none()
-> anyhow::Result<()> {
    let mut cluster = start(Options {
        own_templates: true,
        ..Options::default()
    })
    .await?;
    let stays = cluster.vmm(STAY)?;
    let warm = |of: &str| idle("shop").env("OF", of).with("warm_start = true");
    let templates = |cluster: &Cluster| {
        let all = fs::read_dir(cluster.own_templates()).into_iter().flatten();
        let names = all
            .flatten()
            .map(|one| one.file_name().display().to_string());
        names.filter(|name| name != "lock").collect::<BTreeSet<_>>()
    };
    let first = templates(&cluster);

    // Each of them at the step after that at which the one before was killed.
    let steps = cluster.fail_points("host-agent template")?;
    for step in &steps {
        cluster.arm(step)?;
    }
    cluster.apply(&warm("host-agent"))?;
    let mut ran = None;
    live_on(&mut cluster, &mut ran, "Ready", is_ready).await?;
    cluster.until_all_agree_on(&[SHOP, STAY]).await?;
    for step in &steps {
        ensure!(!cluster.is_armed(step), "nobody came to {step}");
    }
    let started = cluster.until_event(SHOP, "VmmStarted").await?;
    ensure!(started.message.contains("from a template"), "{started:?}");
    let made = templates(&cluster);
    ensure!(made.len() == first.len() + 1, "{first:?} became {made:?}");
    ensure!(
        vmms_in(&cluster.own_templates()).is_empty(),
        "a guest is left"
    );
    cluster.fabctl(&["service", "delete", "shop", "--wait"])?;

    for step in cluster.fail_points("fabric-vmm snapshot")? {
        cluster.arm(&step)?;
        cluster.apply(&warm(&step))?;
        let mut ran = None;
        live_on(&mut cluster, &mut ran, "Ready", is_ready).await?;
        ensure!(ran.is_some(), "nobody came to {step}");
        cluster.until_event(SHOP, "TemplateFailed").await?;
        cluster.until_all_agree_on(&[SHOP, STAY]).await?;
        ensure!(
            templates(&cluster) == made,
            "{step}: {:?}",
            templates(&cluster)
        );
        cluster.fabctl(&["service", "delete", "shop", "--wait"])?;
        cluster.until_all_agree_on(&[STAY]).await?;
    }
    ensure!(cluster.vmm(STAY)? == stays, "another VMM");
    Ok(())
}

/// A cluster with the instance that stays, and with it the template of all.
async fn start(options: Options) -> anyhow::Result<Cluster> {
    let options = Options {
        fail_points: true,
        // Nobody is to be taken for hung where others are busy.
        host_agent: ["--guest-heartbeat", "10s"].map(str::to_owned).to_vec(),
        ..options
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
    is(shop, "Ready")
}

fn is(shop: Option<Instance>, state: &str) -> Result<Instance, String> {
    such(shop, |shop| shop.state == state)
}

/// Paused, or ended while it was to be paused.
fn is_at_rest(shop: Option<Instance>) -> Result<Instance, String> {
    such(shop, |shop| ["Paused", "Stopped"].contains(&&*shop.state))
}

fn has_snapshot(shop: Option<Instance>) -> Result<Instance, String> {
    such(shop, |shop| {
        snapshot_states(shop) == [SnapshotState::Ready] && shop.state == "Ready"
    })
}

fn has_failed(shop: Option<Instance>) -> Result<Instance, String> {
    such(shop, |shop| {
        snapshot_states(shop) == [SnapshotState::Failed]
    })
}

fn has_none(shop: Option<Instance>) -> Result<Instance, String> {
    such(shop, |shop| snapshot_states(shop).is_empty())
}

fn snapshot_states(shop: &Instance) -> Vec<SnapshotState> {
    let all = shop.status.iter().flat_map(|status| &status.snapshots);
    all.map(SnapshotStatus::state).collect()
}

/// Back at a snapshot, or not for a reason, after so many restarts.
fn has_gone_back(shop: Option<Instance>, restores: u64) -> Result<Instance, String> {
    let back = |status: &InstanceStatus| status.restored_generation > restores;
    such(shop, |shop| {
        shop.status.as_ref().is_some_and(back) && shop.state == "Ready"
    })
}

fn is_not_restored(shop: Option<Instance>) -> Result<Instance, String> {
    let told = |status: &InstanceStatus| !status.restore_error.is_empty();
    such(shop, |shop| shop.status.as_ref().is_some_and(told))
}

fn has_begun_again(shop: Option<Instance>) -> Result<Instance, String> {
    let again = |status: &InstanceStatus| status.boots > 1;
    such(shop, |shop| shop.status.as_ref().is_some_and(again))
}

fn such(
    shop: Option<Instance>,
    wanted: impl FnOnce(&Instance) -> bool,
) -> Result<Instance, String> {
    let seen = format!("{shop:#?}");
    shop.filter(wanted).ok_or(seen)
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
        if ran.is_none()
            && let Some(vmm) = standing_still(cluster)
        {
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

/// The VMM of the instance, or of its template that is being made, if it stands still.
fn standing_still(cluster: &Cluster) -> Option<Identity> {
    let templates = fs::read_dir(cluster.own_templates()).into_iter().flatten();
    let mut places: Vec<_> = templates.flatten().map(|one| one.path()).collect();
    places.push(cluster.instance_dir(SHOP));
    let place = places.into_iter().find(|place| {
        let said = fs::read_to_string(place.join("vmm.err")).unwrap_or_default();
        said.contains("stands still")
    })?;
    Identity::of(*vmms_in(&place).first()?)
}
