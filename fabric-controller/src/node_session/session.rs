//! One node's conversation with the controller.
//!
//! ```text
//! Register ──► record stored, goal sent ──► reports in, goals and acknowledgements out
//!                                               │
//!     ends: broken, silent for too long, replaced by a newer one, or shutdown
//! ```
//!
//! One task per session; it reads no faster than it stores.

use std::{sync::Arc, time::Duration};

use fabric_proto::{
    id::NodeId,
    node::v1::{
        LeaseGrant, NodeEvent, NodeGoal, SessionRequest, SessionResponse,
        session_request::Report as Message, session_response,
    },
};
use futures_util::StreamExt as _;
use tokio::{sync::mpsc, time};
use tonic::{Status, Streaming};

use super::intake::{self, Registration};
use crate::{
    clock,
    controller::Controller,
    error::Result,
    model::{
        blame::{self, Failures},
        event::{EventRecord, Reason, SubjectKind},
        instance::InstanceRecord,
        node::{GoalRecord, NodeRecord},
    },
    records,
    registry::Session,
    store::{Store, Txn},
    trust::caller::Caller,
};

/// Answers that wait for a slow node.
const WAITING: usize = 4;
/// Most reports that are taken in together.
const BATCH: usize = 128;
/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(10);
/// How long the last answer may take.
const LAST: Duration = Duration::from_secs(1);
/// How often events that could not be stored are tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Most events that wait for that; with more, the session ends, and the node
/// sends them again when it is back.
const UNSTORED: usize = 1024;

type Answer = Result<SessionResponse, Status>;

/// Starts the session's task; its answers come out here.
pub(super) fn start(
    controller: Arc<Controller>,
    caller: Caller,
    reports: Streaming<SessionRequest>,
) -> mpsc::Receiver<Answer> {
    let (answers, received) = mpsc::channel(WAITING);
    let tasks = controller.tasks.clone();
    tasks.spawn(async move {
        if let Err(status) = converse(&controller, &caller, reports, &answers).await {
            // A node that is gone, or does not read, needs no answer.
            let _ = time::timeout(LAST, answers.send(Err(status))).await;
        }
    });
    received
}

async fn converse(
    controller: &Controller,
    caller: &Caller,
    mut reports: Streaming<SessionRequest>,
    answers: &mpsc::Sender<Answer>,
) -> Result<(), Status> {
    let first = time::timeout(FIRST, reports.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Register came within 10 s"))??;
    let Some(Message::Register(register)) = first.and_then(|message| message.report) else {
        return Err(Status::invalid_argument(
            "report: the first message must be a Register",
        ));
    };
    let registration = intake::register(register)?;
    let node = registration.node_id.clone();
    if let Err(error) = caller.speaks_for(&node) {
        let denied = Status::from(error);
        tracing::warn!(%node, %caller, "denied: {}", denied.message());
        let (call, store) = ("fabric.node.v1.NodeService/Session", &*controller.store);
        controller
            .trust
            .denials
            .write(store, caller, call, &denied)
            .await;
        return Err(denied);
    }
    let is_again = controller.registry.sight(&node).last_seen.is_some();
    // From here on the node counts as heard: it is not fenced between the commit of its
    // registration, which says that it is not, and its first report.
    let session = controller.registry.open(&node);
    let highest = match store_registration(controller, &registration, is_again).await {
        Ok(stored) => {
            // One that was removed, and was in truth only silent, has the goal of before:
            // what is in it may run elsewhere by now.
            if stored.is_new {
                session.begin_anew();
            }
            stored.highest_event
        }
        Err(error) if error.is_of_the_disk() => {
            known(controller, &registration).await?.ok_or(error)?
        }
        Err(error) => return Err(error.into()),
    };
    tracing::info!(%node, agent = registration.agent_version, "session opened");
    let mut talk = Talk {
        controller,
        session,
        node,
        answers,
        sent: registration.seen_incarnation,
        highest_event: highest,
        unstored: Vec::new(),
    };
    // What was stored while the last session broke off need not come again.
    talk.acknowledge().await?;
    let ended = talk.run(reports).await;
    let why = ended
        .as_ref()
        .err()
        .map_or("closed by the node", |status| status.message());
    tracing::info!(node = %talk.node, why, "session ended");
    ended
}

/// An open session.
struct Talk<'a> {
    controller: &'a Controller,
    session: Session,
    node: NodeId,
    answers: &'a mpsc::Sender<Answer>,
    /// Highest goal incarnation that the node has seen.
    sent: u64,
    /// Highest event sequence that is stored.
    highest_event: u64,
    /// Events that could not be stored because the disk is full.
    unstored: Vec<NodeEvent>,
}

impl Talk<'_> {
    async fn run(&mut self, reports: Streaming<SessionRequest>) -> Result<(), Status> {
        let mut reports = reports.ready_chunks(BATCH);
        let silence = self.controller.registry.lost_after();
        let mut deadline = Box::pin(time::sleep(silence));
        let mut again = time::interval(AGAIN);
        self.session.goal.mark_changed();
        loop {
            tokio::select! {
                () = self.controller.end.cancelled() => {
                    return Err(Status::unavailable("the controller is shutting down"));
                }
                () = self.session.replaced.cancelled() => {
                    return Err(Status::aborted(format!(
                        "another session of node {} was opened; are there two host agents of \
                         that name?", self.node
                    )));
                }
                () = &mut deadline => {
                    return Err(Status::deadline_exceeded(format!(
                        "nothing was heard for {} s", silence.as_secs_f64()
                    )));
                }
                _ = self.session.goal.changed() => self.send_goal().await?,
                _ = again.tick(), if !self.unstored.is_empty() => self.store_events().await?,
                batch = reports.next() => {
                    let Some(batch) = batch else { return Ok(()) };
                    deadline.as_mut().reset(time::Instant::now() + silence);
                    self.take_in(batch).await?;
                }
            }
        }
    }

    /// Sends the goal, unless the node has seen it or a later one.
    async fn send_goal(&mut self) -> Result<(), Status> {
        let goal = self.session.goal.borrow_and_update().clone();
        let Some(goal) = goal else { return Ok(()) };
        // Right after a registration the goal can be one from before it, whose
        // number the node would refuse; the right one is on its way.
        if goal.incarnation < self.sent {
            return Ok(());
        }
        self.sent = goal.incarnation;
        self.send(session_response::Message::Goal(NodeGoal::clone(&goal)))
            .await
    }

    async fn acknowledge(&self) -> Result<(), Status> {
        if self.highest_event == 0 {
            return Ok(());
        }
        self.send(session_response::Message::AcknowledgedEvent(
            self.highest_event,
        ))
        .await
    }

    /// A node that does not read for so long is as good as silent.
    async fn send(&self, message: session_response::Message) -> Result<(), Status> {
        let response = SessionResponse {
            message: Some(message),
        };
        match time::timeout(
            self.controller.registry.lost_after(),
            self.answers.send(Ok(response)),
        )
        .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the node has closed the session")),
            Err(_) => Err(Status::deadline_exceeded("the node does not read its goal")),
        }
    }

    async fn take_in(&mut self, batch: Vec<Result<SessionRequest, Status>>) -> Result<(), Status> {
        let mut broken = None;
        let mut asked = 0;
        for message in batch {
            match message.map(|message| message.report) {
                Ok(Some(Message::Status(status))) => {
                    asked = status.lease_request;
                    let stock = intake::stock(&status)?;
                    self.session.has_disk(status.disk_free_bytes, stock);
                    self.session.report(intake::status(status)?);
                }
                Ok(Some(Message::Event(event))) => self.unstored.push(event),
                Ok(Some(Message::Register(_))) => {
                    return Err(Status::invalid_argument(
                        "report: only the first is a Register",
                    ));
                }
                // From a later version; nothing of it can be needed.
                Ok(None) => {}
                Err(status) => broken = Some(status),
            }
        }
        self.session.heard();
        self.grant(asked).await?;
        if !self.unstored.is_empty() {
            self.store_events().await?;
        }
        broken.map_or(Ok(()), Err)
    }

    /// Gives the node a lease, if it asked for one and can have it.
    async fn grant(&self, request: u64) -> Result<(), Status> {
        let can = self.controller.config.lease.is_some() && request > 0;
        match self.session.leasable().filter(|_| can) {
            Some(incarnation) => {
                let grant = LeaseGrant {
                    request,
                    incarnation,
                };
                self.send(session_response::Message::Lease(grant)).await?;
                self.controller.metrics.leases.inc();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Stores the events that have come, and says so. While the disk is full
    /// they wait here: what the node reports goes on being seen.
    async fn store_events(&mut self) -> Result<(), Status> {
        match store_events(self.controller, &self.node, &self.unstored).await {
            Ok(highest) => {
                self.unstored.clear();
                self.highest_event = highest;
                self.acknowledge().await
            }
            Err(error) if error.is_of_the_disk() && self.unstored.len() < UNSTORED => {
                tracing::warn!(node = %self.node, %error, "events wait to be stored");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A node that is registered.
struct Registered {
    /// Whether it was not known before.
    is_new: bool,
    /// The highest event sequence that is stored.
    highest_event: u64,
}

/// Stores who the node is. `is_again` if it was heard before since the controller was
/// started.
async fn store_registration(
    controller: &Controller,
    from: &Registration,
    is_again: bool,
) -> Result<Registered> {
    let store = &*controller.store;
    let id = &from.node_id;
    let published = controller.registry.goal(id);
    let published = published.map_or(0, |goal| goal.incarnation);
    let (node_key, goal_key, events_key) = (
        records::node(id),
        records::goal(id),
        records::node_events(id),
    );
    let (node_key, goal_key, events_key) = (&node_key, &goal_key, &events_key);
    let now = clock::now();
    records::commit(store, || async move {
        let old = records::get::<NodeRecord>(store, node_key).await?;
        let goal = records::get::<GoalRecord>(store, goal_key).await?;
        let highest = records::get::<u64>(store, events_key).await?;
        let before = match &old {
            Some(old) => old.value.clone(),
            None => NodeRecord::new(id.clone(), now),
        };
        // One that was lost was noted for that; one that comes again though it was not has
        // broken off by itself.
        let steadiness = match is_again && old.is_some() && !before.lost {
            true => before.steadiness.reconnected(now),
            false => before.steadiness,
        };
        let record = NodeRecord {
            inventory: from.inventory.clone(),
            labels: from.labels.clone(),
            agent_version: from.agent_version.clone(),
            lost: false,
            fenced: false,
            steadiness,
            ..before
        };
        let is_new = old.is_none();
        let mut txn = Txn::new();
        let tell =
            |reason, message: String| EventRecord::new(now, reason, SubjectKind::Node, id, message);
        if is_new {
            let Registration { inventory, .. } = from;
            let message = format!(
                "{} {} CPUs, {} MiB, KVM {}",
                inventory.cpus,
                inventory.architecture,
                inventory.memory_bytes >> 20,
                inventory.kvm_kind
            );
            txn = records::add_event(txn, &tell(Reason::NodeRegistered, message))?;
        }
        let message = format!("host agent {}", from.agent_version);
        txn = records::add_event(txn, &tell(Reason::NodeConnected, message))?;
        txn = records::replace(txn, node_key, old.map(|old| old.modified), &record)?;
        let given = goal.as_ref().map_or(0, |goal| goal.value.incarnation);
        let counted = from.seen_incarnation.max(published);
        if counted > given {
            // This store is older than the node, or the node was removed and is not gone:
            // count on from where the node is, or was to be.
            let raised = GoalRecord {
                incarnation: counted,
                ..GoalRecord::default()
            };
            txn = records::replace(txn, goal_key, goal.map(|goal| goal.modified), &raised)?;
        }
        let mut stored = highest.as_ref().map_or(0, |kept| kept.value);
        if from.seen_incarnation == 0 && given > 0 && stored > 0 {
            // The node has forgotten everything; its events count from 1 again.
            stored = 0;
            txn = records::replace(txn, events_key, highest.map(|kept| kept.modified), &stored)?;
        }
        let registered = Registered {
            is_new,
            highest_event: stored,
        };
        Ok((txn, registered))
    })
    .await
}

/// While the disk is full, or cannot be written, a node that is known as it is may have a session all
/// the same; only the event that tells of it is lost. Answers the highest event
/// sequence that is stored, or `None` if something had to be stored.
async fn known(controller: &Controller, from: &Registration) -> Result<Option<u64>> {
    let store = &*controller.store;
    let id = &from.node_id;
    let node = records::get::<NodeRecord>(store, &records::node(id)).await?;
    let goal = records::get::<GoalRecord>(store, &records::goal(id)).await?;
    let highest = records::get::<u64>(store, &records::node_events(id)).await?;
    let given = goal.map_or(0, |goal| goal.value.incarnation);
    let as_kept = |node: NodeRecord| node.inventory == from.inventory && !node.fenced;
    let same = node.is_some_and(|node| as_kept(node.value))
        && from.seen_incarnation <= given
        && (from.seen_incarnation > 0 || given == 0);
    tracing::warn!(node = %id, same, "the store cannot be written while a node opens its session");
    Ok(same.then(|| highest.map_or(0, |kept| kept.value)))
}

/// Stores the events that are new; answers the highest sequence that is stored.
async fn store_events(controller: &Controller, node: &NodeId, events: &[NodeEvent]) -> Result<u64> {
    let store = &*controller.store;
    let key = &records::node_events(node);
    records::commit(store, || async move {
        let kept = records::get::<u64>(store, key).await?;
        let mut highest = kept.as_ref().map_or(0, |kept| kept.value);
        let mut txn = Txn::new();
        let mut failed = Vec::new();
        for event in events {
            if event.sequence > highest {
                highest = event.sequence;
                let event = intake::event(node, event);
                txn = records::add_event(txn, &event)?;
                failed.extend(blame::is_failure(&event).then_some(event));
            }
        }
        if !failed.is_empty() {
            txn = note_failures(store, node, &failed, txn).await?;
        }
        if !txn.ops.is_empty() {
            txn = records::replace(txn, key, kept.map(|kept| kept.modified), &highest)?;
        }
        Ok((txn, highest))
    })
    .await
}

/// Keeps in mind what has failed on a node. What it says of instances that it was never
/// given is no matter.
async fn note_failures(
    store: &dyn Store,
    node: &NodeId,
    events: &[EventRecord],
    txn: Txn,
) -> Result<Txn> {
    let key = records::failures(node);
    let kept = records::get::<Failures>(store, &key).await?;
    let mut failures = kept
        .as_ref()
        .map_or_else(Failures::default, |kept| kept.value.clone());
    for event in events {
        let Ok(id) = event.subject.parse() else {
            continue;
        };
        let one = records::get::<InstanceRecord>(store, &records::instance(&id)).await?;
        if let Some(one) = one.filter(|one| one.value.node.as_ref() == Some(node)) {
            failures.note(&one.value, event, clock::now());
        }
    }
    records::replace(txn, &key, kept.map(|kept| kept.modified), &failures)
}
