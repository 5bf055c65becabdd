//! A guest that drives its devices with garbage: its machine stays, or ends and
//! says why; the host and another guest notice nothing.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fabric_vmm::config::{
    ConsoleConfig, DiskConfig, DiskFormat, RingConfig, VmConfig, VsockConfig,
};
use fabric_vmm::console::RingReader;
use fabric_vmm::control::{Request, ask};
use fabric_vmm::exit::{ExitReason, ExitReport};
use vhd::{CreateOptions, DifferencingOptions};

use crate::guest::{Bench, PATIENCE, Running, code, eventually, kvm_is_here, wait};
use crate::script::{Device, Script};

/// For how long the guest is hostile, in seconds: `FABRIC_HOSTILE_SECONDS`, and
/// not long where nobody asks for more.
const SECONDS: u64 = 5;
/// The devices of the machine, in the order of their windows.
const DEVICES: [Device; 3] = [Device::Block, Device::Block, Device::Vsock];
const DISK_SIZE: u64 = 1 << 20;
/// What a machine may use beyond its guest's memory of 32 MiB, in KiB.
const OVERHEAD_KIB: u64 = 32 << 10;

/// The folder of a hostile guest, with its disks.
struct Stage {
    bench: Bench,
}

impl Stage {
    fn new() -> Stage {
        let bench = Bench::new(&[]);
        let options = CreateOptions::new(DISK_SIZE);
        vhd::create_fixed(bench.path("fixed.vhd"), &options).unwrap();
        vhd::create_dynamic(bench.path("base.vhd"), &options).unwrap();
        let child = DifferencingOptions::default();
        vhd::create_differencing(bench.path("child.vhd"), bench.path("base.vhd"), &child).unwrap();
        Stage { bench }
    }

    fn config(&self) -> VmConfig {
        let disk = |name: &str, readonly, parents: &[&str]| DiskConfig {
            path: self.bench.path(name),
            format: DiskFormat::Vhd,
            serial: name.to_owned(),
            readonly,
            parents: parents.iter().map(|name| self.bench.path(name)).collect(),
            capacity_bytes: None,
            quota_bytes: None,
        };
        let mut config = VmConfig::new(self.bench.path("kernel"));
        config.memory_mib = 32;
        config.disks = vec![
            disk("child.vhd", false, &["base.vhd"]),
            disk("fixed.vhd", true, &[]),
        ];
        config.vsock = Some(VsockConfig {
            cid: 3,
            path: "jail/v.sock".into(),
        });
        config.console = ConsoleConfig::Ring(RingConfig {
            path: self.bench.path("ring"),
            bytes: 1 << 16,
        });
        config.control = Some(self.bench.path("control.sock"));
        config
    }

    /// Starts the machine with a guest that does this.
    fn start(&self, script: &Script) -> Running {
        let mut program = code!(hostile_begin, hostile_end).to_vec();
        program.extend(script.bytes());
        fs::write(self.bench.path("kernel"), crate::guest::elf(&program)).unwrap();
        let config = serde_json::to_vec(&self.config()).unwrap();
        fs::write(self.bench.path("vm.json"), config).unwrap();
        let mut command = self.bench.run_command(&["--config", "vm.json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::new(command.spawn().unwrap())
    }

    /// How often the guest has been through its table.
    fn passes(&self) -> u64 {
        said(&self.bench.path("ring")) / 2
    }

    fn is_alive(&self) -> bool {
        ask(&self.bench.path("control.sock"), Request::Status, PATIENCE).is_ok()
    }
}

/// How many bytes a guest has said on its console.
fn said(ring: &Path) -> u64 {
    RingReader::open(ring)
        .and_then(|ring| ring.total())
        .unwrap_or(0)
}

/// What a host does at the other end of the vsock device: calls, and takes calls.
struct Host {
    listener: UnixListener,
    path: std::path::PathBuf,
    streams: Vec<UnixStream>,
}

impl Host {
    fn new(stage: &Stage) -> Host {
        let path = stage.bench.path("jail/v.sock_1024");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        Host {
            listener,
            path: stage.bench.path("jail/v.sock"),
            streams: Vec::new(),
        }
    }

    fn turn(&mut self) {
        self.streams.truncate(16);
        if let Ok((stream, _)) = self.listener.accept() {
            self.streams.insert(0, stream);
        }
        if let Ok(stream) = UnixStream::connect(&self.path) {
            self.streams.insert(0, stream);
        }
        for stream in &mut self.streams {
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(b"CONNECT 1\nand much more of what nobody asked for");
            let _ = stream.read(&mut [0; 4096]);
        }
    }
}

/// The number after a field of `/proc/PID/status`.
fn of_status(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn a_hostile_guest_harms_nobody_but_itself() {
    if !kvm_is_here() {
        return;
    }
    let given = std::env::var("FABRIC_HOSTILE_SECONDS");
    let seconds = given.map_or(SECONDS, |text| text.parse().expect("a number of seconds"));
    let neighbour = Bench::new(code!(counting_begin, counting_end));
    let its_ring = neighbour.path("ring");
    let arguments = ["--console", "ring:ring", "--control", "control.sock"];
    let other = neighbour.start(&arguments);
    let stage = Stage::new();
    let before = ["base.vhd", "fixed.vhd"].map(|name| fs::read(stage.bench.path(name)).unwrap());
    let mut host = Host::new(&stage);

    let until = Instant::now() + Duration::from_secs(seconds);
    let (mut passes, mut accesses, mut ends) = (0, 0, Vec::new());
    for seed in 1.. {
        let machine = stage.start(&Script::new(seed, &DEVICES, 400));
        eventually("the guest is hostile, or its machine has ended", || {
            (stage.passes() > 0 || !is_running(&machine)).then_some(())
        });
        let told = said(&its_ring);
        while Instant::now() < until && is_running(&machine) {
            host.turn();
            let used = machine.machine().and_then(|pid| of_status(pid, "VmHWM:"));
            if let Some(used) = used {
                assert!(
                    used < (32 << 10) + OVERHEAD_KIB,
                    "the machine uses {used} KiB"
                );
            }
        }
        eventually("the other guest goes on", || {
            (said(&its_ring) > told).then_some(())
        });
        if is_running(&machine) && stage.is_alive() {
            let _ = ask(&stage.bench.path("control.sock"), Request::Stop, PATIENCE);
        }
        passes += stage.passes();
        let report = wait(machine).report;
        accesses += report.exits["mmio_write"] + report.exits["mmio_read"];
        check_end(&report);
        if report.reason != ExitReason::Stopped {
            ends.push(report.detail);
        }
        fs::remove_file(stage.bench.path("ring")).unwrap();
        if Instant::now() >= until {
            break;
        }
    }
    println!(
        "{passes} passes, {accesses} register accesses in {seconds} s; the guest ended {} times: \
         {ends:?}",
        ends.len()
    );
    assert!(passes > 0 && accesses > 1000, "{accesses} accesses");

    assert!(
        ask(&neighbour.path("control.sock"), Request::Stop, PATIENCE)
            .unwrap()
            .ok
    );
    assert_eq!(wait(other).report.reason, ExitReason::Stopped);
    check_stage(&stage, &before);
}

fn is_running(machine: &Running) -> bool {
    // One that has ended and is not waited for has no memory.
    of_status(machine.keeper(), "VmRSS:").is_some()
}

/// It was stopped, or the guest has broken itself, and the report says how.
fn check_end(report: &ExitReport) {
    let itself = match report.reason {
        ExitReason::Stopped | ExitReason::TripleFault | ExitReason::GuestPowerOff => true,
        // A kernel that runs into garbage where KVM interprets kernels.
        ExitReason::InternalError => report.fault.is_some(),
        _ => false,
    };
    let clear = !report.detail.is_empty() && !report.detail.contains("panic");
    assert!(itself && clear, "{report:?}");
}

/// Nothing is left but what was there, and that is whole.
fn check_stage(stage: &Stage, before: &[Vec<u8>; 2]) {
    for (name, before) in ["base.vhd", "fixed.vhd"].iter().zip(before) {
        let now = fs::read(stage.bench.path(name)).unwrap();
        assert!(&now == before, "{name} was changed");
    }
    let child = stage.bench.path("child.vhd");
    let checked = vhd::check(&child, &[stage.bench.path("base.vhd")]).unwrap();
    assert!(checked.is_clean(), "{:?}", checked.problems);
    let size = fs::metadata(&child).unwrap().size();
    assert!(size < 4 * DISK_SIZE + (64 << 10), "{size} bytes");
    let names = |folder: &str| {
        let entries = fs::read_dir(stage.bench.path(folder)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let made = [
        "base.vhd",
        "child.vhd",
        "fixed.vhd",
        "jail",
        "kernel",
        "vm.json",
    ];
    assert_eq!(names("."), made);
    assert_eq!(names("jail"), ["v.sock_1024"]);
}
