//! What a guest may use of its host's disks and sockets, and how it is held to it.
//!
//! ```text
//!  VmConfig ─┐                    ┌─▶ disk's thread     waits for its queue with a timeout
//!            ├─▶ Limits ─▶ throttle ─▶ vsock, each way  a timer in the event loop
//!  control ──┘                    └─▶ console           leaves out what is too much
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | [`bucket`] | a token bucket: arithmetic |
//! | [`throttle`] | bytes and operations of one stream, with what has waited |
//!
//! What is not limited here: processor time and memory, which the host's cgroups
//! apportion, and the size of a disk's file, which has a quota of its own.

pub mod bucket;
pub mod throttle;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use throttle::{SharedThrottle, Throttle, Throttled};

/// The least of a rate of bytes: a page a second.
pub const BYTES_MIN: u64 = 4096;
/// The most of any rate and burst.
pub const RATE_MAX: u64 = 1 << 40;

/// All limits of a machine. What is not said is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of the disks, in their order: requests, and the bytes that they read and
    /// write. There may be fewer than disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<RateLimit>,
    /// Of the vsock device's packets to the guest, with their headers.
    #[serde(default, skip_serializing_if = "RateLimit::is_none")]
    pub vsock_to_guest: RateLimit,
    /// Of the vsock device's packets to the host, with their headers.
    #[serde(default, skip_serializing_if = "RateLimit::is_none")]
    pub vsock_to_host: RateLimit,
    /// Of the console's output, in bytes. What is too much is left out, and how
    /// much that was is said there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<Rate>,
}

/// The limits of one stream of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// How many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Rate>,
    /// How many operations, whatever their size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Rate>,
}

/// How much, how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// On the average.
    pub per_second: u64,
    /// At once, after a rest.
    pub burst: u64,
}

/// A limit that breaks a rule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`limits.{field}` is {value}: {rule}")]
pub struct LimitError {
    /// Which.
    pub field: String,
    /// What it is.
    pub value: String,
    /// What it has to be.
    pub rule: String,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }

    /// Checks every value, for a machine with so many disks.
    ///
    /// # Errors
    ///
    /// Names the first field that breaks a rule.
    pub fn check(&self, disks: usize) -> Result<(), LimitError> {
        if self.disks.len() > disks {
            return Err(LimitError {
                field: "disks".to_owned(),
                value: format!("{} long", self.disks.len()),
                rule: format!("the machine has {disks}"),
            });
        }
        for (index, limit) in self.disks.iter().enumerate() {
            limit.check(&format!("disks[{index}]"))?;
        }
        self.vsock_to_guest.check("vsock_to_guest")?;
        self.vsock_to_host.check("vsock_to_host")?;
        check_rate("console", self.console, BYTES_MIN)
    }
}

impl RateLimit {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == RateLimit::default()
    }

    fn check(&self, field: &str) -> Result<(), LimitError> {
        check_rate(&format!("{field}.bytes"), self.bytes, BYTES_MIN)?;
        check_rate(&format!("{field}.operations"), self.operations, 1)
    }
}

fn check_rate(field: &str, rate: Option<Rate>, least: u64) -> Result<(), LimitError> {
    let Some(Rate { per_second, burst }) = rate else {
        return Ok(());
    };
    for (name, value, least) in [("per_second", per_second, least), ("burst", burst, 1)] {
        if !(least..=RATE_MAX).contains(&value) {
            return Err(LimitError {
                field: format!("{field}.{name}"),
                value: value.to_string(),
                rule: format!("must be from {least} to {RATE_MAX}"),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Limits, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn what_is_not_said_is_not_limited() {
        let limits = parse(r#"{"disks":[{},{"bytes":{"per_second":4096,"burst":1}}]}"#).unwrap();
        limits.check(2).unwrap();
        assert!(limits.disks[0].is_none() && limits.vsock_to_host.is_none());
        assert!(parse("{}").unwrap().is_none());
        assert_eq!(serde_json::to_string(&Limits::default()).unwrap(), "{}");
    }

    #[test]
    fn a_wrong_value_is_refused_by_field_value_and_rule() {
        let complaint = |text: &str| parse(text).unwrap().check(1).unwrap_err().to_string();
        let text = complaint(r#"{"disks":[{"bytes":{"per_second":0,"burst":1}}]}"#);
        assert!(
            text.starts_with("`limits.disks[0].bytes.per_second` is 0: must be from 4096"),
            "{text}"
        );
        let text = complaint(r#"{"vsock_to_host":{"operations":{"per_second":1,"burst":0}}}"#);
        assert!(
            text.starts_with("`limits.vsock_to_host.operations.burst` is 0"),
            "{text}"
        );
        let text = complaint(r#"{"disks":[{},{}]}"#);
        assert_eq!(text, "`limits.disks` is 2 long: the machine has 1");
        let error = parse(r#"{"disk":[]}"#).unwrap_err().to_string();
        assert!(error.contains("disk"), "{error}");
    }
}
