//! The control protocol: one request a line, one answer a line, both JSON.
//!
//! ```text
//! {"op":"status"}  {"version":1,"ok":true,"status":{...}}
//! {"op":"stats"}   {"version":1,"ok":true,"stats":{...}}
//! {"op":"stop"}    {"version":1,"ok":true}
//! {"op":"pause"}   {"version":1,"ok":true}
//! {"op":"resume"}  {"version":1,"ok":true}
//! {"op":"snapshot","path":"/new/directory"}   {"version":1,"ok":true}
//! {"op":"dance"}   {"version":1,"ok":false,"error":"unknown variant `dance`, ..."}
//! ```
//!
//! A connection may ask any number of questions; answers come in order.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::exit::{KvmKind, RepairReport, Timings};
use crate::jail::Isolation;

/// The protocol's version, in every answer.
pub const VERSION: u32 = 1;
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
    /// Write a snapshot; a machine that runs is paused meanwhile.
    Snapshot {
        /// The directory. It must not exist.
        path: PathBuf,
    },
}

/// A request as it is written. A field that is not known is refused, for it may
/// change what is asked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    op: Op,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Op {
    Status,
    Stats,
    Stop,
    Pause,
    Resume,
    Snapshot,
}

impl TryFrom<RequestLine> for Request {
    type Error = &'static str;

    fn try_from(RequestLine { op, path }: RequestLine) -> Result<Request, &'static str> {
        match (op, path) {
            (Op::Snapshot, Some(path)) => Ok(Request::Snapshot { path }),
            (Op::Snapshot, None) => Err("`path` is missing: the directory for the snapshot"),
            (_, Some(_)) => Err("`path` belongs to `snapshot` only"),
            (Op::Status, None) => Ok(Request::Status),
            (Op::Stats, None) => Ok(Request::Stats),
            (Op::Stop, None) => Ok(Request::Stop),
            (Op::Pause, None) => Ok(Request::Pause),
            (Op::Resume, None) => Ok(Request::Resume),
        }
    }
}

impl From<Request> for RequestLine {
    fn from(request: Request) -> RequestLine {
        let (op, path) = match request {
            Request::Status => (Op::Status, None),
            Request::Stats => (Op::Stats, None),
            Request::Stop => (Op::Stop, None),
            Request::Pause => (Op::Pause, None),
            Request::Resume => (Op::Resume, None),
            Request::Snapshot { path } => (Op::Snapshot, Some(path)),
        };
        RequestLine { op, path }
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
    pub stats: Option<Stats>,
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
            stats: Some(stats),
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
        let fallback = r#"{"version":1,"ok":false,"error":"the answer cannot be written"}"#;
        let mut line = serde_json::to_string(self).unwrap_or_else(|_| fallback.to_owned());
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
    }

    #[test]
    fn anything_else_is_refused_with_a_reason_and_the_version() {
        for line in [
            "",
            "{}",
            "stop",
            r#"{"op":"dance"}"#,
            r#"{"op":"stop","now":1}"#,
            "\u{0}",
        ] {
            let answer = parse_request(line.as_bytes()).unwrap_err();
            assert!(
                !answer.ok && answer.version == 1 && answer.error.is_some(),
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
        assert_eq!(Answer::done().to_line(), "{\"version\":1,\"ok\":true}\n");
    }
}
