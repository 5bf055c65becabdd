//! What happened on this node, numbered, kept until the controller has it.
//!
//! One JSON object a line in `journal/events.jsonl`; the file is written anew
//! when much of it is acknowledged. Numbers go on across restarts. A file that
//! was lost or is older than what the controller has makes numbers jump ahead,
//! never back. Bounded: when the controller is away for long, the oldest are
//! dropped.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use fabric_proto::node::v1 as wire;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{clock, files, metrics::Metrics};

/// Events that are kept for a controller that is away.
const MOST_KEPT: usize = 1024;
/// Lines in the file beyond which it is written anew.
const MOST_LINES: usize = 4 * MOST_KEPT;

/// Kinds of events; their names are stable, tools match them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Reason {
    ImageFetched,
    PackageFetched,
    DiskCreated,
    VmmStarted,
    GuestHello,
    RoleStarting,
    RoleReady,
    RoleBusy,
    RoleUnhealthy,
    RoleStopped,
    RoleRestarted,
    HeartbeatsMissed,
    VmmExited,
    VmRestarting,
    VmReset,
    Reimaged,
    GaveUp,
    InstanceAdopted,
    InstanceRemoved,
    GuestPoweredOff,
    GoalRefused,
    TemplateMade,
    TemplateFailed,
    TemplateRefused,
    InstancePaused,
    InstanceResumed,
    InstanceStopped,
    InstanceStarted,
    PauseFailed,
    SnapshotTaken,
    SnapshotFailed,
    InstanceRestoring,
    RestoreFailed,
    LeaseEnded,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up.
    pub sequence: u64,
    /// When.
    pub time: SystemTime,
    /// Instance it is about; empty if none.
    pub instance: String,
    /// What.
    pub reason: Reason,
    /// One line for people.
    pub message: String,
    /// Whether something failed.
    pub warning: bool,
    /// Reason of the event about the same instance that led to it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

impl Event {
    /// As it is sent to the controller.
    #[must_use]
    pub fn to_wire(&self) -> wire::NodeEvent {
        wire::NodeEvent {
            sequence: self.sequence,
            time: Some(self.time.into()),
            instance_id: self.instance.clone(),
            reason: format!("{:?}", self.reason),
            message: self.message.clone(),
            warning: self.warning,
            cause: self.because.clone().unwrap_or_default(),
        }
    }
}

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The count goes on from here, whatever else the file holds.
    Newest(u64),
    /// Something that happened.
    Event(Event),
}

/// The node's events.
#[derive(Debug)]
pub struct EventLog {
    kept: Mutex<Kept>,
    metrics: Arc<Metrics>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    file: File,
    lines: usize,
    /// Not acknowledged, oldest first.
    events: VecDeque<Event>,
    newest: u64,
}

impl EventLog {
    /// Opens the log in the journal directory. A line that cannot be read, such
    /// as one that was cut short, is skipped.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn open(journal: &Path) -> io::Result<Self> {
        let path = journal.join("events.jsonl");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let (mut events, mut newest) = (VecDeque::new(), 0);
        for line in text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
        {
            match line {
                Line::Newest(sequence) => newest = newest.max(sequence),
                Line::Event(event) => {
                    newest = newest.max(event.sequence);
                    events.push_back(event);
                }
            }
        }
        events.drain(..events.len().saturating_sub(MOST_KEPT));
        let file = write_anew(&path, &events, newest)?;
        let kept = Kept {
            path,
            file,
            lines: events.len(),
            events,
            newest,
        };
        Ok(Self {
            kept: Mutex::new(kept),
            metrics: Arc::default(),
            newest: watch::Sender::new(newest),
        })
    }

    /// Where what happens is counted.
    #[must_use]
    pub const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Notes that something happened by itself. What cannot be written is still sent.
    pub fn tell(&self, instance: &str, reason: Reason, message: &str, warning: bool) {
        self.tell_because(instance, reason, None, message, warning);
    }

    /// Notes that something happened, and the reason of what led to it.
    pub fn tell_because(
        &self,
        instance: &str,
        reason: Reason,
        because: Option<String>,
        message: &str,
        warning: bool,
    ) {
        if warning {
            tracing::warn!(instance, ?reason, "{message}");
        } else {
            tracing::info!(instance, ?reason, "{message}");
        }
        self.metrics.told(reason, warning);
        let mut kept = self.lock();
        let event = Event {
            sequence: kept.newest + 1,
            time: clock::wall_time(),
            instance: instance.to_owned(),
            reason,
            message: crate::guest::report::cut(message),
            warning,
            because,
        };
        kept.newest = event.sequence;
        if let Err(error) = kept.append(&event) {
            tracing::warn!(%error, path = %kept.path.display(), "cannot keep an event");
        }
        kept.events.push_back(event);
        if kept.events.len() > MOST_KEPT {
            kept.events.pop_front();
        }
        let newest = kept.newest;
        drop(kept);
        self.newest.send_replace(newest);
    }

    /// The controller has stored everything up to `sequence`.
    pub fn acknowledge(&self, sequence: u64) {
        let mut kept = self.lock();
        while kept
            .events
            .front()
            .is_some_and(|event| event.sequence <= sequence)
        {
            kept.events.pop_front();
        }
        if sequence > kept.newest {
            // Our file was lost: what comes must not pass for what it has.
            kept.newest = sequence;
        }
        if kept.lines > MOST_LINES {
            kept.rewrite();
        }
    }

    /// Events after `sequence` that are not acknowledged, oldest first.
    #[must_use]
    pub fn after(&self, sequence: u64) -> Vec<Event> {
        let kept = self.lock();
        kept.events
            .iter()
            .filter(|event| event.sequence > sequence)
            .cloned()
            .collect()
    }

    /// Tells when there is a newer event.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing in here can panic half-way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn append(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Line::Event(event.clone()))?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.lines += 1;
        if self.lines > 2 * MOST_LINES {
            self.rewrite();
        }
        Ok(())
    }

    fn rewrite(&mut self) {
        match write_anew(&self.path, &self.events, self.newest) {
            Ok(file) => {
                self.file = file;
                self.lines = self.events.len();
            }
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "cannot shorten the events");
            }
        }
    }
}

fn write_anew(path: &Path, events: &VecDeque<Event>, newest: u64) -> io::Result<File> {
    let lines = events.iter().cloned().map(Line::Event);
    let mut content = Vec::new();
    for line in std::iter::once(Line::Newest(newest)).chain(lines) {
        serde_json::to_writer(&mut content, &line)?;
        content.push(b'\n');
    }
    files::write_atomically(path, &content)?;
    OpenOptions::new().append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(log: &EventLog) -> Vec<u64> {
        log.after(0).iter().map(|event| event.sequence).collect()
    }

    fn tell(log: &EventLog, count: usize) {
        for number in 0..count {
            log.tell(
                "shop-web-0",
                Reason::VmmStarted,
                &format!("number {number}"),
                false,
            );
        }
    }

    #[test]
    fn events_are_kept_across_restarts_until_they_are_acknowledged() {
        let journal = tempfile::tempdir().unwrap();
        let log = EventLog::open(journal.path()).unwrap();
        tell(&log, 3);
        log.acknowledge(1);
        assert_eq!(sequences(&log), [2, 3]);
        drop(log);

        let log = EventLog::open(journal.path()).unwrap();
        log.acknowledge(3);
        tell(&log, 1);
        assert_eq!(sequences(&log), [4]);
    }

    #[test]
    fn numbers_never_go_back_even_when_the_file_is_lost() {
        let journal = tempfile::tempdir().unwrap();
        let log = EventLog::open(journal.path()).unwrap();
        log.acknowledge(17);
        tell(&log, 1);
        assert_eq!(sequences(&log), [18]);
    }

    #[test]
    fn a_line_that_was_cut_short_costs_itself_alone() {
        let journal = tempfile::tempdir().unwrap();
        tell(&EventLog::open(journal.path()).unwrap(), 2);
        let path = journal.path().join("events.jsonl");
        let mut text = fs::read(&path).unwrap();
        text.truncate(text.len() - 5);
        fs::write(&path, text).unwrap();

        let log = EventLog::open(journal.path()).unwrap();
        tell(&log, 1);
        assert_eq!(sequences(&log), [1, 2]);
    }

    #[test]
    fn a_controller_that_is_away_for_long_costs_the_oldest_events_not_the_disk() {
        let journal = tempfile::tempdir().unwrap();
        let log = EventLog::open(journal.path()).unwrap();
        tell(&log, 3 * MOST_LINES);
        assert_eq!(log.after(0).len(), MOST_KEPT);
        assert!(log.lock().lines <= 2 * MOST_LINES);
        drop(log);
        let log = EventLog::open(journal.path()).unwrap();
        assert_eq!(log.after(0).last().unwrap().sequence, 3 * MOST_LINES as u64);
    }
}
