//! Whether an instance is to stand still or to be down, and the snapshots that it is to have.

use std::{ops::RangeInclusive, time::Duration};

use fabric_proto::id::SnapshotName;
use serde::{Deserialize, Serialize};

/// Most snapshots of one instance: each is as large as its memory and its disk.
pub const MOST_SNAPSHOTS: usize = 8;
/// How long a role may be given to end, by its service's file and by an operator.
pub const STOP_GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// What an operator wants kept of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// Whether it is to stand still.
    pub paused: bool,
    /// Whether it is to be down.
    #[serde(default)]
    pub stopped: bool,
    /// How long its role has to end for that; what its role says, if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace: Option<Duration>,
    /// The snapshots that it is to have, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Generation of the newest snapshot that it was ever to have.
    pub snapshot_generation: u64,
    /// The snapshot that its last restore goes back to.
    pub restore: Option<SnapshotName>,
}

/// A snapshot that an instance is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: SnapshotName,
    /// Counts up with every snapshot of the instance.
    pub generation: u64,
}

/// Why there cannot be another snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSnapshot {
    /// There is one of that name.
    #[error("it has a snapshot {0} already: delete that, or take another name")]
    Exists(SnapshotName),
    /// There are too many.
    #[error("it has {MOST_SNAPSHOTS} snapshots, which is the most: delete one")]
    Many,
}

impl Keep {
    /// The snapshot of that name.
    #[must_use]
    pub fn find(&self, name: &SnapshotName) -> Option<&Snapshot> {
        self.snapshots.iter().find(|one| one.name == *name)
    }

    /// The same with one snapshot more.
    ///
    /// # Errors
    ///
    /// There cannot be one.
    pub fn with(&self, name: SnapshotName) -> Result<Self, NoSnapshot> {
        if self.find(&name).is_some() {
            return Err(NoSnapshot::Exists(name));
        }
        if self.snapshots.len() >= MOST_SNAPSHOTS {
            return Err(NoSnapshot::Many);
        }
        let mut keep = self.clone();
        keep.snapshot_generation += 1;
        keep.snapshots.push(Snapshot {
            name,
            generation: keep.snapshot_generation,
        });
        Ok(keep)
    }

    /// What is left when the instance was removed and is wanted again: how far its
    /// snapshots have been counted, for its node may remember.
    #[must_use]
    pub fn forgotten(&self) -> Self {
        Self {
            snapshot_generation: self.snapshot_generation,
            ..Self::default()
        }
    }

    /// What is left when it is to be on another node: it has nothing to go on from there,
    /// and is stopped as it was.
    #[must_use]
    pub fn elsewhere(&self) -> Self {
        Self {
            stopped: self.stopped,
            stop_grace: self.stop_grace,
            ..self.forgotten()
        }
    }

    /// Whether an operator wants it not to work.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.paused || self.stopped
    }

    /// The same, to be down, its role with so much time to end.
    #[must_use]
    pub fn to_stop(&self, grace: Option<Duration>) -> Self {
        Self {
            stopped: true,
            stop_grace: grace,
            paused: false,
            ..self.clone()
        }
    }

    /// The same, to be up.
    #[must_use]
    pub fn to_start(&self) -> Self {
        Self {
            stopped: false,
            stop_grace: None,
            ..self.clone()
        }
    }

    /// The same without that snapshot.
    #[must_use]
    pub fn without(&self, name: &SnapshotName) -> Self {
        let mut keep = self.clone();
        keep.snapshots.retain(|one| one.name != *name);
        keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SnapshotName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_that_is_used_again_is_another_snapshot() {
        let keep = Keep::default().with(name("a")).unwrap();
        assert_eq!(keep.with(name("a")), Err(NoSnapshot::Exists(name("a"))));
        let first = keep.find(&name("a")).unwrap().generation;
        let again = keep.without(&name("a")).with(name("a")).unwrap();
        assert!(again.find(&name("a")).unwrap().generation > first);
    }

    #[test]
    fn an_instance_that_was_removed_has_nothing_and_counts_on() {
        let mut keep = Keep::default().with(name("a")).unwrap();
        keep.paused = true;
        let anew = keep.forgotten();
        assert!(!anew.paused && anew.snapshots.is_empty());
        let first = keep.find(&name("a")).unwrap().generation;
        let again = anew.with(name("a")).unwrap();
        assert!(again.find(&name("a")).unwrap().generation > first);
    }

    #[test]
    fn a_stop_goes_with_it_to_another_node_and_a_pause_does_not() {
        let grace = Some(Duration::from_secs(3));
        let keep = Keep {
            paused: true,
            ..Keep::default().to_stop(grace)
        };
        let there = keep.elsewhere();
        assert!(there.stopped && !there.paused && there.stop_grace == grace);
        assert_eq!(there.to_start(), Keep::default());
        assert!(!keep.forgotten().stopped);
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let mut keep = Keep::default();
        for number in 0..MOST_SNAPSHOTS {
            keep = keep.with(name(&format!("s{number}"))).unwrap();
        }
        assert_eq!(keep.with(name("more")), Err(NoSnapshot::Many));
        assert!(keep.without(&name("s3")).with(name("more")).is_ok());
    }
}
