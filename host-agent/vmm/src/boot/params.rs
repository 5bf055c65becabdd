//! The boot parameters, the "zero page": what the kernel is told about the
//! machine (Documentation/arch/x86/zero-page.rst).

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use super::layout::{ACPI, CMDLINE, EBDA, HIGH_MEMORY};
use crate::memory;

/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;

/// Where the initial RAM disk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitrdPlace {
    /// Its first byte.
    pub address: u32,
    /// Its length in bytes.
    pub length: u32,
}

/// The boot parameters for a guest with `memory_size` bytes of memory, as bytes.
pub fn build(
    setup: setup_header,
    memory_size: u64,
    cmdline_length: usize,
    initrd: Option<InitrdPlace>,
) -> Vec<u8> {
    let mut params = boot_params {
        hdr: setup,
        acpi_rsdp_addr: ACPI,
        ..boot_params::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_length as u32;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.address;
        params.hdr.ramdisk_size = initrd.length;
    }
    let map = e820(memory_size);
    params.e820_entries = map.len() as u8;
    for (entry, (addr, size)) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr,
            size,
            r#type: E820_RAM,
        };
    }
    params.as_slice().to_vec()
}

/// The RAM that the kernel may use: address and length of each run.
fn e820(memory_size: u64) -> Vec<(u64, u64)> {
    let mut map = vec![(0, EBDA)];
    for (start, length) in memory::ranges(memory_size) {
        let usable = start.max(HIGH_MEMORY);
        map.push((usable, start + length - usable));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_leaves_out_the_legacy_hole_and_the_gap() {
        const GIB: u64 = 1 << 30;
        assert_eq!(e820(128 << 20), [(0, 0x9fc00), (1 << 20, 127 << 20)]);
        assert_eq!(
            e820(6 * GIB),
            [
                (0, 0x9fc00),
                (1 << 20, 3 * GIB - (1 << 20)),
                (4 * GIB, 3 * GIB)
            ]
        );
    }

    #[test]
    fn the_fields_lie_where_the_protocol_says() {
        let setup = setup_header {
            boot_flag: 0xaa55,
            ..setup_header::default()
        };
        let initrd = InitrdPlace {
            address: 0x0700_0000,
            length: 0x1234,
        };
        let page = build(setup, 128 << 20, 77, Some(initrd));
        assert_eq!(page.len(), 4096);
        let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        assert_eq!(u32_at(0x70), 0xe_0000);
        assert_eq!(page[0x1e8], 2);
        assert_eq!(&page[0x1fe..0x200], &[0x55, 0xaa]);
        assert_eq!(page[0x210], 0xff);
        assert_eq!((u32_at(0x218), u32_at(0x21c)), (0x0700_0000, 0x1234));
        assert_eq!((u32_at(0x228), u32_at(0x238)), (0x2_0000, 77));
        assert_eq!(u32_at(0x2d0 + 20), 1 << 20);
    }
}
