//! Every system call that is not on a thread's list kills, so does one with an argument that
//! is not, and what threads need is there.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::thread;

use fabric_vmm::jail::calls::{Call, When};
use fabric_vmm::jail::{CallLists, ThreadKind};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// More than the kernel has (arch/x86/entry/syscalls/syscall_64.tbl).
const NUMBERS: std::ops::Range<i64> = 0..512;
/// uretprobe and uprobe, which the kernel lets past every filter
/// (kernel/seccomp.c): outside of its own trampolines they do nothing.
const PAST_FILTERS: [i64; 2] = [335, 336];

/// A kind of thread, in words.
pub fn name(kind: ThreadKind) -> &'static str {
    match kind {
        ThreadKind::Vcpu => "a_virtual_cpu",
        ThreadKind::Disk => "a_disk",
        ThreadKind::EventLoop => "the_event_loop",
    }
}

/// The kind of that name.
fn kind(word: &str) -> ThreadKind {
    let found = ThreadKind::ALL.into_iter().find(|kind| name(*kind) == word);
    found.expect("a kind of thread")
}

/// Starts a process that tries each of them.
pub fn every_unlisted_one_kills(kind: ThreadKind) {
    nobody_survives("calls", kind);
}

/// Starts a process that makes calls that are listed with arguments that are not.
pub fn every_unlisted_argument_kills(kind: ThreadKind) {
    nobody_survives("arguments", kind);
}

fn nobody_survives(what: &str, kind: ThreadKind) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([what, name(kind)])
        .output()
        .unwrap();
    let survived = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(survived, "", "calls that are not listed and did not kill");
}

/// Arguments that the kernel does not look at twice, were the call let through.
const NONSENSE: [i64; 6] = [-1; 6];

/// Tries each in a child, and prints those that the child survived.
pub fn try_all(arguments: &[String]) -> ExitCode {
    let kind = kind(&arguments[0]);
    let confinement = Confinement::of(kind);
    let listed: BTreeSet<i64> = kind.calls().map(|call| call.number).collect();
    let unlisted = NUMBERS.filter(|number| !listed.contains(number));
    for number in unlisted.filter(|number| !PAST_FILTERS.contains(number)) {
        confinement.prints_if_survived(number, NONSENSE);
    }
    ExitCode::SUCCESS
}

/// Makes each call that is listed for some arguments only, with others, and prints what
/// was survived: with what another kind of thread may say there, and with what is next to
/// what this one may.
pub fn try_arguments(arguments: &[String]) -> ExitCode {
    let kind = kind(&arguments[0]);
    let confinement = Confinement::of(kind);
    let of_all = || ThreadKind::ALL.into_iter().flat_map(ThreadKind::calls);
    let mut tried = 0;
    for call in kind.calls() {
        let (argument, others) = match call.when {
            When::Always => continue,
            When::Argument(argument, _) => {
                let values = |call: Call| match call.when {
                    When::Argument(of, value) if of == argument => Some(value),
                    _ => None,
                };
                let same = |other: &Call| other.number == call.number;
                let listed: BTreeSet<u64> = kind.calls().filter(same).filter_map(values).collect();
                let near = listed
                    .iter()
                    .flat_map(|value| [value ^ 1, value + 1, value << 1]);
                let known = of_all().filter(same).filter_map(values);
                let others: BTreeSet<u64> = known.chain(near).chain([0, u64::MAX]).collect();
                (argument, others.difference(&listed).copied().collect())
            }
            When::Without(argument, bits) => {
                let more = libc::PROT_READ as u64;
                (argument, BTreeSet::from([bits, bits | more, u64::MAX]))
            }
            When::ThisProcess => {
                let this = u64::from(std::process::id());
                (0, BTreeSet::from([1, this + 1, this - 1]))
            }
        };
        for value in others {
            let mut all = NONSENSE;
            all[usize::from(argument)] = value.cast_signed();
            confinement.prints_if_survived(call.number, all);
            tried += 1;
        }
    }
    assert!(tried > 0, "nothing was tried");
    ExitCode::SUCCESS
}

/// What children of this process are confined by.
struct Confinement {
    kind: ThreadKind,
    lists: CallLists,
}

impl Confinement {
    fn of(kind: ThreadKind) -> Confinement {
        let lists = CallLists::compile().unwrap();
        prctl::set_no_new_privs().unwrap();
        let confinement = Confinement { kind, lists };
        // What is survived shows.
        let end = confinement.end_of_child(libc::SYS_close, NONSENSE);
        assert_eq!(end, WaitStatus::Exited(end.pid().unwrap(), 0));
        confinement
    }

    fn prints_if_survived(&self, number: i64, arguments: [i64; 6]) {
        match self.end_of_child(number, arguments) {
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => {}
            other => println!("{number} {arguments:x?}: {other:?}"),
        }
    }

    /// How a confined child ends that makes this call.
    fn end_of_child(&self, number: i64, [a, b, c, d, e, f]: [i64; 6]) -> WaitStatus {
        // Only the event loop may end the process, and a child of one thread needs not.
        let exit = match self.kind {
            ThreadKind::EventLoop => libc::SYS_exit_group,
            ThreadKind::Vcpu | ThreadKind::Disk => libc::SYS_exit,
        };
        // SAFETY: this process has one thread; the child makes system calls only.
        let child = match unsafe { libc::fork() } {
            0 => {
                let status = i64::from(self.lists.confine(self.kind).is_err());
                // SAFETY: the kernel kills before it looks at any of these arguments, or
                // finds nothing that they name; then the child ends, with nothing of the
                // parent's to be run.
                unsafe {
                    libc::syscall(number, a, b, c, d, e, f);
                    libc::syscall(exit, status);
                }
                unreachable!("it has ended");
            }
            child => Pid::from_raw(child),
        };
        waitpid(child, None).unwrap()
    }
}

/// Starts a process whose thread of that kind has memory of the first thread's.
pub fn memory_of_another_thread_is_no_crime(kind: ThreadKind) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["memory", name(kind)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Has a confined thread grow and give back what the first thread allocated, which
/// is done where the first thread's memory is: at the program break.
pub fn handle_memory(arguments: &[String]) -> ExitCode {
    let mut held: Vec<Vec<u8>> = (0..64).map(|_| Vec::with_capacity(1 << 10)).collect();
    let done = confined(kind(&arguments[0]), move || {
        for one in &mut held {
            one.reserve_exact(100 << 10);
        }
        drop(held);
    });
    done.unwrap();
    ExitCode::SUCCESS
}

/// Does something in a confined thread of that kind; the event loop is the first.
fn confined(kind: ThreadKind, work: impl FnOnce() + Send + 'static) -> thread::Result<()> {
    let lists = CallLists::compile().unwrap();
    prctl::set_no_new_privs().unwrap();
    let work = move || {
        lists.confine(kind).unwrap();
        work();
    };
    match kind {
        ThreadKind::EventLoop => catch_unwind(AssertUnwindSafe(work)),
        ThreadKind::Vcpu | ThreadKind::Disk => thread::spawn(work).join(),
    }
}

/// Starts a process whose thread of that kind panics, where panics could say a lot.
pub fn a_panic_is_told(kind: ThreadKind) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["panic", name(kind)])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("not so confined"), "{said}");
}

/// Has a confined thread panic, and catches that.
pub fn panic_once(arguments: &[String]) -> ExitCode {
    fabric_vmm::exit::keep_panics_short();
    let done = confined(kind(&arguments[0]), || panic!("not so confined"));
    ExitCode::from(u8::from(done.is_ok()))
}
