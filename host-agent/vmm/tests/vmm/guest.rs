//! Guests of a few instructions, to be run by the real program on real KVM.
//!
//! Each is assembled into this test's own binary and put into an ELF file from
//! there. It starts as a Linux kernel does: in 64-bit mode, on an identity map of
//! 4 GiB, at 16 MiB.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use fabric_vmm::console::RingReader;
use fabric_vmm::control::{Answer, Request, ask};
use fabric_vmm::exit::{ExitReport, KvmKind};
use tempfile::TempDir;

/// The directory that a machine of a [`Bench`] sees: in it are its sockets and snapshots.
pub const JAIL: &str = "jail";
/// The user that it is: one that nobody else is.
const USER: &str = "1879049829";

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether KVM is there. Where it is not, the test has nothing to say, unless
/// `FABRIC_REQUIRE_KVM=1` makes that a failure.
pub fn kvm_is_here() -> bool {
    let probe = fabric_vmm::probe::probe();
    if probe.usable {
        return true;
    }
    let reason = probe.problems.join("; ");
    assert!(
        std::env::var_os("FABRIC_REQUIRE_KVM").is_none(),
        "KVM is required: {reason}"
    );
    eprintln!("skipped, for there is no KVM: {reason}");
    false
}

/// What kind of KVM this is.
pub fn kind() -> KvmKind {
    fabric_vmm::probe::probe().kind.expect("KVM is usable")
}

/// Where a machine may be, and who.
fn place() -> &'static [&'static str] {
    if nix::unistd::geteuid().is_root() {
        &["--directory", JAIL, "--user", USER]
    } else {
        // Without root there is no other user to become.
        &["--directory", JAIL, "--allow-missing-isolation", "uid"]
    }
}

/// A folder with a kernel in it, to run machines in.
pub struct Bench {
    folder: TempDir,
}

impl Bench {
    /// A folder whose `kernel` is `code`, and whose [`JAIL`] is the machines'.
    pub fn new(code: &[u8]) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kernel"), elf(code)).unwrap();
        let bench = Bench { folder };
        std::fs::create_dir(bench.path(JAIL)).unwrap();
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::Uid::from_raw(USER.parse().unwrap());
            nix::unistd::chown(&bench.path(JAIL), Some(user), None).unwrap();
        }
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command that runs a machine of this description.
    pub fn run_command(&self, description: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fabric-vmm"));
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.arg("run").args(place()).args(description);
        command
    }

    /// The command that runs the kernel, with more arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.run_command(&["--kernel", "kernel", "--memory", "32MiB"]);
        command.args(arguments);
        command
    }

    /// The command that goes on from a snapshot in the folder.
    pub fn restore(&self, snapshot: &str, arguments: &[&str]) -> Command {
        let mut command = self.run_command(&["--restore", snapshot, "--memory", "32MiB"]);
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// What the machine answers on its control socket, which is `control.sock`.
    pub fn tell(&self, request: Request) -> Answer {
        ask(&self.path("control.sock"), request, PATIENCE).unwrap()
    }

    /// All that was said on a console that is a ring, as far as it was kept; nothing if
    /// there is none yet.
    pub fn said(&self, ring: &str) -> Option<String> {
        let ring = RingReader::open(&self.path(ring)).ok()?;
        Some(String::from_utf8(ring.tail(usize::MAX).ok()?.bytes).unwrap())
    }

    /// Stops the machine by its control socket.
    pub fn stop(&self, child: Running) -> Ended {
        assert!(self.tell(Request::Stop).ok);
        wait(child)
    }

    /// Runs the machine to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let child = self.start(arguments);
        wait(child)
    }

    /// Starts the machine.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        Running::new(child)
    }
}

/// A machine that runs; it is killed if the test fails before its end.
#[derive(Debug)]
pub struct Running(Option<Child>);

impl Running {
    /// Takes care of a machine.
    pub fn new(child: Child) -> Running {
        Running(Some(child))
    }

    /// The process that was started, and keeps the machine.
    pub fn keeper(&self) -> u32 {
        self.0.as_ref().expect("it runs").id()
    }

    /// The machine's process, the only child of that; none before and after.
    pub fn machine(&self) -> Option<u32> {
        let keeper = self.keeper();
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
        children.ok()?.split_whitespace().next()?.parse().ok()
    }

    /// Kills it; returns how it ended.
    pub fn kill(mut self) -> ExitStatus {
        let mut child = self.0.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A machine that has ended.
#[derive(Debug)]
pub struct Ended {
    pub console: String,
    pub stderr: String,
    pub report: ExitReport,
    pub code: Option<i32>,
}

/// Waits for a machine's end; one that does not end is killed.
pub fn wait(mut running: Running) -> Ended {
    let mut child = running.0.take().expect("it runs");
    let until = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("the machine does not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    ended(&child.wait_with_output().unwrap())
}

fn ended(output: &Output) -> Ended {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = ExitReport::from_output(&stdout)
        .unwrap_or_else(|| panic!("no report in {stdout:?}: {output:?}"));
    let console = stdout
        .trim_end()
        .rsplit_once('\n')
        .map_or("", |(console, _)| console);
    Ended {
        console: console.trim_end().to_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        report,
        code: output.status.code(),
    }
}

/// Waits until `condition` gives something.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An ELF file that loads `code` at 16 MiB and starts there.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 0x0100_0000;
    let mut file = vec![0; 120];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[24..32].copy_from_slice(&ENTRY.to_le_bytes());
    file[32] = 64;
    file[54] = 56;
    file[56] = 1;
    file[64] = 1;
    file[72] = 120;
    file[88..96].copy_from_slice(&ENTRY.to_le_bytes());
    let length = (code.len() as u64).to_le_bytes();
    file[96..104].copy_from_slice(&length);
    file[104..112].copy_from_slice(&length);
    file.extend(code);
    file
}

std::arch::global_asm!(include_str!("guests.s"));

/// The bytes between the symbols `NAME_begin` and `NAME_end`.
macro_rules! code {
    ($begin:ident, $end:ident) => {{
        unsafe extern "C" {
            static $begin: u8;
            static $end: u8;
        }
        // SAFETY: the assembler puts both into one section, in this order.
        unsafe {
            let begin = &raw const $begin;
            let length = (&raw const $end).offset_from(begin) as usize;
            std::slice::from_raw_parts(begin, length)
        }
    }};
}
pub(crate) use code;
