//! "Dynamic Disk Header Format": 1024 bytes that describe the blocks of a
//! dynamic or differencing disk.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::bat::{self, BlockShape};
use super::footer::FOOTER_LEN;
use super::locator::{LOCATORS, ParentLocator, PlatformCode};
use super::{FieldReader, FieldWriter, TimeStamp, checksum};
use crate::device::SECTOR_SIZE;
use crate::error::{Defect, Structure};

/// Length of a header in bytes.
pub const HEADER_LEN: usize = 1024;

/// "Block Size" of new images unless told otherwise: 2 MiB.
pub const DEFAULT_BLOCK_SIZE: u32 = 2 << 20;

/// "Header Version" that this crate writes; it reads every 1.x.
pub const HEADER_VERSION: u32 = 0x0001_0000;

/// Most UTF-16 units of "Parent Unicode Name".
const NAME_UNITS: usize = 256;

const COOKIE: [u8; 8] = *b"cxsparse";
const CHECKSUM: std::ops::Range<usize> = 36..40;

/// "Dynamic Disk Header". Cookie, checksum and the unused "Data Offset" are
/// added when it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Header {
    /// "Table Offset", 8 bytes: where the block allocation table is in the
    /// file.
    pub table_offset: u64,
    /// "Header Version", 4 bytes: major and minor number.
    pub header_version: u32,
    /// "Max Table Entries", 4 bytes: entries of the block allocation table.
    pub max_table_entries: u32,
    /// "Block Size", 4 bytes: bytes of data in a block.
    pub block_size: u32,
    /// "Parent Unique ID", 16 bytes: "Unique Id" of the parent's footer.
    pub parent_unique_id: Uuid,
    /// "Parent Time Stamp", 4 bytes.
    pub parent_time_stamp: TimeStamp,
    /// "Parent Unicode Name", 512 bytes of UTF-16, big-endian: the file name
    /// of the parent.
    pub parent_unicode_name: String,
    /// "Parent Locator Entry" 1 to 8, 24 bytes each.
    pub parent_locators: [ParentLocator; LOCATORS],
}

impl Header {
    /// The header of a new dynamic disk of `size` bytes whose table is at
    /// `table_offset`.
    #[must_use]
    pub fn new(size: u64, block_size: u32, table_offset: u64) -> Self {
        let blocks = size.div_ceil(u64::from(block_size));
        Self {
            table_offset,
            header_version: HEADER_VERSION,
            max_table_entries: u32::try_from(blocks).unwrap_or(u32::MAX),
            block_size,
            parent_unique_id: Uuid::nil(),
            parent_time_stamp: TimeStamp(0),
            parent_unicode_name: String::new(),
            parent_locators: [ParentLocator::NONE; LOCATORS],
        }
    }

    /// Reads a header and checks every rule that it must keep by itself.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, Defect> {
        let mut fields = FieldReader::new(bytes);
        let cookie: [u8; 8] = fields.take();
        if cookie != COOKIE {
            let value = format!("\"{}\"", cookie.escape_ascii());
            return Err(defect("Cookie", value, "must be \"cxsparse\""));
        }
        let _data_offset = fields.u64();
        let table_offset = fields.u64();
        let header_version = fields.u32();
        let max_table_entries = fields.u32();
        let block_size = fields.u32();
        let stored = fields.u32();
        let parent_unique_id = fields.uuid();
        let parent_time_stamp = TimeStamp(fields.u32());
        let _reserved = fields.u32();
        let parent_unicode_name = decode_name(&fields.take());
        let parent_locators = std::array::from_fn(|_| parse_locator(&mut fields));

        let computed = checksum(bytes, CHECKSUM);
        if stored != computed {
            let rule = format!("must be {computed:#010x}, the one's complement of the byte sum");
            return Err(defect("Checksum", format!("{stored:#010x}"), rule));
        }
        let header = Self {
            table_offset,
            header_version,
            max_table_entries,
            block_size,
            parent_unique_id,
            parent_time_stamp,
            parent_unicode_name,
            parent_locators,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), Defect> {
        if self.header_version >> 16 != HEADER_VERSION >> 16 {
            let value = format!("{:#010x}", self.header_version);
            return Err(defect(
                "Header Version",
                value,
                "only version 1 (0x0001____) is known",
            ));
        }
        let sector = SECTOR_SIZE as u32;
        if !self.block_size.is_power_of_two() || self.block_size < sector {
            let rule = "must be 512 times a power of two";
            return Err(defect("Block Size", self.block_size, rule));
        }
        if self.max_table_entries > bat::MAX_ENTRIES {
            let rule = format!(
                "must be at most {}: 2040 GiB in blocks of 512 KiB",
                bat::MAX_ENTRIES
            );
            return Err(defect("Max Table Entries", self.max_table_entries, rule));
        }
        if self.table_offset < FOOTER_LEN as u64 || !self.table_offset.is_multiple_of(SECTOR_SIZE) {
            let rule = "must be a multiple of 512 behind the copy of the footer";
            return Err(defect(
                "Table Offset",
                format!("{:#x}", self.table_offset),
                rule,
            ));
        }
        Ok(())
    }

    /// Checks that the table is large enough for a disk of `size` bytes.
    pub fn check_size(&self, size: u64) -> Result<(), Defect> {
        let needed = size.div_ceil(u64::from(self.block_size));
        if u64::from(self.max_table_entries) < needed {
            let rule = format!(
                "must be at least {needed}, the blocks of {} bytes in Current Size ({size})",
                self.block_size
            );
            return Err(defect("Max Table Entries", self.max_table_entries, rule));
        }
        Ok(())
    }

    /// Sizes that follow from "Block Size".
    #[must_use]
    pub fn block_shape(&self) -> BlockShape {
        BlockShape::new(self.block_size)
    }

    /// Bytes that the block allocation table takes in the file.
    #[must_use]
    pub fn table_len(&self) -> u64 {
        bat::table_len(self.max_table_entries)
    }

    /// The 1024 bytes of the header, checksum included.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut fields = FieldWriter::new();
        fields
            .put(&COOKIE)
            .put(&u64::MAX.to_be_bytes())
            .put(&self.table_offset.to_be_bytes())
            .put(&self.header_version.to_be_bytes())
            .put(&self.max_table_entries.to_be_bytes())
            .put(&self.block_size.to_be_bytes())
            .put(&[0; 4])
            .put(self.parent_unique_id.as_bytes())
            .put(&self.parent_time_stamp.0.to_be_bytes())
            .put(&[0; 4])
            .put(&encode_name(&self.parent_unicode_name));
        for locator in &self.parent_locators {
            fields
                .put(&locator.platform_code.0)
                .put(&locator.platform_data_space.to_be_bytes())
                .put(&locator.platform_data_length.to_be_bytes())
                .put(&[0; 4])
                .put(&locator.platform_data_offset.to_be_bytes());
        }
        fields.finish(CHECKSUM)
    }
}

fn defect(field: &str, value: impl fmt::Display, rule: impl Into<String>) -> Defect {
    Defect::new(Structure::Header, field, value, rule)
}

fn parse_locator(fields: &mut FieldReader<'_, HEADER_LEN>) -> ParentLocator {
    let platform_code = PlatformCode(fields.take());
    let platform_data_space = fields.u32();
    let platform_data_length = fields.u32();
    let _reserved = fields.u32();
    let platform_data_offset = fields.u64();
    ParentLocator {
        platform_code,
        platform_data_space,
        platform_data_length,
        platform_data_offset,
    }
}

fn decode_name(bytes: &[u8; 2 * NAME_UNITS]) -> String {
    let units: Vec<u16> = bytes
        .as_chunks()
        .0
        .iter()
        .copied()
        .map(u16::from_be_bytes)
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}

/// The name as it is stored; what does not fit is cut off at a character.
fn encode_name(name: &str) -> [u8; 2 * NAME_UNITS] {
    let mut bytes = [0; 2 * NAME_UNITS];
    let mut at = 0;
    for character in name.chars() {
        let mut units = [0; 2];
        let units = character.encode_utf16(&mut units);
        if at + 2 * units.len() > bytes.len() {
            break;
        }
        for unit in units {
            bytes[at..at + 2].copy_from_slice(&unit.to_be_bytes());
            at += 2;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            parent_unicode_name: "Grüße 🎉.vhd".into(),
            parent_unique_id: Uuid::from_u128(9),
            ..Header::new(10 << 20, DEFAULT_BLOCK_SIZE, 1536)
        }
    }

    /// The field that `parse` complains about after `change`, checksum mended.
    fn refused(change: impl FnOnce(&mut [u8; HEADER_LEN])) -> String {
        let mut bytes = header().to_bytes();
        change(&mut bytes);
        let sum = checksum(&bytes, CHECKSUM);
        bytes[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
        Header::parse(&bytes).unwrap_err().field
    }

    #[test]
    fn reads_what_it_wrote() {
        assert_eq!(Header::parse(&header().to_bytes()).unwrap(), header());
    }

    #[test]
    fn refuses_by_field() {
        assert_eq!(refused(|b| b[0] = 0), "Cookie");
        assert_eq!(refused(|b| b[25] = 2), "Header Version");
        assert_eq!(refused(|b| b[16..24].fill(0)), "Table Offset");
        assert_eq!(refused(|b| b[23] = 1), "Table Offset");
        assert_eq!(refused(|b| b[28] = 1), "Max Table Entries");
        assert_eq!(refused(|b| b[33] = 0x30), "Block Size");
        assert_eq!(
            refused(|b| b[32..36].copy_from_slice(&256u32.to_be_bytes())),
            "Block Size"
        );
    }

    #[test]
    fn a_bad_checksum_is_refused() {
        let mut bytes = header().to_bytes();
        bytes[1000] ^= 1;
        assert_eq!(Header::parse(&bytes).unwrap_err().field, "Checksum");
    }

    #[test]
    fn the_table_must_cover_the_disk() {
        assert!(header().check_size(10 << 20).is_ok());
        assert_eq!(
            header().check_size((10 << 20) + 512).unwrap_err().field,
            "Max Table Entries"
        );
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        let name = "x".repeat(255) + "🎉";
        assert_eq!(decode_name(&encode_name(&name)), "x".repeat(255));
    }
}
