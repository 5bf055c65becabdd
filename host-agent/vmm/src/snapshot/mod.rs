//! Snapshots: a paused machine as files, and back.
//!
//! ```text
//!  DIRECTORY/
//!    state.json   {"format":"fabric-vmm snapshot","version":1,"sha256":"…","state":{…}}
//!    memory       the guest's memory, byte for byte; pages of zeroes are holes
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | [`state`] | what is in `state.json` |
//! | [`memory`] | writing memory, mapping it, its digest |
//!
//! A snapshot is a guest's data and as hostile as a guest: its lengths are
//! bounded, every state is checked by what it is given to, and a changed byte is
//! found by its digest. [`Files::state`] checks the state and leaves the memory, which
//! the machine maps without reading it, to [`verify`]: whoever keeps snapshots
//! verifies one when it enters the store, and again when its files have been
//! touched.
//!
//! What a snapshot tells of the processor is what the guest believes, so it can
//! go on under any VMM that knows the format's version.

pub mod memory;
pub mod state;

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::fail_point::{self, Step};
use crate::memory::GuestMemory;
use memory::MemoryDigest;
use state::MachineState;

/// The state's file in the snapshot's directory.
pub const STATE_FILE: &str = "state.json";
/// The memory's file in the snapshot's directory.
pub const MEMORY_FILE: &str = "memory";
/// What the first field says.
const FORMAT: &str = "fabric-vmm snapshot";
/// The newest version of the format that is known here, and the only one.
pub const VERSION: u32 = 1;
/// The longest state that is read, in bytes.
pub const STATE_MAX: u64 = 16 << 20;

/// Why a snapshot cannot be written or used.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A file failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory is there already.
    #[error("{path} exists already: name a directory that does not, or remove it")]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// The state is too long to be one.
    #[error("{path} is longer than {STATE_MAX} bytes: it is no snapshot's state")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The state is no JSON of the expected shape.
    #[error("{path} is not a snapshot's state")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// It is something else.
    #[error("{path} is not a snapshot's state: its `format` is {format:?}, not {FORMAT:?}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        format: String,
    },
    /// It is of a version that is not known here.
    #[error(
        "{path} is of version {version} of the format: this fabric-vmm knows up to {VERSION}; \
        use the one that wrote it, or a newer one"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The contents are not what was written.
    #[error("{path} is damaged: its SHA-256 is {found}, and it was {expected}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The digest when it was written.
        expected: String,
        /// The digest now.
        found: String,
    },
    /// The memory has another size.
    #[error("{path} is {found} bytes long: the snapshot's memory has {expected}")]
    Size {
        /// The file.
        path: PathBuf,
        /// The size that it should have.
        expected: u64,
        /// The size that it has.
        found: u64,
    },
}

impl SnapshotError {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError {
        move |source| SnapshotError::File {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// What a snapshot turned out to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Version of the VMM that wrote it.
    pub vmm_version: String,
    /// The guest's memory in MiB.
    pub memory_mib: u64,
    /// How much of it is not zero, in bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub vcpus: usize,
    /// SHA-256 of the memory, as `state.json` has it.
    pub memory_sha256: String,
}

#[derive(Serialize)]
struct EnvelopeOut<'a> {
    format: &'static str,
    version: u32,
    sha256: String,
    state: &'a RawValue,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    format: String,
    version: u32,
    #[serde(default)]
    sha256: String,
    #[serde(borrow, default)]
    state: Option<&'a RawValue>,
}

/// Writes a snapshot. The directory appears under its name when it is complete
/// and on the disk.
///
/// # Errors
///
/// When it exists already or cannot be written; nothing is left then.
pub fn write(
    directory: &Path,
    memory: &GuestMemory,
    state: impl FnOnce(MemoryDigest) -> MachineState,
) -> Result<(), SnapshotError> {
    if directory.symlink_metadata().is_ok() {
        return Err(SnapshotError::Exists {
            path: directory.to_owned(),
        });
    }
    let mut name = directory.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = directory.with_file_name(name);
    fs::create_dir(&part).map_err(SnapshotError::file("make", &part))?;
    let written = write_files(&part, memory, state).and_then(|()| {
        fs::rename(&part, directory).map_err(SnapshotError::file("make", directory))
    });
    match &written {
        Ok(()) => fail_point::reached(Step::SnapshotWritten),
        Err(_) => _ = fs::remove_dir_all(&part),
    }
    written
}

fn write_files(
    directory: &Path,
    memory: &GuestMemory,
    state: impl FnOnce(MemoryDigest) -> MachineState,
) -> Result<(), SnapshotError> {
    let digest = memory::write(&directory.join(MEMORY_FILE), memory)?;
    fail_point::reached(Step::MemoryWritten);
    let path = directory.join(STATE_FILE);
    let to_json = |source| SnapshotError::Parse {
        path: path.clone(),
        source,
    };
    let state = serde_json::value::to_raw_value(&state(digest)).map_err(to_json)?;
    let envelope = EnvelopeOut {
        format: FORMAT,
        version: VERSION,
        sha256: sha256(state.get().as_bytes()),
        state: &state,
    };
    let text = serde_json::to_vec(&envelope).map_err(to_json)?;
    let write = || {
        let mut file = File::create_new(&path)?;
        file.write_all(&text)?;
        file.sync_all()?;
        File::open(directory)?.sync_all()
    };
    write().map_err(SnapshotError::file("write", &path))
}

/// The files of a snapshot, open, of which nothing has been read yet: a process that goes on
/// from one reads it in a jail.
#[derive(Debug)]
pub struct Files {
    state: File,
    state_path: PathBuf,
    memory: Arc<File>,
    memory_path: PathBuf,
}

impl Files {
    /// Opens the snapshot in `directory`.
    ///
    /// # Errors
    ///
    /// When a file cannot be opened.
    pub fn open(directory: &Path) -> Result<Files, SnapshotError> {
        let open = |name| {
            let path = directory.join(name);
            let file = File::open(&path).map_err(SnapshotError::file("open", &path))?;
            Ok::<_, SnapshotError>((file, path))
        };
        let (state, state_path) = open(STATE_FILE)?;
        let (memory, memory_path) = open(MEMORY_FILE)?;
        Ok(Files {
            state,
            state_path,
            memory: Arc::new(memory),
            memory_path,
        })
    }

    /// Reads the state, as often as it is asked for, and checks its version and digest.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not what was written by a VMM of this version of the
    /// format.
    pub fn state(&self) -> Result<MachineState, SnapshotError> {
        let path = &self.state_path;
        let mut text = String::new();
        let mut file = &self.state;
        file.rewind()
            .and_then(|()| file.take(STATE_MAX + 1).read_to_string(&mut text))
            .map_err(SnapshotError::file("read", path))?;
        if text.len() as u64 > STATE_MAX {
            return Err(SnapshotError::TooLong { path: path.clone() });
        }
        parse(&text, path)
    }

    /// The memory, which must have this size.
    ///
    /// # Errors
    ///
    /// When it has another one.
    pub fn memory(&self, size: u64) -> Result<&Arc<File>, SnapshotError> {
        memory::check_size(&self.memory, &self.memory_path, size)?;
        Ok(&self.memory)
    }
}

/// Reads a state from its text; `path` is for errors.
///
/// # Errors
///
/// Those of [`Files::state`], but of files.
pub fn parse(text: &str, path: &Path) -> Result<MachineState, SnapshotError> {
    let path = || path.to_owned();
    let envelope: Envelope<'_> =
        serde_json::from_str(text).map_err(|source| SnapshotError::Parse {
            path: path(),
            source,
        })?;
    if envelope.format != FORMAT {
        return Err(SnapshotError::Format {
            path: path(),
            format: envelope.format.chars().take(64).collect(),
        });
    }
    if envelope.version != VERSION {
        return Err(SnapshotError::Version {
            path: path(),
            version: envelope.version,
        });
    }
    let state = envelope.state.map_or("", RawValue::get);
    let found = sha256(state.as_bytes());
    if found != envelope.sha256 {
        return Err(SnapshotError::Damaged {
            path: path(),
            expected: envelope.sha256.chars().take(64).collect(),
            found,
        });
    }
    serde_json::from_str(state).map_err(|source| SnapshotError::Parse {
        path: path(),
        source,
    })
}

/// Reads all of a snapshot and checks all of its digests.
///
/// # Errors
///
/// Those of [`Files`], and when the memory is not what was written.
pub fn verify(directory: &Path) -> Result<Verified, SnapshotError> {
    let files = Files::open(directory)?;
    let state = files.state()?;
    let digest = memory::digest(&files.memory, &files.memory_path, state.memory_mib << 20)?;
    if digest != state.memory {
        return Err(SnapshotError::Damaged {
            path: files.memory_path,
            expected: state.memory.sha256,
            found: digest.sha256,
        });
    }
    Ok(Verified {
        vmm_version: state.vmm_version,
        memory_mib: state.memory_mib,
        memory_bytes: digest.bytes,
        vcpus: state.vcpus.len(),
        memory_sha256: digest.sha256,
    })
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
