//! "Parent Locator": where other tools look for the parent of a differencing
//! disk.
//!
//! This crate writes locators and shows them. It never opens what one points
//! to: whoever made the image could have written any path there.

use std::fmt;
use std::path::{Component, Path};

use serde::Serialize;

use crate::device::SECTOR_SIZE;

/// Entries in a header.
pub const LOCATORS: usize = 8;

/// Most bytes of a locator that are read, well above the longest path.
pub const MAX_LOCATOR_LEN: u32 = 64 << 10;

/// "Platform Code".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlatformCode(pub [u8; 4]);

impl PlatformCode {
    /// No locator in this entry.
    pub const NONE: Self = Self([0; 4]);
    /// Windows path relative to the child, UTF-16, little-endian.
    pub const W2RU: Self = Self(*b"W2ru");
    /// Absolute Windows path, UTF-16, little-endian.
    pub const W2KU: Self = Self(*b"W2ku");
    /// File URL, UTF-8.
    pub const MAC_X: Self = Self(*b"MacX");
}

impl fmt::Display for PlatformCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.escape_ascii().to_string())
    }
}

impl Serialize for PlatformCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// "Parent Locator Entry", 24 bytes of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ParentLocator {
    /// "Platform Code", 4 bytes.
    pub platform_code: PlatformCode,
    /// "Platform Data Space", 4 bytes: room for the locator. The specification
    /// counts sectors, Microsoft's own tools write bytes.
    pub platform_data_space: u32,
    /// "Platform Data Length", 4 bytes: bytes of the locator.
    pub platform_data_length: u32,
    /// "Platform Data Offset", 8 bytes: where in the file it is.
    pub platform_data_offset: u64,
}

impl ParentLocator {
    /// The entry that points nowhere.
    pub const NONE: Self = Self {
        platform_code: PlatformCode::NONE,
        platform_data_space: 0,
        platform_data_length: 0,
        platform_data_offset: 0,
    };

    /// An entry for `length` bytes stored at `offset`.
    #[must_use]
    pub fn new(platform_code: PlatformCode, length: u32, offset: u64) -> Self {
        Self {
            platform_code,
            platform_data_space: length.div_ceil(SECTOR_SIZE as u32),
            platform_data_length: length,
            platform_data_offset: offset,
        }
    }

    /// Whether the entry points anywhere.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.platform_code != PlatformCode::NONE
    }

    /// Bytes of the file that belong to the locator, at least its length.
    #[must_use]
    pub fn space(&self) -> u64 {
        let space = u64::from(self.platform_data_space);
        let bytes = if space < SECTOR_SIZE {
            space * SECTOR_SIZE
        } else {
            space
        };
        bytes.max(u64::from(self.platform_data_length))
    }

    /// The locator's data as text, if its platform code is known.
    #[must_use]
    pub fn decode(&self, data: &[u8]) -> Option<String> {
        match self.platform_code {
            PlatformCode::W2RU | PlatformCode::W2KU => {
                let units: Vec<u16> = data
                    .as_chunks()
                    .0
                    .iter()
                    .copied()
                    .map(u16::from_le_bytes)
                    .collect();
                Some(
                    String::from_utf16_lossy(&units)
                        .trim_end_matches('\0')
                        .to_owned(),
                )
            }
            PlatformCode::MAC_X => Some(String::from_utf8_lossy(data).into_owned()),
            _ => None,
        }
    }
}

/// The data of a `W2ku` or `W2ru` locator.
#[must_use]
pub fn encode_windows(path: &str) -> Vec<u8> {
    path.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// The data of a `W2ru` locator: the way from the folder `from` to the file
/// `to`, both absolute, as Windows writes it: `.\base.vhd`, `..\base.vhd`.
#[must_use]
pub fn relative_windows_path(from: &Path, to: &Path) -> String {
    let names = |path: &Path| -> Vec<String> {
        path.components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
                _ => None,
            })
            .collect()
    };
    let (from, to) = (names(from), names(to));
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let ups = from.len() - shared;
    let first = if ups == 0 { vec!["."] } else { vec![".."; ups] };
    let rest = to[shared..].iter().map(String::as_str);
    first.into_iter().chain(rest).collect::<Vec<_>>().join("\\")
}

/// The data of a `W2ku` locator for an absolute path: its slashes turned. It
/// has no drive letter, which readers on this system do not need.
#[must_use]
pub fn absolute_windows_path(path: &Path) -> String {
    path.to_string_lossy().replace('/', "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(from: &str, to: &str) -> String {
        relative_windows_path(Path::new(from), Path::new(to))
    }

    #[test]
    fn relative_paths_start_at_the_childs_folder() {
        assert_eq!(relative("/disks", "/disks/base.vhd"), ".\\base.vhd");
        assert_eq!(relative("/disks/a", "/disks/base.vhd"), "..\\base.vhd");
        assert_eq!(
            relative("/a/b", "/images/base.vhd"),
            "..\\..\\images\\base.vhd"
        );
        assert_eq!(relative("/", "/base.vhd"), ".\\base.vhd");
    }

    #[test]
    fn text_survives_encoding() {
        let data = encode_windows(".\\Grüße 🎉.vhd");
        let entry = ParentLocator::new(PlatformCode::W2RU, data.len() as u32, 0);
        assert_eq!(entry.decode(&data).unwrap(), ".\\Grüße 🎉.vhd");
    }

    #[test]
    fn space_counts_sectors_or_bytes() {
        let entry = |platform_data_space| ParentLocator {
            platform_data_space,
            ..ParentLocator::new(PlatformCode::W2RU, 20, 0)
        };
        assert_eq!(entry(1).space(), 512);
        assert_eq!(entry(512).space(), 512);
        assert_eq!(entry(0).space(), 20);
    }
}
