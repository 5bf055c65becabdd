//! What the fabric shows of itself: `fabctl watch`, line by line.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process::Process;

/// How long Ctrl-C may go unnoticed while nothing happens.
const NAP: Duration = Duration::from_millis(200);

/// Something that `fabctl watch` showed.
#[derive(Debug, Clone)]
pub enum Seen {
    /// Something happened.
    Event(Event),
    /// An instance is now like this.
    Instance(Box<Instance>),
    /// An instance is gone.
    Gone,
}

/// Something that happened.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// What, as a stable word.
    pub reason: String,
    /// One line for people.
    pub message: String,
    /// What it is about.
    pub subject: String,
}

/// An instance.
#[derive(Debug, Clone, Deserialize)]
pub struct Instance {
    /// Its id.
    pub instance_id: String,
    /// The node that it is on; empty if none.
    #[serde(default)]
    pub node_id: String,
    /// What users care about, in one word.
    pub state: String,
    /// Process id of its VMM.
    pub vmm_pid: u32,
    /// How often its virtual machine was started.
    pub boots: u32,
    /// From the start of the VMM to the guest agent's hello.
    pub boot_to_hello_ms: Option<f64>,
    /// How often the guest agent has restarted the role since the guest booted.
    pub role_restarts: u32,
}

impl Instance {
    /// Whether its role can be used.
    pub fn is_ready(&self) -> bool {
        self.state.eq_ignore_ascii_case("ready")
    }

    /// Whether the controller has not heard of it yet.
    pub fn is_unknown(&self) -> bool {
        self.state.eq_ignore_ascii_case("unknown")
    }
}

#[derive(Debug, Deserialize)]
struct Line {
    event: Option<Event>,
    instance: Option<Instance>,
    #[serde(default)]
    deleted: bool,
}

/// A running `fabctl watch`.
pub struct Watch {
    lines: Receiver<Result<Seen>>,
    /// Ends with the watch; the thread that reads it ends with it.
    _process: Process,
}

impl Watch {
    /// Starts one.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut process = Process::start(command.stdout(Stdio::piped()))?;
        let stdout = process.take_stdout().context("no output of fabctl watch")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let seen = line
                    .context("reading from fabctl watch")
                    .and_then(|line| parse(&line));
                if sender.send(seen).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            lines,
            _process: process,
        })
    }

    /// What it shows next; `None` if nothing does for a while or until the deadline.
    pub fn next(&self, deadline: Instant) -> Result<Option<Seen>> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left.min(NAP)) {
            Ok(seen) => seen.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("fabctl watch has ended"),
        }
    }
}

fn parse(text: &str) -> Result<Seen> {
    let line: Line = serde_json::from_str(text)
        .with_context(|| format!("fabctl watch has shown something else: {text}"))?;
    Ok(match (line.event, line.instance) {
        (Some(event), _) => Seen::Event(event),
        (None, Some(instance)) if !line.deleted => Seen::Instance(Box::new(instance)),
        _ => Seen::Gone,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_fabctl_watch_are_understood_and_what_is_new_in_them_does_not_hurt() {
        let line = r#"{"instance":{"instance_id":"demo-web-0","state":"Ready","vmm_pid":7,
            "boots":1,"boot_to_hello_ms":6120,"role_restarts":0,"new":1},"deleted":false}"#;
        let Seen::Instance(instance) = parse(line).unwrap() else {
            unreachable!()
        };
        assert!(instance.is_ready());
        assert_eq!(instance.boot_to_hello_ms, Some(6120.0));
        let line = r#"{"event":{"cursor":1,"time":"2026-01-01T00:00:00Z","reason":"RoleReady",
            "message":"m","warning":false,"subject_kind":"instance","subject":"demo-web-0"}}"#;
        assert!(matches!(parse(line).unwrap(), Seen::Event(event) if event.reason == "RoleReady"));
        assert!(parse("oops").is_err());
    }
}
