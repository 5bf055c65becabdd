//! What is carried out for a KVM that interprets guest kernels: decoding, the walk
//! of the guest's page tables, XSAVE areas.

#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use fabric_fuzz::driver::{MEMORY, guest_memory};
use fabric_fuzz::rarely::Rarely;
use fabric_vmm::memory::GuestMemory;
use fabric_vmm::repair::instructions::{
    ExtendedState, classify, decode, execute, skip_harmless, text,
};
use fabric_vmm::repair::paging::AddressSpace;
use fabric_vmm::repair::xstate::{KVM_XSAVE_SIZE, KvmXsave, Layout};
use kvm_bindings::{kvm_regs, kvm_sregs};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 0x1000;
/// Tables of the four levels, one a page, from here on; the fifth is in front.
const TABLES: u64 = 0x2000;
/// Pages that tables and pages are in.
const PAGES: u64 = MEMORY as u64 / PAGE;

static LAYOUT: LazyLock<Layout> = LazyLock::new(Layout::of_host);

#[derive(Arbitrary, Debug)]
struct Input {
    instruction: Instruction,
    address: Address,
    registers: [u64; 8],
    paging: Paging,
    odd_entries: Vec<(u8, u16, u64)>,
    contents: Vec<u8>,
    state: State,
}

#[derive(Arbitrary, Debug)]
enum Instruction {
    /// One of those that are carried out, with its operand.
    Known(u8, u8, [u8; 5]),
    Bytes([u8; 15]),
}

/// Where the operand is.
#[derive(Arbitrary, Debug)]
struct Address {
    /// Index in each level of the tables; the top one high or low.
    page: u8,
    offset: u16,
    high: bool,
    odd: Rarely<u64>,
}

#[derive(Arbitrary, Debug)]
struct Paging {
    mode: Rarely<u8>,
    write_protect: bool,
    flags: [u8; 4],
    targets: [u8; 4],
    root: Rarely<u64>,
}

/// The processor's extended state, and the area that a restore reads.
#[derive(Arbitrary, Debug)]
struct State {
    enabled: Rarely<u64>,
    in_use: u8,
    header: [u8; 2],
    odd_header: Rarely<[u64; 3]>,
    mxcsr: Rarely<u32>,
    refused: bool,
}

/// Opcodes of what is carried out, in front of ModRM where there is one.
const KNOWN: [&[u8]; 16] = [
    &[0xcc],
    &[0x9b],
    &[0x0f, 0x01, 0xca],
    &[0x0f, 0x01, 0xcb],
    &[0xf3, 0x0f, 0xb8],
    &[0xf3, 0x48, 0x0f, 0xb8],
    &[0x66, 0xf3, 0x0f, 0xb8],
    &[0xf0, 0x48, 0x0f, 0xc7],
    &[0x48, 0x0f, 0xc7],
    &[0x0f, 0xae],
    &[0x48, 0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x65, 0x48, 0x0f, 0xae],
    &[0x67, 0x0f, 0xae],
    &[0xf3, 0x0f, 0x1e, 0xfa],
    &[0xfc],
];

impl Instruction {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Known(which, modrm, rest) => {
                let mut bytes = KNOWN[usize::from(which % 16)].to_vec();
                bytes.push(*modrm);
                bytes.extend(rest);
                bytes
            }
            Self::Bytes(bytes) => bytes.to_vec(),
        }
    }
}

fuzz_target!(|input: Input| {
    let memory = guest_memory();
    let address = input.address.linear();
    let sregs = input.paging.build(&memory, address);
    for (page, index, entry) in input.odd_entries.iter().take(4) {
        let at = (u64::from(*page) % PAGES) * PAGE + u64::from(index & 0x1ff) * 8;
        memory
            .write_obj(*entry, GuestAddress(at))
            .expect("an entry");
    }
    let area = u64::from(input.paging.targets[3]) % PAGES * PAGE;
    input.state.write_area(&memory, area + (address & 0xfff));
    let len = input.contents.len().min(64);
    let _ = memory.write_slice(&input.contents[..len], GuestAddress(area));

    let mut regs = registers(&input, address);
    let space = AddressSpace::new(&memory, &sregs);
    let mut code = [0; 15];
    assert!(space.read_some(address, &mut code) <= code.len());

    let bytes = input.instruction.bytes();
    let instruction = decode(&bytes, regs.rip, &sregs);
    let _ = (text(&instruction), classify(&instruction));
    let before = regs;
    let mut extended = Extended::new(&input.state);
    if execute(&instruction, &mut regs, &sregs, &space, &mut extended).is_err() {
        assert_eq!(
            regs, before,
            "an instruction that faults leaves the registers"
        );
    }
    skip_harmless(&bytes, &mut regs);
});

fn registers(input: &Input, address: u64) -> kvm_regs {
    let [rax, rdx, rcx, rsi, rdi, r8, r9, rflags] = input.registers;
    // What an operand is at, mostly: a register that holds its address.
    kvm_regs {
        rax,
        rdx,
        rcx,
        rbx: address,
        rsi,
        rdi,
        rbp: address,
        rsp: address,
        r8,
        r9,
        rip: address,
        rflags,
        ..kvm_regs::default()
    }
}

impl Address {
    fn linear(&self) -> u64 {
        // The same index in each level; one of them is the last page there is.
        let index = if self.page == 0xff {
            0x1ff
        } else {
            u64::from(self.page)
        };
        let low = (index << 12 | index << 21 | index << 30 | index << 39) & 0x7fff_ffff_ffff;
        let high = if self.high { 0xffff_8000_0000_0000 } else { 0 };
        self.odd
            .or(high | low | u64::from(self.offset & 0xfff & !63))
    }
}

impl Paging {
    /// Writes tables that lead from `address` to a page, and the registers that say
    /// so.
    fn build(&self, memory: &GuestMemory, address: u64) -> kvm_sregs {
        for level in 0..4_usize {
            let index = (address >> (39 - 9 * level)) & 0x1ff;
            let table = TABLES + level as u64 * PAGE;
            let next = if level == 3 {
                u64::from(self.targets[3]) % PAGES * PAGE
            } else if self.targets[level] & 15 == 15 {
                u64::from(self.targets[level]) * PAGE
            } else {
                table + PAGE
            };
            // Present and writable, mostly.
            let flags = u64::from(self.flags[level]);
            let flags = if flags & 7 == 7 {
                flags
            } else {
                flags & 0x60 | 3
            };
            let entry = next | flags;
            memory
                .write_obj(entry, GuestAddress(table + index * 8))
                .expect("an entry");
        }
        let mode = self.mode.or(0);
        let mut sregs = kvm_sregs {
            cr0: 1 << 31 | u64::from(self.write_protect) << 16 | 1,
            cr3: self.root.or(TABLES),
            cr4: u64::from(mode & 1) << 12 | 0x20,
            efer: 1 << 10 | 1 << 8,
            ..kvm_sregs::default()
        };
        sregs.cs.l = u8::from(mode & 2 == 0);
        sregs.cs.db = u8::from(mode & 4 != 0);
        if mode & 8 != 0 {
            sregs.cr0 &= !(1 << 31);
        }
        if mode & 16 != 0 {
            sregs.efer = 0;
        }
        sregs.gs.base = u64::from(mode) << 56;
        sregs.ds.base = u64::from(mode) << 32;
        sregs
    }
}

impl State {
    fn write_area(&self, memory: &GuestMemory, at: u64) {
        let [present, compaction] = self.header.map(|bits| u64::from(bits & 7));
        let compaction = if self.header[1] & 0x80 != 0 {
            compaction | 1 << 63
        } else {
            0
        };
        let header = self.odd_header.or([present, compaction, 0]);
        for (index, word) in header.into_iter().enumerate() {
            let _ = memory.write_obj(word, GuestAddress(at + 512 + index as u64 * 8));
        }
        let _ = memory.write_obj(self.mxcsr.or(0x1f80), GuestAddress(at + 24));
    }
}

struct Extended {
    state: KvmXsave,
    enabled: u64,
    refused: bool,
}

impl Extended {
    fn new(state: &State) -> Self {
        let mut kept = [0; KVM_XSAVE_SIZE];
        kept[512] = state.in_use;
        kept[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        Self {
            state: kept,
            enabled: state.enabled.or(7),
            refused: state.refused,
        }
    }
}

impl ExtendedState for Extended {
    fn load(&mut self) -> Option<KvmXsave> {
        Some(self.state)
    }

    fn store(&mut self, state: &KvmXsave) -> bool {
        self.state = *state;
        !self.refused
    }

    fn enabled(&mut self) -> Option<u64> {
        Some(self.enabled)
    }

    fn layout(&self) -> &Layout {
        &LAYOUT
    }
}
