//! The control protocol: one request a line, one answer a line, both JSON.
//!
//! ```text
//! {"op":"status"}  {"version":2,"ok":true,"status":{...}}
//! {"op":"stats"}   {"version":2,"ok":true,"stats":{...}}
//! {"op":"stop"}    {"version":2,"ok":true}
//! {"op":"pause"}   {"version":2,"ok":true}
//! {"op":"resume"}  {"version":2,"ok":true}
//! {"op":"reset"}   {"version":2,"ok":true}
//! {"op":"power_button"}                       {"version":2,"ok":true}
//! {"op":"snapshot","path":"/new/directory"}   {"version":2,"ok":true}
//! {"op":"limit","limits":{...}}               {"version":2,"ok":true}
//! {"op":"dance"}   {"version":2,"ok":false,"error":"unknown variant `dance`, ..."}
//! ```
//!
//! A connection may ask any number of questions; answers come in order.
//!
//! # Versions
//!
//! | version | what came with it |
//! |---|---|
//! | 1 | `status`, `stats`, `stop` |
//! | 2 | `pause`, `resume`, `reset`, `power_button`, `snapshot`, `limit`; more in the answers to `status` and `stats` |
//!
//! A machine outlives its host agent, so a host agent meets machines of the version
//! before its own. Three rules let it work with them:
//!
//! - Requests, and fields of answers, are added and never changed. With the first one
//!   that a release adds, the version is raised, and `recorded/` gets what it says.
//! - Who reads an answer ignores what it does not know, and does without what is not there.
//! - A host agent takes answers of its own version and the one before
//!   ([`OLDEST`]) and knows since when there is what ([`Request::since`]). A machine of any
//!   other version is ended by a signal, which all understand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::devices::block::BlockStatsSnapshot;
use crate::devices::vsock::VsockStats;
use crate::exit::{KvmKind, RepairReport, Timings};
use crate::jail::Isolation;
use crate::limits::{Limits, Throttled};

/// The protocol's version, in every answer.
pub const VERSION: u32 = 2;
/// The oldest version that is understood, of a machine that was started before its host
/// agent was replaced.
pub const OLDEST: u32 = VERSION - 1;
/// The longest request, in bytes, its newline included.
pub const REQUEST_MAX: usize = 4096;

/// What a machine can be asked or told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RequestLine", into = "RequestLine")]
pub enum Request {
    /// What the machine is and since when it runs.
    Status,
    /// What was counted and measured so far.
    Stats,
    /// End the machine, in order. Its exit report says `stopped`.
    Stop,
    /// Stop the virtual CPUs and devices, until told to resume.
    Pause,
    /// Go on, by the guest's own clock from where it was paused.
    Resume,
    /// Start anew in place, as when the reset button is pressed.
    Reset,
    /// Press the guest's power button. Done when the guest has heard it, or not: then
    /// it powers off by itself, or takes its time.
    PowerButton,
    /// Write a snapshot; a machine that runs is paused meanwhile.
    Snapshot {
        /// The directory. It must not exist.
        path: PathBuf,
    },
    /// Hold the devices to other limits from now on.
    Limit {
        /// All of them: what is not said is not limited any more.
        limits: Limits,
    },
}

impl Request {
    /// The version that it came with.
    pub fn since(&self) -> u32 {
        match self {
            Request::Status | Request::Stats | Request::Stop => 1,
            Request::Pause
            | Request::Resume
            | Request::Reset
            | Request::PowerButton
            | Request::Snapshot { .. }
            | Request::Limit { .. } => 2,
        }
    }
}

/// A request as it is written. A field that is not known is refused, for it may
/// change what is asked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    op: Op,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Op {
    Status,
    Stats,
    Stop,
    Pause,
    Resume,
    Reset,
    PowerButton,
    Snapshot,
    Limit,
}

impl TryFrom<RequestLine> for Request {
    type Error = &'static str;

    fn try_from(line: RequestLine) -> Result<Request, &'static str> {
        let RequestLine { op, path, limits } = line;
        match (op, path, limits) {
            (Op::Snapshot, Some(path), None) => Ok(Request::Snapshot { path }),
            (Op::Snapshot, None, _) => Err("`path` is missing: the directory for the snapshot"),
            (Op::Limit, None, Some(limits)) => Ok(Request::Limit { limits }),
            (Op::Limit, _, None) => Err("`limits` is missing: all limits from now on"),
            (_, Some(_), _) => Err("`path` belongs to `snapshot` only"),
            (_, None, Some(_)) => Err("`limits` belongs to `limit` only"),
            (Op::Status, None, None) => Ok(Request::Status),
            (Op::Stats, None, None) => Ok(Request::Stats),
            (Op::Stop, None, None) => Ok(Request::Stop),
            (Op::Pause, None, None) => Ok(Request::Pause),
            (Op::Resume, None, None) => Ok(Request::Resume),
            (Op::Reset, None, None) => Ok(Request::Reset),
            (Op::PowerButton, None, None) => Ok(Request::PowerButton),
        }
    }
}

impl From<Request> for RequestLine {
    fn from(request: Request) -> RequestLine {
        let (mut path, mut limits) = (None, None);
        let op = match request {
            Request::Status => Op::Status,
            Request::Stats => Op::Stats,
            Request::Stop => Op::Stop,
            Request::Pause => Op::Pause,
            Request::Resume => Op::Resume,
            Request::Reset => Op::Reset,
            Request::PowerButton => Op::PowerButton,
            Request::Snapshot { path: directory } => {
                path = Some(directory);
                Op::Snapshot
            }
            Request::Limit { limits: all } => {
                limits = Some(all);
                Op::Limit
            }
        };
        RequestLine { op, path, limits }
    }
}

/// What the machine answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The protocol's version.
    pub version: u32,
    /// Whether the request was carried out.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The answer to `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// The answer to `stats`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Box<Stats>>,
}

/// What a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// `running`, `paused` or `stopping`.
    pub state: String,
    /// The process.
    pub pid: u32,
    /// Since the start of the process, in milliseconds.
    pub uptime_ms: u64,
    /// How often it was reset in place.
    #[serde(default)]
    pub resets: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// How KVM runs the guest's kernel.
    pub kvm: KvmKind,
    /// What the process is jailed by.
    #[serde(default)]
    pub isolation: Vec<Isolation>,
}

/// What was counted and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Since the start of the process, in milliseconds.
    pub uptime_ms: u64,
    /// When things first happened.
    pub timings: Timings,
    /// Exits from the guest by kind.
    pub exits: BTreeMap<String, u64>,
    /// What was repaired.
    pub repair: RepairReport,
    /// The disks, in their order.
    #[serde(default)]
    pub disks: Vec<DiskStats>,
    /// The vsock device.
    #[serde(default)]
    pub vsock: Option<VsockStats>,
    /// How often console output was left out for its limit, and for how long.
    #[serde(default)]
    pub console: Throttled,
}

/// What a disk has done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskStats {
    /// Its serial.
    pub serial: String,
    /// Requests and bytes.
    #[serde(flatten)]
    pub done: BlockStatsSnapshot,
    /// What has waited for its limits.
    pub throttled: Throttled,
}

impl Answer {
    /// The request was carried out and there is nothing to tell.
    pub fn done() -> Answer {
        Answer {
            version: VERSION,
            ok: true,
            error: None,
            status: None,
            stats: None,
        }
    }

    /// The answer to `status`.
    pub fn status(status: Status) -> Answer {
        Answer {
            status: Some(status),
            ..Answer::done()
        }
    }

    /// The answer to `stats`.
    pub fn stats(stats: Stats) -> Answer {
        Answer {
            stats: Some(Box::new(stats)),
            ..Answer::done()
        }
    }

    /// The request was not carried out.
    pub fn refused(error: impl Into<String>) -> Answer {
        Answer {
            ok: false,
            error: Some(error.into()),
            ..Answer::done()
        }
    }

    /// The answer as a line.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).unwrap_or_else(|_| {
            format!(r#"{{"version":{VERSION},"ok":false,"error":"it cannot be written"}}"#)
        });
        line.push('\n');
        line
    }
}

/// Reads one line as a request.
///
/// # Errors
///
/// The answer that says what is wrong with it.
pub fn parse_request(line: &[u8]) -> Result<Request, Answer> {
    serde_json::from_slice(line).map_err(|error| Answer::refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_by_their_op() {
        assert_eq!(parse_request(br#"{"op":"status"}"#), Ok(Request::Status));
        assert_eq!(parse_request(b"{\"op\":\"stop\"}\r"), Ok(Request::Stop));
        let line = br#"{"op":"limit","limits":{"console":{"per_second":4096,"burst":1}}}"#;
        let request = parse_request(line).unwrap();
        assert!(matches!(&request, Request::Limit { limits } if limits.console.is_some()));
        assert_eq!(serde_json::to_vec(&request).unwrap(), line);
    }

    #[test]
    fn anything_else_is_refused_with_a_reason_and_the_version() {
        for line in [
            "",
            "{}",
            "stop",
            r#"{"op":"dance"}"#,
            r#"{"op":"stop","now":1}"#,
            r#"{"op":"stop","limits":{}}"#,
            r#"{"op":"limit"}"#,
            r#"{"op":"limit","limits":{},"path":"/tmp"}"#,
            r#"{"op":"limit","limits":{"disk":[]}}"#,
            "\u{0}",
        ] {
            let answer = parse_request(line.as_bytes()).unwrap_err();
            assert!(
                !answer.ok && answer.version == VERSION && answer.error.is_some(),
                "{line}"
            );
        }
        let answer = parse_request(br#"{"op":"dance"}"#).unwrap_err();
        assert!(answer.error.unwrap().contains("dance"));
    }

    #[test]
    fn an_answer_is_one_line() {
        let line = Answer::refused("a\nb").to_line();
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(Answer::done().to_line(), "{\"version\":2,\"ok\":true}\n");
    }
}
