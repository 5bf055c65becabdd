//! The MP table: processors, the interrupt controller and its lines, for
//! kernels that boot without ACPI.
//!
//! After the MultiProcessor Specification 1.4, chapter 4: a floating pointer
//! structure, then a header, then entries of fixed size.

use super::layout::{IOAPIC, IRQ_LAST, LOCAL_APIC};

const SPEC_1_4: u8 = 4;
const POINTER_LENGTH: usize = 16;
const HEADER_LENGTH: usize = 44;
const CHECKSUM_IN_POINTER: usize = 10;
const CHECKSUM_IN_HEADER: usize = 7;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const APIC_VERSION: u8 = 0x14;
/// Family 6; the kernel asks CPUID for more.
const SIGNATURE: u32 = 0x600;
/// An APIC and a floating point unit.
const FEATURES: u32 = 0x201;

const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const EVERY_APIC: u8 = 0xff;

/// The table for `vcpus` processors, to be put at `address`.
pub fn build(vcpus: u8, address: u64) -> Vec<u8> {
    let (entries, count) = entries(vcpus);
    let mut header = Vec::with_capacity(HEADER_LENGTH + entries.len());
    header.extend(b"PCMP");
    header.extend(((HEADER_LENGTH + entries.len()) as u16).to_le_bytes());
    header.extend([SPEC_1_4, 0]);
    header.extend(b"FABRIC  ");
    header.extend(b"MICROVM     ");
    header.extend([0; 6]); // no OEM table
    header.extend(count.to_le_bytes());
    header.extend(LOCAL_APIC.to_le_bytes());
    header.extend([0; 4]); // no extended table
    header.extend(entries);
    header[CHECKSUM_IN_HEADER] = checksum(&header);

    let mut table = Vec::with_capacity(POINTER_LENGTH + header.len());
    table.extend(b"_MP_");
    table.extend((address as u32 + POINTER_LENGTH as u32).to_le_bytes());
    table.extend([(POINTER_LENGTH / 16) as u8, SPEC_1_4]);
    table.extend([0; 6]);
    table[CHECKSUM_IN_POINTER] = checksum(&table);
    table.extend(header);
    table
}

/// The entries and how many they are.
fn entries(vcpus: u8) -> (Vec<u8>, u16) {
    let mut bytes = Vec::new();
    let mut count = 0;
    let mut entry = |entry: &[u8]| {
        bytes.extend(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = if id == 0 {
            ENABLED | BOOT_PROCESSOR
        } else {
            ENABLED
        };
        let mut processor = vec![PROCESSOR, id, APIC_VERSION, flags];
        processor.extend(SIGNATURE.to_le_bytes());
        processor.extend(FEATURES.to_le_bytes());
        processor.extend([0; 8]);
        entry(&processor);
    }
    let isa = 0;
    let io_apic = vcpus;
    entry(&[BUS, isa, b'I', b'S', b'A', b' ', b' ', b' ']);
    let mut controller = vec![IO_APIC, io_apic, 0x11, ENABLED];
    controller.extend(IOAPIC.to_le_bytes());
    entry(&controller);
    for line in 0..=IRQ_LAST as u8 {
        entry(&[IO_INTERRUPT, INT, 0, 0, isa, line, io_apic, line]);
    }
    entry(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, isa, 0, 0, 0]);
    entry(&[LOCAL_INTERRUPT, NMI, 0, 0, isa, 0, EVERY_APIC, 1]);
    (bytes, count)
}

/// The byte that makes the sum of `bytes`, with zero in its own place, zero.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums_to_zero(bytes: &[u8]) -> bool {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
    }

    #[test]
    fn both_structures_sum_to_zero_and_point_right() {
        for vcpus in 1..=8 {
            let table = build(vcpus, 0x9_fc00);
            let (pointer, header) = table.split_at(16);
            assert!(sums_to_zero(pointer) && sums_to_zero(header));
            assert_eq!(&pointer[4..8], &0x9_fc10u32.to_le_bytes());
            assert_eq!(
                usize::from(u16::from_le_bytes([header[4], header[5]])),
                header.len()
            );
            assert!(table.len() <= 1024, "fits below 640 KiB");
        }
    }

    #[test]
    fn the_entries_are_counted_and_walkable() {
        let table = build(3, 0x9_fc00);
        let header = &table[16..];
        let count = u16::from_le_bytes([header[34], header[35]]);
        let mut at = HEADER_LENGTH;
        let mut processors = Vec::new();
        for _ in 0..count {
            if header[at] == PROCESSOR {
                processors.push((header[at + 1], header[at + 3]));
            }
            at += if header[at] == PROCESSOR { 20 } else { 8 };
        }
        assert_eq!(at, header.len());
        assert_eq!(processors, [(0, 3), (1, 1), (2, 1)]);
    }
}
