//! Epochs of instances that are not here any longer, kept on disk: one that was
//! superseded does not come back, whatever was restarted meanwhile.
//!
//! An instance's epoch is taken down before anything of it goes. The [`MOST`] highest
//! are kept: a controller gives each instance an epoch higher than any before it, so
//! what is forgotten is what was superseded longest ago.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs, io, mem,
    path::{Path, PathBuf},
};

use fabric_proto::id::InstanceId;

use crate::files;

/// Most epochs that are kept.
pub const MOST: usize = 4096;
/// Name of the file in the journal directory.
const NAME: &str = "epochs.json";

/// The epochs, as they are in `journal/epochs.json`.
#[derive(Debug)]
pub struct EpochStore {
    path: PathBuf,
    epochs: BTreeMap<InstanceId, u64>,
    changed: bool,
}

impl EpochStore {
    /// Reads what is in the journal directory. Damaged, it counts for empty.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn open(journal: &Path) -> io::Result<Self> {
        let path = journal.join(NAME);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => b"{}".to_vec(),
            text => text?,
        };
        let epochs = serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "the noted epochs are damaged");
            BTreeMap::new()
        });
        Ok(Self {
            path,
            epochs,
            changed: false,
        })
    }

    /// The highest that is known of an instance.
    #[must_use]
    pub fn get(&self, id: &InstanceId) -> u64 {
        self.epochs.get(id).copied().unwrap_or(0)
    }

    /// Takes down an epoch, to be saved.
    pub fn note(&mut self, id: &InstanceId, epoch: u64) {
        let known = self.epochs.entry(id.clone()).or_default();
        if *known < epoch {
            *known = epoch;
            self.changed = true;
        }
    }

    /// Keeps what has been taken down.
    ///
    /// # Errors
    ///
    /// What the file system says; it is tried again the next time.
    pub fn save(&mut self) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        let mut all: Vec<_> = mem::take(&mut self.epochs).into_iter().collect();
        all.sort_by_key(|(_, epoch)| Reverse(*epoch));
        all.truncate(MOST);
        self.epochs = all.into_iter().collect();
        files::write_atomically(&self.path, &serde_json::to_vec(&self.epochs)?)?;
        self.changed = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> InstanceId {
        format!("shop-web-{number}").parse().unwrap()
    }

    #[test]
    fn epochs_are_there_again_and_never_go_back() {
        let journal = tempfile::tempdir().unwrap();
        let mut store = EpochStore::open(journal.path()).unwrap();
        store.note(&id(0), 7);
        store.note(&id(0), 3);
        store.save().unwrap();
        let store = EpochStore::open(journal.path()).unwrap();
        assert_eq!((store.get(&id(0)), store.get(&id(1))), (7, 0));

        fs::write(&store.path, "{").unwrap();
        let store = EpochStore::open(journal.path()).unwrap();
        assert_eq!(store.get(&id(0)), 0);
    }

    #[test]
    fn what_was_superseded_longest_ago_is_forgotten() {
        let journal = tempfile::tempdir().unwrap();
        let mut store = EpochStore::open(journal.path()).unwrap();
        for number in 0..=MOST {
            store.note(&id(number), 10 + number as u64);
        }
        store.save().unwrap();
        let store = EpochStore::open(journal.path()).unwrap();
        assert_eq!(store.epochs.len(), MOST);
        assert_eq!((store.get(&id(0)), store.get(&id(1))), (0, 11));
    }
}
