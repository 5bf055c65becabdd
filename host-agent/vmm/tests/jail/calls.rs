//! Every system call that is not on a thread's list kills, and what threads need is there.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::thread;

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
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["calls", name(kind)])
        .output()
        .unwrap();
    let survived = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(survived, "", "calls that are not listed and did not kill");
}

/// Tries each in a child, and prints those that the child survived.
pub fn try_all(arguments: &[String]) -> ExitCode {
    let kind = kind(&arguments[0]);
    let listed: BTreeSet<i64> = kind.calls().map(|call| call.number).collect();
    let lists = CallLists::compile().unwrap();
    prctl::set_no_new_privs().unwrap();
    let unlisted = NUMBERS.filter(|number| !listed.contains(number));
    for number in unlisted.filter(|number| !PAST_FILTERS.contains(number)) {
        // SAFETY: this process has one thread; the child makes system calls only.
        let child = match unsafe { libc::fork() } {
            0 => {
                let status = match lists.confine(kind) {
                    // SAFETY: the kernel refuses to look at any of these arguments,
                    // and kills before.
                    Ok(()) => unsafe {
                        libc::syscall(number, -1, -1, -1, -1, -1, -1);
                        0
                    },
                    Err(_) => 1,
                };
                // SAFETY: nothing of the parent's is to be run at its end.
                unsafe { libc::_exit(status) }
            }
            child => Pid::from_raw(child),
        };
        match waitpid(child, None).unwrap() {
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => {}
            other => println!("{number}: {other:?}"),
        }
    }
    ExitCode::SUCCESS
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
