//! The system calls that each kind of thread may make; any other kills the
//! process.
//!
//! No thread can make another thread, a process or a program: those that the
//! machine needs are there before the lists are. A call that is missing here shows
//! in the host's audit log (dmesg) by its number and its thread's name.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_guest_debug, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_msrs, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// The kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// A virtual CPU.
    Vcpu,
    /// A disk.
    Disk,
    /// The event loop, with what is left to do at the end.
    EventLoop,
}

/// A system call that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number (x86-64).
    pub number: i64,
    /// What is asked of its arguments.
    pub when: When,
}

/// What is asked of a call's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing.
    Always,
    /// The argument of this number has this value.
    Argument(u8, u64),
    /// The argument of this number has none of these bits.
    Without(u8, u64),
    /// The first argument is this process.
    ThisProcess,
}

const fn call(number: libc::c_long) -> Call {
    Call {
        number,
        when: When::Always,
    }
}

const fn ioctl(request: u64) -> Call {
    Call {
        number: libc::SYS_ioctl,
        when: When::Argument(1, request),
    }
}

const fn with(number: libc::c_long, argument: u8, value: u64) -> Call {
    Call {
        number,
        when: When::Argument(argument, value),
    }
}

/// `mmap` and `mprotect` of what is not to be executed.
const MAP: Call = Call {
    number: libc::SYS_mmap,
    when: When::Without(2, libc::PROT_EXEC as u64),
};
const PROTECT: Call = Call {
    number: libc::SYS_mprotect,
    when: When::Without(2, libc::PROT_EXEC as u64),
};
const KILL_THREAD: Call = Call {
    number: libc::SYS_tgkill,
    when: When::ThisProcess,
};

/// `_IOC` (asm-generic/ioctl.h) for KVM.
const fn kvm(direction: u64, number: u64, size: usize) -> Call {
    ioctl(direction << 30 | (size as u64) << 16 | (KVMIO as u64) << 8 | number)
}
const fn kvm_get<T>(number: u64) -> Call {
    kvm(2, number, size_of::<T>())
}
const fn kvm_set<T>(number: u64) -> Call {
    kvm(1, number, size_of::<T>())
}
const fn kvm_both<T>(number: u64) -> Call {
    kvm(3, number, size_of::<T>())
}

/// What every thread may do: memory, locks, its end.
const EVERY: &[Call] = &[
    call(libc::SYS_futex),
    MAP,
    PROTECT,
    call(libc::SYS_munmap),
    call(libc::SYS_mremap),
    call(libc::SYS_madvise),
    // What the first thread allocated lies below the program break, and whoever has
    // it now may grow it or give it back.
    call(libc::SYS_brk),
    call(libc::SYS_write),
    call(libc::SYS_close),
    call(libc::SYS_clock_gettime),
    call(libc::SYS_rt_sigprocmask),
    call(libc::SYS_sigaltstack),
    call(libc::SYS_restart_syscall),
];

const VCPU: &[Call] = &[
    kvm(0, 0x80, 0),                  // KVM_RUN
    kvm_get::<kvm_regs>(0x81),        // KVM_GET_REGS
    kvm_get::<kvm_sregs>(0x83),       // KVM_GET_SREGS
    kvm_both::<kvm_msrs>(0x88),       // KVM_GET_MSRS
    kvm_set::<kvm_msrs>(0x89),        // KVM_SET_MSRS
    kvm_get::<kvm_lapic_state>(0x8e), // KVM_GET_LAPIC
    kvm_both::<kvm_cpuid2>(0x91),     // KVM_GET_CPUID2
    kvm_get::<kvm_mp_state>(0x98),    // KVM_GET_MP_STATE
    kvm_set::<kvm_guest_debug>(0x9b), // KVM_SET_GUEST_DEBUG
    kvm_get::<kvm_vcpu_events>(0x9f), // KVM_GET_VCPU_EVENTS
    kvm_get::<kvm_debugregs>(0xa1),   // KVM_GET_DEBUGREGS
    kvm_get::<kvm_xsave>(0xa4),       // KVM_GET_XSAVE
    kvm_set::<kvm_xsave>(0xa5),       // KVM_SET_XSAVE
    kvm_get::<kvm_xcrs>(0xa6),        // KVM_GET_XCRS
    // Reset.
    kvm_set::<kvm_regs>(0x82),        // KVM_SET_REGS
    kvm_set::<kvm_sregs>(0x84),       // KVM_SET_SREGS
    kvm_set::<kvm_lapic_state>(0x8f), // KVM_SET_LAPIC
    kvm_set::<kvm_mp_state>(0x99),    // KVM_SET_MP_STATE
    kvm_set::<kvm_vcpu_events>(0xa0), // KVM_SET_VCPU_EVENTS
    kvm_set::<kvm_debugregs>(0xa2),   // KVM_SET_DEBUGREGS
    kvm_set::<kvm_xcrs>(0xa7),        // KVM_SET_XCRS
    // The console ring.
    call(libc::SYS_pwrite64),
    // Devices, started and reset by their drivers.
    with(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC as u64),
    call(libc::SYS_epoll_ctl),
    call(libc::SYS_timerfd_settime),
    // Interrupted to be paused.
    call(libc::SYS_rt_sigreturn),
    call(libc::SYS_exit),
];

const DISK: &[Call] = &[
    call(libc::SYS_read),
    call(libc::SYS_exit),
    call(libc::SYS_pread64),
    call(libc::SYS_pwrite64),
    call(libc::SYS_fdatasync),
    call(libc::SYS_fallocate),
    call(libc::SYS_ftruncate),
    // Held to its limits, it sleeps for a time.
    call(libc::SYS_ppoll),
];

const EVENT_LOOP: &[Call] = &[
    call(libc::SYS_read),
    call(libc::SYS_epoll_wait),
    call(libc::SYS_epoll_ctl),
    call(libc::SYS_timerfd_settime),
    call(libc::SYS_clock_nanosleep),
    KILL_THREAD,
    call(libc::SYS_getpid),
    call(libc::SYS_exit_group),
    // Sockets of the vsock device and of the operator.
    call(libc::SYS_accept4),
    with(libc::SYS_socket, 0, libc::AF_UNIX as u64),
    // A call of its own to the guest, whose power button is pressed: two ends without a
    // name, that nobody else can reach.
    with(libc::SYS_socketpair, 0, libc::AF_UNIX as u64),
    call(libc::SYS_connect),
    call(libc::SYS_recvfrom),
    call(libc::SYS_sendto),
    call(libc::SYS_shutdown),
    with(libc::SYS_setsockopt, 2, libc::SO_SNDBUF as u64),
    ioctl(libc::FIONBIO),
    // Pause, resume, snapshot, reset.
    kvm(1, 0x7b, size_of::<kvm_clock_data>()), // KVM_SET_CLOCK
    kvm(2, 0x7c, size_of::<kvm_clock_data>()), // KVM_GET_CLOCK
    kvm_both::<kvm_irqchip>(0x62),             // KVM_GET_IRQCHIP
    kvm_get::<kvm_irqchip>(0x63),              // KVM_SET_IRQCHIP
    kvm_get::<kvm_pit_state2>(0x9f),           // KVM_GET_PIT2
    kvm_set::<kvm_pit_state2>(0xa0),           // KVM_SET_PIT2
    call(libc::SYS_lseek),
    call(libc::SYS_openat),
    call(libc::SYS_statx),
    call(libc::SYS_fstat),
    call(libc::SYS_mkdir),
    call(libc::SYS_rename),
    call(libc::SYS_unlink),
    call(libc::SYS_unlinkat),
    call(libc::SYS_getdents64),
    call(libc::SYS_newfstatat),
    with(libc::SYS_fcntl, 1, libc::F_GETFL as u64),
    call(libc::SYS_ftruncate),
    call(libc::SYS_pwrite64),
    call(libc::SYS_fsync),
    call(libc::SYS_fdatasync),
    // Devices that it starts again, and takes apart.
    with(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC as u64),
    call(libc::SYS_flock),
    call(libc::SYS_pread64),
];

impl ThreadKind {
    /// Each kind.
    pub const ALL: [ThreadKind; 3] = [ThreadKind::Vcpu, ThreadKind::Disk, ThreadKind::EventLoop];

    /// What it may call.
    pub fn calls(self) -> impl Iterator<Item = Call> {
        let own = match self {
            ThreadKind::Vcpu => VCPU,
            ThreadKind::Disk => DISK,
            ThreadKind::EventLoop => EVENT_LOOP,
        };
        EVERY.iter().chain(own).copied()
    }

    fn compile(self) -> Result<BpfProgram, BackendError> {
        let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
        for call in self.calls() {
            let rules = rules.entry(call.number).or_default();
            if let Some(condition) = call.when.condition()? {
                rules.push(SeccompRule::new(vec![condition])?);
            }
        }
        SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            TargetArch::x86_64,
        )?
        .try_into()
    }
}

impl When {
    fn condition(self) -> Result<Option<SeccompCondition>, BackendError> {
        let (argument, operator, value) = match self {
            When::Always => return Ok(None),
            When::Argument(argument, value) => (argument, SeccompCmpOp::Eq, value),
            When::Without(argument, bits) => (argument, SeccompCmpOp::MaskedEq(bits), 0),
            When::ThisProcess => (0, SeccompCmpOp::Eq, u64::from(std::process::id())),
        };
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map(Some)
    }
}

/// The lists of all kinds of threads, or none where the host has no such lists.
#[derive(Debug, Clone, Default)]
pub struct CallLists(Option<Arc<[BpfProgram; 3]>>);

impl CallLists {
    /// Makes the lists of this process.
    ///
    /// # Errors
    ///
    /// Never, unless a list is wrong.
    pub fn compile() -> io::Result<CallLists> {
        let compile = |kind: ThreadKind| kind.compile().map_err(io::Error::other);
        let [vcpu, disk, event_loop] = ThreadKind::ALL;
        Ok(CallLists(Some(Arc::new([
            compile(vcpu)?,
            compile(disk)?,
            compile(event_loop)?,
        ]))))
    }

    /// Confines the calling thread to its list, for good.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the list.
    pub fn confine(&self, kind: ThreadKind) -> io::Result<()> {
        match &self.0 {
            Some(lists) => {
                seccompiler::apply_filter(&lists[kind as usize]).map_err(io::Error::other)
            }
            None => Ok(()),
        }
    }
}

/// Whether the kernel can do it.
///
/// # Errors
///
/// What it answers where it cannot.
pub fn is_supported() -> io::Result<()> {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one number, which outlives the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &action,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
