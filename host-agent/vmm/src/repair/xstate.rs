//! XSAVE areas: what the XSAVE family writes and XRSTOR reads, as functions on
//! bytes.
//!
//! After the Intel SDM volume 1, 13.4 and 13.7 to 13.13. The processor's own
//! state comes and goes in KVM's form, the standard (not compacted) format of
//! 4 KiB, with XSTATE_BV saying which components are not in their initial state.

use std::arch::x86_64::__cpuid_count;

use super::paging::{Fault, LinearMemory};

/// The size of KVM's form of the state.
pub const KVM_XSAVE_SIZE: usize = 4096;
/// The processor's extended state in KVM's form.
pub type KvmXsave = [u8; KVM_XSAVE_SIZE];

const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// The components that lie where FXSAVE put them.
const LEGACY: u64 = X87 | SSE;
const COMPACTED: u64 = 1 << 63;

const MXCSR: std::ops::Range<usize> = 24..28;
const MXCSR_AND_MASK: std::ops::Range<usize> = 24..32;
const XMM: std::ops::Range<usize> = 160..416;
const HEADER: usize = 512;
const HEADER_SIZE: usize = 64;
const EXTENDED: usize = HEADER + HEADER_SIZE;

const MXCSR_INITIAL: u32 = 0x1f80;
const MXCSR_RESERVED: u32 = 0xffff_0000;
const FCW_INITIAL: u16 = 0x037f;

/// Which instruction of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveForm {
    /// XSAVE: every requested component, standard format.
    Standard,
    /// XSAVEOPT: those not in their initial state, standard format.
    Optimised,
    /// XSAVEC and XSAVES: those not in their initial state, compacted format.
    Compacted,
}

/// Where one component lies, by CPUID leaf 0xD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    /// Its number, which is its bit in XCR0.
    pub number: u32,
    /// Its offset in the standard format.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
    /// Whether it is aligned to 64 bytes in the compacted format.
    pub aligned: bool,
}

/// Where each component from number 2 up lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    components: Vec<Component>,
}

impl Layout {
    /// This processor's layout. CPUID is slow in a nested machine: ask once.
    pub fn of_host() -> Layout {
        let components = (2..63).filter_map(|number| {
            let leaf = __cpuid_count(0xd, number);
            let (size, offset) = (leaf.eax as usize, leaf.ebx as usize);
            let supervisor = leaf.ecx & 1 != 0;
            let in_kvms_form = size != 0 && offset + size <= KVM_XSAVE_SIZE;
            let aligned = leaf.ecx & 2 != 0;
            (!supervisor && in_kvms_form).then_some(Component {
                number,
                offset,
                size,
                aligned,
            })
        });
        Layout {
            components: components.collect(),
        }
    }

    /// The components in `mask`, each with its offset in an area of the format
    /// that `compaction` (XCOMP_BV) says.
    fn places(&self, mask: u64, compaction: u64) -> impl Iterator<Item = (Component, usize)> + '_ {
        let mut next = EXTENDED;
        self.components.iter().filter_map(move |component| {
            let bit = 1 << component.number;
            let place = if compaction & COMPACTED == 0 {
                component.offset
            } else {
                if compaction & bit == 0 {
                    return None;
                }
                let place = if component.aligned {
                    next.next_multiple_of(64)
                } else {
                    next
                };
                next = place + component.size;
                place
            };
            (mask & bit != 0).then_some((*component, place))
        })
    }
}

/// Carries out XSAVE, XSAVEOPT, XSAVEC or XSAVES.
///
/// `requested` is EDX:EAX and `enabled` XCR0.
///
/// # Errors
///
/// The fault that the guest gets.
pub fn save(
    layout: &Layout,
    memory: &impl LinearMemory,
    address: u64,
    state: &KvmXsave,
    form: SaveForm,
    requested: u64,
    enabled: u64,
) -> Result<(), Fault> {
    if !address.is_multiple_of(64) {
        return Err(Fault::Protection);
    }
    let wanted = requested & enabled;
    let in_use = in_use(state);
    let stored = if form == SaveForm::Standard {
        wanted
    } else {
        wanted & in_use
    };
    let write =
        |range: std::ops::Range<usize>| memory.write(at(address, range.start), &state[range]);
    if stored & X87 != 0 {
        write(0..24)?;
        write(32..160)?;
    }
    if stored & SSE != 0 {
        write(XMM)?;
    }
    // In the standard format MXCSR goes with SSE or AVX; in the compacted it is
    // part of SSE.
    let mxcsr = match form {
        SaveForm::Compacted => stored & SSE != 0,
        _ => wanted & (SSE | AVX) != 0,
    };
    if mxcsr {
        write(MXCSR_AND_MASK)?;
    }
    let compaction = if form == SaveForm::Compacted {
        wanted | COMPACTED
    } else {
        0
    };
    for (component, place) in layout.places(stored, compaction) {
        let bytes = &state[component.offset..component.offset + component.size];
        memory.write(at(address, place), bytes)?;
    }
    write_header(memory, address, form, wanted, in_use)
}

fn write_header(
    memory: &impl LinearMemory,
    address: u64,
    form: SaveForm,
    wanted: u64,
    in_use: u64,
) -> Result<(), Fault> {
    let header = at(address, HEADER);
    if form == SaveForm::Compacted {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(wanted & in_use).to_le_bytes());
        bytes[8..].copy_from_slice(&(wanted | COMPACTED).to_le_bytes());
        return memory.write(header, &bytes);
    }
    let mut before = [0; 8];
    memory.read(header, &mut before)?;
    let after = (u64::from_le_bytes(before) & !wanted) | (wanted & in_use);
    memory.write(header, &after.to_le_bytes())
}

/// Carries out XRSTOR or XRSTORS: the state after it, in KVM's form.
///
/// # Errors
///
/// The fault that the guest gets.
pub fn restore(
    layout: &Layout,
    memory: &impl LinearMemory,
    address: u64,
    before: &KvmXsave,
    requested: u64,
    enabled: u64,
) -> Result<KvmXsave, Fault> {
    if !address.is_multiple_of(64) {
        return Err(Fault::Protection);
    }
    let mut legacy = [0; EXTENDED];
    memory.read(address, &mut legacy)?;
    let present = u64_at(&legacy, HEADER);
    let compaction = u64_at(&legacy, HEADER + 8);
    check_header(&legacy, present, compaction, enabled)?;

    let wanted = requested & enabled;
    let loaded = wanted & present;
    let mut state = *before;
    restore_legacy(&mut state, &legacy, wanted, present, compaction)?;
    for (component, place) in layout.places(wanted, compaction) {
        let bytes = &mut state[component.offset..component.offset + component.size];
        if loaded & (1 << component.number) != 0 {
            memory.read(at(address, place), bytes)?;
        } else {
            bytes.fill(0);
        }
    }
    // Components that a compacted area has no room for get their initial state.
    if compaction & COMPACTED != 0 {
        for (component, _) in layout.places(wanted & !compaction, 0) {
            state[component.offset..component.offset + component.size].fill(0);
        }
    }
    let kept = u64_at(before, HEADER) & !wanted;
    // SSE is marked as used whenever MXCSR was touched, so that KVM takes it.
    let mxcsr = if wanted & (SSE | AVX) != 0 { SSE } else { 0 };
    state[HEADER..HEADER + 8].copy_from_slice(&(kept | loaded | mxcsr).to_le_bytes());
    Ok(state)
}

fn check_header(
    legacy: &[u8; EXTENDED],
    present: u64,
    compaction: u64,
    enabled: u64,
) -> Result<(), Fault> {
    let well_formed = if compaction & COMPACTED == 0 {
        let zero = legacy[HEADER + 8..HEADER + 24]
            .iter()
            .all(|byte| *byte == 0);
        zero && present & !enabled == 0
    } else {
        let zero = legacy[HEADER + 16..].iter().all(|byte| *byte == 0);
        let components = compaction & !COMPACTED;
        zero && components & !enabled == 0 && present & !components == 0
    };
    if well_formed {
        Ok(())
    } else {
        Err(Fault::Protection)
    }
}

fn restore_legacy(
    state: &mut KvmXsave,
    legacy: &[u8; EXTENDED],
    wanted: u64,
    present: u64,
    compaction: u64,
) -> Result<(), Fault> {
    let mut initial = [0; EXTENDED];
    initial[..2].copy_from_slice(&FCW_INITIAL.to_le_bytes());
    initial[MXCSR].copy_from_slice(&MXCSR_INITIAL.to_le_bytes());
    let source = |component: u64| {
        if present & component != 0 {
            legacy
        } else {
            &initial
        }
    };
    if wanted & X87 != 0 {
        let source = source(X87);
        state[..24].copy_from_slice(&source[..24]);
        state[32..160].copy_from_slice(&source[32..160]);
    }
    if wanted & SSE != 0 {
        state[XMM].copy_from_slice(&source(SSE)[XMM]);
    }
    let mxcsr = match compaction & COMPACTED {
        0 if wanted & (SSE | AVX) != 0 => Some(legacy),
        0 => None,
        _ if wanted & SSE != 0 => Some(source(SSE)),
        _ => None,
    };
    if let Some(source) = mxcsr {
        let value = u32::from_le_bytes([source[24], source[25], source[26], source[27]]);
        if value & MXCSR_RESERVED != 0 {
            return Err(Fault::Protection);
        }
        state[MXCSR].copy_from_slice(&source[MXCSR]);
    }
    Ok(())
}

/// A place in an area. One at the end of the address space goes on at its beginning.
fn at(address: u64, place: usize) -> u64 {
    address.wrapping_add(place as u64)
}

/// The components that are not in their initial state. A changed MXCSR counts
/// as SSE.
fn in_use(state: &KvmXsave) -> u64 {
    let components = u64_at(state, HEADER);
    let mxcsr = if state[MXCSR] == MXCSR_INITIAL.to_le_bytes() {
        0
    } else {
        SSE
    };
    components | mxcsr
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8]
        .iter()
        .rev()
        .fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

/// The mask of components that this module knows where to find.
pub fn known_components(layout: &Layout) -> u64 {
    layout
        .components
        .iter()
        .fold(LEGACY, |mask, component| mask | (1 << component.number))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::paging::AddressSpace;
    use super::super::paging::tests::small_guest;
    use super::*;

    const ENABLED: u64 = 0b10_0000_0111;
    const AT: u64 = 0x4000;

    /// AVX and PKRU as processors lay them out.
    fn layout() -> Layout {
        let avx = Component {
            number: 2,
            offset: 576,
            size: 256,
            aligned: false,
        };
        let pkru = Component {
            number: 9,
            offset: 2688,
            size: 8,
            aligned: true,
        };
        Layout {
            components: vec![avx, pkru],
        }
    }

    fn state(in_use: u64, fill: u8) -> KvmXsave {
        let mut state = [0; KVM_XSAVE_SIZE];
        state[MXCSR].copy_from_slice(&MXCSR_INITIAL.to_le_bytes());
        state[..2].copy_from_slice(&FCW_INITIAL.to_le_bytes());
        state[HEADER..HEADER + 8].copy_from_slice(&in_use.to_le_bytes());
        if in_use & X87 != 0 {
            state[..24].fill(fill);
            state[32..160].fill(fill);
        }
        if in_use & SSE != 0 {
            state[XMM].fill(fill);
        }
        for component in layout().components {
            if in_use & (1 << component.number) != 0 {
                state[component.offset..][..component.size].fill(fill);
            }
        }
        state
    }

    struct Guest {
        memory: vm_memory::GuestMemoryMmap,
        sregs: kvm_bindings::kvm_sregs,
    }

    impl Guest {
        fn new() -> Guest {
            let (memory, sregs) = small_guest();
            Guest { memory, sregs }
        }

        fn space(&self) -> AddressSpace<'_> {
            AddressSpace::new(&self.memory, &self.sregs)
        }

        fn save(&self, state: &KvmXsave, form: SaveForm, mask: u64) {
            save(&layout(), &self.space(), AT, state, form, mask, ENABLED).unwrap();
        }

        fn restore(&self, before: &KvmXsave, mask: u64) -> Result<KvmXsave, Fault> {
            restore(&layout(), &self.space(), AT, before, mask, ENABLED)
        }

        fn word(&self, at: usize) -> u64 {
            let mut bytes = [0; 8];
            self.space().read(AT + at as u64, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        }

        fn set_word(&self, at: usize, value: u64) {
            self.space()
                .write(AT + at as u64, &value.to_le_bytes())
                .unwrap();
        }
    }

    #[test]
    fn compacted_areas_are_packed_and_aligned() {
        let guest = Guest::new();
        guest.save(&state(ENABLED, 0x11), SaveForm::Compacted, u64::MAX);
        assert_eq!(guest.word(HEADER), ENABLED);
        assert_eq!(guest.word(HEADER + 8), ENABLED | COMPACTED);
        assert_eq!(guest.word(576), 0x1111_1111_1111_1111);
        assert_eq!(guest.word(832), 0x1111_1111_1111_1111, "PKRU follows AVX");

        guest.save(&state(ENABLED, 0x22), SaveForm::Compacted, 1 << 9);
        assert_eq!(
            guest.word(576),
            0x2222_2222_2222_2222,
            "PKRU comes first without AVX"
        );
    }

    #[test]
    fn the_standard_format_keeps_the_bits_that_were_not_asked_for() {
        let guest = Guest::new();
        guest.set_word(HEADER, X87 | AVX);
        guest.set_word(HEADER + 8, 0x77);
        guest.save(&state(SSE, 0x33), SaveForm::Standard, SSE | AVX);
        assert_eq!(guest.word(HEADER), X87 | SSE);
        assert_eq!(guest.word(HEADER + 8), 0x77, "XSAVE writes XSTATE_BV alone");
        assert_eq!(guest.word(XMM.start), 0x3333_3333_3333_3333);
    }

    #[test]
    fn xsaveopt_leaves_what_is_in_its_initial_state() {
        let guest = Guest::new();
        guest.set_word(576, 0xaaaa);
        guest.save(&state(0, 0), SaveForm::Optimised, ENABLED);
        assert_eq!(guest.word(576), 0xaaaa);
        guest.save(&state(0, 0), SaveForm::Standard, ENABLED);
        assert_eq!(guest.word(576), 0);
    }

    #[test]
    fn a_changed_mxcsr_counts_as_sse() {
        let guest = Guest::new();
        let mut changed = state(0, 0);
        changed[MXCSR].copy_from_slice(&0x9fc0u32.to_le_bytes());
        guest.save(&changed, SaveForm::Compacted, ENABLED);
        assert_eq!(guest.word(HEADER), SSE);
        let restored = guest.restore(&state(ENABLED, 0x44), ENABLED).unwrap();
        assert_eq!(restored[MXCSR], 0x9fc0u32.to_le_bytes());
    }

    #[test]
    fn what_the_area_does_not_hold_is_set_to_its_initial_state() {
        let guest = Guest::new();
        guest.save(&state(AVX, 0x55), SaveForm::Compacted, AVX);
        let restored = guest.restore(&state(ENABLED, 0x66), ENABLED).unwrap();
        assert_eq!(&restored[..2], &FCW_INITIAL.to_le_bytes());
        assert!(restored[XMM].iter().all(|byte| *byte == 0));
        assert_eq!(restored[MXCSR], MXCSR_INITIAL.to_le_bytes());
        assert_eq!(restored[576], 0x55);
        assert_eq!(restored[2688], 0);
        assert_eq!(u64_at(&restored, HEADER) & !SSE, AVX);
    }

    #[test]
    fn malformed_areas_are_protection_faults() {
        let before = state(0, 0);
        let fault = |at: usize, value: u64| {
            let guest = Guest::new();
            guest.set_word(at, value);
            guest.restore(&before, ENABLED)
        };
        assert_eq!(fault(HEADER, 1 << 3), Err(Fault::Protection), "not in XCR0");
        assert_eq!(
            fault(HEADER + 8, 4),
            Err(Fault::Protection),
            "XCOMP_BV without bit 63"
        );
        assert_eq!(fault(HEADER + 16, 1), Err(Fault::Protection), "reserved");
        assert_eq!(
            fault(HEADER + 8, COMPACTED | 1 << 4),
            Err(Fault::Protection)
        );
        assert_eq!(
            fault(24, 0x1_0000),
            Err(Fault::Protection),
            "reserved bits of MXCSR"
        );
        let guest = Guest::new();
        let space = guest.space();
        let unaligned = restore(&layout(), &space, AT + 32, &before, ENABLED, ENABLED);
        assert_eq!(unaligned, Err(Fault::Protection));
        let absent = save(
            &layout(),
            &space,
            0xf000,
            &before,
            SaveForm::Standard,
            7,
            ENABLED,
        );
        assert_eq!(
            absent,
            Err(Fault::Page {
                address: 0xf000,
                code: 2
            })
        );
    }

    /// An address space in which every byte is there.
    #[derive(Default)]
    struct Everywhere(RefCell<BTreeMap<u64, u8>>);

    impl LinearMemory for Everywhere {
        fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
            let known = self.0.borrow();
            for (index, byte) in bytes.iter_mut().enumerate() {
                let at = address.wrapping_add(index as u64);
                *byte = known.get(&at).copied().unwrap_or(0);
            }
            Ok(())
        }

        fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
            let mut known = self.0.borrow_mut();
            for (index, byte) in bytes.iter().enumerate() {
                known.insert(address.wrapping_add(index as u64), *byte);
            }
            Ok(())
        }

        fn compare_exchange(&self, _: u64, _: u128, _: u128) -> Result<u128, Fault> {
            Err(Fault::Protection)
        }
    }

    #[test]
    fn an_area_at_the_end_of_the_address_space_goes_on_at_its_beginning() {
        let last = 0u64.wrapping_sub(64);
        let saved = state(ENABLED, 0x77);
        for form in [SaveForm::Standard, SaveForm::Compacted] {
            let space = Everywhere::default();
            save(&layout(), &space, last, &saved, form, ENABLED, ENABLED).unwrap();
            let before = state(0, 0);
            let restored = restore(&layout(), &space, last, &before, ENABLED, ENABLED).unwrap();
            assert!(restored == saved);
        }
    }

    #[test]
    fn the_hosts_components_do_not_overlap() {
        let mut end = EXTENDED;
        let mut components = Layout::of_host().components;
        components.sort_by_key(|component| component.offset);
        for component in components {
            assert!(component.offset >= end);
            end = component.offset + component.size;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Saved in any form and restored, all that was in use is back.
        #[test]
        fn save_and_restore_are_inverse(in_use in 0u64..8, pkru: bool, form in 0..3, fill: u8) {
            let in_use = in_use | if pkru { 1 << 9 } else { 0 };
            let form = [SaveForm::Standard, SaveForm::Optimised, SaveForm::Compacted][form as usize];
            let guest = Guest::new();
            let saved = state(in_use, fill);
            guest.save(&saved, form, ENABLED);
            let mut restored = guest.restore(&state(ENABLED, !fill), ENABLED).unwrap();
            let used = u64_at(&restored, HEADER);
            prop_assert_eq!(used & !SSE, in_use & !SSE);
            prop_assert_eq!(used & in_use, in_use);
            restored[HEADER..HEADER + 8].copy_from_slice(&in_use.to_le_bytes());
            prop_assert!(restored == saved);
        }
    }
}
