//! Something that happened.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::time::WallTime;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    /// The controller and all of its nodes.
    Cluster,
    /// A machine.
    Node,
    /// An OS image.
    Image,
    /// A role's package.
    Package,
    /// A hosted service.
    Service,
    /// An instance of a role.
    Instance,
}

impl SubjectKind {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Image => "image",
            Self::Package => "package",
            Self::Service => "service",
            Self::Instance => "instance",
        }
    }
}

impl From<super::blob::BlobKind> for SubjectKind {
    fn from(kind: super::blob::BlobKind) -> Self {
        match kind {
            super::blob::BlobKind::Image => Self::Image,
            super::blob::BlobKind::Package => Self::Package,
        }
    }
}

/// The controller's own reasons. Host agents bring theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The words say it; the text of each event says the rest.
pub enum Reason {
    NodeRegistered,
    NodeConnected,
    NodeLost,
    NodeFenced,
    NodeCordoned,
    NodeUncordoned,
    NodeDraining,
    NodeLabelled,
    NodeUnsteady,
    NodeSteady,
    NodeBlamed,
    NodeCondemned,
    NodeCleared,
    NodeRemoved,
    FailoverHeld,
    ImageUploaded,
    ImageDeleted,
    PackageUploaded,
    PackageDeleted,
    ServiceApplied,
    ServiceDeleted,
    SlotsSwapped,
    UpdateDomainBegun,
    UpdateFinished,
    UpdateStopped,
    UpdateRolledBack,
    UpdatePaused,
    UpdateResumed,
    UpdateAborted,
    UpdateAdvanced,
    OsUpdateBegun,
    InstancePlaced,
    InstanceUnplaceable,
    InstanceFailedOver,
    InstanceMoving,
    InstanceFound,
    InstanceGivenUp,
    InstanceRemoved,
    RestartRequested,
    PauseRequested,
    ResumeRequested,
    StopRequested,
    StartRequested,
    SnapshotRequested,
    SnapshotDeleted,
    RestoreRequested,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The variants are named as the words are.
        fmt::Debug::fmt(self, f)
    }
}

/// Who says so when the controller does.
pub const CONTROLLER: &str = "controller";

/// What led to an event: the newest one before it that has this reason and is about this.
///
/// A name for it rather than its cursor: who tells of an effect need not know where in
/// the log its cause stands, and host agents tell of both before either is in there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Because {
    /// Its reason.
    pub reason: String,
    /// What kind of thing that is about.
    pub subject_kind: SubjectKind,
    /// Name or id of the thing.
    pub subject: String,
}

/// Something that happened. Its cursor is where it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// When.
    pub time: WallTime,
    /// What, as a stable word in CamelCase.
    pub reason: String,
    /// One line for people.
    pub message: String,
    /// True if something failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warning: bool,
    /// What kind of thing it is about.
    pub subject_kind: SubjectKind,
    /// Name or id of the thing.
    pub subject: String,
    /// Who said so: [`CONTROLLER`] or a node's name.
    pub source: String,
    /// What led to it; none if nothing that is known did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<Because>,
}

impl EventRecord {
    /// An event that the controller itself reports.
    #[must_use]
    pub fn new(
        time: WallTime,
        reason: Reason,
        subject_kind: SubjectKind,
        subject: impl fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        Self {
            time,
            reason: reason.to_string(),
            message: message.into(),
            warning: matches!(
                reason,
                Reason::NodeLost
                    | Reason::NodeFenced
                    | Reason::NodeUnsteady
                    | Reason::NodeBlamed
                    | Reason::NodeCondemned
                    | Reason::FailoverHeld
                    | Reason::InstanceUnplaceable
                    | Reason::InstanceFailedOver
                    | Reason::InstanceGivenUp
                    | Reason::UpdateStopped
                    | Reason::UpdateRolledBack
            ),
            subject_kind,
            subject: subject.to_string(),
            source: CONTROLLER.to_owned(),
            because: None,
        }
    }

    /// With what led to it.
    #[must_use]
    pub fn because(
        self,
        reason: Reason,
        subject_kind: SubjectKind,
        subject: impl fmt::Display,
    ) -> Self {
        let because = Because {
            reason: reason.to_string(),
            subject_kind,
            subject: subject.to_string(),
        };
        Self {
            because: Some(because),
            ..self
        }
    }
}
