//! The node: one supervisor per instance, and the goal that they follow.
//!
//! A goal is taken up as a whole: checked, kept on disk, then handed out. What
//! the goal does not name is removed. While there is no goal at all, nothing is
//! touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fabric_proto::{id::InstanceId, node::v1 as wire};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    events::Reason,
    fail_point::{self, Step},
    goal::{EpochStore, GoalError, GoalStore, InstanceGoal, NodeGoal},
    instance::{
        directory::{InstanceDirectory, MANIFEST},
        manifest::Manifest,
        status,
        supervisor::{Beginning, Node as Lent, Order, Supervisor},
    },
    output::{role_log::RoleLog, stream::Shown},
};

/// Smallest context id of a guest; those below are spoken for (virtio 1.2, 5.10.4).
const FIRST_CID: u32 = 3;

/// What the session and the output streams need to know of the node.
#[derive(Debug, Clone)]
pub struct View {
    /// Highest goal incarnation that has been taken up.
    pub applied: watch::Receiver<u64>,
    /// How often a status is sent at least.
    pub heartbeat: watch::Receiver<Duration>,
    /// Output that operators want to see.
    pub outputs: watch::Receiver<Vec<wire::OutputRequest>>,
    /// Where output is.
    pub shown: watch::Receiver<BTreeMap<InstanceId, Shown>>,
}

/// The node.
#[derive(Debug)]
pub struct Node {
    lent: Lent,
    store: GoalStore,
    instances_in: PathBuf,
    instances: BTreeMap<InstanceId, Instance>,
    supervisors: JoinSet<InstanceId>,
    goal: Option<NodeGoal>,
    /// Epochs of instances that go or are gone.
    epochs: EpochStore,
    /// Whether those that are lower than one that has been seen are refused.
    checks_epochs: bool,
    /// Complaints already made, so that each is made once.
    refused: BTreeSet<(InstanceId, String)>,
    applied: watch::Sender<u64>,
    heartbeat: watch::Sender<Duration>,
    outputs: watch::Sender<Vec<wire::OutputRequest>>,
    shown: watch::Sender<BTreeMap<InstanceId, Shown>>,
}

#[derive(Debug)]
struct Instance {
    orders: watch::Sender<Order>,
    cid: u32,
    epoch: u64,
}

/// Most complaints that are remembered.
const MOST_REFUSED: usize = 4096;

impl Node {
    /// The node whose files are in `data`; nothing is done yet.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn open(data: &Path, lent: Lent, heartbeat: Duration) -> io::Result<Self> {
        let instances_in = data.join("instances");
        fs::create_dir_all(&instances_in)?;
        let instances_in = fs::canonicalize(instances_in)?;
        let journal = data.join("journal");
        fs::create_dir_all(&journal)?;
        Ok(Self {
            lent,
            store: GoalStore::new(&journal),
            instances_in,
            instances: BTreeMap::new(),
            supervisors: JoinSet::new(),
            goal: None,
            epochs: EpochStore::open(&journal)?,
            checks_epochs: true,
            refused: BTreeSet::new(),
            applied: watch::Sender::new(0),
            heartbeat: watch::Sender::new(heartbeat),
            outputs: watch::Sender::default(),
            shown: watch::Sender::default(),
        })
    }

    /// The same, taking whatever epoch it is given: for simulations, which must find that.
    /// No program is made like this.
    #[must_use]
    pub fn without_epoch_check(self) -> Self {
        Self {
            checks_epochs: false,
            ..self
        }
    }

    /// What others may look at.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            applied: self.applied.subscribe(),
            heartbeat: self.heartbeat.subscribe(),
            outputs: self.outputs.subscribe(),
            shown: self.shown.subscribe(),
        }
    }

    /// Takes up the last goal and the machines that run, without a controller.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub async fn resume(&mut self) -> io::Result<()> {
        let ended = self.lent.hypervisor.end_strays(&self.instances_in).await;
        if ended > 0 {
            tracing::warn!(ended, "ended virtual machines without an instance");
        }
        if let Some(goal) = self.store.load()? {
            self.take_up(NodeGoal::check(goal));
        }
        Ok(())
    }

    /// Follows goals until there are no more, or until `stop` comes.
    pub async fn run(
        &mut self,
        goals: &mut mpsc::Receiver<wire::NodeGoal>,
        stop: impl Future<Output = ()>,
    ) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                goal = goals.recv() => match goal {
                    Some(goal) => self.take(goal),
                    None => return,
                },
                Some(ended) = self.supervisors.join_next() => self.after(ended),
            }
        }
    }

    /// Stops every virtual machine gracefully; waits for it `patience` at most. False if
    /// some run on.
    pub async fn stop_all(&mut self, patience: Duration) -> bool {
        for instance in self.instances.values() {
            instance.orders.send_replace(Order::Rest);
        }
        let mut board = self.lent.board.subscribe();
        let down = |reports: &BTreeMap<InstanceId, wire::InstanceStatus>| {
            let at_rest = [wire::VmState::Stopped, wire::VmState::Failed];
            reports
                .values()
                .all(|report| at_rest.contains(&report.vm_state()))
        };
        let all = tokio::time::timeout(patience, board.wait_for(down))
            .await
            .is_ok();
        if !all {
            tracing::error!("some virtual machines are still running");
        }
        all
    }

    /// Takes a goal from the controller, or refuses it and says so.
    fn take(&mut self, goal: wire::NodeGoal) {
        let seen = *self.applied.borrow();
        if goal.incarnation < seen {
            let error = GoalError::Incarnation {
                given: goal.incarnation,
                seen,
            };
            self.lent
                .workshop
                .events
                .tell("", Reason::GoalRefused, &error.to_string(), true);
            return;
        }
        fail_point::reached(Step::GoalTaken);
        if let Err(error) = self.store.save(&goal) {
            // Followed all the same: a restart would only take up an older one.
            tracing::error!(%error, "cannot keep the goal");
        }
        fail_point::reached(Step::GoalKept);
        self.take_up(NodeGoal::check(goal));
    }

    fn take_up(&mut self, goal: NodeGoal) {
        tracing::debug!(
            incarnation = goal.incarnation,
            instances = goal.instances.len(),
            "goal"
        );
        let incarnation = goal.incarnation;
        if let Some(period) = goal.heartbeat_period {
            self.heartbeat
                .send_replace(period.max(Duration::from_millis(100)));
        }
        let lease = goal.lease;
        if lease.is_some() {
            // Nothing of this goal is started without it.
            self.lent.lease.require(lease);
        }
        self.outputs.send_if_modified(|outputs| {
            let changed = *outputs != goal.outputs;
            outputs.clone_from(&goal.outputs);
            changed
        });
        for error in &goal.nameless {
            tracing::warn!(%error, "an instance of the goal has no usable id");
        }
        self.goal = Some(goal);
        self.reconcile();
        // Only now that every supervisor has its orders: a lease that is granted for this
        // goal, or is needed no longer, lets them go on, and one that has the orders of
        // before would start what runs elsewhere by now.
        self.lent.lease.require(lease);
        self.applied.send_replace(incarnation);
    }

    /// Brings supervisors in line with the goal.
    fn reconcile(&mut self) {
        let Some(goal) = self.goal.clone() else {
            return;
        };
        self.keep_blobs(&goal);
        for (id, wanted) in &goal.instances {
            match wanted {
                Ok(wanted) => self.follow(wanted),
                Err(error) => self.refuse(id, error),
            }
        }
        let gone: BTreeSet<InstanceId> = self
            .instances
            .keys()
            .cloned()
            .chain(self.directories())
            .filter(|id| !goal.instances.contains_key(id))
            .collect();
        self.keep_epochs(&gone);
        for id in gone {
            self.order(&id, Order::Go);
        }
        let reports = self.lent.board.subscribe().borrow().clone();
        for id in reports.keys() {
            if !goal.instances.contains_key(id) && !self.instances.contains_key(id) {
                self.lent.board.take_down(id);
            }
        }
    }

    fn follow(&mut self, goal: &InstanceGoal) {
        let seen = self.seen_epoch(&goal.id);
        if goal.epoch < seen && self.checks_epochs {
            self.refuse(
                &goal.id,
                &GoalError::Epoch {
                    given: goal.epoch,
                    seen,
                },
            );
            return;
        }
        self.order(&goal.id, Order::Follow(goal.clone()));
        if let Some(instance) = self.instances.get_mut(&goal.id) {
            instance.epoch = goal.epoch;
        }
    }

    /// Takes down the epochs of instances before anything of them goes.
    fn keep_epochs(&mut self, of: &BTreeSet<InstanceId>) {
        if of.is_empty() {
            return;
        }
        for id in of {
            let epoch = self.seen_epoch(id);
            self.epochs.note(id, epoch);
        }
        if let Err(error) = self.epochs.save() {
            tracing::error!(%error, "cannot keep the epochs of instances that go");
        }
        fail_point::reached(Step::EpochKept);
    }

    fn seen_epoch(&self, id: &InstanceId) -> u64 {
        match self.instances.get(id) {
            Some(instance) => instance.epoch,
            None => {
                let manifest = self.instances_in.join(id.as_str()).join(MANIFEST);
                let recorded = Manifest::load(&manifest).ok().flatten();
                let recorded = recorded.map_or(0, |manifest| manifest.epoch);
                recorded.max(self.epochs.get(id))
            }
        }
    }

    /// An instance that is here goes on as it was; one that is not does not come.
    fn refuse(&mut self, id: &InstanceId, error: &GoalError) {
        if !self.instances.contains_key(id) {
            if self.instances_in.join(id.as_str()).exists() {
                tracing::warn!(instance = %id, "left alone until there is a goal that can be used");
            }
            self.lent.board.put(id, status::refusal(id, error));
        }
        if self.refused.insert((id.clone(), error.to_string())) {
            let events = &self.lent.workshop.events;
            events.tell(id.as_str(), Reason::GoalRefused, &error.to_string(), true);
        }
        if self.refused.len() > MOST_REFUSED {
            self.refused.clear();
        }
    }

    fn order(&mut self, id: &InstanceId, order: Order) {
        if let Some(instance) = self.instances.get(id) {
            instance.orders.send_if_modified(|last| {
                let changed = *last != order;
                *last = order;
                changed
            });
            return;
        }
        if let Err(error) = self.begin(id, order) {
            tracing::error!(instance = %id, %error, "cannot open its directory");
            let error = GoalError::Field {
                field: "instance_id",
                value: id.to_string(),
                rule: "one whose directory can be opened; see the host agent's log",
            };
            self.lent.board.put(id, status::refusal(id, &error));
        }
    }

    /// Puts a supervisor in charge of an instance, new or found.
    fn begin(&mut self, id: &InstanceId, order: Order) -> io::Result<()> {
        let directory = InstanceDirectory::open(self.instances_in.join(id.as_str()))?;
        fail_point::reached(Step::DirectoryMade);
        let manifest = match Manifest::load(&directory.file(MANIFEST)) {
            Ok(Some(manifest)) => manifest,
            unusable => {
                if let Err(error) = unusable {
                    tracing::error!(instance = %id, %error, "its manifest cannot be used");
                }
                // Its VMM, if there is one, is found and ended; its disk is made anew.
                Manifest::new(self.free_cid(), self.lent.host_boot_id.clone())
            }
        };
        let log = Arc::new(RoleLog::open(
            &directory.file(crate::instance::directory::ROLE_LOG),
        )?);
        let directory = Arc::new(directory);
        let shown = Shown {
            log: Arc::clone(&log),
            directory: Arc::clone(&directory),
        };
        let (cid, epoch) = (manifest.cid, manifest.epoch);
        let (orders, receiver) = watch::channel(order);
        let beginning = Beginning {
            directory,
            log,
            manifest,
            orders: receiver,
        };
        let supervisor = Supervisor::new(id.clone(), self.lent.clone(), beginning);
        let name = id.clone();
        self.supervisors.spawn(async move {
            supervisor.run().await;
            name
        });
        self.instances
            .insert(id.clone(), Instance { orders, cid, epoch });
        self.shown.send_modify(|all| {
            all.insert(id.clone(), shown);
        });
        Ok(())
    }

    /// A supervisor has ended: its instance was removed, or it failed.
    fn after(&mut self, ended: Result<InstanceId, tokio::task::JoinError>) {
        let id = match ended {
            Ok(id) => id,
            Err(error) => {
                tracing::error!(%error, "a supervisor failed");
                let closed = self
                    .instances
                    .iter()
                    .find(|(_, one)| one.orders.is_closed());
                let Some((id, _)) = closed else { return };
                id.clone()
            }
        };
        self.instances.remove(&id);
        self.shown.send_modify(|all| {
            all.remove(&id);
        });
        // It may be wanted again by now.
        self.reconcile();
    }

    fn directories(&self) -> Vec<InstanceId> {
        let Ok(entries) = fs::read_dir(&self.instances_in) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// The smallest context id that no instance has.
    fn free_cid(&self) -> u32 {
        let here = self.instances.values().map(|instance| instance.cid);
        let recorded = self.directories().into_iter().filter_map(|id| {
            let manifest = self.instances_in.join(id.as_str()).join(MANIFEST);
            Some(Manifest::load(&manifest).ok()??.cid)
        });
        let taken: BTreeSet<u32> = here.chain(recorded).collect();
        (FIRST_CID..u32::MAX)
            .find(|cid| !taken.contains(cid))
            .unwrap_or(FIRST_CID)
    }

    fn keep_blobs(&self, goal: &NodeGoal) {
        let needed = goal.instances.values().flatten().flat_map(|instance| {
            let package = instance
                .package
                .iter()
                .map(|package| package.digest.clone());
            package.chain([instance.image.digest.clone()])
        });
        self.lent.workshop.blobs.keep(needed.collect());
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
