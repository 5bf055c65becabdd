//! What is on record about an instance: written before and after each step, so
//! that the next process of the host agent goes on where this one was ended.

use std::{fs, io, path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use crate::{clock, files, hypervisor::VmRecord, template::key::Key};

/// Format of the manifest.
const FORMAT: u32 = 1;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file system failed.
    #[error("cannot read it")]
    Io(#[from] io::Error),
    /// It is damaged.
    #[error("it is damaged")]
    Damaged(#[from] serde_json::Error),
    /// Another version of the host agent wrote it.
    #[error("its format is {0}, must be {FORMAT}")]
    Format(u32),
}

/// An instance's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Under which epoch it is.
    pub epoch: u64,
    /// Its context id on the VMBus.
    pub cid: u32,
    /// Where it is in its life.
    pub machine: Machine,
    /// Since when.
    pub since: SystemTime,
    /// Its VMM.
    pub process: Option<VmRecord>,
    /// Start of the machine by whose clock `machine` tells times.
    pub host_boot_id: String,
    /// Number of the last goal that its guest may have seen.
    pub guest_incarnation: u64,
    /// The template that its machine was started from last, if it was.
    #[serde(default)]
    pub template: Option<Key>,
    /// How its last virtual machine ended, as one JSON object: last words of its VMM, or
    /// what there is to say of one that had none, and why, as [`last_exit`](super::last_exit)
    /// adds it.
    pub last_exit: String,
    /// When that ended.
    #[serde(default)]
    pub ended: Option<SystemTime>,
}

impl Manifest {
    /// Of an instance that is new here.
    #[must_use]
    pub fn new(cid: u32, host_boot_id: String) -> Self {
        Self {
            format: FORMAT,
            epoch: 0,
            cid,
            machine: Machine::default(),
            since: clock::wall_time(),
            process: None,
            host_boot_id,
            guest_incarnation: 0,
            template: None,
            last_exit: String::new(),
            ended: None,
        }
    }

    /// Reads one; none if there is no such file.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub fn load(path: &Path) -> Result<Option<Self>, ManifestError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        #[derive(Deserialize)]
        struct Envelope {
            format: u32,
        }
        let Envelope { format } = serde_json::from_slice(&text)?;
        if format != FORMAT {
            return Err(ManifestError::Format(format));
        }
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Writes it, as a whole or not at all.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        files::write_atomically(path, &serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_as_it_was_written_and_a_strange_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manifest.json");
        assert!(Manifest::load(&path).unwrap().is_none());
        let manifest = Manifest::new(3, "boot".to_owned());
        manifest.save(&path).unwrap();
        assert_eq!(Manifest::load(&path).unwrap(), Some(manifest));

        fs::write(&path, r#"{"format":2}"#).unwrap();
        assert!(matches!(
            Manifest::load(&path),
            Err(ManifestError::Format(2))
        ));
        fs::write(&path, "{").unwrap();
        assert!(matches!(
            Manifest::load(&path),
            Err(ManifestError::Damaged(_))
        ));
    }
}
