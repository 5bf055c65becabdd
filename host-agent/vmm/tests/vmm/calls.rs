//! Every system call that a thread of a jailed machine may make is one that it makes:
//! the lists hold nothing to spare. (That every other call kills is shown beside, in
//! `tests/jail`.)

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use fabric_vmm::config::{
    ConsoleConfig, DiskConfig, DiskFormat, JailConfig, RingConfig, VmConfig, VsockConfig,
};
use fabric_vmm::control::{Answer, Request, ask};
use fabric_vmm::exit::{ExitReason, ExitReport, KvmKind};
use fabric_vmm::jail::{
    Isolation, ThreadKind,
    calls::{Call, When},
};
use vhd::{CreateOptions, DifferencingOptions};

use crate::guest::{Bench, PATIENCE, eventually, kind, kvm_is_here};
use crate::tracer::{self, Used};

/// A user that nobody else has.
const USER: u32 = 0x7000_0667;
/// How often a machine is told something that it does not do in time.
const TRIES: u32 = 10;
/// Where the guest listens, and calls.
const GUEST_PORT: u32 = 1000;
const HOST_PORT: u32 = 2000;

/// The guest's kernel and its only program, if they have been built: what a kernel
/// does to its devices is the point here.
fn guest() -> Option<(PathBuf, PathBuf)> {
    let named = |name| std::env::var_os(name).map(PathBuf::from);
    let both = named("FABRIC_KERNEL").zip(named("FABRIC_BUS_PEER"));
    if both.is_none() {
        skipped("there is no guest: run `cargo xtask test`");
    }
    both
}

/// Says why there is nothing to say; with `FABRIC_REQUIRE_ISOLATION=1` that is a failure.
fn skipped(why: &str) {
    let required = std::env::var_os("FABRIC_REQUIRE_ISOLATION").is_some_and(|value| value == "1");
    assert!(!required, "FABRIC_REQUIRE_ISOLATION=1, but {why}");
    eprintln!("skipped, for {why}");
}

/// A jailed machine, and who sees what it calls: who traces a process is told of its
/// end, and nobody else in this one can wait for it.
struct Machine {
    bench: Bench,
    child: Child,
    seen: JoinHandle<Used>,
}

impl Machine {
    fn start(bench: Bench, config: &VmConfig) -> Machine {
        let config = serde_json::to_vec(config).unwrap();
        fs::write(bench.path("vm.json"), config).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_fabric-vmm"))
            .current_dir(bench.path("jail"))
            .args(["run", "--config"])
            .arg(bench.path("vm.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let seen = tracer::follow(child.id());
        Machine { bench, child, seen }
    }

    fn tell(&self, request: Request) -> Answer {
        // One whose every call is looked at may take longer than a pause has time.
        for _ in 0..TRIES {
            let answer = ask(&self.bench.path("control.sock"), request.clone(), PATIENCE).unwrap();
            let late = answer
                .error
                .as_deref()
                .is_some_and(|why| why.contains("in time"));
            if !late {
                assert!(answer.ok, "{answer:?}");
                return answer;
            }
        }
        panic!("{request:?} never came in time")
    }

    /// A connection on which the guest does what it is told; none if it is not there.
    fn guest(&self, command: &str) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(self.bench.path("jail/v")).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "CONNECT {GUEST_PORT}").ok()?;
        line(&mut stream)?.starts_with("OK ").then_some(())?;
        writeln!(stream, "{command}").ok()?;
        Some(stream)
    }

    fn until_the_guest_answers(&self) {
        eventually("the guest answers", || {
            let mut stream = self.guest("echo")?;
            stream.write_all(b"here").ok()?;
            let mut heard = [0; 4];
            stream.read_exact(&mut heard).ok()?;
            stream.shutdown(Shutdown::Both).ok()
        });
    }

    fn does(&self, command: &str) {
        let mut stream = self.guest(command).unwrap();
        assert_eq!(line(&mut stream).as_deref(), Some("ok"), "{command}");
    }

    fn stop(mut self) -> (Bench, Used) {
        self.tell(Request::Stop);
        let mut said = String::new();
        let mut output = self.child.stdout.take().unwrap();
        output.read_to_string(&mut said).unwrap();
        let report = ExitReport::from_output(&said).unwrap();
        assert_eq!(report.reason, ExitReason::Stopped, "{report:?}");
        (self.bench, self.seen.join().unwrap())
    }
}

fn line(stream: &mut UnixStream) -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte).ok()?;
        line.extend(byte);
    }
    Some(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn config(bench: &Bench, kernel: &Path, initrd: &Path) -> VmConfig {
    let disk = |name: &str, parents: &[&str]| DiskConfig {
        path: bench.path(name),
        format: DiskFormat::Vhd,
        serial: name.to_owned(),
        readonly: false,
        parents: parents.iter().map(|name| bench.path(name)).collect(),
        capacity_bytes: None,
        quota_bytes: None,
    };
    let mut config = VmConfig::new(kernel);
    config.initrd = Some(initrd.to_owned());
    config.root = String::new();
    config.memory_mib = 128;
    config.disks = vec![disk("child.vhd", &["base.vhd"]), disk("own.vhd", &[])];
    config.vsock = Some(VsockConfig {
        cid: 3,
        path: bench.path("jail/v"),
    });
    config.console = ConsoleConfig::Ring(RingConfig {
        path: bench.path("ring"),
        bytes: 1 << 16,
    });
    config.control = Some(bench.path("control.sock"));
    config.jail = Some(JailConfig {
        uid: USER,
        gid: USER,
        directory: Some(bench.path("jail")),
        given: Vec::new(),
        // A host agent gives it these; a test does not.
        allow_missing: vec![Isolation::Pid, Isolation::Cgroup],
        ends_with: None,
    });
    config
}

/// All that whoever runs machines has them do.
fn a_life(bench: Bench, kernel: &Path, initrd: &Path) -> Vec<Used> {
    let owned = |name: &str| {
        let user = nix::unistd::Uid::from_raw(USER);
        nix::unistd::chown(&bench.path(name), Some(user), None).unwrap();
    };
    owned("jail");
    let options = CreateOptions::new(64 << 20);
    for name in ["base.vhd", "own.vhd"] {
        vhd::create_dynamic(bench.path(name), &options).unwrap();
    }
    let child = DifferencingOptions::default();
    vhd::create_differencing(bench.path("child.vhd"), bench.path("base.vhd"), &child).unwrap();
    let config_of_first = config(&bench, kernel, initrd);
    let machine = Machine::start(bench, &config_of_first);
    machine.until_the_guest_answers();
    for disk in ["/dev/vda", "/dev/vdb"] {
        machine.does(&format!("write {disk} 0 131072"));
        machine.does(&format!("read {disk} 0 262144"));
        machine.does(&format!("discard {disk} 0 65536"));
    }
    // The guest calls the host, where somebody listens, and where nobody does.
    let port = machine.bench.path(&format!("jail/v_{HOST_PORT}"));
    let listener = UnixListener::bind(port).unwrap();
    std::os::unix::fs::chown(
        machine.bench.path(&format!("jail/v_{HOST_PORT}")),
        Some(USER),
        None,
    )
    .unwrap();
    let mut told = machine.guest(&format!("call {HOST_PORT} 2")).unwrap();
    let mut streams: Vec<UnixStream> = (0..2).map(|_| listener.accept().unwrap().0).collect();
    for (number, stream) in (0_u32..).zip(&mut streams) {
        stream.read_exact(&mut [0; 4]).unwrap();
        stream.write_all(&number.to_le_bytes()).unwrap();
    }
    assert_eq!(line(&mut told).as_deref(), Some("ok"));
    drop((told, streams));
    let mut stream = machine.guest("sink").unwrap();
    stream.write_all(&vec![7; 1 << 20]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(line(&mut stream).is_some());
    let mut stream = machine.guest("source 1048576").unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();

    machine.tell(Request::Status);
    machine.tell(Request::Stats);
    let slow = r#"{"op":"limit","limits":{"disks":[{"bytes":{"per_second":4096,"burst":4096}}]}}"#;
    machine.tell(serde_json::from_str(slow).unwrap());
    // The debt of the first is paid by the second.
    machine.does("read /dev/vda 1048576 65536");
    let mut waits = machine.guest("read /dev/vda 2097152 65536").unwrap();
    eventually("a disk waits for its limit", || {
        let stats = machine.tell(Request::Stats).stats?;
        (stats.disks[0].throttled.waits > 0).then_some(())
    });
    machine.tell(Request::Limit {
        limits: fabric_vmm::limits::Limits::default(),
    });
    assert_eq!(line(&mut waits).as_deref(), Some("ok"));
    // Nobody is at this guest's power button, which it says.
    let button = machine.bench.path("control.sock");
    let answer = ask(&button, Request::PowerButton, PATIENCE).unwrap();
    let error = answer.error.unwrap_or_default();
    assert!(error.contains("does not listen"), "{error}");
    machine.tell(Request::Pause);
    machine.tell(Request::Resume);
    let snapshot = machine.bench.path("jail/snapshot");
    machine.tell(Request::Snapshot {
        path: "snapshot".into(),
    });
    machine.does("write /dev/vda 4194304 131072");
    // The connection ends with it.
    let mut stream = machine.guest("reset").unwrap();
    assert_eq!(line(&mut stream), None);
    machine.until_the_guest_answers();
    machine.tell(Request::Reset);
    machine.until_the_guest_answers();
    let (bench, first) = machine.stop();

    // Another goes on from the snapshot.
    for name in ["ring", "control.sock", "jail/v"] {
        let _ = fs::remove_file(bench.path(name));
    }
    let mut config_of_second = config(&bench, kernel, initrd);
    config_of_second.restore = Some(snapshot);
    let machine = Machine::start(bench, &config_of_second);
    machine.until_the_guest_answers();
    machine.does("write /dev/vdb 4194304 131072");
    let (_, second) = machine.stop();
    vec![first, second]
}

/// `ioctl`s of `KVM_GET_PIT2` and `KVM_SET_PIT2` (linux/kvm.h).
const KVM_GET_PIT2: When = When::Argument(1, 0x8070_ae9f);
const KVM_SET_PIT2: When = When::Argument(1, 0x4070_aea0);

/// What may well not be called, and why it is on a list all the same.
fn is_rare(call: &Call) -> bool {
    [
        // What the allocator, locks and the kernel itself may do at any time.
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_rt_sigprocmask,
        libc::SYS_restart_syscall,
        // A host whose clock cannot be read without the kernel.
        libc::SYS_clock_gettime,
        // A directory is removed, when a snapshot fails halfway.
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_getdents64,
        libc::SYS_unlinkat,
    ]
    .contains(&call.number)
        || call.number == libc::SYS_fcntl && call.when == When::Argument(1, libc::F_GETFL as u64)
        // The interval timer, which is there only where the processor runs the guest.
        || kind() == KvmKind::Interpreted && [KVM_GET_PIT2, KVM_SET_PIT2].contains(&call.when)
}

#[test]
fn every_listed_call_is_used() {
    if !kvm_is_here() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skipped("without root there is no other user to become");
    }
    let Some((kernel, initrd)) = guest() else {
        return;
    };
    let used = a_life(Bench::new(&[]), &kernel, &initrd);
    let mut spare = Vec::new();
    for thread in ThreadKind::ALL {
        let used: BTreeSet<usize> = used
            .iter()
            .filter_map(|used| used.get(&(thread as usize)))
            .flatten()
            .copied()
            .collect();
        assert!(!used.is_empty(), "nothing was seen of any {thread:?}");
        for (place, call) in thread.calls().enumerate() {
            if !used.contains(&place) && !is_rare(&call) {
                spare.push(format!("{thread:?}: {call:x?}"));
            }
        }
    }
    assert!(
        spare.is_empty(),
        "listed and never used:\n{}",
        spare.join("\n")
    );
}
