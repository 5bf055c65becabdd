//! Images and packages as they are kept.

use std::fmt;

use fabric_proto::id::{BlobName, Digest};
use serde::{Deserialize, Serialize};

use super::{architecture::Architecture, time::WallTime};

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
    /// For which processors an image is; all names of a file say the same. Of a package
    /// it says nothing: that is for whatever the image of its role is for.
    #[serde(default, skip_serializing_if = "Architecture::is_default")]
    pub architecture: Architecture,
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
    /// For which processors it is, if it is an image.
    #[serde(default, skip_serializing_if = "Architecture::is_default")]
    pub architecture: Architecture,
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
            architecture: record.architecture,
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
    /// For which processors it is, if it is an image and whoever brings it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A small image, whose digest is that byte.
    pub(crate) fn image(name: &str, byte: u8) -> BlobRecord {
        BlobRecord {
            name: name.parse().unwrap(),
            kind: BlobKind::Image,
            digest: Digest::of_sha256(&[byte; 32]),
            size_bytes: 1,
            vhd: VhdFacts {
                virtual_bytes: 1,
                vhd_type: "fixed".to_owned(),
            },
            architecture: Architecture::X86_64,
            created: WallTime::from_micros(1),
        }
    }

    #[test]
    fn an_image_of_which_nothing_else_was_noted_is_for_x86_64() {
        let digest = Digest::of_sha256(&[1; 32]);
        let then = json!({
            "name": "guest-os", "kind": "image", "digest": digest, "size_bytes": 1,
            "vhd": { "virtual_bytes": 1, "vhd_type": "fixed" }, "created": 1,
        });
        let mut record: BlobRecord = serde_json::from_value(then.clone()).unwrap();
        assert_eq!(record.architecture, Architecture::X86_64);
        assert_eq!(serde_json::to_value(&record).unwrap(), then);
        let used = json!({ "name": "guest-os", "digest": digest, "size_bytes": 1 });
        let used: BlobRef = serde_json::from_value(used).unwrap();
        assert_eq!(used.architecture, Architecture::X86_64);

        record.architecture = Architecture::Aarch64;
        let kept = serde_json::to_value(&record).unwrap();
        assert_eq!(kept["architecture"], "aarch64");
        assert_eq!(serde_json::from_value::<BlobRecord>(kept).unwrap(), record);
        let used = BlobRef::of("guest-os".to_owned(), &record);
        assert_eq!(used.architecture, Architecture::Aarch64);
    }
}
