//! Finds out, by trying, whether KVM interprets guest kernels.
//!
//! A throw-away machine of 64 KiB executes SYSCALL in user mode and FWAIT in
//! kernel mode. On the processor, SYSCALL arrives at LSTAR in kernel mode and
//! FWAIT does nothing. Where kernels are interpreted, SYSCALL ends in a fault and
//! FWAIT in an internal error. No names of modules or processors are asked for.
//!
//! ```text
//!  0x1000..0x4fff  page tables, mapping 64 KiB to themselves
//!  0x8000          user:   syscall
//!  0x9000          kernel: out 0x10, al   (LSTAR)
//!  0x9100          kernel: fwait; out 0x12, al
//!  0x9200          kernel: count rcx down to 0; out 0x13, al
//!  0x9800          kernel: out 0x11, al   (every interrupt handler)
//!  0xa000          interrupt table
//!  0xb000          segments; 0xb800 task state
//!  0xd000          top of the kernel's stack
//! ```

use std::time::Instant;

use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_enable_cap, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::errno;

use super::state::{code_segment, data_segment};
use super::syscall::{MSR_FMASK, MSR_LSTAR, MSR_STAR};
use crate::boot::layout::KVM_TSS;
use crate::exit::KvmKind;

const MEMORY: usize = 0x1_0000;
const PAGE_TABLES: u64 = 0x1000;
const USER_CODE: u64 = 0x8000;
const USER_STACK: u64 = 0x8800;
const SYSCALL_ENTRY: u64 = 0x9000;
const FWAIT_CODE: u64 = 0x9100;
const LOOP_CODE: u64 = 0x9200;
const HANDLER: u64 = 0x9800;
const IDT: u64 = 0xa000;
const GDT: u64 = 0xb000;
const TSS: u64 = 0xb800;
const KERNEL_STACK: u64 = 0xd000;

const SYSCALL_PORT: u16 = 0x10;
const FWAIT_PORT: u16 = 0x12;
const LOOP_PORT: u16 = 0x13;

/// How often the loop that is timed goes round, two instructions each.
const LOOP_ROUNDS: u32 = 50_000;

const KERNEL_CODE: u16 = 0x10;
const KERNEL_DATA: u16 = 0x18;
const USER_DATA: u16 = 0x2b;
const USER_CODE_64: u16 = 0x33;
const TASK: u16 = 0x40;

/// Why nothing was found out.
#[derive(Debug, Error)]
pub enum DetectError {
    /// A call to KVM failed.
    #[error("{call} failed for the machine that tries KVM out")]
    Kvm {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: errno::Error,
    },
    /// The machine's memory could not be made.
    #[error("no memory for the machine that tries KVM out")]
    Memory,
}

impl DetectError {
    fn kvm(call: &'static str) -> impl Fn(errno::Error) -> DetectError {
        move |source| DetectError::Kvm { call, source }
    }
}

impl From<GuestMemoryError> for DetectError {
    fn from(_: GuestMemoryError) -> DetectError {
        DetectError::Memory
    }
}

/// Tries it out. Takes some milliseconds and leaves nothing behind.
///
/// # Errors
///
/// When KVM has no room for another machine.
pub fn detect(kvm: &Kvm) -> Result<KvmKind, DetectError> {
    let mut trial = Trial::new(kvm)?;
    trial.run()
}

/// The throw-away machine. To drop it takes as long as to use it, which who is
/// in a hurry leaves to another process.
#[derive(Debug)]
pub struct Trial {
    // In this order: the memory is unmapped after the machine is gone.
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl Trial {
    /// Makes the machine.
    ///
    /// # Errors
    ///
    /// When KVM has no room for it.
    pub fn new(kvm: &Kvm) -> Result<Trial, DetectError> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
            .map_err(|_| DetectError::Memory)?;
        write_guest(&memory)?;
        let vm = kvm.create_vm().map_err(DetectError::kvm("KVM_CREATE_VM"))?;
        vm.set_tss_address(KVM_TSS)
            .map_err(DetectError::kvm("KVM_SET_TSS_ADDR"))?;
        let capability = kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        // Older KVMs lack it, and exit for kernel code all the same.
        let _ = vm.enable_cap(&capability);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        };
        // SAFETY: the mapping is of this size, and is dropped after the machine.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(DetectError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        let vcpu = vm
            .create_vcpu(0)
            .map_err(DetectError::kvm("KVM_CREATE_VCPU"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(DetectError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(DetectError::kvm("KVM_SET_CPUID2"))?;
        Ok(Trial {
            vcpu,
            _vm: vm,
            _memory: memory,
        })
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// When KVM refuses to set its registers.
    pub fn run(&mut self) -> Result<KvmKind, DetectError> {
        let native = syscall_arrives(&mut self.vcpu)? && fwait_works(&mut self.vcpu)?;
        Ok(if native {
            KvmKind::Hardware
        } else {
            KvmKind::Interpreted
        })
    }

    /// How long an instruction in kernel mode takes, in nanoseconds; nothing if the
    /// loop that is timed does not come to its end. Where kernels are interpreted,
    /// a boot takes as long as this says: some 16 million of them.
    ///
    /// # Errors
    ///
    /// When KVM refuses to set its registers.
    pub fn kernel_instruction_ns(&mut self) -> Result<Option<f64>, DetectError> {
        // Finishes the port access.
        let _ = self.vcpu.run();
        let kernel = (code_segment(KERNEL_CODE, 0), data_segment(KERNEL_DATA, 0));
        start(&self.vcpu, kernel, LOOP_CODE, KERNEL_STACK)?;
        let mut regs = self
            .vcpu
            .get_regs()
            .map_err(DetectError::kvm("KVM_GET_REGS"))?;
        regs.rcx = u64::from(LOOP_ROUNDS);
        self.vcpu
            .set_regs(&regs)
            .map_err(DetectError::kvm("KVM_SET_REGS"))?;
        let begun = Instant::now();
        let ended = writes_port(&mut self.vcpu, LOOP_PORT);
        let nanoseconds = begun.elapsed().as_secs_f64() * 1e9;
        Ok(ended.then_some(nanoseconds / f64::from(2 * LOOP_ROUNDS)))
    }
}

fn syscall_arrives(vcpu: &mut VcpuFd) -> Result<bool, DetectError> {
    let user = (code_segment(USER_CODE_64, 3), data_segment(USER_DATA, 3));
    start(vcpu, user, USER_CODE, USER_STACK)?;
    let msrs = [
        (
            MSR_STAR,
            (u64::from(USER_DATA - 8) << 48) | (u64::from(KERNEL_CODE) << 32),
        ),
        (MSR_LSTAR, SYSCALL_ENTRY),
        (MSR_FMASK, 0x700),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    });
    let msrs = Msrs::from_entries(&msrs).map_err(|_| DetectError::Memory)?;
    vcpu.set_msrs(&msrs)
        .map_err(DetectError::kvm("KVM_SET_MSRS"))?;
    Ok(writes_port(vcpu, SYSCALL_PORT))
}

fn fwait_works(vcpu: &mut VcpuFd) -> Result<bool, DetectError> {
    // Finishes the port access.
    let _ = vcpu.run();
    let kernel = (code_segment(KERNEL_CODE, 0), data_segment(KERNEL_DATA, 0));
    start(vcpu, kernel, FWAIT_CODE, KERNEL_STACK)?;
    Ok(writes_port(vcpu, FWAIT_PORT))
}

fn writes_port(vcpu: &mut VcpuFd, wanted: u16) -> bool {
    matches!(vcpu.run(), Ok(VcpuExit::IoOut(port, _)) if port == wanted)
}

/// Puts the virtual CPU into 64-bit mode at `rip`.
fn start(
    vcpu: &VcpuFd,
    (code, data): (kvm_segment, kvm_segment),
    rip: u64,
    rsp: u64,
) -> Result<(), DetectError> {
    let mut sregs: kvm_sregs = vcpu
        .get_sregs()
        .map_err(DetectError::kvm("KVM_GET_SREGS"))?;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = 0x220; // PAE, OSFXSR
    sregs.cr0 = 0x8005_0033; // PG, AM, WP, NE, ET, MP, PE
    sregs.efer = 0xd01; // NXE, LMA, LME, SCE
    sregs.cs = code;
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x7f);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x67,
        selector: TASK,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    vcpu.set_sregs(&sregs)
        .map_err(DetectError::kvm("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip,
        rsp,
        rflags: 2,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs)
        .map_err(DetectError::kvm("KVM_SET_REGS"))
}

fn write_guest(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const SUPERVISOR: u64 = 3;
    const USER: u64 = 7;
    let word = |value: u64, at: u64| memory.write_obj(value, GuestAddress(at));
    for table in 1..4 {
        word(((table + 1) * PAGE_TABLES) | USER, table * PAGE_TABLES)?;
    }
    for page in 0..16 {
        let flags = if page * 0x1000 == USER_CODE {
            USER
        } else {
            SUPERVISOR
        };
        word((page * 0x1000) | flags, 4 * PAGE_TABLES + page * 8)?;
    }
    let descriptors = [
        (KERNEL_CODE, 0x00af_9b00_0000_ffff),
        (KERNEL_DATA, 0x00cf_9300_0000_ffff),
        (USER_DATA & !3, 0x00cf_f300_0000_ffff),
        (USER_CODE_64 & !3, 0x00af_fb00_0000_ffff),
        (TASK, 0x67 | (TSS << 16) | (0x8b << 40)),
    ];
    for (selector, descriptor) in descriptors {
        word(descriptor, GDT + u64::from(selector))?;
    }
    word(KERNEL_STACK, TSS + 4)?;
    for vector in 0..32 {
        let gate = HANDLER | (u64::from(KERNEL_CODE) << 16) | (0x8e00 << 32);
        word(gate, IDT + vector * 16)?;
    }
    let code = |bytes: &[u8], at: u64| memory.write_slice(bytes, GuestAddress(at));
    code(&[0x0f, 0x05], USER_CODE)?;
    code(&[0xe6, SYSCALL_PORT as u8, 0xf4], SYSCALL_ENTRY)?;
    code(&[0x9b, 0xe6, FWAIT_PORT as u8, 0xf4], FWAIT_CODE)?;
    // dec rcx; jnz back to it; out
    let count_down = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe6, LOOP_PORT as u8, 0xf4];
    code(&count_down, LOOP_CODE)?;
    code(&[0xe6, 0x11, 0xf4], HANDLER)
}
