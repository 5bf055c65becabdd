//! Where things lie in the guest's memory and among its interrupt lines when it
//! starts.

/// The global descriptor table.
pub const GDT: u64 = 0x500;
/// The Linux boot parameters, the "zero page".
pub const BOOT_PARAMS: u64 = 0x7000;
/// The top of the stack that the kernel starts on.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The first of the page tables: one PML4, one PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The longest command line, its NUL included (`COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2048;
/// Where conventional memory ends and the extended BIOS data area begins, with
/// the MP table in it.
pub const EBDA: u64 = 0x9_fc00;
/// The ACPI tables, the RSDP first: where firmware for PCs puts it (ACPI 6.5,
/// 5.2.5.1), and where the memory map names no RAM.
pub const ACPI: u64 = 0xe_0000;
/// Where RAM goes on above the legacy hole.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// The interrupt controllers, where every PC has them.
pub const IOAPIC: u32 = 0xfec0_0000;
/// See [`IOAPIC`].
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// The task state segment that KVM needs on Intel, three pages nobody else has.
pub const KVM_TSS: usize = 0xfffb_d000;

/// The first virtio-mmio window.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// The size of one.
pub const MMIO_SIZE: u64 = 0x1000;
/// The interrupt line of the first virtio-mmio device.
pub const IRQ_BASE: u32 = 5;
/// The last line of the interrupt controller.
pub const IRQ_LAST: u32 = 23;

/// A virtio-mmio device's place: window and interrupt line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioSlot {
    /// Where the window begins.
    pub base: u64,
    /// The interrupt line.
    pub irq: u32,
}

impl MmioSlot {
    /// The place of the `index`th device, if there is one.
    pub fn nth(index: usize) -> Option<MmioSlot> {
        let index = u32::try_from(index).ok()?;
        let irq = IRQ_BASE.checked_add(index).filter(|irq| *irq <= IRQ_LAST)?;
        Some(MmioSlot {
            base: MMIO_BASE + u64::from(index) * MMIO_SIZE,
            irq,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DISKS_MAX;

    #[test]
    fn every_disk_and_the_vsock_have_a_place() {
        assert_eq!(
            MmioSlot::nth(0),
            Some(MmioSlot {
                base: 0xd000_0000,
                irq: 5
            })
        );
        assert_eq!(
            MmioSlot::nth(2),
            Some(MmioSlot {
                base: 0xd000_2000,
                irq: 7
            })
        );
        assert!(MmioSlot::nth(DISKS_MAX).is_some());
        assert_eq!(MmioSlot::nth(19), None);
        assert_eq!(MmioSlot::nth(usize::MAX), None);
    }
}
