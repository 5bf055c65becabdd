//! "Hard Disk Footer Format": 512 bytes at the end of every image, and once
//! more at the beginning of dynamic and differencing ones.

use std::fmt;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::{FieldReader, FieldWriter, Geometry, MAX_DISK_SIZE, TimeStamp, checksum};
use crate::device::SECTOR_SIZE;
use crate::error::{Defect, Structure};

/// Length of a footer in bytes.
pub const FOOTER_LEN: usize = 512;

/// "Data Offset" of a disk that has no dynamic disk header.
pub const NO_DATA_OFFSET: u64 = u64::MAX;

/// "Features": temporary; this disk may be deleted on shutdown.
pub const FEATURE_TEMPORARY: u32 = 0x1;

/// "Features": reserved, always set.
pub const FEATURE_RESERVED: u32 = 0x2;

/// "File Format Version" that this crate writes; it reads every 1.x.
pub const FILE_FORMAT_VERSION: u32 = 0x0001_0000;

const COOKIE: [u8; 8] = *b"conectix";
const CHECKSUM: std::ops::Range<usize> = 64..68;

/// "Creator Application" that this crate writes.
///
/// It decides what QEMU takes for the disk's size: "Current Size" for the
/// creators it knows, the product of the geometry for all others. "win "
/// (Hyper-V) is the value that every reader understands as "Current Size".
pub const CREATOR_APPLICATION: [u8; 4] = *b"win ";

/// "Disk Type".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskType {
    /// 2: all sectors are in the file, in order.
    Fixed,
    /// 3: blocks are added to the file when they are first written.
    Dynamic,
    /// 4: a dynamic disk that holds what differs from its parent.
    Differencing,
}

impl DiskType {
    /// The number the format uses.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        [Self::Fixed, Self::Dynamic, Self::Differencing]
            .into_iter()
            .find(|t| t.code() == code)
    }
}

impl fmt::Display for DiskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        })
    }
}

impl Serialize for DiskType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// "Hard Disk Footer". Cookie and checksum are added when it is written and
/// verified when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Footer {
    /// "Features", 4 bytes.
    pub features: u32,
    /// "File Format Version", 4 bytes: major and minor number.
    pub file_format_version: u32,
    /// "Data Offset", 8 bytes: where the dynamic disk header is in the file;
    /// all ones in fixed disks.
    pub data_offset: u64,
    /// "Time Stamp", 4 bytes: when the image was created.
    pub time_stamp: TimeStamp,
    /// "Creator Application", 4 bytes.
    #[serde(serialize_with = "four_letters")]
    pub creator_application: [u8; 4],
    /// "Creator Version", 4 bytes: major and minor number.
    pub creator_version: u32,
    /// "Creator Host OS", 4 bytes.
    #[serde(serialize_with = "four_letters")]
    pub creator_host_os: [u8; 4],
    /// "Original Size", 8 bytes: the size in bytes at creation.
    pub original_size: u64,
    /// "Current Size", 8 bytes: the size in bytes that the guest sees.
    pub current_size: u64,
    /// "Disk Geometry", 4 bytes.
    pub disk_geometry: Geometry,
    /// "Disk Type", 4 bytes.
    pub disk_type: DiskType,
    /// "Unique Id", 16 bytes.
    pub unique_id: Uuid,
    /// "Saved State", 1 byte: whether a machine is suspended on this disk.
    pub saved_state: bool,
}

impl Footer {
    /// The footer of a new image.
    #[must_use]
    pub fn new(disk_type: DiskType, size: u64, unique_id: Uuid, time_stamp: TimeStamp) -> Self {
        Self {
            features: FEATURE_RESERVED,
            file_format_version: FILE_FORMAT_VERSION,
            data_offset: match disk_type {
                DiskType::Fixed => NO_DATA_OFFSET,
                DiskType::Dynamic | DiskType::Differencing => FOOTER_LEN as u64,
            },
            time_stamp,
            creator_application: CREATOR_APPLICATION,
            creator_version: 0x0001_0000,
            creator_host_os: *b"Wi2k",
            original_size: size,
            current_size: size,
            disk_geometry: Geometry::for_size(size),
            disk_type,
            unique_id,
            saved_state: false,
        }
    }

    /// Reads a footer and checks every rule that it must keep by itself.
    ///
    /// `structure` says which of the two footers this is, for the defect.
    pub fn parse(bytes: &[u8; FOOTER_LEN], structure: Structure) -> Result<Self, Defect> {
        let defect = |field: &str, value: &dyn fmt::Display, rule: &str| {
            Err(Defect::new(structure, field, value, rule))
        };
        let mut fields = FieldReader::new(bytes);
        let cookie: [u8; 8] = fields.take();
        if cookie != COOKIE {
            let value = format!("\"{}\"", cookie.escape_ascii());
            return defect("Cookie", &value, "must be \"conectix\"");
        }
        let features = fields.u32();
        let file_format_version = fields.u32();
        let data_offset = fields.u64();
        let time_stamp = TimeStamp(fields.u32());
        let creator_application = fields.take();
        let creator_version = fields.u32();
        let creator_host_os = fields.take();
        let original_size = fields.u64();
        let current_size = fields.u64();
        let cylinders = fields.u16();
        let [heads, sectors_per_track] = fields.take();
        let disk_geometry = Geometry {
            cylinders,
            heads,
            sectors_per_track,
        };
        let type_code = fields.u32();
        let stored = fields.u32();
        let unique_id = fields.uuid();
        let [saved_state] = fields.take();

        let computed = checksum(bytes, CHECKSUM);
        if stored != computed {
            let rule = format!("must be {computed:#010x}, the one's complement of the byte sum");
            return defect("Checksum", &format!("{stored:#010x}"), &rule);
        }
        if features & !(FEATURE_TEMPORARY | FEATURE_RESERVED) != 0 {
            return defect(
                "Features",
                &format!("{features:#010x}"),
                "has bits that are not known",
            );
        }
        if file_format_version >> 16 != FILE_FORMAT_VERSION >> 16 {
            let value = format!("{file_format_version:#010x}");
            return defect(
                "File Format Version",
                &value,
                "only version 1 (0x0001____) is known",
            );
        }
        let Some(disk_type) = DiskType::from_code(type_code) else {
            let rule = "must be 2 (fixed), 3 (dynamic) or 4 (differencing)";
            return defect("Disk Type", &type_code, rule);
        };
        let footer = Self {
            features,
            file_format_version,
            data_offset,
            time_stamp,
            creator_application,
            creator_version,
            creator_host_os,
            original_size,
            current_size,
            disk_geometry,
            disk_type,
            unique_id,
            saved_state: saved_state != 0,
        };
        footer.check_size(structure)?;
        footer.check_data_offset(structure)?;
        Ok(footer)
    }

    fn check_size(&self, structure: Structure) -> Result<(), Defect> {
        let size = self.current_size;
        let wrong = |rule| Err(Defect::new(structure, "Current Size", size, rule));
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            return wrong("must be a multiple of 512 and not 0");
        }
        if size > MAX_DISK_SIZE {
            return wrong("must be at most 2040 GiB (2190433320960)");
        }
        if !self.disk_geometry.describes(size) {
            let rule = format!(
                "must describe Current Size ({size} bytes) to within one cylinder; by the \
                 specification's calculation it is {}",
                Geometry::for_size(size)
            );
            return Err(Defect::new(
                structure,
                "Disk Geometry",
                self.disk_geometry,
                rule,
            ));
        }
        Ok(())
    }

    fn check_data_offset(&self, structure: Structure) -> Result<(), Defect> {
        let offset = self.data_offset;
        if self.disk_type == DiskType::Fixed {
            return Ok(()); // Nothing is read there, and some tools write 32 ones only.
        }
        if offset < FOOTER_LEN as u64 || !offset.is_multiple_of(SECTOR_SIZE) {
            let rule = "must be a multiple of 512 behind the copy of the footer";
            return Err(Defect::new(
                structure,
                "Data Offset",
                format!("{offset:#x}"),
                rule,
            ));
        }
        Ok(())
    }

    /// The 512 bytes of the footer, checksum included.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; FOOTER_LEN] {
        let mut fields = FieldWriter::new();
        let geometry = self.disk_geometry;
        fields
            .put(&COOKIE)
            .put(&self.features.to_be_bytes())
            .put(&self.file_format_version.to_be_bytes())
            .put(&self.data_offset.to_be_bytes())
            .put(&self.time_stamp.0.to_be_bytes())
            .put(&self.creator_application)
            .put(&self.creator_version.to_be_bytes())
            .put(&self.creator_host_os)
            .put(&self.original_size.to_be_bytes())
            .put(&self.current_size.to_be_bytes())
            .put(&geometry.cylinders.to_be_bytes())
            .put(&[geometry.heads, geometry.sectors_per_track])
            .put(&self.disk_type.code().to_be_bytes())
            .put(&[0; 4])
            .put(self.unique_id.as_bytes())
            .put(&[u8::from(self.saved_state)]);
        fields.finish(CHECKSUM)
    }

    /// The first field in which this footer and its copy differ so that it
    /// matters, with both values.
    pub(crate) fn difference(&self, copy: &Self) -> Option<Defect> {
        let fields: [(&str, String, String); 4] = [
            (
                "Disk Type",
                self.disk_type.to_string(),
                copy.disk_type.to_string(),
            ),
            (
                "Current Size",
                self.current_size.to_string(),
                copy.current_size.to_string(),
            ),
            (
                "Unique Id",
                self.unique_id.to_string(),
                copy.unique_id.to_string(),
            ),
            (
                "Data Offset",
                self.data_offset.to_string(),
                copy.data_offset.to_string(),
            ),
        ];
        fields
            .into_iter()
            .find(|(_, here, there)| here != there)
            .map(|(field, here, there)| {
                let rule = format!("the footer at the end of the file says {here}");
                Defect::new(Structure::FooterCopy, field, there, rule)
            })
    }
}

/// Four characters as text, what is not printable escaped.
pub(crate) fn letters(value: &[u8; 4]) -> String {
    value.escape_ascii().to_string()
}

fn four_letters<S: Serializer>(value: &[u8; 4], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&letters(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        Footer::new(
            DiskType::Dynamic,
            10 << 20,
            Uuid::from_u128(7),
            TimeStamp(42),
        )
    }

    /// The field that `parse` complains about after `change`, checksum mended.
    fn refused(change: impl FnOnce(&mut [u8; FOOTER_LEN])) -> String {
        let mut bytes = footer().to_bytes();
        change(&mut bytes);
        let sum = checksum(&bytes, CHECKSUM);
        bytes[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
        Footer::parse(&bytes, Structure::Footer).unwrap_err().field
    }

    #[test]
    fn reads_what_it_wrote() {
        let read = Footer::parse(&footer().to_bytes(), Structure::Footer).unwrap();
        assert_eq!(read, footer());
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        for byte in 0..85 {
            let mut bytes = footer().to_bytes();
            bytes[byte] ^= 1;
            assert!(
                Footer::parse(&bytes, Structure::Footer).is_err(),
                "byte {byte}"
            );
        }
    }

    #[test]
    fn refuses_by_field() {
        assert_eq!(refused(|b| b[0] = b'x'), "Cookie");
        assert_eq!(refused(|b| b[8] = 1), "Features");
        assert_eq!(refused(|b| b[13] = 2), "File Format Version");
        assert_eq!(refused(|b| b[23] = 1), "Data Offset");
        assert_eq!(refused(|b| b[63] = 5), "Disk Type");
        assert_eq!(refused(|b| b[48..56].fill(0)), "Current Size");
        assert_eq!(refused(|b| b[55] = 1), "Current Size");
        assert_eq!(refused(|b| b[50] = 0xff), "Current Size");
        assert_eq!(refused(|b| b[57] += 1), "Disk Geometry");
    }

    #[test]
    fn names_field_value_and_rule() {
        let mut bytes = footer().to_bytes();
        bytes[64..68].fill(0);
        let text = Footer::parse(&bytes, Structure::FooterCopy)
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("copy of the hard disk footer, Checksum is 0x00000000: must be 0xff"),
            "{text}"
        );
    }
}
