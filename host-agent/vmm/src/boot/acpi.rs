//! The ACPI tables: processors, the interrupt controller and the devices, for
//! kernels that know no MP table and no `virtio_mmio.device=`, as distributions
//! ship them.
//!
//! After ACPI 6.5, chapter 5, as hardware-reduced ACPI (4.1): there are no fixed
//! registers, no SCI and no 8259, and with the SCI goes the one interrupt source
//! override that a PC needs. What is left is
//!
//! ```text
//!  RSDP ── XSDT ─┬─ FADT ── DSDT    COM1, and a device for each virtio-mmio slot
//!                └─ MADT            local APICs, the IOAPIC
//! ```
//!
//! A kernel that takes virtio-mmio devices from the command line as well finds
//! each one twice. It puts ACPI's first, and those get the windows; its driver
//! says of each of the others that it "can't request region", and leaves them
//! alone. Nothing is lost by it, so both are always there.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::layout::{IOAPIC, LOCAL_APIC, MMIO_SIZE, MmioSlot};
use crate::devices::i8042;
use crate::devices::serial;

const OEM: [u8; 6] = *b"FABRIC";
const OEM_TABLE: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;

/// A table's header (5.2.6).
const HEADER_LENGTH: u32 = 36;
/// From this revision on, integers have 64 bits (5.2.11.1).
const DSDT_REVISION: u8 = 2;
/// Where tables begin; only the RSDP has to (5.2.5.1).
const ALIGNMENT: usize = 16;

// IA-PC boot architecture flags (table 5.11): all that says what is not there.
// An 8042 is not there either, as a keyboard: it is the reset register below.
const NO_VGA: u16 = 1 << 2;
const NO_MSI: u16 = 1 << 3;
const NO_RTC: u16 = 1 << 5;

/// The tables for `vcpus` processors and these virtio-mmio devices, to be put at
/// `address`, the RSDP first.
pub fn build(vcpus: u8, devices: &[MmioSlot], address: u64) -> Vec<u8> {
    let mut image = vec![0; Rsdp::len()];
    let mut append = |table: &dyn Aml| {
        image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
        let at = address + image.len() as u64;
        table.to_aml_bytes(&mut image);
        at
    };
    let dsdt = append(&dsdt(devices));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(append(&fadt(dsdt)));
    xsdt.add_entry(append(&madt(vcpus)));
    let xsdt = append(&xsdt);
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    image[..rsdp.len()].copy_from_slice(&rsdp);
    image
}

/// What the hardware can do: next to nothing, but for a reset.
fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = (NO_VGA | NO_MSI | NO_RTC).into();
    let (port, width) = (u64::from(i8042::COMMAND), 8);
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        width,
        0,
        AccessSize::ByteAccess,
        port,
    );
    fadt.reset_value = i8042::PULSE_RESET;
    fadt.finalize()
}

/// The processors and the interrupt controller.
fn madt(vcpus: u8) -> MADT {
    let address = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, address);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, IOAPIC, 0));
    madt
}

/// The devices.
fn dsdt(devices: &[MmioSlot]) -> Sdt {
    let com1 = IO::new(serial::COM1, serial::COM1, 1, serial::PORTS as u8);
    let mut found = device("COM1", &EISAName::new("PNP0501"), 0, &com1, serial::IRQ);
    for (index, slot) in (0u8..).zip(devices) {
        let name = format!("V{index:03}");
        let window = Memory32Fixed::new(true, slot.base as u32, MMIO_SIZE as u32);
        found.extend(device(&name, &"LNRO0005", index, &window, slot.irq));
    }
    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER_LENGTH,
        DSDT_REVISION,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    );
    dsdt.append_slice(&Scope::raw("\\_SB_".into(), found));
    dsdt
}

/// A device with its registers and its interrupt line, of which each event is an
/// edge. Memory is coherent to it, as to every device of a PC without a `_CCA`
/// (6.2.17).
fn device(name: &str, hid: &dyn Aml, uid: u8, registers: &dyn Aml, line: u32) -> Vec<u8> {
    let (consumer, edge, low, shared) = (true, true, false, false);
    let interrupt = Interrupt::new(consumer, edge, low, shared, line);
    let resources = ResourceTemplate::new(vec![registers, &interrupt]);
    bytes(&Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), hid),
            &Name::new("_UID".into(), &uid),
            &Name::new("_CRS".into(), &resources),
        ],
    ))
}

fn bytes(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::layout::{ACPI, HIGH_MEMORY};

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn sums_to_zero(bytes: &[u8]) -> bool {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
    }

    fn slots(count: usize) -> Vec<MmioSlot> {
        (0..count).map(|n| MmioSlot::nth(n).unwrap()).collect()
    }

    /// The table at `address`, by the length in its header.
    fn table<'a>(image: &'a [u8], address: u64, signature: &[u8; 4]) -> &'a [u8] {
        let rest = &image[usize::try_from(address - ACPI).unwrap()..];
        let table = &rest[..u32_at(rest, 4) as usize];
        assert_eq!(&table[..4], signature);
        assert!(sums_to_zero(table));
        table
    }

    /// FADT, MADT and DSDT, as a kernel finds them.
    fn walk(image: &[u8]) -> [&[u8]; 3] {
        let rsdp = &image[..36];
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((rsdp[15], u32_at(rsdp, 20)), (2, 36));
        assert!(sums_to_zero(&rsdp[..20]) && sums_to_zero(rsdp));
        let xsdt = table(image, u64_at(rsdp, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let fadt = table(image, u64_at(xsdt, 36), b"FACP");
        let madt = table(image, u64_at(xsdt, 44), b"APIC");
        [fadt, madt, table(image, u64_at(fadt, 140), b"DSDT")]
    }

    fn count(bytes: &[u8], what: &[u8]) -> usize {
        bytes.windows(what.len()).filter(|w| *w == what).count()
    }

    #[test]
    fn every_table_is_found_whole_below_high_memory() {
        for vcpus in 1..=8 {
            for devices in [0, 1, 19] {
                let image = build(vcpus, &slots(devices), ACPI);
                walk(&image);
                assert!(ACPI + image.len() as u64 <= HIGH_MEMORY);
            }
        }
    }

    #[test]
    fn the_hardware_is_reduced_and_resets_by_the_keyboard_controller() {
        let image = build(1, &[], ACPI);
        let [fadt, _, _] = walk(&image);
        let flags = u32_at(fadt, 112);
        assert_eq!(flags & (1 << 20), 1 << 20, "HW_REDUCED_ACPI");
        assert_eq!(flags & (1 << 10), 1 << 10, "RESET_REG_SUP");
        assert_eq!(fadt[109..111], [0b10_1100, 0], "no VGA, MSI, RTC");
        assert_eq!(fadt[116..120], [1, 8, 0, 1], "an I/O port of one byte");
        assert_eq!((u64_at(fadt, 120), fadt[128]), (0x64, 0xfe));
    }

    #[test]
    fn the_processors_and_the_interrupt_controller_are_named() {
        let image = build(3, &[], ACPI);
        let [_, madt, _] = walk(&image);
        assert_eq!(u32_at(madt, 36), 0xfee0_0000);
        let expected: Vec<u8> = [
            &[0, 8, 0, 0, 1, 0, 0, 0][..],
            &[0, 8, 1, 1, 1, 0, 0, 0],
            &[0, 8, 2, 2, 1, 0, 0, 0],
            &[1, 12, 3, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(madt[44..], expected);
    }

    #[test]
    fn every_slot_has_a_device_with_its_window_and_its_line() {
        let slots = slots(19);
        let image = build(1, &slots, ACPI);
        let [_, _, dsdt] = walk(&image);
        assert_eq!(count(dsdt, b"LNRO0005\0"), slots.len());
        for (index, slot) in slots.iter().enumerate() {
            assert_eq!(count(dsdt, format!("V{index:03}").as_bytes()), 1);
            let mut resources = vec![0x86, 9, 0, 1];
            resources.extend((slot.base as u32).to_le_bytes());
            resources.extend(0x1000u32.to_le_bytes());
            resources.extend([0x89, 6, 0, 0b0011, 1]);
            resources.extend(slot.irq.to_le_bytes());
            assert_eq!(count(dsdt, &resources), 1, "{slot:?}");
        }
        let com1 = [0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x89, 6, 0, 3, 1, 4];
        assert_eq!(count(dsdt, &com1), 1);
    }
}
