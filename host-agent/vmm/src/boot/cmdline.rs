//! The kernel command line.

use thiserror::Error;

use super::kernel::KernelFormat;
use super::layout::{CMDLINE_MAX, MMIO_SIZE, MmioSlot};
use crate::exit::KvmKind;

/// What every guest gets: a console, and a panic or reboot that ends at once.
const BASE: &str = "console=ttyS0 panic=-1 reboot=k nokaslr quiet";

/// What makes a guest faster, or able to run at all, where its kernel is
/// interpreted: no mitigations for a processor it does not run on, no run-time
/// patching, no areas that are cleared to be given back, fewer files in /sys that
/// hardly anyone reads, statistics of memory that are put together once a minute and not
/// every second, and none of the instructions that would have to be repaired.
///
/// The time stamp counter cannot be shifted there, so that a guest that was paused
/// or restored would see it jump: time is taken from KVM's clock, which goes on
/// from where it was. Pages that come asynchronously are news to all tasks of a
/// guest that is restored, and so are done without.
const INTERPRETED: &str = "mitigations=off rodata=off tsc=reliable clocksource=kvm-clock \
    no-kvmapf no_timer_check noreplace-smp percpu_alloc=page \
    initcall_blacklist=param_sysfs_init,slab_sysfs_init,irq_sysfs_init,perf_event_sysfs_init \
    sysctl.vm.stat_interval=60 \
    clearcpuid=popcnt,cx16,smap,smep,erms,fsrm,fsgsbase,pcid,invpcid";

/// The same for a distribution's kernel. It has modules, which crash without
/// `param_sysfs_init`. It has ciphers, checksums and RAID in vector instructions,
/// which an interpreter lacks, and tests them all when it boots. It prepares to
/// trace every function and every event, which takes minutes, and its watchdog
/// takes whoever works that long for stuck. Of `clearcpuid` it reads 127 bytes
/// only; what is built on AVX goes with it, unnamed.
const INTERPRETED_STOCK: &str = "mitigations=off rodata=off tsc=reliable \
    clocksource=kvm-clock no-kvmapf no_timer_check noreplace-smp percpu_alloc=page nowatchdog \
    initcall_blacklist=slab_sysfs_init,irq_sysfs_init,perf_event_sysfs_init,\
    trace_eval_init,tracer_init_tracefs,ftrace_check_for_weak_functions \
    clearcpuid=popcnt,cx16,smap,smep,erms,fsrm,fsgsbase,pcid,invpcid,\
    ssse3,sse4_1,sse4_2,aes,pclmulqdq,avx,sha_ni,adx,bmi2,movbe \
    cryptomgr.notests init_on_alloc=0 apparmor=0 audit=0 pci=off";

/// What a command line is made of.
#[derive(Debug, Clone)]
pub struct CmdlineParts<'a> {
    /// The root device, if there is a disk.
    pub root: Option<&'a str>,
    /// Whether the root is mounted read-only.
    pub root_readonly: bool,
    /// The virtio-mmio devices.
    pub devices: &'a [MmioSlot],
    /// How KVM runs the kernel.
    pub kvm: KvmKind,
    /// What the kernel came as.
    pub format: KernelFormat,
    /// What the user appends.
    pub extra: &'a str,
}

/// The command line does not fit.
#[derive(Debug, Error)]
#[error(
    "the kernel command line is {length} bytes long, of {CMDLINE_MAX} that fit: \
    shorten `cmdline`"
)]
pub struct CmdlineTooLong {
    /// How long it is, its NUL included.
    pub length: usize,
}

/// Puts the command line together. What the user appends comes last, so that it
/// overrides.
///
/// # Errors
///
/// When it is longer than a kernel takes.
pub fn compose(parts: &CmdlineParts<'_>) -> Result<String, CmdlineTooLong> {
    let mut line = BASE.to_owned();
    let mut push = |word: &str| {
        if !word.is_empty() {
            line.push(' ');
            line.push_str(word);
        }
    };
    if let Some(root) = parts.root {
        let mode = if parts.root_readonly { "ro" } else { "rw" };
        push(&format!("root={root} {mode} init=/sbin/guest-agent"));
    }
    for MmioSlot { base, irq } in parts.devices {
        push(&format!(
            "virtio_mmio.device={}K@{base:#x}:{irq}",
            MMIO_SIZE / 1024
        ));
    }
    match (parts.kvm, parts.format) {
        (KvmKind::Hardware, _) => {}
        (KvmKind::Interpreted, KernelFormat::Elf) => push(INTERPRETED),
        (KvmKind::Interpreted, KernelFormat::BzImage) => push(INTERPRETED_STOCK),
    }
    push(parts.extra.trim());
    match line.len() + 1 {
        length if length > CMDLINE_MAX => Err(CmdlineTooLong { length }),
        _ => Ok(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `cpu_parse_early_param` reads of the list: 128 bytes with a NUL.
    const CLEARCPUID_MAX: usize = 127;

    fn parts() -> CmdlineParts<'static> {
        CmdlineParts {
            root: Some("/dev/vda"),
            root_readonly: false,
            devices: &[],
            kvm: KvmKind::Hardware,
            format: KernelFormat::Elf,
            extra: "",
        }
    }

    #[test]
    fn hardware_gets_the_kernels_own_defaults() {
        assert_eq!(
            compose(&parts()).unwrap(),
            "console=ttyS0 panic=-1 reboot=k nokaslr quiet root=/dev/vda rw init=/sbin/guest-agent"
        );
    }

    #[test]
    fn devices_repair_and_the_users_words_follow_in_this_order() {
        let devices = [MmioSlot::nth(0).unwrap(), MmioSlot::nth(1).unwrap()];
        let (kvm, extra) = (KvmKind::Interpreted, " loglevel=7 ");
        let line = compose(&CmdlineParts {
            devices: &devices,
            kvm,
            extra,
            ..parts()
        })
        .unwrap();
        let device = line.find("virtio_mmio.device=4K@0xd0000000:5").unwrap();
        let second = line.find("virtio_mmio.device=4K@0xd0001000:6").unwrap();
        let repair = line.find("clearcpuid=popcnt").unwrap();
        assert!(
            device < second && second < repair && line.ends_with(" loglevel=7"),
            "{line}"
        );
    }

    #[test]
    fn a_distributions_kernel_keeps_its_modules_and_hides_vectors_in_one_list() {
        let stock = |kvm| {
            let format = KernelFormat::BzImage;
            compose(&CmdlineParts {
                kvm,
                format,
                ..parts()
            })
            .unwrap()
        };
        let line = stock(KvmKind::Interpreted);
        assert!(!line.contains("param_sysfs_init"), "{line}");
        let (_, list) = line.split_once("clearcpuid=").unwrap();
        let (list, _) = list.split_once(' ').unwrap();
        assert!(list.contains("popcnt,") && list.contains(",avx,"), "{list}");
        assert!(list.len() <= CLEARCPUID_MAX, "{list}");
        assert!(!stock(KvmKind::Hardware).contains("clearcpuid"));
    }

    #[test]
    fn a_machine_without_disk_names_no_root() {
        let line = compose(&CmdlineParts {
            root: None,
            ..parts()
        })
        .unwrap();
        assert!(!line.contains("root="));
        let line = compose(&CmdlineParts {
            root_readonly: true,
            ..parts()
        })
        .unwrap();
        assert!(line.contains("root=/dev/vda ro "));
    }

    #[test]
    fn a_line_that_does_not_fit_is_refused_with_its_length() {
        let extra = "x".repeat(2048);
        let error = compose(&CmdlineParts {
            extra: &extra,
            ..parts()
        })
        .unwrap_err();
        assert!(error.length > 2048 && error.to_string().contains("of 2048"));
    }
}
