//! Instances that are copied from a template: what they do not share, and what
//! happens when there is no template that can be used.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use fabric_tests::{BOOT, Cluster, ServiceFile, Story, eventually, status, story, vmms_in};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Says all that could give away that two guests were one once.
const SCRIPT: &str = "\
    echo boot-id $(cat /proc/sys/kernel/random/boot_id); \
    echo machine-id $(cat /etc/machine-id); \
    echo host-name $(cat /proc/sys/kernel/hostname); \
    echo random $(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '); \
    echo time $(date +%s); \
    echo >> /var/tmp/starts; sync; echo starts $(wc -l < /var/tmp/starts); \
    echo said; exec sleep 1000000";

/// What it says, by its first word.
const SAID: [&str; 4] = ["boot-id", "machine-id", "host-name", "random"];

pub(crate) const STORIES: &[Story] = &[
    story!(two_copies_of_a_template_share_nothing_that_tells_who_they_are),
    story!(who_comes_after_another_of_its_package_finds_that_in_place),
    story!(a_damaged_template_is_refused_and_its_instance_boots),
    story!(a_template_that_a_killed_host_agent_was_making_is_cleared_away),
    story!(a_machine_that_begins_again_goes_on_where_its_kernel_had_booted),
];

async fn two_copies_of_a_template_share_nothing_that_tells_who_they_are() -> anyhow::Result<()> {
    let cluster = Cluster::start_with_own_templates().await?;
    let service = ServiceFile::web("shop").instances(2).script(SCRIPT);
    cluster.run(&service, "shop-web-0").await?;
    cluster.until_ready("shop-web-1").await?;
    let instances = ["shop-web-0", "shop-web-1"];

    // One of them made the template, and both were copied from it.
    let mut made = 0;
    for instance in instances {
        made += count(&cluster, instance, "TemplateMade").await?;
        let started = cluster.until_event(instance, "VmmStarted").await?;
        ensure!(started.message.contains("from a template"), "{started:?}");
        let now = cluster.instance(instance).await?;
        ensure!(status(&now)?.boots == 1, "{now:#?}");
    }
    ensure!(made == 1, "{made} templates were made");

    let [one, other] = [
        said(&cluster, instances[0]).await?,
        said(&cluster, instances[1]).await?,
    ];
    for (what, (one, other)) in SAID.iter().zip(one.iter().zip(&other)) {
        ensure!(!one.is_empty() && !other.is_empty(), "no {what}");
        ensure!(one != other, "both guests have {what} {one}");
    }
    // Each is who the node takes it for.
    for (instance, said) in instances.iter().zip([&one, &other]) {
        let now = cluster.instance(instance).await?;
        ensure!(status(&now)?.boot_id == said[0], "{now:#?}\n{said:?}");
        ensure!(said[2] == *instance, "{instance} is called {}", said[2]);
    }
    let cids: BTreeSet<_> = [cid(&cluster, instances[0])?, cid(&cluster, instances[1])?].into();
    ensure!(cids.len() == 2, "one context id for two guests: {cids:?}");

    // One that is copied later is not of the time of its template.
    cluster.apply(&service.instances(3))?;
    cluster.until_ready("shop-web-2").await?;
    let started = cluster.until_event("shop-web-2", "VmmStarted").await?;
    ensure!(started.message.contains("from a template"), "{started:?}");
    said(&cluster, "shop-web-2").await?;
    let time: i64 = last_word(&cluster, "shop-web-2", "time")?
        .context("it has not said the time")?
        .parse()?;
    let start = started.time.context("an event without a time")?.seconds;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64;
    ensure!(
        (start..=now).contains(&time),
        "started at {start}, it said {time} before {now}"
    );

    // What happens to one is said on its own console, and breaks no other's connection.
    let hellos = count(&cluster, "shop-web-1", "GuestHello").await?;
    cluster.fault("shop-web-0", "panic").await?;
    cluster
        .until("shop-web-0", "to be Ready again", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 2)
        })
        .await?;
    let console = cluster.fabctl(&["instance", "console", "shop-web-1"])?;
    ensure!(!console.contains("panic"), "{console}");
    let same = cluster.instance("shop-web-1").await?;
    ensure!(status(&same)?.boot_id == other[0], "{same:#?}");
    let hellos_then = count(&cluster, "shop-web-1", "GuestHello").await?;
    ensure!(hellos_then == hellos, "it had to say hello again");

    // It booted on the disk that it had, and is the same machine after another boot.
    let again = eventually(BOOT, "the role to have said who it is now", || async {
        let again = said(&cluster, "shop-web-0")
            .await
            .map_err(|e| e.to_string())?;
        if again[0] == one[0] {
            Err(format!("{again:?}"))
        } else {
            Ok(again)
        }
    })
    .await?;
    ensure!(again[1..3] == one[1..3], "{one:?} became {again:?}");
    Ok(())
}

async fn who_comes_after_another_of_its_package_finds_that_in_place() -> anyhow::Result<()> {
    let cluster = Cluster::start_with_own_templates().await?;
    cluster.upload_package("greeter", &[("greeting", "hello from the package\n")])?;
    let service = ServiceFile::web("shop")
        .package("greeter")
        .script(&format!("cat greeting; {SCRIPT}"));
    cluster.run(&service, "shop-web-0").await?;
    eventually(BOOT, "a template of the package", || async {
        let events = cluster.events("shop-web-0").await;
        let events = events.map_err(|error| format!("{error:#}"))?;
        let of_package = |message: &str| message.contains("with the package of role web");
        let mut made = events.iter().filter(|one| one.reason == "TemplateMade");
        let made = made.any(|one| of_package(&one.message));
        made.then_some(()).ok_or(format!("{events:#?}"))
    })
    .await?;

    cluster.apply(&service.instances(2))?;
    cluster.until_ready("shop-web-1").await?;
    let instances = ["shop-web-0", "shop-web-1"];
    let mut copied_from = BTreeSet::new();
    let mut all_said = Vec::new();
    for instance in instances {
        let now = cluster.instance(instance).await?;
        ensure!(status(&now)?.boots == 1, "{now:#?}");
        copied_from.insert(vm_config(&cluster, instance)?["restore"].to_string());
        all_said.push(said(&cluster, instance).await?);
        let log = cluster.fabctl(&["instance", "logs", instance])?;
        ensure!(log.contains("hello from the package"), "{log}");
    }
    ensure!(copied_from.len() == 2, "all are copies of {copied_from:?}");
    for (what, (one, other)) in SAID.iter().zip(all_said[0].iter().zip(&all_said[1])) {
        ensure!(one != other, "both guests have {what} {one}");
    }
    // It is started there, and was not before.
    let second = cluster.instance("shop-web-1").await?;
    let role = status(&second)?.role.as_ref().context("no role")?;
    ensure!(role.restarts == 0, "{second:#?}");
    Ok(())
}

async fn a_damaged_template_is_refused_and_its_instance_boots() -> anyhow::Result<()> {
    let cluster = Cluster::start_with_own_templates().await?;
    cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    let made = cluster.until_event("shop-web-0", "TemplateMade").await?;
    let template = template(&cluster)?;
    damage(&template.join("snapshot/memory"))?;

    cluster.fabctl(&["instance", "restart", "shop-web-0", "--scope", "reimage"])?;
    let refused = cluster.until_event("shop-web-0", "TemplateRefused").await?;
    ensure!(
        refused.warning && refused.message.contains("boots instead"),
        "{refused:?}"
    );
    cluster
        .until("shop-web-0", "to be Ready on a fresh disk", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 2)
        })
        .await?;
    let started = cluster.until_event("shop-web-0", "VmmStarted").await?;
    ensure!(!started.message.contains("template"), "{started:?}");
    ensure!(!template.exists(), "it is still there");

    // The next one makes it anew.
    cluster.fabctl(&["instance", "restart", "shop-web-0", "--scope", "reimage"])?;
    cluster
        .until("shop-web-0", "to be Ready as a copy", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 3)
        })
        .await?;
    let again = cluster.until_event("shop-web-0", "TemplateMade").await?;
    ensure!(again.cursor != made.cursor, "{again:?}");
    ensure!(template.exists(), "it was not made again");
    Ok(())
}

async fn a_template_that_a_killed_host_agent_was_making_is_cleared_away() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with_own_templates().await?;
    cluster.upload_guest_os()?;
    cluster.apply(&ServiceFile::web("shop"))?;
    let templates = cluster.own_templates();
    let left = eventually(BOOT, "a template to be being made", || async {
        let making = names(&templates)
            .into_iter()
            .find(|name| name.starts_with("making-"));
        let place = making.map(|name| templates.join(name)).ok_or("none")?;
        if vmms_in(&place).is_empty() {
            Err("no VMM".to_owned())
        } else {
            Ok(place)
        }
    })
    .await?;
    let vmms = vmms_in(&left);
    cluster.host_agent.kill()?;
    cluster.host_agent.start_again()?;

    cluster.until_ready("shop-web-0").await?;
    cluster.until_event("shop-web-0", "TemplateMade").await?;
    for vmm in vmms {
        let gone = !Path::new(&format!("/proc/{vmm}/cwd")).exists();
        ensure!(gone, "the VMM {vmm} of a template is left over");
    }
    ensure!(!left.exists(), "{} is left over", left.display());
    Ok(())
}

async fn a_machine_that_begins_again_goes_on_where_its_kernel_had_booted() -> anyhow::Result<()> {
    const SHOP: &str = "shop-web-0";
    let cluster = Cluster::start_with_own_templates().await?;
    let service = ServiceFile::web("shop").script(SCRIPT);
    let mut before = cluster.run(&service, SHOP).await?;
    let first = said(&cluster, SHOP).await?;
    let mut seen = vec![first.clone()];

    for (start, how) in (2..).zip(["reset", "reset", "kill", "kill on a damaged template"]) {
        let vmm = status(&before)?.vmm_pid;
        if how.starts_with("kill") {
            if how.contains("damaged") {
                damage(&template(&cluster)?.join("booted/memory"))?;
            }
            kill(Pid::from_raw(i32::try_from(vmm)?), Signal::SIGKILL)?;
        } else {
            cluster.fabctl(&["instance", "restart", SHOP, "--scope", "reset"])?;
        }
        before = cluster
            .until(SHOP, &format!("to be Ready after {how}"), |now| {
                now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == start)
            })
            .await?;
        // Who it is does not change, nor what is on its disk; all else is new.
        let again = eventually(BOOT, "the role to have said who it is now", || async {
            let again = said(&cluster, SHOP).await.map_err(|e| e.to_string())?;
            if seen.contains(&again) {
                return Err(format!("what it said before: {again:?}"));
            }
            Ok(again)
        })
        .await?;
        ensure!(again[1..3] == first[1..3], "{first:?} became {again:?}");
        for former in &seen {
            let same = again[0] == former[0] || again[3] == former[3];
            ensure!(!same, "after {how}: {former:?} and {again:?}");
        }
        ensure!(status(&before)?.boot_id == again[0], "{before:#?}");
        let starts = last_word(&cluster, SHOP, "starts")?;
        ensure!(starts == Some(start.to_string()), "{how}: {starts:?}");
        seen.push(again);

        // A guest agent that a kernel has started says so on the console.
        let console = cluster.fabctl(&["instance", "console", SHOP])?;
        let booted = console.contains("guest-agent: 0.");
        ensure!(booted == how.contains("damaged"), "{how}: {console}");
        let started = cluster.until_event(SHOP, "VmmStarted").await?;
        match how {
            "reset" => ensure!(status(&before)?.vmm_pid == vmm, "{before:#?}"),
            "kill" => ensure!(started.message.contains("a booted kernel"), "{started:?}"),
            _ => {
                ensure!(!started.message.contains("booted"), "{started:?}");
                let refused = cluster.until_event(SHOP, "TemplateRefused").await?;
                ensure!(refused.message.contains("it boots instead"), "{refused:?}");
            }
        }
    }
    Ok(())
}

/// What the role of an instance has said last, in the order of [`SAID`].
async fn said(cluster: &Cluster, instance: &str) -> anyhow::Result<Vec<String>> {
    eventually(BOOT, &format!("{instance} to say who it is"), || async {
        let log = cluster
            .fabctl(&["instance", "logs", instance])
            .map_err(|error| format!("{error:#}"))?;
        let said: Option<Vec<_>> = SAID.iter().map(|what| last(&log, what)).collect();
        match said {
            Some(said) if log.trim_end().ends_with("said") => Ok(said),
            _ => Err(log),
        }
    })
    .await
}

/// What a role has said last behind a word.
fn last_word(cluster: &Cluster, instance: &str, word: &str) -> anyhow::Result<Option<String>> {
    let log = cluster.fabctl(&["instance", "logs", instance])?;
    Ok(last(&log, word))
}

fn last(log: &str, word: &str) -> Option<String> {
    let found = log.lines().rev().find_map(|line| line.split_once(word));
    found.map(|(_, value)| value.trim().to_owned())
}

async fn count(cluster: &Cluster, instance: &str, reason: &str) -> anyhow::Result<usize> {
    let events = cluster.events(instance).await?;
    Ok(events.iter().filter(|event| event.reason == reason).count())
}

/// The context id that the VMM of an instance was given.
fn cid(cluster: &Cluster, instance: &str) -> anyhow::Result<u64> {
    let config = vm_config(cluster, instance)?;
    config["vsock"]["cid"].as_u64().context("no context id")
}

/// What the VMM of an instance was started with.
fn vm_config(cluster: &Cluster, instance: &str) -> anyhow::Result<serde_json::Value> {
    let text = fs::read(cluster.instance_dir(instance).join("vm.json"))?;
    Ok(serde_json::from_slice(&text)?)
}

/// The one template of a cluster.
fn template(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let names = names(&cluster.own_templates());
    let name = names.into_iter().find(|name| name.len() == 64);
    Ok(cluster
        .own_templates()
        .join(name.context("there is no template")?))
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Writes one byte in the middle of a file anew.
fn damage(path: &Path) -> anyhow::Result<()> {
    let mut permissions = fs::metadata(path)?.permissions();
    permissions.set_mode(0o644);
    fs::set_permissions(path, permissions)?;
    let file = fs::File::options().read(true).write(true).open(path)?;
    let middle = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    file.write_all_at(&[!byte[0]], middle)?;
    Ok(())
}
