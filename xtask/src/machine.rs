//! Facts of the machine that a figure was measured on.

use std::{fs, thread};

use serde::Serialize;

use crate::preflight::Kvm;

/// What a figure depends on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Logical processors.
    pub cpus: usize,
    /// CPU model.
    pub cpu_model: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Kernel release.
    pub kernel_release: String,
    /// Its KVM.
    #[serde(flatten)]
    pub kvm: Kvm,
}

impl Machine {
    /// Looks them up.
    pub fn look(kvm: Kvm) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu_model = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map(|(_, model)| model.trim().to_owned());
        Self {
            cpus: thread::available_parallelism().map_or(1, std::num::NonZero::get),
            cpu_model: cpu_model.unwrap_or_default(),
            memory_mib: memory_kib("MemTotal") / 1024,
            kernel_release: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            kvm,
        }
    }
}

/// A line of `/proc/meminfo`, in KiB; 0 if there is none.
pub fn memory_kib(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
