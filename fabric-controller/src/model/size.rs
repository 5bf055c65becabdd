//! Instance sizes: Azure's table, and the shape of an operator's own.

use serde::{Deserialize, Serialize};

/// Fewest and most virtual processors of a guest.
pub const VCPUS: std::ops::RangeInclusive<u32> = 1..=8;

/// One MiB, in bytes: the unit in which guests have memory.
pub const MIB: u64 = 1 << 20;

/// Least and most memory of a guest, in bytes.
pub const MEMORY: std::ops::RangeInclusive<u64> = 32 * MIB..=256 * 1024 * MIB;

/// What an instance is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, in bytes; a multiple of 1 MiB.
    pub memory_bytes: u64,
}

/// Azure's sizes, smallest first. ExtraSmall's one processor is a shared core.
pub const AZURE: [(&str, Size); 7] = [
    (
        "ExtraSmall",
        Size {
            vcpus: 1,
            memory_bytes: 768 * MIB,
        },
    ),
    (
        "Small",
        Size {
            vcpus: 1,
            memory_bytes: 1792 * MIB,
        },
    ),
    (
        "Medium",
        Size {
            vcpus: 2,
            memory_bytes: 3584 * MIB,
        },
    ),
    (
        "Large",
        Size {
            vcpus: 4,
            memory_bytes: 7168 * MIB,
        },
    ),
    (
        "ExtraLarge",
        Size {
            vcpus: 8,
            memory_bytes: 14336 * MIB,
        },
    ),
    (
        "A6",
        Size {
            vcpus: 4,
            memory_bytes: 28 * 1024 * MIB,
        },
    ),
    (
        "A7",
        Size {
            vcpus: 8,
            memory_bytes: 56 * 1024 * MIB,
        },
    ),
];

/// The size of that name in Azure's table.
#[must_use]
pub fn azure(name: &str) -> Option<Size> {
    AZURE
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, size)| *size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azures_sizes_are_what_azure_documented() {
        assert_eq!(
            azure("Small"),
            Some(Size {
                vcpus: 1,
                memory_bytes: 1792 * MIB
            })
        );
        assert_eq!(azure("A7").unwrap().memory_bytes, 56 << 30);
        assert_eq!(azure("small"), None);
    }

    #[test]
    fn every_size_is_one_that_a_guest_can_have() {
        for (name, size) in AZURE {
            assert!(VCPUS.contains(&size.vcpus), "{name}");
            assert!(MEMORY.contains(&size.memory_bytes), "{name}");
            assert_eq!(size.memory_bytes % MIB, 0, "{name}");
        }
    }
}
