//! What was repaired, counted by all virtual CPUs together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::exit::{KvmKind, RepairReport};

macro_rules! repaired {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// Something that was repaired, or an exceptional way that was taken.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Repaired {
            $($(#[$doc])* $name,)*
        }

        impl Repaired {
            /// All of them.
            pub const ALL: &[Repaired] = &[$(Repaired::$name,)*];

            /// The name in reports.
            pub fn name(self) -> &'static str {
                match self {
                    $(Repaired::$name => $text,)*
                }
            }
        }
    };
}

repaired! {
    /// A system call brought to the kernel's entry point.
    Syscall => "syscall",
    /// A system call put back, for an interrupt comes first.
    SyscallRewound => "syscall_rewound",
    /// A general protection fault that was none of ours.
    OtherFault => "other_fault",
    /// A handler's first instruction stepped over by single-stepping.
    SingleStep => "single_step",
    /// Code that changed while it was being executed: tried again.
    TextChanged => "text_changed",
    /// A page fault given to the guest by a repaired instruction.
    PageFault => "page_fault",
    /// A protection fault given to the guest by a repaired instruction.
    ProtectionFault => "protection_fault",
    /// An invalid opcode in user mode, given to the guest.
    InvalidOpcode => "invalid_opcode",
    /// A timer interrupt put off.
    TimerPutOff => "timer_put_off",
    /// INT3.
    Int3 => "int3",
    /// FWAIT.
    Fwait => "fwait",
    /// POPCNT.
    Popcnt => "popcnt",
    /// CLAC.
    Clac => "clac",
    /// STAC.
    Stac => "stac",
    /// CMPXCHG16B.
    Cmpxchg16b => "cmpxchg16b",
    /// XSAVE.
    Xsave => "xsave",
    /// XSAVEOPT.
    Xsaveopt => "xsaveopt",
    /// XSAVEC.
    Xsavec => "xsavec",
    /// XSAVES.
    Xsaves => "xsaves",
    /// XRSTOR.
    Xrstor => "xrstor",
    /// XRSTORS.
    Xrstors => "xrstors",
}

/// One count for each.
#[derive(Debug)]
pub struct RepairCounters {
    counts: [AtomicU64; Repaired::ALL.len()],
}

impl Default for RepairCounters {
    fn default() -> RepairCounters {
        RepairCounters {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl RepairCounters {
    /// Counts one.
    pub fn count(&self, what: Repaired) {
        self.counts[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self, what: Repaired) -> u64 {
        self.counts[what as usize].load(Ordering::Relaxed)
    }

    /// All that is not zero, for a report.
    pub fn report(&self, kind: KvmKind) -> RepairReport {
        let counted = Repaired::ALL
            .iter()
            .map(|what| (what.name().to_owned(), self.get(*what)));
        let instructions: BTreeMap<String, u64> = counted
            .filter(|(name, count)| *count != 0 && name != Repaired::Syscall.name())
            .collect();
        RepairReport {
            kind,
            syscalls: self.get(Repaired::Syscall),
            instructions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_what_happened() {
        let counters = RepairCounters::default();
        counters.count(Repaired::Syscall);
        counters.count(Repaired::Xrstors);
        counters.count(Repaired::Xrstors);
        let report = counters.report(KvmKind::Interpreted);
        assert_eq!(report.syscalls, 1);
        assert_eq!(
            report.instructions,
            BTreeMap::from([("xrstors".to_owned(), 2)])
        );
    }
}
