//! The guest's address space as its kernel sees it: the page walk, and memory
//! by linear address.
//!
//! KVM_TRANSLATE ignores write permission, so the walk is done here: present and
//! writable at each level, CR0.WP, accessed and dirty bits set as a processor
//! does (Intel SDM volume 3, 4.5 and 4.8). Only supervisor accesses are made, so
//! the user bit, SMAP and protection keys play no part.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::kvm_sregs;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileMemory,
};

const PAGE: u64 = 0x1000;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

const FAULT_PRESENT: u32 = 1;
const FAULT_WRITE: u32 = 1 << 1;

/// Why an access was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The guest gets a page fault.
    Page {
        /// The linear address, for CR2.
        address: u64,
        /// The error code.
        code: u32,
    },
    /// The guest gets a general protection fault, error code 0.
    Protection,
    /// The address is mapped to something that is not RAM.
    NotRam {
        /// The guest-physical address.
        physical: u64,
    },
    /// The processor is in a mode whose page tables are not walked here.
    Mode,
}

/// Page table entries in physical memory.
pub trait PageTables {
    /// The entry at this address, if there is RAM.
    fn entry(&self, physical: u64) -> Option<u64>;
    /// Sets bits in the entry, atomically against the guest's own changes.
    fn set_bits(&self, physical: u64, bits: u64);
}

impl PageTables for GuestMemoryMmap {
    fn entry(&self, physical: u64) -> Option<u64> {
        self.load(GuestAddress(physical), Ordering::Acquire).ok()
    }

    fn set_bits(&self, physical: u64, bits: u64) {
        let Ok(slice) = self.get_slice(GuestAddress(physical), size_of::<u64>()) else {
            return;
        };
        if let Ok(entry) = slice.get_atomic_ref::<AtomicU64>(0) {
            entry.fetch_or(bits, Ordering::SeqCst);
        }
    }
}

/// How the processor translates addresses at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
}

impl From<&kvm_sregs> for Translation {
    fn from(sregs: &kvm_sregs) -> Translation {
        Translation {
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
        }
    }
}

impl Translation {
    /// The physical address behind a linear one, for a supervisor's access.
    ///
    /// # Errors
    ///
    /// What the guest would get instead.
    pub fn walk(&self, tables: &impl PageTables, linear: u64, write: bool) -> Result<u64, Fault> {
        if self.cr0 & CR0_PG == 0 {
            return Ok(linear);
        }
        if self.efer & EFER_LMA == 0 {
            return Err(Fault::Mode);
        }
        let levels = if self.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        if !is_canonical(linear, 12 + 9 * levels) {
            return Err(Fault::Protection);
        }
        self.descend(tables, linear, write, levels)
    }

    fn descend(
        &self,
        tables: &impl PageTables,
        linear: u64,
        write: bool,
        levels: u32,
    ) -> Result<u64, Fault> {
        let fault = |present: u32| {
            let code = present | if write { FAULT_WRITE } else { 0 };
            Err(Fault::Page {
                address: linear,
                code,
            })
        };
        let mut table = self.cr3 & ADDRESS;
        let mut writable = true;
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let at = table + ((linear >> shift) & 0x1ff) * 8;
            let Some(entry) = tables.entry(at) else {
                return Err(Fault::NotRam { physical: at });
            };
            if entry & PRESENT == 0 {
                return fault(0);
            }
            writable &= entry & WRITABLE != 0;
            let leaf = level == 0 || (level <= 2 && entry & LARGE != 0);
            if leaf && write && !writable && self.cr0 & CR0_WP != 0 {
                return fault(FAULT_PRESENT);
            }
            let bits = if leaf && write {
                ACCESSED | DIRTY
            } else {
                ACCESSED
            };
            if entry & bits != bits {
                tables.set_bits(at, bits);
            }
            if leaf {
                let offset = (1 << shift) - 1;
                return Ok((entry & ADDRESS & !offset) | (linear & offset));
            }
            table = entry & ADDRESS;
        }
        Err(Fault::Mode)
    }
}

/// Whether all bits from `bits - 1` up are equal.
fn is_canonical(linear: u64, bits: u32) -> bool {
    let unused = 64 - bits;
    (((linear << unused) as i64) >> unused) as u64 == linear
}

/// Memory by linear address, as the guest's kernel sees it.
pub trait LinearMemory {
    /// Fills `bytes` from `address` on.
    ///
    /// # Errors
    ///
    /// The fault of the first byte that cannot be read.
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Fault>;

    /// Writes `bytes` from `address` on.
    ///
    /// # Errors
    ///
    /// The fault of the first byte that cannot be written; those before it are.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault>;

    /// Puts `new` at `address`, aligned to 16, if `old` is there; gives what was
    /// there. Atomic against everything else in the machine.
    ///
    /// # Errors
    ///
    /// The fault that the access meets.
    fn compare_exchange(&self, address: u64, old: u128, new: u128) -> Result<u128, Fault>;
}

/// The linear address space of one processor at one moment.
#[derive(Debug)]
pub struct AddressSpace<'a> {
    memory: &'a GuestMemoryMmap,
    translation: Translation,
}

impl<'a> AddressSpace<'a> {
    /// The address space that these registers select.
    pub fn new(memory: &'a GuestMemoryMmap, sregs: &kvm_sregs) -> AddressSpace<'a> {
        AddressSpace {
            memory,
            translation: Translation::from(sregs),
        }
    }

    /// As many bytes from `address` on as can be read, at most all.
    pub fn read_some(&self, address: u64, bytes: &mut [u8]) -> usize {
        (1..=bytes.len())
            .rev()
            .find(|n| self.read(address, &mut bytes[..*n]).is_ok())
            .unwrap_or(0)
    }

    /// The physical pieces, none crossing a page, of `length` bytes.
    fn pieces(
        &self,
        address: u64,
        length: usize,
        write: bool,
    ) -> impl Iterator<Item = Result<(GuestAddress, std::ops::Range<usize>), Fault>> + '_ {
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == length {
                return None;
            }
            let linear = address.wrapping_add(done as u64);
            let in_page = (PAGE - linear % PAGE) as usize;
            let range = done..length.min(done + in_page);
            done = range.end;
            let physical = self.translation.walk(self.memory, linear, write);
            Some(physical.map(|physical| (GuestAddress(physical), range)))
        })
    }
}

impl LinearMemory for AddressSpace<'_> {
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        for piece in self.pieces(address, bytes.len(), false) {
            let (physical, range) = piece?;
            let not_ram = |_| Fault::NotRam {
                physical: physical.0,
            };
            self.memory
                .read_slice(&mut bytes[range], physical)
                .map_err(not_ram)?;
        }
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        for piece in self.pieces(address, bytes.len(), true) {
            let (physical, range) = piece?;
            let not_ram = |_| Fault::NotRam {
                physical: physical.0,
            };
            self.memory
                .write_slice(&bytes[range], physical)
                .map_err(not_ram)?;
        }
        Ok(())
    }

    fn compare_exchange(&self, address: u64, old: u128, new: u128) -> Result<u128, Fault> {
        if !address.is_multiple_of(16) {
            return Err(Fault::Protection);
        }
        let physical = self.translation.walk(self.memory, address, true)?;
        let not_ram = Fault::NotRam { physical };
        let region = self
            .memory
            .find_region(GuestAddress(physical))
            .ok_or(not_ram)?;
        let end = physical.checked_add(16).ok_or(not_ram)?;
        if end - 1 > region.last_addr().0 || !is_x86_feature_detected!("cmpxchg16b") {
            return Err(not_ram);
        }
        let host = self
            .memory
            .get_host_address(GuestAddress(physical))
            .map_err(|_| not_ram)?;
        // SAFETY: the 16 bytes at `host` lie in one mapped region, which was just
        // checked, and are aligned, for the page is and `address` is. The guest
        // and its devices access them too, but as raw memory, and this access is
        // atomic. The processor has the instruction.
        Ok(unsafe { compare_exchange_16(host.cast(), old, new) })
    }
}

/// A LOCK CMPXCHG16B on the host.
///
/// # Safety
///
/// `target` must be aligned to 16 and point to 16 bytes that may be read and
/// written; the processor must have the instruction.
unsafe fn compare_exchange_16(target: *mut u128, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller promises the target and the instruction. RBX belongs to
    // the compiler, so it is exchanged in and out around it; the target has a
    // register of its own, for any that the compiler chose might be RBX.
    unsafe {
        std::arch::asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new as u64 => _,
            in("rdi") target,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    (u128::from(high) << 64) | u128::from(low)
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;

    /// Page tables that are nothing but their entries.
    #[derive(Default)]
    struct Fake(RefCell<BTreeMap<u64, u64>>);

    impl PageTables for Fake {
        fn entry(&self, physical: u64) -> Option<u64> {
            (physical < 0x10_0000).then(|| self.0.borrow().get(&physical).copied().unwrap_or(0))
        }

        fn set_bits(&self, physical: u64, bits: u64) {
            *self.0.borrow_mut().entry(physical).or_default() |= bits;
        }
    }

    impl Fake {
        fn get(&self, physical: u64) -> u64 {
            self.entry(physical).unwrap()
        }
    }

    const LINEAR: u64 = 0xffff_8880_0123_4567;

    fn index(level: u64) -> u64 {
        ((LINEAR >> (12 + 9 * level)) & 0x1ff) * 8
    }

    /// Four levels of tables at 0x1000, 0x2000, ..., the page at 0x5000.
    fn four_levels(leaf_flags: u64) -> Fake {
        let tables = Fake::default();
        for (table, level) in [(1, 3), (2, 2), (3, 1)] {
            let next = (table + 1) * PAGE;
            tables.set_bits(table * PAGE + index(level), next | PRESENT | WRITABLE);
        }
        tables.set_bits(0x4000 + index(0), 0x5000 | leaf_flags);
        tables
    }

    fn translation() -> Translation {
        Translation {
            cr0: CR0_PG | CR0_WP,
            cr3: 0x1000 | 0x7,
            cr4: 0x20,
            efer: EFER_LMA,
        }
    }

    #[test]
    fn a_mapped_address_is_found_and_marked_as_accessed() {
        let tables = four_levels(PRESENT);
        assert_eq!(translation().walk(&tables, LINEAR, false), Ok(0x5567));
        assert_eq!(tables.get(0x4000 + index(0)) & (ACCESSED | DIRTY), ACCESSED);
        assert_eq!(tables.get(0x1000 + index(3)) & ACCESSED, ACCESSED);
    }

    #[test]
    fn a_write_marks_the_page_alone_as_dirty() {
        let tables = four_levels(PRESENT | WRITABLE);
        assert_eq!(translation().walk(&tables, LINEAR, true), Ok(0x5567));
        assert_eq!(tables.get(0x4000 + index(0)) & DIRTY, DIRTY);
        assert_eq!(tables.get(0x3000 + index(1)) & DIRTY, 0);
    }

    #[test]
    fn a_write_to_a_read_only_page_faults_unless_the_kernel_may_write_anywhere() {
        let tables = four_levels(PRESENT);
        let fault = Fault::Page {
            address: LINEAR,
            code: 3,
        };
        assert_eq!(translation().walk(&tables, LINEAR, true), Err(fault));
        assert_eq!(tables.get(0x4000 + index(0)) & DIRTY, 0);
        let lenient = Translation {
            cr0: CR0_PG,
            ..translation()
        };
        assert_eq!(lenient.walk(&tables, LINEAR, true), Ok(0x5567));
    }

    #[test]
    fn what_is_not_there_faults_with_the_right_code() {
        let tables = four_levels(0);
        let fault = |code| {
            Err(Fault::Page {
                address: LINEAR,
                code,
            })
        };
        assert_eq!(translation().walk(&tables, LINEAR, false), fault(0));
        assert_eq!(translation().walk(&tables, LINEAR, true), fault(2));
    }

    #[test]
    fn large_pages_end_the_walk_early() {
        let tables = four_levels(PRESENT);
        tables
            .0
            .borrow_mut()
            .insert(0x3000 + index(1), 0x4000_0000 | PRESENT | WRITABLE | LARGE);
        let found = translation().walk(&tables, LINEAR, true).unwrap();
        assert_eq!(found, 0x4000_0000 | (LINEAR & 0x1f_ffff));
        tables
            .0
            .borrow_mut()
            .insert(0x2000 + index(2), 0x8000_0000 | PRESENT | LARGE);
        let found = translation().walk(&tables, LINEAR, false).unwrap();
        assert_eq!(found, 0x8000_0000 | (LINEAR & 0x3fff_ffff));
    }

    #[test]
    fn five_levels_are_walked_where_the_processor_does() {
        let tables = four_levels(PRESENT);
        let top = ((LINEAR >> 48) & 0x1ff) * 8;
        tables.set_bits(0x6000 + top, 0x1000 | PRESENT);
        let five = Translation {
            cr3: 0x6000,
            cr4: CR4_LA57,
            ..translation()
        };
        assert_eq!(five.walk(&tables, LINEAR, false), Ok(0x5567));
    }

    #[test]
    fn strange_addresses_and_modes_are_told_apart() {
        let tables = four_levels(PRESENT);
        let four = translation();
        assert_eq!(
            four.walk(&tables, 0x0000_8000_0000_0000, false),
            Err(Fault::Protection)
        );
        let wild = Translation {
            cr3: 0x80_0000_0000,
            ..four
        };
        assert!(matches!(
            wild.walk(&tables, LINEAR, false),
            Err(Fault::NotRam { .. })
        ));
        assert_eq!(
            Translation { efer: 0, ..four }.walk(&tables, LINEAR, false),
            Err(Fault::Mode)
        );
        assert_eq!(
            Translation { cr0: 1, ..four }.walk(&tables, 0x1234, true),
            Ok(0x1234)
        );
    }

    /// A guest with 64 KiB mapped to itself, page 3 read-only, page 15 absent.
    pub fn small_guest() -> (GuestMemoryMmap, kvm_sregs) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap();
        for (at, next) in [
            (0x1_0000, 0x1_1000u64),
            (0x1_1000, 0x1_2000),
            (0x1_2000, 0x1_3000),
        ] {
            memory
                .write_obj(next | PRESENT | WRITABLE, GuestAddress(at))
                .unwrap();
        }
        for page in 0..16u64 {
            let flags = match page {
                3 => PRESENT,
                15 => 0,
                _ => PRESENT | WRITABLE,
            };
            let at = GuestAddress(0x1_3000 + page * 8);
            memory.write_obj((page * PAGE) | flags, at).unwrap();
        }
        let sregs = kvm_sregs {
            cr0: CR0_PG | CR0_WP,
            cr3: 0x1_0000,
            cr4: 0x20,
            efer: EFER_LMA,
            ..kvm_sregs::default()
        };
        (memory, sregs)
    }

    #[test]
    fn accesses_cross_pages_and_stop_at_the_first_that_faults() {
        let (memory, sregs) = small_guest();
        let space = AddressSpace::new(&memory, &sregs);
        space.write(0x1ffc, b"boundary").unwrap();
        let mut bytes = [0; 8];
        space.read(0x1ffc, &mut bytes).unwrap();
        assert_eq!(&bytes, b"boundary");

        let fault = Fault::Page {
            address: 0x3000,
            code: 3,
        };
        assert_eq!(space.write(0x2ffc, b"boundary"), Err(fault));
        let fault = Fault::Page {
            address: 0xf000,
            code: 0,
        };
        assert_eq!(space.read(0xeffc, &mut bytes), Err(fault));
        assert_eq!(space.read_some(0xeffc, &mut bytes), 4);
    }

    #[test]
    fn sixteen_bytes_are_exchanged_only_against_what_was_expected() {
        let (memory, sregs) = small_guest();
        let space = AddressSpace::new(&memory, &sregs);
        let value = 0x1111_2222_3333_4444_5555_6666_7777_8888u128;
        assert_eq!(space.compare_exchange(0x4010, 0, value), Ok(0));
        assert_eq!(space.compare_exchange(0x4010, 0, 7), Ok(value));
        assert_eq!(
            memory.read_obj::<u128>(GuestAddress(0x4010)).unwrap(),
            value
        );
        assert_eq!(space.compare_exchange(0x4008, 0, 7), Err(Fault::Protection));
        let fault = Fault::Page {
            address: 0x3000,
            code: 3,
        };
        assert_eq!(space.compare_exchange(0x3000, 0, 7), Err(fault));
    }
}
