//! What a guest agent reports of its role, checked and cut to size.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use fabric_proto::guest::v1 as wire;
use serde::{Deserialize, Serialize};

/// Longest text that is taken from a guest, in bytes.
const LONGEST_TEXT: usize = 512;

/// How a role is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleReport {
    /// Its name.
    pub role: String,
    /// In a word.
    pub condition: RoleCondition,
    /// Why; may be empty.
    pub reason: String,
    /// Since when, by the guest's clock.
    pub since: Option<SystemTime>,
    /// Process id in the guest; 0 for none.
    pub pid: u32,
    /// Restarts by the guest agent since the guest booted.
    pub restarts: u32,
    /// How its last process ended.
    pub last_exit: Option<RoleEnd>,
    /// Restart generation that the process was started under.
    pub restart_generation: u64,
    /// Failures in a row without having been ready in between.
    pub consecutive_failures: u32,
}

/// How a role is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoleCondition {
    /// Not yet ready for the first time.
    Starting,
    /// Ready.
    Ready,
    /// Live, but not ready.
    Busy,
    /// Failed.
    Unhealthy,
    /// Meant not to run.
    Stopped,
}

/// How a role's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleEnd {
    /// How.
    pub how: RoleEndHow,
    /// Whether the guest agent ended it.
    pub by_agent: bool,
}

/// How a role's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoleEndHow {
    /// With this status.
    Code(u32),
    /// By this signal.
    Signal(u32),
    /// It never started; why.
    NotStarted(String),
    /// The guest agent does not say.
    Unknown,
}

impl fmt::Display for RoleEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            RoleEndHow::Code(code) => write!(f, "it ended with status {code}")?,
            RoleEndHow::Signal(signal) => write!(f, "it was ended by signal {signal}")?,
            RoleEndHow::NotStarted(why) => write!(f, "it could not be started: {why}")?,
            RoleEndHow::Unknown => write!(f, "it ended")?,
        }
        if self.by_agent {
            write!(f, ", by the guest agent")
        } else {
            Ok(())
        }
    }
}

impl RoleReport {
    /// Takes what a guest sent; nothing if its state is not one.
    #[must_use]
    pub fn from_wire(status: wire::RoleStatus) -> Option<Self> {
        let condition = match status.state() {
            wire::RoleState::Unspecified => return None,
            wire::RoleState::Starting => RoleCondition::Starting,
            wire::RoleState::Ready => RoleCondition::Ready,
            wire::RoleState::Busy => RoleCondition::Busy,
            wire::RoleState::Unhealthy => RoleCondition::Unhealthy,
            wire::RoleState::Stopped => RoleCondition::Stopped,
        };
        Some(Self {
            role: cut(&status.role),
            condition,
            reason: cut(&status.reason),
            since: status
                .since
                .and_then(|since| SystemTime::try_from(since).ok())
                // Before that, a time cannot be written down.
                .filter(|since| *since >= SystemTime::UNIX_EPOCH),
            pid: status.pid,
            restarts: status.restarts,
            last_exit: status.last_exit.map(|exit| RoleEnd {
                by_agent: exit.by_agent,
                how: match exit.how {
                    Some(wire::role_exit::How::ExitCode(code)) => RoleEndHow::Code(code),
                    Some(wire::role_exit::How::Signal(signal)) => RoleEndHow::Signal(signal),
                    Some(wire::role_exit::How::SpawnError(why)) => {
                        RoleEndHow::NotStarted(cut(&why))
                    }
                    None => RoleEndHow::Unknown,
                },
            }),
            restart_generation: status.restart_generation,
            consecutive_failures: status.consecutive_failures,
        })
    }

    /// As it is passed on to the controller.
    #[must_use]
    pub fn to_wire(&self) -> wire::RoleStatus {
        wire::RoleStatus {
            role: self.role.clone(),
            state: match self.condition {
                RoleCondition::Starting => wire::RoleState::Starting,
                RoleCondition::Ready => wire::RoleState::Ready,
                RoleCondition::Busy => wire::RoleState::Busy,
                RoleCondition::Unhealthy => wire::RoleState::Unhealthy,
                RoleCondition::Stopped => wire::RoleState::Stopped,
            }
            .into(),
            reason: self.reason.clone(),
            since: self.since.map(Into::into),
            pid: self.pid,
            restarts: self.restarts,
            last_exit: self.last_exit.as_ref().map(|exit| wire::RoleExit {
                by_agent: exit.by_agent,
                how: match &exit.how {
                    RoleEndHow::Code(code) => Some(wire::role_exit::How::ExitCode(*code)),
                    RoleEndHow::Signal(signal) => Some(wire::role_exit::How::Signal(*signal)),
                    RoleEndHow::NotStarted(why) => {
                        Some(wire::role_exit::How::SpawnError(why.clone()))
                    }
                    RoleEndHow::Unknown => None,
                },
            }),
            restart_generation: self.restart_generation,
            consecutive_failures: self.consecutive_failures,
        }
    }
}

/// One line of a length that an operator and the store can bear.
#[must_use]
pub fn cut(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|symbol| if symbol.is_control() { ' ' } else { symbol })
        .take(LONGEST_TEXT)
        .collect();
    while line.len() > LONGEST_TEXT {
        line.pop();
    }
    line
}

/// A duration from the wire; nothing if it is negative or absent.
#[must_use]
pub fn duration(value: Option<prost_types::Duration>) -> Option<Duration> {
    value.and_then(|value| Duration::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_way_through_and_its_texts_are_cut() {
        let sent = wire::RoleStatus {
            role: "web".into(),
            state: wire::RoleState::Unhealthy.into(),
            reason: "é\n".repeat(2000),
            since: Some(SystemTime::UNIX_EPOCH.into()),
            pid: 7,
            restarts: 3,
            last_exit: Some(wire::RoleExit {
                how: Some(wire::role_exit::How::Signal(9)),
                by_agent: true,
            }),
            restart_generation: 2,
            consecutive_failures: 4,
        };
        let report = RoleReport::from_wire(sent.clone()).unwrap();
        assert!(report.reason.len() <= LONGEST_TEXT && !report.reason.contains('\n'));
        let passed_on = report.to_wire();
        assert_eq!(
            wire::RoleStatus {
                reason: String::new(),
                ..passed_on
            },
            wire::RoleStatus {
                reason: String::new(),
                ..sent
            }
        );
    }

    #[test]
    fn a_state_that_is_none_is_not_taken() {
        for state in [0, 99, -1] {
            let status = wire::RoleStatus {
                state,
                ..wire::RoleStatus::default()
            };
            assert!(RoleReport::from_wire(status).is_none(), "{state}");
        }
    }
}
