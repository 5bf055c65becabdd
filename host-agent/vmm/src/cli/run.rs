//! `fabric-vmm run`

use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use bytesize::ByteSize;
use clap::Args;
use fabric_vmm::config::{
    ConfigError, ConsoleConfig, JailConfig, RING_DEFAULT, RepairMode, RingConfig, VmConfig,
    VsockConfig,
};
use fabric_vmm::exit::{ExitReason, ExitReport};
use fabric_vmm::fail_point::{self, Step};
use fabric_vmm::machine;
use fabric_vmm::machine::report::panic_text;
use fabric_vmm::vcpu::fault::chain;

use super::disk::DiskArg;
use super::place::{End, Place};

const EXAMPLES: &str = "\
Examples:
  A kernel and a disk, the console on this terminal (Ctrl-A x ends the machine):
    fabric-vmm run --kernel vmlinux --disk guest-os.vhd,readonly

  A differencing disk over a base image, with a channel to the host:
    fabric-vmm run --kernel vmlinux --memory 256MiB --vcpus 2 \\
        --disk os.vhd,serial=os,parent=base.vhd --vsock-cid 3 --vsock vsock.sock

  A machine that goes on from a snapshot, which its control socket was asked for:
    fabric-vmm run --restore snapshot --disk os.vhd,serial=os,parent=base.vhd

  All of it from a file:
    fabric-vmm run --config vm.json

Exit codes:
  0 the guest powered off, or the machine was stopped   1 internal error
  2 the configuration, a file or the host is not right  10 the guest reset
  11 the guest's kernel panicked                        12 triple fault";

/// Run one virtual machine.
///
/// The machine is described by flags or by a JSON file, not both. The last line
/// on standard output is one JSON object that says why the machine ended, what
/// was counted and measured, and, where it gave up, the registers.
///
/// The machine is jailed: a process of its own, in namespaces and with a user of its own,
/// that holds what it was told to open, sees one directory, and may make few system calls.
/// This process keeps the terminal, passes signals on, and ends as the machine does. Processor
/// time and memory are those of its control group (see systemd-run --scope). A file with a
/// `jail` in it is as host agents write them: then this process is the machine.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// Read the machine's description from this JSON file.
    #[arg(long, value_name = "FILE", conflicts_with_all = DESCRIPTION)]
    config: Option<PathBuf>,
    #[command(flatten)]
    description: Description,
    #[command(flatten)]
    place: Place,
}

/// The machine, by flags.
#[derive(Debug, Args)]
struct Description {
    /// A name for reports.
    #[arg(long, default_value = "vm")]
    name: String,
    /// The kernel: an ELF vmlinux or a bzImage.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["config", "restore"])]
    kernel: Option<PathBuf>,
    /// Go on from the snapshot in this directory instead of booting a kernel.
    /// Memory, virtual CPUs and disks must be as they were; the snapshot is only
    /// read, and any number of machines can go on from it. What else a guest boots
    /// from, if it is named too, is for when the machine is reset.
    #[arg(long, value_name = "DIR")]
    restore: Option<PathBuf>,
    /// When the machine is reset, go back to the snapshot in this directory instead of
    /// booting the kernel: to one of a guest that holds nothing of its disks.
    #[arg(long, value_name = "DIR")]
    reset_to: Option<PathBuf>,
    /// An initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// What to append to the kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "")]
    cmdline: String,
    /// The device that holds the root file system.
    #[arg(long, value_name = "DEVICE", default_value = "/dev/vda")]
    root: String,
    /// The guest's memory.
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    memory: ByteSize,
    /// Virtual CPUs, from 1 to 8.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u8,
    /// A disk, in the order in which the guest names them; repeatable. FILE is a
    /// VHD unless format=raw is said; parent= names the images that a
    /// differencing disk stands on, nearest first.
    #[arg(
        long = "disk",
        value_name = "FILE[,serial=ID][,readonly][,parent=FILE]...[,format=vhd|raw]"
    )]
    disks: Vec<DiskArg>,
    /// The guest's vsock address, 3 or more.
    #[arg(long, value_name = "N", requires = "vsock")]
    vsock_cid: Option<u32>,
    /// The unix socket of the guest's vsock device: connect and write
    /// `CONNECT PORT`. The guest's connections to port N go to PATH_N.
    #[arg(long, value_name = "PATH", requires = "vsock_cid")]
    vsock: Option<PathBuf>,
    /// Where the console goes: stdio, none, or ring:FILE[,BYTES].
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = parse_console)]
    console: ConsoleConfig,
    /// Answer questions on this unix socket, one JSON object a line:
    /// {"op":"status"}, {"op":"stats"}, {"op":"pause"}, {"op":"resume"},
    /// {"op":"reset"}, {"op":"power_button"}, {"op":"snapshot","path":DIR}, {"op":"limit","limits":{...}}, {"op":"stop"}.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Whether to repair a KVM that interprets guest kernels: auto, on or off.
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = parse_repair)]
    repair: RepairMode,
}

/// Its flags. A conflict with their group would name all of them, given or not.
const DESCRIPTION: [&str; 15] = [
    "name",
    "kernel",
    "restore",
    "reset_to",
    "initrd",
    "cmdline",
    "root",
    "memory",
    "vcpus",
    "disks",
    "vsock_cid",
    "vsock",
    "console",
    "control",
    "repair",
];

/// Runs the machine.
pub fn run(args: RunArgs, started: Instant) -> ExitCode {
    fail_point::reached(Step::Started);
    let place = args.place;
    let name = args.description.name.clone();
    let config = match &args.config {
        Some(path) => VmConfig::from_file(path),
        None => args.description.into_config(),
    };
    let config = config.and_then(|config| place.check(&config).map(|()| config));
    let report = match config {
        Err(error) => refuse(&error).of(&name, started),
        Ok(config) => match &config.jail {
            Some(jail) => run_guarded(&config, jail, started),
            None => match place.keep(&config) {
                Ok(End::Told(code)) => return ExitCode::from(code),
                Ok(End::Killed(signal)) => {
                    let detail = format!("the machine's process was ended by {signal}");
                    ExitReport::new(ExitReason::Killed, detail).of(&config.name, started)
                }
                Err(error) => refuse(&error).of(&config.name, started),
            },
        },
    };
    if !matches!(
        report.reason,
        ExitReason::GuestPowerOff | ExitReason::Stopped | ExitReason::TemplateMade
    ) {
        fabric_vmm::say!("fabric-vmm: {}: {}", report.name, report.detail);
    }
    let _ = writeln!(io::stdout(), "{report}");
    fail_point::reached(Step::Told);
    ExitCode::from(report.reason.code())
}

fn refuse(error: &(dyn std::error::Error + 'static)) -> ExitReport {
    ExitReport::new(ExitReason::ConfigError, chain(error))
}

fn run_guarded(config: &VmConfig, jail: &JailConfig, started: Instant) -> ExitReport {
    let result = catch_unwind(AssertUnwindSafe(|| machine::run(config, jail, started)));
    let report = result.unwrap_or_else(|payload| {
        let detail = format!("internal panic: {}", panic_text(&*payload));
        ExitReport::new(ExitReason::InternalError, detail).of(&config.name, started)
    });
    if config.console == ConsoleConfig::Stdio {
        // The report has a line of its own, wherever the guest left the cursor.
        let _ = writeln!(io::stdout());
    }
    report
}

impl Description {
    fn into_config(self) -> Result<VmConfig, ConfigError> {
        let config = VmConfig {
            name: self.name,
            restore: self.restore,
            reset_to: self.reset_to,
            initrd: self.initrd,
            cmdline: self.cmdline,
            root: self.root,
            memory_mib: self.memory.as_u64() >> 20,
            vcpus: self.vcpus,
            disks: self.disks.into_iter().map(|disk| disk.0).collect(),
            vsock: self
                .vsock_cid
                .zip(self.vsock)
                .map(|(cid, path)| VsockConfig { cid, path }),
            console: self.console,
            control: self.control,
            repair: self.repair,
            ..VmConfig::new(self.kernel.unwrap_or_default())
        };
        config.check()?;
        Ok(config)
    }
}

fn parse_console(text: &str) -> Result<ConsoleConfig, String> {
    match text {
        "stdio" => return Ok(ConsoleConfig::Stdio),
        "none" => return Ok(ConsoleConfig::None),
        _ => {}
    }
    let ring = text
        .strip_prefix("ring:")
        .ok_or("use stdio, none or ring:FILE[,BYTES]")?;
    let (path, bytes) = match ring.rsplit_once(',') {
        None => (ring, RING_DEFAULT),
        Some((path, bytes)) => {
            let bytes: ByteSize = bytes.parse().map_err(|_| format!("{bytes:?} is no size"))?;
            (path, bytes.as_u64())
        }
    };
    Ok(ConsoleConfig::Ring(RingConfig {
        path: path.into(),
        bytes,
    }))
}

fn parse_repair(text: &str) -> Result<RepairMode, String> {
    match text {
        "auto" => Ok(RepairMode::Auto),
        "on" => Ok(RepairMode::On),
        "off" => Ok(RepairMode::Off),
        _ => Err("use auto, on or off".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_a_word_or_a_ring() {
        assert_eq!(parse_console("none"), Ok(ConsoleConfig::None));
        let ring = |path: &str, bytes| {
            Ok(ConsoleConfig::Ring(RingConfig {
                path: path.into(),
                bytes,
            }))
        };
        assert_eq!(parse_console("ring:a.ring"), ring("a.ring", 262_144));
        assert_eq!(parse_console("ring:a.ring,64KiB"), ring("a.ring", 65536));
        parse_console("ring:a,b").unwrap_err();
        parse_console("tty").unwrap_err();
    }

    #[test]
    fn a_file_excludes_every_flag_that_describes_a_machine() {
        let command = Description::augment_args(clap::Command::new("run"));
        let flags = command.get_arguments().map(|flag| flag.get_id().as_str());
        assert_eq!(flags.collect::<Vec<_>>(), DESCRIPTION);
    }
}
