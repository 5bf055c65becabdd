//! What this machine has.

use std::{fs, path::Path};

use fabric_proto::node::v1::Inventory;

use crate::files;

/// Memory that is left to the node itself, in bytes.
const OWN_MEMORY: u64 = 512 * 1024 * 1024;

/// Looks at the machine. What cannot be found out is left empty, and so is what only an
/// operator knows.
#[must_use]
pub fn take(data: &Path, kvm_kind: &str) -> Inventory {
    let names = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    Inventory {
        cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory_bytes: memory().saturating_sub(OWN_MEMORY),
        disk_bytes: files::total_bytes(data).unwrap_or(0),
        kvm_kind: kvm_kind.to_owned(),
        kernel_release: text(names.release()),
        cpu_model: cpu_model().unwrap_or_default(),
        hostname: text(names.nodename()),
        architecture: std::env::consts::ARCH.to_owned(),
        resources: Default::default(),
    }
}

fn memory() -> u64 {
    let facts = rustix::system::sysinfo();
    facts.totalram.saturating_mul(u64::from(facts.mem_unit))
}

fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_something_of_everything() {
        let inventory = take(Path::new("/"), "hardware");
        assert!(inventory.cpus > 0 && inventory.memory_bytes > 0 && inventory.disk_bytes > 0);
        let machine = rustix::system::uname();
        assert_eq!(machine.machine().to_str(), Ok(&*inventory.architecture));
        assert!(!inventory.kernel_release.is_empty() && !inventory.hostname.is_empty());
    }
}
