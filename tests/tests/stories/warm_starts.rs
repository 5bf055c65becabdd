//! Instances whose role is ready already in the template that they are copied from.

use anyhow::ensure;
use fabric_tests::{BOOT, Cluster, ServiceFile, Story, eventually, status, story};

/// Makes something at its start, waits until it is told to go on, and says what it
/// made then and who it is now.
///
/// Without a process of its own for each word: a fork takes a guest long where KVM
/// interprets its kernel.
const ROLE: &str = "\
    go=; trap go=1 USR1; \
    read warm < /proc/sys/kernel/random/uuid; \
    read early < /proc/sys/kernel/random/boot_id; \
    echo $$ > /tmp/pid; \
    while test -z $go; do sleep 1000 & wait; done; \
    say() { read it < $2; echo $1 $it; }; \
    echo warm $warm; echo early $early.; say before /tmp/before; \
    say boot-id /proc/sys/kernel/random/boot_id; \
    say machine-id /etc/machine-id; \
    say host-name /proc/sys/kernel/hostname; \
    say instance /tmp/instance; \
    say random /proc/sys/kernel/random/uuid; \
    say settings $FABRIC_SETTINGS_FILE; \
    echo said; while :; do sleep 1000; done";

const INSTANCES: [&str; 2] = ["shop-web-0", "shop-web-1"];

pub(crate) const STORIES: &[Story] = &[
    story!(two_warm_copies_share_what_their_role_made_and_nothing_of_who_they_are),
    story!(a_role_that_cannot_be_copied_is_started_cold),
];

async fn two_warm_copies_share_what_their_role_made_and_nothing_of_who_they_are()
-> anyhow::Result<()> {
    let cluster = Cluster::start_with_own_templates().await?;
    let service = service("echo it was > /tmp/before").instances(2);
    cluster.run(&service, INSTANCES[0]).await?;
    cluster.until_ready(INSTANCES[1]).await?;

    let mut made = 0;
    for instance in INSTANCES {
        let events = cluster.events(instance).await?;
        let failed = events
            .iter()
            .find(|e| e.reason.starts_with("Template") && e.warning);
        ensure!(failed.is_none(), "{failed:?}");
        made += events.iter().filter(|e| e.reason == "TemplateMade").count();
        let started = cluster.until_event(instance, "VmmStarted").await?;
        ensure!(started.message.contains("from a template"), "{started:?}");
    }
    ensure!(made == 1, "{made} templates were made");

    let (one, other) = (
        said(&cluster, INSTANCES[0]).await?,
        said(&cluster, INSTANCES[1]).await?,
    );
    // Its process went on where it was, in both.
    ensure!(one.of("warm").len() == 36, "{one:?}");
    ensure!(one.of("warm") == other.of("warm"), "{one:?} {other:?}");
    ensure!(one.of("before") == "it was", "{one:?}");
    for instance in INSTANCES {
        let now = cluster.instance(instance).await?;
        let role = status(&now)?.role.clone().unwrap_or_default();
        ensure!(role.restarts == 0, "{now:#?}");
    }
    // It could not learn who it seemed to be, and learnt who it is.
    ensure!(one.of("early") == ".", "{one:?}");
    for what in ["boot-id", "machine-id", "host-name", "instance", "random"] {
        let (one, other) = (one.of(what), other.of(what));
        ensure!(!one.is_empty() && one != other, "{what}: {one} and {other}");
    }
    for (instance, said) in INSTANCES.iter().zip([&one, &other]) {
        let now = cluster.instance(instance).await?;
        ensure!(status(&now)?.boot_id == said.of("boot-id"), "{now:#?}");
        ensure!(said.of("host-name") == *instance, "{said:?}");
        ensure!(said.of("instance") == *instance, "{said:?}");
        ensure!(said.of("settings").contains("red"), "{said:?}");
    }

    // Started again on its disk, it boots, and its role starts anew.
    cluster.fabctl(&["instance", "restart", INSTANCES[0], "--scope", "vm"])?;
    cluster
        .until(INSTANCES[0], "to be Ready after a boot", |now| {
            now.state == "Ready" && now.status.as_ref().is_some_and(|s| s.boots == 2)
        })
        .await?;
    Ok(())
}

async fn a_role_that_cannot_be_copied_is_started_cold() -> anyhow::Result<()> {
    let cluster = Cluster::start_with_own_templates().await?;
    let service = service("exit 3");
    cluster.run(&service, INSTANCES[0]).await?;
    let failed = cluster.until_event(INSTANCES[0], "TemplateFailed").await?;
    ensure!(failed.warning, "{failed:?}");
    for words in ["before_snapshot", "status 3", "starts cold"] {
        ensure!(failed.message.contains(words), "{failed:?}");
    }
    let now = cluster.instance(INSTANCES[0]).await?;
    ensure!(status(&now)?.boots == 1, "{now:#?}");
    Ok(())
}

fn service(before: &str) -> ServiceFile {
    let hook = |script: &str| format!(r#"["/bin/busybox", "sh", "-c", "{script}"]"#);
    let after = "echo $FABRIC_INSTANCE > /tmp/instance; read pid < /tmp/pid; kill -USR1 $pid";
    ServiceFile::web("shop").script(ROLE).with(&format!(
        "warm_start = true\nbefore_snapshot = {}\nafter_start = {}\n\
         settings = {{ colour = \"red\" }}\n\
         readiness.exec = [\"/bin/busybox\", \"test\", \"-e\", \"/tmp/pid\"]\n\
         readiness.timeout = \"20s\"\nreadiness.period = \"1m\"",
        hook(before),
        hook(after),
    ))
}

/// What a role has said.
#[derive(Debug)]
struct Said(String);

impl Said {
    /// The rest of the last line that begins with a word.
    fn of(&self, word: &str) -> &str {
        let lines = self.0.lines().rev();
        let found = lines.filter_map(|line| line.split_once(' '));
        let mut rest = found.filter(|(first, _)| *first == word);
        rest.next().map_or("", |(_, rest)| rest.trim())
    }
}

async fn said(cluster: &Cluster, instance: &str) -> anyhow::Result<Said> {
    eventually(BOOT, &format!("{instance} to say who it is"), || async {
        let log = cluster
            .fabctl(&["instance", "logs", instance])
            .map_err(|error| format!("{error:#}"))?;
        if log.lines().any(|line| line == "said") {
            Ok(Said(log))
        } else {
            Err(log)
        }
    })
    .await
}
