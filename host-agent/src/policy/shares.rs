//! What an instance may use of its node's disks and of the VMBus, by its size.
//!
//! A guest with a processor of its own has two shares for each; one on a shared core,
//! which is what little memory says, has one. So for Azure's sizes:
//!
//! | size | shares | disk | disk operations | VMBus, each way | packets | disk file |
//! |---|---|---|---|---|---|---|
//! | ExtraSmall | 1 | 32 MiB/s | 500/s | 32 MiB/s | 5,000/s | 20 GiB |
//! | Small | 2 | 64 MiB/s | 1,000/s | 64 MiB/s | 10,000/s | 40 GiB |
//! | Medium | 4 | 128 MiB/s | 2,000/s | 128 MiB/s | 20,000/s | 80 GiB |
//! | Large, A6 | 8 | 256 MiB/s | 4,000/s | 256 MiB/s | 40,000/s | 160 GiB |
//! | ExtraLarge, A7 | 16 | 512 MiB/s | 8,000/s | 512 MiB/s | 80,000/s | 320 GiB |
//!
//! After a rest a guest has at once what it otherwise has in four seconds: a boot, or
//! a start from a template, does not notice. Each disk has this much. The console
//! has 64 KiB a second, whatever the size: beyond that it is nothing to read.

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A guest with one processor and less memory than this is on a shared core.
const SHARED_CORE_BELOW_MIB: u32 = 1024;
/// How many seconds' worth there is at once.
pub const BURST_SECONDS: u64 = 4;

/// What an instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Bytes a second that a disk reads and writes.
    pub disk_bytes: u64,
    /// Requests to a disk a second.
    pub disk_operations: u64,
    /// Bytes a second over the VMBus, each way.
    pub bus_bytes: u64,
    /// Packets a second over the VMBus, each way.
    pub bus_packets: u64,
    /// Bytes a second on the console.
    pub console_bytes: u64,
    /// How large the file of its disk may become, in bytes.
    pub disk_quota: u64,
}

impl Shares {
    /// Those of a size.
    #[must_use]
    pub fn of(vcpus: u8, memory_mib: u32) -> Self {
        let shared_core = vcpus <= 1 && memory_mib < SHARED_CORE_BELOW_MIB;
        let shares = if shared_core {
            1
        } else {
            2 * u64::from(vcpus.max(1))
        };
        Self {
            disk_bytes: shares * 32 * MIB,
            disk_operations: shares * 500,
            bus_bytes: shares * 32 * MIB,
            bus_packets: shares * 5_000,
            console_bytes: 64 << 10,
            disk_quota: shares * 20 * GIB,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_shared_core_has_half_of_what_a_core_has() {
        let [extra_small, small] = [768, 1792].map(|memory| Shares::of(1, memory));
        assert_eq!(extra_small.disk_bytes * 2, small.disk_bytes);
        assert_eq!(extra_small.disk_quota, 20 * GIB);
        assert_eq!(Shares::of(8, 14336), Shares::of(8, 57344));
        assert_eq!(Shares::of(8, 14336).disk_operations, 8_000);
    }

    proptest! {
        /// More of anything is never less of something else, and nobody has nothing.
        #[test]
        fn a_larger_size_has_no_less(
            vcpus in 1_u8..8, memory in 32_u32..100_000, more in 0_u32..100_000,
        ) {
            let all = |shares: Shares| [
                shares.disk_bytes, shares.disk_operations, shares.bus_bytes,
                shares.bus_packets, shares.console_bytes, shares.disk_quota,
            ];
            let (small, large) = (Shares::of(vcpus, memory), Shares::of(vcpus + 1, memory + more));
            for (small, large) in all(small).into_iter().zip(all(large)) {
                prop_assert!(0 < small && small <= large);
            }
        }
    }
}
