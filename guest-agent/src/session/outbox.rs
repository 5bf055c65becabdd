//! What waits to be said to the host agent, and in which order it is said.
//!
//! Bounded in all of it: one hello, one heartbeat (a newer one replaces each), a
//! status a role until it is taken or several if there is room, logs as `logs`
//! bounds them. What was not taken when a session ends is forgotten, save the
//! logs: the next session begins by saying everything again.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::SystemTime,
};

use fabric_proto::guest::v1::{
    Goodbye, Heartbeat, Hello, LogChunk, LogStream, RoleStatus, SessionRequest,
    session_request::Report,
};
use tokio::sync::Notify;
use tokio_stream::Stream;

use super::logs::{self, Logs};

/// Statuses that may wait; beyond it, the oldest that is superseded goes.
const MOST_STATUSES: usize = 256;

/// What waits to be said. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    queue: Arc<Mutex<Queue>>,
    greeted: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Number of the session that takes from here; an older one takes no more.
    session: u64,
    hello: Option<Hello>,
    heartbeat: Option<Heartbeat>,
    statuses: VecDeque<RoleStatus>,
    /// Output by role; a role is here only while it has some.
    logs: BTreeMap<Arc<str>, Logs>,
    /// The role whose output was passed on last.
    turn: Option<Arc<str>>,
    goodbye: Option<Goodbye>,
    over: bool,
    waker: Option<Waker>,
}

impl Outbox {
    /// Begins a session: `hello` first, and nothing that was meant for the last one.
    pub fn open(&self, hello: Hello) -> Outgoing {
        let mut queue = self.lock();
        queue.session += 1;
        queue.hello = Some(hello);
        queue.heartbeat = None;
        queue.statuses.clear();
        queue.goodbye = None;
        queue.over = false;
        Outgoing {
            outbox: self.clone(),
            session: queue.session,
        }
    }

    /// Says hello again, before anything else.
    pub fn hello(&self, hello: Hello) {
        self.put(|queue| queue.hello = Some(hello));
    }

    /// Says that the guest agent is alive.
    pub fn heartbeat(&self, heartbeat: Heartbeat) {
        self.put(|queue| queue.heartbeat = Some(heartbeat));
    }

    /// Says how a role is.
    pub fn status(&self, status: RoleStatus) {
        self.put(|queue| {
            if queue.statuses.len() >= MOST_STATUSES {
                let superseded = queue
                    .statuses
                    .iter()
                    .position(|waiting| waiting.role == status.role);
                queue.statuses.remove(superseded.unwrap_or(0));
            }
            queue.statuses.push_back(status);
        });
    }

    /// Passes on output of a role.
    pub fn log(&self, role: &Arc<str>, stream: logs::Stream, data: &[u8], time: SystemTime) {
        if data.is_empty() {
            return;
        }
        self.put(|queue| match queue.logs.get_mut(role) {
            Some(logs) => logs.push(stream, data, time),
            None => queue
                .logs
                .entry(role.clone())
                .or_default()
                .push(stream, data, time),
        });
    }

    /// Says that the guest goes down; nothing is said after it.
    pub fn goodbye(&self, goodbye: Goodbye) {
        self.put(|queue| queue.goodbye = Some(goodbye));
    }

    /// True once a goodbye has been taken.
    pub fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Waits until a hello has been taken.
    pub async fn greeted(&self) {
        self.greeted.notified().await;
    }

    fn put(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.lock();
        change(&mut queue);
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// The next thing to say: what is small and what others wait for first.
    fn pop(&mut self) -> Option<Report> {
        if let Some(heartbeat) = self.heartbeat.take() {
            return Some(Report::Heartbeat(heartbeat));
        }
        if let Some(status) = self.statuses.pop_front() {
            return Some(Report::RoleStatus(status));
        }
        if let Some(chunk) = self.pop_log() {
            return Some(Report::Log(chunk));
        }
        let goodbye = self.goodbye.take()?;
        self.over = true;
        Some(Report::Goodbye(goodbye))
    }

    /// A piece of output, the roles taking turns.
    fn pop_log(&mut self) -> Option<LogChunk> {
        let after = self.turn.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next = self
            .logs
            .range::<Arc<str>, _>((after, Bound::Unbounded))
            .next();
        let role = next.or_else(|| self.logs.iter().next())?.0.clone();
        let logs = self.logs.get_mut(&role)?;
        let piece = logs.pop();
        if logs.is_empty() {
            self.logs.remove(&role);
        }
        let piece = piece?;
        self.turn = Some(role.clone());
        Some(LogChunk {
            role: role.to_string(),
            stream: LogStream::from(piece.stream).into(),
            data: piece.data,
            time: Some(piece.time.into()),
            dropped_bytes: piece.dropped,
        })
    }
}

impl From<logs::Stream> for LogStream {
    fn from(stream: logs::Stream) -> Self {
        match stream {
            logs::Stream::Stdout => Self::Stdout,
            logs::Stream::Stderr => Self::Stderr,
            logs::Stream::Agent => Self::Agent,
        }
    }
}

/// One session's messages, in the order in which they are said. Ends after the
/// goodbye, and when another session has begun.
#[derive(Debug)]
pub struct Outgoing {
    outbox: Outbox,
    session: u64,
}

impl Stream for Outgoing {
    type Item = SessionRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SessionRequest>> {
        let mut queue = self.outbox.lock();
        if queue.over || queue.session != self.session {
            return Poll::Ready(None);
        }
        if let Some(hello) = queue.hello.take() {
            self.outbox.greeted.notify_one();
            return Poll::Ready(Some(SessionRequest {
                report: Some(Report::Hello(hello)),
            }));
        }
        match queue.pop() {
            Some(report) => Poll::Ready(Some(SessionRequest {
                report: Some(report),
            })),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(role: &str, pid: u32) -> RoleStatus {
        RoleStatus {
            role: role.into(),
            pid,
            ..Default::default()
        }
    }

    fn said(outgoing: &mut Outgoing) -> Vec<String> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut said = vec![];
        while let Poll::Ready(message) = Pin::new(&mut *outgoing).poll_next(&mut cx) {
            said.push(match message.map(|message| message.report.unwrap()) {
                Some(Report::Hello(_)) => "hello".into(),
                Some(Report::Heartbeat(it)) => format!("heartbeat {}", it.sequence),
                Some(Report::RoleStatus(it)) => format!("{} {}", it.role, it.pid),
                Some(Report::Log(it)) => format!("log of {}", it.role),
                Some(Report::Goodbye(_)) => "goodbye".into(),
                None => {
                    said.push("end".into());
                    break;
                }
            });
        }
        said
    }

    #[test]
    fn hello_is_first_and_goodbye_is_last_whatever_waits() {
        let outbox = Outbox::default();
        let mut outgoing = outbox.open(Hello::default());
        outbox.goodbye(Goodbye::default());
        outbox.log(
            &"web".into(),
            logs::Stream::Stdout,
            b"x",
            SystemTime::UNIX_EPOCH,
        );
        outbox.status(status("web", 1));
        outbox.heartbeat(Heartbeat {
            sequence: 1,
            ..Default::default()
        });
        outbox.heartbeat(Heartbeat {
            sequence: 2,
            ..Default::default()
        });
        let order = [
            "hello",
            "heartbeat 2",
            "web 1",
            "log of web",
            "goodbye",
            "end",
        ];
        assert_eq!(said(&mut outgoing), order);
    }

    #[test]
    fn a_guest_that_has_got_an_identity_says_so_before_anything_of_its_roles() {
        let outbox = Outbox::default();
        let mut outgoing = outbox.open(Hello::default());
        assert_eq!(said(&mut outgoing), ["hello"]);
        outbox.status(status("web", 1));
        outbox.hello(Hello::default());
        assert_eq!(said(&mut outgoing), ["hello", "web 1"]);
    }

    #[test]
    fn a_new_session_says_nothing_that_was_meant_for_the_last_except_logs() {
        let outbox = Outbox::default();
        let mut first = outbox.open(Hello::default());
        outbox.status(status("web", 1));
        outbox.log(
            &"web".into(),
            logs::Stream::Stdout,
            b"x",
            SystemTime::UNIX_EPOCH,
        );
        let mut second = outbox.open(Hello::default());
        assert_eq!(said(&mut first), ["end"]);
        assert_eq!(said(&mut second), ["hello", "log of web"]);
    }

    #[test]
    fn roles_take_turns_with_their_output() {
        let outbox = Outbox::default();
        let mut outgoing = outbox.open(Hello::default());
        for stream in [
            logs::Stream::Stdout,
            logs::Stream::Stderr,
            logs::Stream::Stdout,
        ] {
            outbox.log(&"a".into(), stream, b"x", SystemTime::UNIX_EPOCH);
            outbox.log(&"b".into(), stream, b"x", SystemTime::UNIX_EPOCH);
        }
        let turns = ["a", "b", "a", "b", "a", "b"].map(|role| format!("log of {role}"));
        assert_eq!(said(&mut outgoing)[1..], turns);
    }

    #[test]
    fn statuses_that_nobody_takes_are_bounded_and_the_newest_is_kept() {
        let outbox = Outbox::default();
        let mut outgoing = outbox.open(Hello::default());
        outbox.status(status("rare", 0));
        for pid in 1..=1000 {
            outbox.status(status("flapping", pid));
        }
        let said = said(&mut outgoing);
        assert_eq!(said.len(), 1 + MOST_STATUSES);
        assert!(said.contains(&"rare 0".to_owned()));
        assert_eq!(said.last().unwrap(), "flapping 1000");
    }
}
