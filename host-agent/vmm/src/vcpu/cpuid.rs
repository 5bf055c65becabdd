//! What CPUID tells the guest: what KVM supports, with this machine's topology.
//!
//! Some KVMs ignore what is set for leaves 1, 7 and 0xD. So nothing is hidden
//! here; where a guest must not use a feature, its command line says so.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HYPER_THREADING: u32 = 1 << 28;

/// A level of the topology leaves.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// Makes the entries those of virtual CPU `id` of `vcpus`, each a core of its
/// own in one package.
pub fn describe(cpuid: &mut CpuId, id: u8, vcpus: u8) {
    for entry in cpuid.as_mut_slice() {
        describe_entry(entry, u32::from(id), u32::from(vcpus));
    }
}

fn describe_entry(entry: &mut kvm_cpuid_entry2, id: u32, vcpus: u32) {
    match entry.function {
        // Feature information: bytes 2 and 3 of EBX count and number processors.
        0x1 => {
            entry.ebx = (entry.ebx & 0xffff) | (vcpus << 16) | (id << 24);
            entry.ecx |= HYPERVISOR | TSC_DEADLINE;
            entry.edx &= !HYPER_THREADING;
            if vcpus > 1 {
                entry.edx |= HYPER_THREADING;
            }
        }
        // Caches: each core has its own, but for the last level.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 0x7;
            let sharing = if level >= 3 { vcpus - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | ((vcpus - 1) << 26);
        }
        // Performance counters: none.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // Topology.
        0xb | 0x1f => {
            let (shift, count, level) = match entry.index {
                0 => (0, 1, LEVEL_THREAD),
                1 => (
                    vcpus.next_power_of_two().trailing_zeros(),
                    vcpus,
                    LEVEL_CORE,
                ),
                _ => (0, 0, 0),
            };
            (entry.eax, entry.ebx, entry.edx) = (shift, count, id);
            entry.ecx = level | (entry.index & 0xff);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..kvm_cpuid_entry2::default()
        }
    }

    #[test]
    fn each_processor_is_numbered() {
        let mut feature = entry(1, 0);
        feature.ebx = 0xaabb_1234;
        describe_entry(&mut feature, 2, 3);
        assert_eq!(feature.ebx, 0x0203_1234);
        assert_eq!(
            feature.ecx & (HYPERVISOR | TSC_DEADLINE),
            HYPERVISOR | TSC_DEADLINE
        );
        assert_eq!(feature.edx & HYPER_THREADING, HYPER_THREADING);
        describe_entry(&mut feature, 0, 1);
        assert_eq!(feature.edx & HYPER_THREADING, 0);
    }

    #[test]
    fn the_topology_is_one_thread_a_core() {
        let mut cores = entry(0xb, 1);
        describe_entry(&mut cores, 5, 6);
        assert_eq!(
            (cores.eax, cores.ebx, cores.ecx, cores.edx),
            (3, 6, 0x201, 5)
        );
        let mut threads = entry(0xb, 0);
        describe_entry(&mut threads, 5, 6);
        assert_eq!(
            (threads.eax, threads.ebx, threads.ecx, threads.edx),
            (0, 1, 0x100, 5)
        );
    }
}
