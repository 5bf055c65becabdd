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
    /// Its part of the processors where others want them too, against theirs, as cgroup
    /// v2's `cpu.weight`; 0 for 100 for each virtual processor.
    #[serde(default)]
    pub cpu_weight: u32,
}

/// What a guest can have for [`Size::cpu_weight`] (admin-guide/cgroup-v2.rst).
pub const CPU_WEIGHT: std::ops::RangeInclusive<u32> = 1..=10_000;

/// Azure's sizes, smallest first. ExtraSmall's one processor is a shared core: where
/// others want it, it has half of what the next size has.
pub const AZURE: [(&str, Size); 7] = [
    (
        "ExtraSmall",
        Size {
            vcpus: 1,
            memory_bytes: 768 * MIB,
            cpu_weight: 50,
        },
    ),
    (
        "Small",
        Size {
            vcpus: 1,
            memory_bytes: 1792 * MIB,
            cpu_weight: 0,
        },
    ),
    (
        "Medium",
        Size {
            vcpus: 2,
            memory_bytes: 3584 * MIB,
            cpu_weight: 0,
        },
    ),
    (
        "Large",
        Size {
            vcpus: 4,
            memory_bytes: 7168 * MIB,
            cpu_weight: 0,
        },
    ),
    (
        "ExtraLarge",
        Size {
            vcpus: 8,
            memory_bytes: 14336 * MIB,
            cpu_weight: 0,
        },
    ),
    (
        "A6",
        Size {
            vcpus: 4,
            memory_bytes: 28 * 1024 * MIB,
            cpu_weight: 0,
        },
    ),
    (
        "A7",
        Size {
            vcpus: 8,
            memory_bytes: 56 * 1024 * MIB,
            cpu_weight: 0,
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
                memory_bytes: 1792 * MIB,
                cpu_weight: 0,
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
