//! The task that owns one instance: feeds its [`Machine`] with what happens and
//! carries out what it says. Decides nothing.
//!
//! The manifest is written whenever the machine has changed, before the actions
//! are carried out. A virtual machine that was spawned by an action whose record
//! was never completed is found by where it runs.

mod actions;

use std::{io, sync::Arc, time::Duration};

use fabric_proto::id::InstanceId;
use tokio::{
    sync::{mpsc, watch},
    task::JoinError,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    directory::{InstanceDirectory, MANIFEST},
    disks::{PrepareError, Prepared, Workshop},
    last_exit,
    machine::{Limits, Machine},
    manifest::Manifest,
    snapshots,
    state::{Action, Exit, GuestSaid, Handled, Input, Presence, Scope, State, Wanted},
    status::{self, Board},
    turn::Turn,
};
use crate::{
    clock::{self, Clock},
    fail_point::{self, Step},
    goal::InstanceGoal,
    guest::server::{GuestGoal, GuestLink, GuestServer, Heard},
    hypervisor::{Hypervisor, Vm, VmSpec},
    lease::{self, Lease},
    output::role_log::RoleLog,
    policy::rate::Rate,
    template,
};

/// What the node lends to every instance.
#[derive(Debug, Clone)]
pub struct Node {
    /// Runs virtual machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Images, packages, events.
    pub workshop: Arc<Workshop>,
    /// Where reports are put up.
    pub board: Arc<Board>,
    /// Time.
    pub clock: Clock,
    /// This start of the machine.
    pub host_boot_id: String,
    /// For how long anything may run.
    pub lease: Arc<Lease>,
    /// How long what may take.
    pub limits: Arc<Limits>,
}

/// What the node wants of an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// To follow this goal.
    Follow(InstanceGoal),
    /// To be down for as long as this process of the host agent lives.
    Rest,
    /// To go, with everything it has.
    Go,
}

/// Owns one instance.
#[derive(Debug)]
pub struct Supervisor {
    id: InstanceId,
    node: Node,
    directory: Arc<InstanceDirectory>,
    log: Arc<RoleLog>,
    manifest: Manifest,
    saved: Option<Manifest>,
    orders: watch::Receiver<Order>,
    lease: lease::Watch,
    goal: Option<InstanceGoal>,
    spec: Option<VmSpec>,
    /// Its turn among the copies that are being started.
    turn: Turn,
    /// The template to make when it is ready.
    better: Option<Box<template::Wanted>>,
    vm: Option<Arc<dyn Vm>>,
    /// What its virtual machine had waited for processors when it was last heard.
    waited: Duration,
    preparing: Option<AbortOnDropHandle<Result<Prepared, PrepareError>>>,
    /// What is being done to a machine that runs or is paused.
    handling: Option<AbortOnDropHandle<Handled>>,
    server: Option<GuestServer>,
    guest_goal: watch::Sender<Option<GuestGoal>>,
    /// What a guest may cause to be told.
    tellings: Rate,
    heard: mpsc::Receiver<Heard>,
    heard_by: mpsc::Sender<Heard>,
}

/// What a supervisor starts from.
#[derive(Debug)]
pub struct Beginning {
    /// Its directory.
    pub directory: Arc<InstanceDirectory>,
    /// Its role's output.
    pub log: Arc<RoleLog>,
    /// Its record.
    pub manifest: Manifest,
    /// What it is to do.
    pub orders: watch::Receiver<Order>,
}

/// What happens to a supervisor.
enum Happening {
    Order,
    Prepared(Result<Prepared, PrepareError>),
    Handled(Result<Handled, JoinError>),
    Exited(Exit),
    Heard(Heard),
    Deadline,
    /// It is its turn, or has been for long enough.
    Turn,
    /// Nobody is there any longer to give orders.
    Abandoned,
}

/// Events that a guest may cause in a row, and how often one more.
const MOST_TELLINGS: u32 = 100;
const TELLING: Duration = Duration::from_secs(5);
/// Reports of one guest that are taken before anything else gets its turn.
const MOST_AT_ONCE: usize = 64;

impl Supervisor {
    /// A supervisor of an instance that is new here, or was here before.
    #[must_use]
    pub fn new(id: InstanceId, node: Node, beginning: Beginning) -> Self {
        let Beginning {
            directory,
            log,
            manifest,
            orders,
        } = beginning;
        let (heard_by, heard) = mpsc::channel(MOST_AT_ONCE);
        let lease = node.lease.watch();
        Self {
            id,
            node,
            directory,
            log,
            manifest,
            saved: None,
            orders,
            lease,
            goal: None,
            spec: None,
            turn: Turn::Free,
            better: None,
            vm: None,
            waited: Duration::ZERO,
            preparing: None,
            handling: None,
            server: None,
            guest_goal: watch::Sender::new(None),
            tellings: Rate::new(MOST_TELLINGS, TELLING),
            heard,
            heard_by,
        }
    }

    /// Owns the instance until it is removed, or nobody gives orders any longer;
    /// its virtual machine runs on then.
    pub async fn run(mut self) {
        self.resume().await;
        self.orders.mark_changed();
        while *self.machine().state() != State::Removed {
            match self.happening().await {
                Happening::Order => self.follow().await,
                Happening::Prepared(result) => self.prepared(result).await,
                Happening::Handled(result) => self.handled(result).await,
                Happening::Exited(exit) => self.exited(exit).await,
                Happening::Heard(heard) => self.hear(heard).await,
                Happening::Deadline => self.deadline().await,
                Happening::Turn => self.step(Input::Resting).await,
                Happening::Abandoned => return,
            }
        }
    }

    fn machine(&self) -> &Machine {
        &self.manifest.machine
    }

    async fn happening(&mut self) -> Happening {
        let deadline = self.machine().deadline(&self.node.limits);
        let deadline = deadline.map(|time| self.node.clock.instant(time));
        tokio::select! {
            // An end comes before what has failed because of it, and a deadline before a
            // guest that never stops talking.
            biased;
            changed = self.orders.changed() => match changed {
                Ok(()) => Happening::Order,
                Err(_) => Happening::Abandoned,
            },
            () = self.lease.turned() => Happening::Order,
            exit = ended(self.vm.clone()) => Happening::Exited(exit),
            result = finished(&mut self.preparing) => Happening::Prepared(result),
            handled = handled(&mut self.handling) => Happening::Handled(handled),
            () = until(deadline) => Happening::Deadline,
            () = self.turn.change() => Happening::Turn,
            Some(heard) = self.heard.recv() => Happening::Heard(heard),
        }
    }

    /// Goes on where an earlier process was ended.
    async fn resume(&mut self) {
        if let Order::Follow(goal) = &*self.orders.borrow() {
            self.goal = Some(goal.clone());
        }
        if let Err(error) = snapshots::sweep(&self.directory, self.machine().snapshots()) {
            tracing::warn!(instance = %self.id, %error, "cannot remove what is left of a snapshot");
        }
        self.listen();
        let record = self.manifest.process.clone();
        let found = self
            .node
            .hypervisor
            .find(&self.directory, record.as_ref())
            .await;
        self.vm = found.unwrap_or_else(|error| {
            tracing::error!(instance = %self.id, %error, "cannot look for its VMM");
            None
        });
        let same_boot = self.manifest.host_boot_id == self.node.host_boot_id;
        self.manifest
            .host_boot_id
            .clone_from(&self.node.host_boot_id);
        // The guest may have seen any goal up to this number.
        self.manifest.guest_incarnation += 1;
        let (now, limits) = (self.node.clock.now(), Arc::clone(&self.node.limits));
        let there = self.vm.is_some();
        self.manifest.process = self.vm.as_ref().map(|vm| vm.record().clone());
        self.starved();
        let actions = self.manifest.machine.resume(now, there, same_boot, &limits);
        self.carry_out(actions).await;
        if let Some(vm) = self.vm.as_ref().filter(|_| !self.machine().has_vm()) {
            // It should not be there in this state.
            tracing::warn!(instance = %self.id, pid = vm.record().pid, "ending a VMM left over");
            vm.kill();
            vm.exited().await;
            self.vm = None;
        } else if self.vm.is_none() && self.machine().has_vm() {
            let exit = self.node.hypervisor.last_exit(&self.directory);
            self.exited(exit).await;
        }
        self.settle();
    }

    fn listen(&mut self) {
        let link = GuestLink {
            goal: self.guest_goal.subscribe(),
            heard: self.heard_by.clone(),
            log: Arc::clone(&self.log),
            clock: self.node.clock,
        };
        self.server = match self.node.hypervisor.listen(&self.directory, link) {
            Ok(server) => Some(server),
            Err(error) => {
                tracing::error!(instance = %self.id, %error, "cannot listen to its guest");
                None
            }
        };
    }

    async fn follow(&mut self) {
        let order = self.orders.borrow_and_update().clone();
        let wanted = match order {
            Order::Follow(goal) => {
                self.manifest.epoch = goal.epoch;
                let wanted = goal.wanted();
                self.goal = Some(goal);
                wanted
            }
            Order::Rest => self.wanted_but(self.rest()),
            Order::Go => self.wanted_but(Presence::Remove),
        };
        let fenced = self.node.lease.is_over() && is_to_be(wanted.presence);
        let wanted = if fenced {
            Wanted {
                presence: Presence::Fence,
                ..wanted
            }
        } else {
            wanted
        };
        self.feed(Input::Goal(wanted)).await;
    }

    /// What an operator has stopped stays that while its node rests.
    fn rest(&self) -> Presence {
        let presence = self.machine().wanted().map(|wanted| wanted.presence);
        presence
            .filter(|presence| *presence == Presence::Stop)
            .unwrap_or(Presence::Rest)
    }

    fn wanted_but(&self, presence: Presence) -> Wanted {
        let last = self.machine().wanted().cloned();
        Wanted {
            presence,
            ..last.unwrap_or_else(nothing_wanted)
        }
    }

    async fn prepared(&mut self, result: Result<Prepared, PrepareError>) {
        self.preparing = None;
        let result = result.map_err(Into::into).map(|prepared| {
            self.manifest.template = prepared.template;
            self.spec = Some(prepared.spec);
            self.turn = prepared.turn;
            self.better = prepared.better;
        });
        self.step(Input::Prepared(result)).await;
    }

    async fn handled(&mut self, result: Result<Handled, JoinError>) {
        self.handling = None;
        let State::Handling { what } = self.machine().state() else {
            return;
        };
        let handled =
            result.unwrap_or_else(|error| what.failed(format!("it was cut off: {error}")));
        self.step(Input::Handled(handled)).await;
    }

    async fn exited(&mut self, exit: Exit) {
        self.hear_all().await;
        // What was being done to it leaves nothing half-way, and may have been done.
        if let Some(work) = self.handling.take()
            && let Ok(handled) = work.await
            && handled.is_done()
        {
            self.step(Input::Handled(handled)).await;
        }
        self.vm = None;
        self.manifest.process = None;
        self.step(Input::Exited(exit)).await;
        if let Some(end) = self.machine().end() {
            self.node.workshop.events.metrics().ended(end.cause);
        }
    }

    async fn hear(&mut self, heard: Heard) {
        // What an earlier boot said is of no interest now.
        if heard.boot == self.machine().boots() && self.machine().has_vm() {
            self.starved();
            self.step(Input::Guest(heard.said)).await;
        }
    }

    /// What the guest said before now counts before what is decided now.
    async fn hear_all(&mut self) {
        for _ in 0..MOST_AT_ONCE {
            let Ok(heard) = self.heard.try_recv() else {
                return;
            };
            self.hear(heard).await;
        }
    }

    async fn deadline(&mut self) {
        self.hear_all().await;
        let starved = self.starved();
        let input = if self.turn.rests() {
            Input::Resting
        } else {
            Input::Tick { starved }
        };
        self.step(input).await;
    }

    /// How long its virtual machine has waited for processors since this was asked last.
    fn starved(&mut self) -> Duration {
        let waited = self.vm.as_ref().map_or(Duration::ZERO, |vm| vm.waited());
        waited.saturating_sub(std::mem::replace(&mut self.waited, waited))
    }

    /// Nothing is decided as if there were a lease when it has ended.
    async fn step(&mut self, input: Input) {
        let wanted = self.machine().wanted();
        if wanted.is_some_and(|wanted| is_to_be(wanted.presence)) && self.node.lease.is_over() {
            let fenced = self.wanted_but(Presence::Fence);
            self.feed(Input::Goal(fenced)).await;
        }
        self.feed(input).await;
    }

    async fn feed(&mut self, input: Input) {
        let quiet = matches!(input, Input::Guest(GuestSaid::Heartbeat));
        let by_guest = matches!(input, Input::Guest(_));
        let (now, limits) = (self.node.clock.now(), Arc::clone(&self.node.limits));
        let words = match &input {
            Input::Exited(exit) => exit.json.clone(),
            _ => String::new(),
        };
        let ends = self.machine().ends();
        let before = status::vm_state(self.machine().state());
        let mut actions = self.manifest.machine.step(now, input, &limits);
        if self.machine().ends() != ends {
            self.keep_end(&words);
        }
        if by_guest {
            // A guest that changes its mind all the time does not fill the store.
            actions.retain(|one| !matches!(one, Action::Tell(_)) || self.tellings.take(now));
        }
        if quiet && actions.is_empty() {
            return;
        }
        if status::vm_state(self.machine().state()) != before {
            self.manifest.since = clock::wall_time();
        }
        self.carry_out(actions).await;
    }

    /// Keeps how its virtual machine has ended, with that one's last words.
    fn keep_end(&mut self, words: &str) {
        let at = clock::wall_time();
        self.manifest.ended = Some(at);
        if let Some(end) = self.manifest.machine.end() {
            self.manifest.last_exit = last_exit::with(words, end, at);
        }
    }

    /// Brings everything else in line with the machine: what is on record, what
    /// is reported, what the guest is told.
    fn settle(&mut self) {
        if *self.machine().state() == State::Removed {
            return;
        }
        if !matches!(self.machine().state(), State::Preparing { .. }) {
            self.preparing = None;
        }
        if !matches!(self.machine().state(), State::Handling { .. }) {
            self.handling = None;
        }
        self.turn.follow(self.machine().progress());
        if self.machine().is_ready()
            && let Some(better) = self.better.take()
        {
            let (workshop, id) = (Arc::clone(&self.node.workshop), self.id.clone());
            tokio::spawn(async move { workshop.make_template(&id, &better).await });
        }
        let goal = self.guest_goal();
        let told = self.guest_goal.borrow().clone();
        let tell = told.as_ref().is_none_or(|told| {
            *told
                != GuestGoal {
                    incarnation: told.incarnation,
                    ..goal.clone()
                }
        });
        if tell {
            self.manifest.guest_incarnation += 1;
        }
        self.save();
        if tell {
            let incarnation = self.manifest.guest_incarnation;
            self.guest_goal.send_replace(Some(GuestGoal {
                incarnation,
                ..goal
            }));
        }
        self.node
            .board
            .put(&self.id, status::report(&self.id, &self.manifest));
    }

    fn guest_goal(&self) -> GuestGoal {
        GuestGoal {
            boot: self.machine().boots(),
            resumes: self.machine().resumes(),
            incarnation: 0,
            instance: Some(self.id.clone()),
            heartbeat: self.node.limits.heartbeat,
            off: self.machine().guest_should_be_off(),
            role: self.goal.as_ref().map(|goal| self.role_of(goal)),
            withheld: self.turn.withholds_goal(),
        }
    }

    /// The role as the guest is told; an operator's restart of the role alone, and the
    /// time that an operator gives it to end, travel in it.
    fn role_of(&self, goal: &InstanceGoal) -> Arc<fabric_proto::guest::v1::RoleSpec> {
        let mut role = Arc::clone(&goal.role);
        if goal.restart_scope == Scope::Role
            && goal.restart_generation > goal.role.restart_generation
        {
            Arc::make_mut(&mut role).restart_generation = goal.restart_generation;
        }
        if let Some(grace) = goal.stop_grace.and_then(|grace| grace.try_into().ok()) {
            Arc::make_mut(&mut role).stop_grace = Some(grace);
        }
        role
    }

    fn save(&mut self) {
        if self.saved.as_ref() == Some(&self.manifest) {
            return;
        }
        match self.manifest.save(&self.directory.file(MANIFEST)) {
            Ok(()) => {
                self.saved = Some(self.manifest.clone());
                if let Some(step) = Step::on_record(self.machine()) {
                    fail_point::reached(step);
                }
            }
            // A VMM that is not on record is found by where it runs.
            Err(error) => {
                tracing::error!(instance = %self.id, %error, "cannot write its manifest");
            }
        }
    }
}

/// Whether there is to be a virtual machine.
fn is_to_be(presence: Presence) -> bool {
    matches!(presence, Presence::Run | Presence::Pause)
}

fn nothing_wanted() -> Wanted {
    Wanted {
        presence: Presence::Rest,
        disk: String::new(),
        epoch: 0,
        shape: String::new(),
        restart_generation: 0,
        restart_scope: Scope::Role,
        always_on: true,
        stop_grace: Duration::ZERO,
        snapshots: Vec::new(),
        restore: None,
    }
}

async fn ended(vm: Option<Arc<dyn Vm>>) -> Exit {
    match vm {
        Some(vm) => vm.exited().await,
        None => std::future::pending().await,
    }
}

async fn finished(
    task: &mut Option<AbortOnDropHandle<Result<Prepared, PrepareError>>>,
) -> Result<Prepared, PrepareError> {
    let Some(task) = task else {
        return std::future::pending().await;
    };
    task.await
        .unwrap_or_else(|error| Err(PrepareError::Task(io::Error::other(error))))
}

async fn handled(task: &mut Option<AbortOnDropHandle<Handled>>) -> Result<Handled, JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
