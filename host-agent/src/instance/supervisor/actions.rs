//! What a supervisor does when its machine says so.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use fabric_proto::id::SnapshotName;
use fabric_vmm::control::Request;
use tokio_util::task::AbortOnDropHandle;

use super::Supervisor;
use crate::{
    events::Reason,
    fail_point::{self, Step},
    files,
    hypervisor::{Origin, Vm},
    instance::{
        directory::InstanceDirectory,
        disks::{How, chain, prepare},
        snapshots::{self, MadeOf},
        state::{Action, Because, Handled, Input, Launch},
    },
};

/// How long files that cannot be removed are left alone, and how long at the most.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

impl Supervisor {
    /// Brings everything in line with the machine, and does what it says.
    pub(super) async fn carry_out(&mut self, actions: Vec<Action>) {
        self.settle();
        let mut todo = VecDeque::from(actions);
        while let Some(action) = todo.pop_front() {
            match action {
                Action::Tell(note) => {
                    let because = match note.because {
                        Because::Event(reason) => Some(reason),
                        Because::Nothing | Because::Before => None,
                    };
                    self.node.workshop.events.tell_because(
                        self.id.as_str(),
                        note.reason,
                        because,
                        &note.message,
                        note.warning,
                    );
                }
                Action::Prepare {
                    fresh,
                    cold,
                    restore,
                } => self.prepare(fresh, cold, restore),
                Action::Launch => todo.extend(self.launch().await),
                Action::Pause => self.order(Request::Pause, Handled::Paused),
                Action::Resume => self.order(Request::Resume, Handled::Resumed),
                Action::Reset => self.order(Request::Reset, Handled::Reset),
                Action::TakeSnapshot(wanted) => self.take_snapshot(wanted.name),
                Action::CheckSnapshot(name) => self.check_snapshot(name),
                Action::DeleteSnapshot(name) => {
                    fail_point::reached(Step::SnapshotDropped);
                    if let Err(error) = snapshots::delete(&self.directory, &name) {
                        tracing::error!(instance = %self.id, %name, %error, "cannot delete a snapshot");
                    }
                }
                Action::PressPowerButton => self.press_power_button(),
                Action::OrderStop => self.order_stop(),
                Action::Kill => {
                    if let Some(vm) = &self.vm {
                        vm.kill();
                    }
                }
                Action::RefuseTemplate { why } => self.refuse_template(&why),
                Action::Remove => self.remove().await,
            }
        }
    }

    /// Does something to the virtual machine; one thing at a time.
    fn handle<F>(&mut self, work: impl FnOnce(Arc<dyn Vm>) -> F)
    where
        F: Future<Output = Handled> + Send + 'static,
    {
        // One that is gone is about to be told as such.
        self.handling = self.vm.clone().map(|vm| {
            let work = work(vm);
            AbortOnDropHandle::new(tokio::spawn(async move {
                let handled = work.await;
                if let Some(step) = Step::when(&handled) {
                    fail_point::reached(step);
                }
                handled
            }))
        });
    }

    /// Gives the virtual machine an order; `handled` says what has become of it.
    fn order(&mut self, order: Request, handled: fn(Result<(), String>) -> Handled) {
        self.handle(|vm| async move {
            let done = vm.order(order).await;
            handled(done.map_err(|error| chain(&error)))
        });
    }

    fn take_snapshot(&mut self, name: SnapshotName) {
        let Some(goal) = &self.goal else {
            tracing::debug!(instance = %self.id, "nothing is known of its image");
            return;
        };
        let (made_of, directory) = (MadeOf::of(goal), Arc::clone(&self.directory));
        self.handle(|vm| async move {
            let taken = snapshots::take(vm, directory, name, made_of).await;
            Handled::Snapshot(taken.map_err(|error| chain(&error)))
        });
    }

    fn check_snapshot(&mut self, name: SnapshotName) {
        let Some(goal) = &self.goal else {
            tracing::debug!(instance = %self.id, "nothing is known of its image");
            return;
        };
        let (made_of, directory) = (MadeOf::of(goal), Arc::clone(&self.directory));
        let hypervisor = Arc::clone(&self.node.hypervisor);
        let check = move || {
            let sound = snapshots::check(&directory, &name, &made_of, hypervisor.as_ref());
            Ok(sound.map_err(|error| chain(&error)))
        };
        self.handle(|_| async move {
            let cut_off = |error: io::Error| Err(chain(&error));
            Handled::Checked(files::blocking(check).await.unwrap_or_else(cut_off))
        });
    }

    fn prepare(&mut self, fresh: bool, cold: bool, restore: Option<SnapshotName>) {
        let Some(goal) = self.goal.clone() else {
            // It is about to go; the order to do so is next.
            tracing::debug!(instance = %self.id, "nothing is known of its image");
            return;
        };
        let (workshop, directory) = (Arc::clone(&self.node.workshop), Arc::clone(&self.directory));
        let hypervisor = Arc::clone(&self.node.hypervisor);
        let how = How {
            cid: self.manifest.cid,
            fresh,
            cold,
            restore,
        };
        let task =
            tokio::spawn(
                async move { prepare(&workshop, &hypervisor, &directory, &goal, how).await },
            );
        self.preparing = Some(AbortOnDropHandle::new(task));
    }

    async fn launch(&mut self) -> Vec<Action> {
        if self.server.is_none() {
            self.listen();
        }
        let result = match (&self.server, self.spec.take()) {
            (None, _) => Err("cannot listen to its guest".to_owned()),
            (_, None) => Err("it was not made ready".to_owned()),
            _ if self.node.lease.is_over() => Err("the node has no lease".to_owned()),
            (Some(_), Some(spec)) => {
                let launched = self.node.hypervisor.launch(&self.directory, &spec).await;
                let launch = match spec.origin {
                    Origin::Template(_) => Launch::Template,
                    Origin::Booted(_) => Launch::Booted,
                    Origin::Snapshot(_) => Launch::Snapshot,
                    Origin::Boot
                    | Origin::BecomeTemplate { .. }
                    | Origin::BecomeRoleTemplate { .. } => Launch::Boot,
                };
                launched
                    .map(|vm| (vm, launch))
                    .map_err(|error| chain(&error))
            }
        };
        let result = result.map(|(vm, launch)| {
            self.manifest.process = Some(vm.record().clone());
            self.vm = Some(vm);
            self.starved();
            self.node.workshop.events.metrics().started(launch);
            launch
        });
        let (now, limits) = (self.node.clock.now(), Arc::clone(&self.node.limits));
        let actions = self
            .manifest
            .machine
            .step(now, Input::Launched(result), &limits);
        self.settle();
        actions
    }

    /// What comes of it is seen by the guest's end, or by its deadline.
    fn press_power_button(&self) {
        let Some(vm) = self.vm.clone() else { return };
        let instance = self.id.clone();
        tokio::spawn(async move {
            match vm.order(Request::PowerButton).await {
                Ok(()) => tracing::info!(%instance, "pressed its power button"),
                Err(error) => {
                    let error = chain(&error);
                    tracing::info!(%instance, error, "cannot press its power button");
                }
            }
        });
    }

    fn order_stop(&self) {
        if let Some(vm) = self.vm.clone() {
            tokio::spawn(async move { vm.order_stop().await });
        }
    }

    fn refuse_template(&self, why: &str) {
        let Some(key) = self.manifest.template.clone() else {
            return;
        };
        let message = format!("template {key} was refused: {why}; it boots instead");
        let workshop = &self.node.workshop;
        workshop
            .events
            .tell(self.id.as_str(), Reason::TemplateRefused, &message, true);
        if let Some(templates) = workshop.templates.clone() {
            let why = why.to_owned();
            tokio::spawn(async move { templates.refuse(key, &why).await });
        }
    }

    /// Removes everything that the instance has. That is told when it is so, and before
    /// the directory goes: whoever finds an empty one tells it again.
    async fn remove(&mut self) {
        self.server = None;
        fail_point::reached(Step::Removing);
        self.persist("remove its files", InstanceDirectory::clear)
            .await;
        fail_point::reached(Step::FilesGone);
        let events = &self.node.workshop.events;
        events.tell(
            self.id.as_str(),
            Reason::InstanceRemoved,
            "removed from this node",
            false,
        );
        fail_point::reached(Step::RemovalTold);
        self.persist("remove its directory", InstanceDirectory::remove)
            .await;
        fail_point::reached(Step::DirectoryGone);
        self.node.board.take_down(&self.id);
    }

    /// Does something to the directory, again and again until it succeeds.
    async fn persist(&self, what: &str, act: impl Fn(&InstanceDirectory) -> io::Result<()>) {
        let mut wait = FIRST_WAIT;
        while let Err(error) = act(&self.directory) {
            tracing::error!(instance = %self.id, %error, "cannot {what}; tried again in {wait:?}");
            tokio::time::sleep(wait).await;
            wait = LONGEST_WAIT.min(wait * 2);
        }
    }
}
