//! Nodes that fail: what they ran is started on others, and never runs twice.

use anyhow::{Context as _, ensure};
use fabric_proto::v1::Instance;
use fabric_tests::{
    Cluster, Identity, Neighbour, Options, Program, SOON, ServiceFile, Story, eventually, same_vmm,
    stand_still, status, story, vmms_in,
};

pub(crate) const STORIES: &[Story] = &[
    story!(a_host_agent_that_is_stopped_has_its_guests_killed_and_started_elsewhere),
    story!(a_host_agent_that_is_killed_for_good_has_its_guests_killed_by_the_keeper),
    story!(a_host_agent_that_is_killed_and_back_in_time_keeps_its_guests),
    story!(guests_run_on_while_the_controller_of_their_machine_is_down),
];

/// Three nodes, and a lease that ends within the patience of a test.
struct Stage {
    cluster: Cluster,
    neighbours: Vec<Neighbour>,
}

impl Stage {
    async fn start(lease: &'static str) -> anyhow::Result<Self> {
        let cluster = Cluster::start_with(Options {
            lease: Some(lease),
            ..Options::default()
        })
        .await?;
        let mut neighbours = Vec::new();
        for number in 2..=3 {
            neighbours.push(Neighbour::join(&cluster, number).await?);
        }
        Ok(Self {
            cluster,
            neighbours,
        })
    }

    /// With a short lease, and one instance that is Ready.
    async fn start_with_an_instance() -> anyhow::Result<(Self, Instance)> {
        let stage = Self::start("4s").await?;
        let service = ServiceFile::web("shop").instances(1);
        let ready = stage.cluster.run(&service, "shop-web-0").await?;
        Ok((stage, ready))
    }

    fn host_agent(&mut self, node: &str) -> anyhow::Result<&mut Program> {
        match node {
            "node-1" => Ok(&mut self.cluster.host_agent),
            "node-2" => Ok(&mut self.neighbours[0].host_agent),
            "node-3" => Ok(&mut self.neighbours[1].host_agent),
            _ => anyhow::bail!("there is no {node:?}"),
        }
    }

    /// The process that keeps a node's lease.
    fn keeper(&self, node: &str) -> anyhow::Result<Identity> {
        let dir = match node {
            "node-1" => self.cluster.node_dir(),
            "node-2" => self.neighbours[0].dir(),
            "node-3" => self.neighbours[1].dir(),
            _ => anyhow::bail!("there is no {node:?}"),
        };
        let pid: i32 = std::fs::read_to_string(dir.join("lease-keeper"))?
            .trim()
            .parse()?;
        // One that has ended, and that nobody has asked for yet, has no arguments.
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        ensure!(arguments.contains("keep-lease"), "the keeper does not run");
        Identity::of(pid).context("the keeper does not run")
    }

    /// The processes of all virtual machines of the cluster.
    fn vmms(&self) -> Vec<i32> {
        let directories = self.neighbours.iter().map(Neighbour::dir);
        let directories = directories.chain([self.cluster.node_dir()]);
        directories.flat_map(vmms_in).collect()
    }
}

async fn a_host_agent_that_is_stopped_has_its_guests_killed_and_started_elsewhere()
-> anyhow::Result<()> {
    let (mut stage, before) = Stage::start_with_an_instance().await?;
    ensure!(stage.vmms().len() == 1, "{:?}", stage.vmms());
    stand_still(stage.host_agent(&before.node_id)?, true)?;

    let vmm = i32::try_from(status(&before)?.vmm_pid)?;
    eventually(SOON, "its VMM to be killed", || async {
        match stage.vmms() {
            none if none.is_empty() => Ok(()),
            some => Err(format!("{some:?} of {vmm}")),
        }
    })
    .await?;
    // Whatever is there now was started elsewhere, after that.
    let after = ready_elsewhere(&mut stage, &before).await?;

    stand_still(stage.host_agent(&before.node_id)?, false)?;
    rid_of_it(&stage, &before.node_id, &after).await
}

/// The instance, once it is Ready on another node, and nothing else runs.
async fn ready_elsewhere(stage: &mut Stage, before: &Instance) -> anyhow::Result<Instance> {
    let after = stage
        .cluster
        .until("shop-web-0", "to be Ready elsewhere", |now| {
            now.state == "Ready" && now.node_id != before.node_id
        })
        .await?;
    ensure!(after.epoch > before.epoch, "{after:#?}");
    ensure!(stage.vmms().len() == 1, "{:?}", stage.vmms());
    Ok(after)
}

/// Waits until the first node says that the instance is gone; it runs on as it is elsewhere.
async fn rid_of_it(stage: &Stage, first: &str, after: &Instance) -> anyhow::Result<()> {
    let cluster = &stage.cluster;
    eventually(SOON, "the first node to be rid of it", || async {
        match cluster.removals_from("shop-web-0", first).await {
            Ok(1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    let same = cluster.instance("shop-web-0").await?;
    ensure!(same.state == "Ready", "{same:#?}");
    same_vmm(after, &same)?;
    Ok(())
}

async fn a_host_agent_that_is_killed_for_good_has_its_guests_killed_by_the_keeper()
-> anyhow::Result<()> {
    let (mut stage, before) = Stage::start_with_an_instance().await?;
    let first = before.node_id.clone();
    let vmm = i32::try_from(status(&before)?.vmm_pid)?;
    ensure!(stage.vmms() == [vmm], "{:?}", stage.vmms());
    let keeper = stage.keeper(&first)?;
    stage.host_agent(&first)?.kill()?;
    ensure!(
        stage.keeper(&first)? == keeper,
        "the keeper died with its host agent"
    );

    // Nobody else is there to kill it, and nothing is started elsewhere before that.
    let now = eventually(SOON, "its VMM to be killed", || async {
        match stage.vmms() {
            only if only == [vmm] => Err(format!("{only:?}")),
            now => Ok(now),
        }
    })
    .await?;
    ensure!(!now.contains(&vmm), "{now:?} run, and {vmm} does still");
    let after = ready_elsewhere(&mut stage, &before).await?;
    // With no host agent and nothing that runs, the keeper has nothing left to keep.
    eventually(SOON, "the keeper to end", || async {
        match stage.keeper(&first) {
            Ok(still) if still == keeper => Err(format!("{still:?}")),
            _ => Ok(()),
        }
    })
    .await?;

    stage.host_agent(&first)?.start_again()?;
    stage.cluster.until_connected(&first).await?;
    rid_of_it(&stage, &first, &after).await?;
    ensure!(stage.vmms().len() == 1, "{:?}", stage.vmms());
    Ok(())
}

/// A node with such leases and a guest that is ready, and which process that is.
async fn one_guest(lease: &'static str) -> anyhow::Result<(Cluster, Identity)> {
    let cluster = Cluster::start_with(Options {
        lease: Some(lease),
        ..Options::default()
    })
    .await?;
    cluster.run(&ServiceFile::web("shop"), "shop-web-0").await?;
    let vmm = cluster.vmm("shop-web-0")?;
    Ok((cluster, vmm))
}

async fn a_host_agent_that_is_killed_and_back_in_time_keeps_its_guests() -> anyhow::Result<()> {
    let (mut cluster, before) = one_guest("30s").await?;
    cluster.host_agent.kill()?;
    cluster.host_agent.start_again()?;
    cluster.until_event("shop-web-0", "InstanceAdopted").await?;
    cluster.until_ready("shop-web-0").await?;
    ensure!(cluster.vmm("shop-web-0")? == before, "another process");
    Ok(())
}

async fn guests_run_on_while_the_controller_of_their_machine_is_down() -> anyhow::Result<()> {
    let (mut cluster, before) = one_guest("2s").await?;
    let record = cluster.node_dir().join("lease");
    let lease = || -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(&record)?;
        let end = text.split_whitespace().last().context("an empty record")?;
        Ok(end.parse()?)
    };
    let held = lease()?;
    cluster.controller.kill()?;
    // Two of its lengths later, by what is on record.
    eventually(SOON, "the lease to be prolonged", || async {
        match lease() {
            Ok(end) if end > held + 4_000 => Ok(()),
            other => Err(format!("{other:?} after {held}")),
        }
    })
    .await?;
    ensure!(cluster.vmm("shop-web-0")? == before, "another process");
    cluster.controller.start_again()?;
    cluster.until_ready("shop-web-0").await?;
    ensure!(cluster.vmm("shop-web-0")? == before, "another process");
    Ok(())
}
