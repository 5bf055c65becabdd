//! The last goal, kept on disk: what should run is known without a controller.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use fabric_proto::node::v1 as wire;
use prost::Message as _;

use crate::files;

/// Where the last goal is kept: `journal/goal.pb`, as it came.
#[derive(Debug)]
pub struct GoalStore {
    path: PathBuf,
}

impl GoalStore {
    /// The store in the journal directory.
    #[must_use]
    pub fn new(journal: &Path) -> Self {
        Self {
            path: journal.join("goal.pb"),
        }
    }

    /// The last goal. None if there has been none, or if it cannot be decoded;
    /// then nothing is touched until the controller sends one.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn load(&self) -> io::Result<Option<wire::NodeGoal>> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match wire::NodeGoal::decode(bytes.as_slice()) {
            Ok(goal) => Ok(Some(goal)),
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "the last goal is damaged");
                Ok(None)
            }
        }
    }

    /// Keeps a goal, before anything is done about it.
    ///
    /// # Errors
    ///
    /// What the file system says; the last goal is still there then.
    pub fn save(&self, goal: &wire::NodeGoal) -> io::Result<()> {
        // Who watches output now will not do so after a restart.
        let goal = wire::NodeGoal {
            outputs: Vec::new(),
            ..goal.clone()
        };
        files::write_atomically(&self.path, &goal.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_there_again_and_a_damaged_one_counts_for_none() {
        let journal = tempfile::tempdir().unwrap();
        let store = GoalStore::new(journal.path());
        assert_eq!(store.load().unwrap(), None);
        let goal = wire::NodeGoal {
            incarnation: 7,
            instances: vec![super::super::tests::instance("shop-web-0")],
            ..wire::NodeGoal::default()
        };
        store.save(&goal).unwrap();
        assert_eq!(store.load().unwrap(), Some(goal));
        fs::write(&store.path, [0xff; 9]).unwrap();
        assert_eq!(store.load().unwrap(), None);
    }
}
