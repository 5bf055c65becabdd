//! Images and packages as they are kept.

use std::fmt;

use fabric_proto::id::{BlobName, Digest};
use serde::{Deserialize, Serialize};

use super::time::WallTime;

/// What a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobKind {
    /// A VHD that a guest boots from.
    Image,
    /// A VHD with a file system that the guest agent mounts for a role.
    Package,
}

impl BlobKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Image, Self::Package];

    /// The word for it, as in `fabctl image upload`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Package => "package",
        }
    }
}

impl fmt::Display for BlobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a VHD file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhdFacts {
    /// Size of the disk, in bytes.
    pub virtual_bytes: u64,
    /// `"fixed"` or `"dynamic"`.
    pub vhd_type: String,
}

/// An image or a package: a name for a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRecord {
    /// Its name.
    pub name: BlobName,
    /// What it is.
    pub kind: BlobKind,
    /// Digest of the file.
    pub digest: Digest,
    /// Size of the file, in bytes.
    pub size_bytes: u64,
    /// What is in the file.
    pub vhd: VhdFacts,
    /// When it was complete under this name.
    pub created: WallTime,
}

/// A blob as a service uses it: the name that was asked for and the file that
/// it meant at that moment. A name that is given to another file later changes
/// no running instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// The name, or the digest when the service file named that.
    pub name: String,
    /// Digest of the file.
    pub digest: Digest,
    /// Size of the file, in bytes.
    pub size_bytes: u64,
    /// Size of the disk that is in it, in bytes; 0 where nobody noted it.
    #[serde(default)]
    pub virtual_bytes: u64,
}

impl BlobRef {
    /// A blob under the name by which it was found.
    #[must_use]
    pub fn of(name: String, record: &BlobRecord) -> Self {
        Self {
            name,
            digest: record.digest.clone(),
            size_bytes: record.size_bytes,
            virtual_bytes: record.vhd.virtual_bytes,
        }
    }

    /// How large a disk that differs from it can become, in bytes.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.size_bytes.max(self.virtual_bytes)
    }
}

/// An upload that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// Size that the whole file will have, in bytes.
    pub size_bytes: u64,
    /// What it becomes when it is complete.
    pub targets: Vec<UploadTarget>,
    /// When it was last begun.
    pub begun: WallTime,
}

/// A name that an upload is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadTarget {
    /// What it becomes.
    pub kind: BlobKind,
    /// Under which name.
    pub name: BlobName,
}
