//! Exits from the guest, counted by kind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// A port was read.
    PortIn,
    /// A port was written.
    PortOut,
    /// Device memory was read.
    MmioRead,
    /// Device memory was written.
    MmioWrite,
    /// A model-specific register was accessed.
    Msr,
    /// A breakpoint was met.
    Debug,
    /// An instruction could not be emulated.
    Emulation,
    /// A signal came.
    Interrupted,
    /// Anything else.
    Other,
}

impl ExitKind {
    const ALL: [ExitKind; 9] = [
        ExitKind::PortIn,
        ExitKind::PortOut,
        ExitKind::MmioRead,
        ExitKind::MmioWrite,
        ExitKind::Msr,
        ExitKind::Debug,
        ExitKind::Emulation,
        ExitKind::Interrupted,
        ExitKind::Other,
    ];

    fn name(self) -> &'static str {
        match self {
            ExitKind::PortIn => "port_in",
            ExitKind::PortOut => "port_out",
            ExitKind::MmioRead => "mmio_read",
            ExitKind::MmioWrite => "mmio_write",
            ExitKind::Msr => "msr",
            ExitKind::Debug => "debug",
            ExitKind::Emulation => "emulation",
            ExitKind::Interrupted => "interrupted",
            ExitKind::Other => "other",
        }
    }
}

/// One count for each kind, all virtual CPUs together.
#[derive(Debug)]
pub struct ExitCounters {
    counts: [AtomicU64; ExitKind::ALL.len()],
}

impl Default for ExitCounters {
    fn default() -> ExitCounters {
        ExitCounters {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl ExitCounters {
    /// Counts one.
    pub fn count(&self, kind: ExitKind) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// All that are not zero, and their sum, by name.
    pub fn report(&self) -> BTreeMap<String, u64> {
        let count = |kind: ExitKind| self.counts[kind as usize].load(Ordering::Relaxed);
        let mut report: BTreeMap<String, u64> = ExitKind::ALL
            .into_iter()
            .map(|kind| (kind.name().to_owned(), count(kind)))
            .filter(|(_, count)| *count != 0)
            .collect();
        report.insert("total".to_owned(), report.values().sum());
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_happened_and_its_sum() {
        let counters = ExitCounters::default();
        counters.count(ExitKind::PortOut);
        counters.count(ExitKind::PortOut);
        counters.count(ExitKind::Other);
        let report = counters.report();
        assert_eq!(
            (report["port_out"], report["other"], report["total"]),
            (2, 1, 3)
        );
        assert!(!report.contains_key("msr"));
    }
}
