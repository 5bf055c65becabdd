//! The service file: parsed, checked, explained.
//!
//! [`parse`] turns the text into a [`ServiceDefinition`] or into every problem
//! that it finds, each with its line, the value and what was expected. Whether
//! images and packages exist is not known here; names are only checked as names.
//!
//! [`raw`] is the file as TOML sees it, [`check`], [`probe`] and [`rollout`] the rules.

mod check;
mod probe;
mod problem;
mod raw;
mod rollout;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, time::Duration};

use fabric_proto::id::{RoleName, ServiceName};
use serde::{Deserialize, Serialize};

pub use self::problem::{DefinitionError, Problem};
use super::{node::Kvm, own::OwnResources, size::Size, update::UpdatePolicy};

/// Longest service file, in bytes.
pub const LONGEST_FILE: usize = 256 * 1024;

/// A service as its file says it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDefinition {
    /// Its name.
    pub name: ServiceName,
    /// Its roles, in the file's order; each name once.
    pub roles: Vec<RoleDefinition>,
    /// How instances are brought to it.
    pub policy: UpdatePolicy,
}

/// A role and how many instances of it there are to be, where from, how big.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleDefinition {
    /// What runs in each instance.
    pub role: Role,
    /// Name of the size.
    pub size_name: String,
    /// The size.
    pub size: Size,
    /// Resources of the operator's own that the size takes.
    #[serde(default)]
    pub resources: OwnResources,
    /// How many instances.
    pub instances: u32,
    /// Name or digest of the image.
    pub image: String,
    /// Name or digest of the package.
    pub package: Option<String>,
    /// Where it can be reached; kept, and served in a later version.
    pub endpoints: Vec<Endpoint>,
    /// Parts that are updated one after another.
    pub upgrade_domains: u32,
    /// Parts that no single failure should hit together.
    pub fault_domains: u32,
    /// How binding that is.
    pub spread: Spreading,
    /// What a node must be like to have its instances.
    pub nodes: NodeRules,
    /// Whose fault domains it does not share.
    pub availability_set: Option<String>,
    /// Whether it follows its line of OS images.
    pub os_updates: OsUpdates,
}

/// How binding it is that the instances of a role lie evenly on fault domains, and on as
/// many as it says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spreading {
    /// While there is room; then anywhere, and it is said.
    #[default]
    Preferred,
    /// Rather nowhere.
    Strict,
}

impl fmt::Display for Spreading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preferred => "preferred",
            Self::Strict => "strict",
        })
    }
}

/// What a node must be like to have an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRules {
    /// Labels that it has.
    pub labels: BTreeMap<String, String>,
    /// Kind of its KVM, if it matters.
    pub kvm: Option<Kvm>,
}

impl NodeRules {
    /// Whether any node will do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for NodeRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.labels.iter();
        let labels = labels.map(|(key, value)| format!("{key}={value}"));
        let kvm = self.kvm.map(|kvm| format!("{kvm} KVM"));
        let all: Vec<_> = labels.chain(kvm).collect();
        match all.is_empty() {
            true => f.write_str("any"),
            false => f.write_str(&all.join(", ")),
        }
    }
}

/// Whether a role's instances get newer images of the line that the role names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OsUpdates {
    /// When its file is applied again.
    #[default]
    Manual,
    /// By themselves, one upgrade domain after another.
    Auto,
}

/// What runs in an instance: what its guest agent is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// Its name.
    pub name: RoleName,
    /// Its kind.
    pub kind: RoleKind,
    /// Program and arguments; empty only for [`RoleKind::Vm`].
    pub command: Vec<String>,
    /// Environment of the process.
    pub environment: BTreeMap<String, String>,
    /// Settings, given to the process as a JSON file.
    pub settings: BTreeMap<String, String>,
    /// Whether a running process is told of changed settings, rather than started anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deliver_settings: bool,
    /// User and group id of the process; never 0.
    pub user: u32,
    /// Is it alive?
    pub liveness: Option<Probe>,
    /// Can it serve?
    pub readiness: Option<Probe>,
    /// How long after its start failures of the liveness probe do not count.
    pub startup_grace: Duration,
    /// How long it has between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// What to do when its process ends.
    pub restart: RestartPolicy,
    /// Whether and how it goes on from a template in which it was ready already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_start: Option<WarmStart>,
}

impl Role {
    /// Whether a process that was started as this role is what `new` asks for, once
    /// it has been told what is new.
    #[must_use]
    pub fn starts_as(&self, new: &Self) -> bool {
        let settings = self.settings == new.settings || new.deliver_settings;
        settings
            && self.kind == new.kind
            && self.command == new.command
            && self.environment == new.environment
            && self.user == new.user
            && self.warm_start == new.warm_start
    }
}

/// The programs that are run around a warm start; empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmStart {
    /// When it is ready in the guest that becomes a template.
    pub before_snapshot: Vec<String>,
    /// When it goes on in a copy.
    pub after_start: Vec<String>,
}

/// Kind of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleKind {
    /// Served through a load-balanced endpoint.
    Web,
    /// Fed from a queue.
    Worker,
    /// The operator's own image.
    Vm,
}

/// Where a role can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its name, once per role.
    pub name: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Port of the service, once per service.
    pub port: u16,
    /// Port in the guest.
    pub target_port: u16,
}

/// What an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP.
    Http,
    /// Any byte stream.
    Tcp,
}

/// A check that the guest agent makes again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is checked.
    pub check: Check,
    /// From the start of one check to the start of the next.
    pub period: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// Failures in a row that make the probe fail.
    pub failure_threshold: u32,
    /// Successes in a row that make it succeed again.
    pub success_threshold: u32,
}

/// What a probe checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// A program that ends with status 0.
    Exec(Vec<String>),
    /// A port that can be connected to.
    Tcp(u16),
    /// An HTTP request that is answered with a status of 200 to 399.
    Http {
        /// Port.
        port: u16,
        /// Path with a leading slash.
        path: String,
    },
}

/// When a role is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartMode {
    /// Whenever it ends.
    Always,
    /// When it fails.
    OnFailure,
    /// Never.
    Never,
}

/// What to do when a role's process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// When.
    pub mode: RestartMode,
    /// Wait before the first restart; doubles with each failure in a row.
    pub backoff_initial: Duration,
    /// The wait grows no further than this.
    pub backoff_max: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            mode: RestartMode::Always,
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
        }
    }
}

/// Parses and checks a service file; `file_name` is what errors call it.
///
/// # Errors
///
/// The text is no service file; the error lists every problem found.
pub fn parse(text: &str, file_name: &str) -> Result<ServiceDefinition, DefinitionError> {
    let mut problems = problem::Problems::new(text, file_name);
    if text.len() > LONGEST_FILE {
        problems.add(
            &(0..0),
            format!(
                "the file has {} bytes; the most is {LONGEST_FILE}",
                text.len()
            ),
        );
        return Err(problems.into_error());
    }
    match toml::from_str::<raw::Service>(text) {
        Ok(service) => check::service(service, problems),
        Err(error) => {
            problems.add(&error.span().unwrap_or(0..0), error.message());
            Err(problems.into_error())
        }
    }
}
