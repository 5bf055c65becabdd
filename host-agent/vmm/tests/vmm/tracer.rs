//! Sees the system calls of a machine's threads, from when they are confined to their
//! lists (ptrace(2), "Attaching and detaching", "Syscall-stops").

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::thread::{self, JoinHandle};

use fabric_vmm::jail::{ThreadKind, calls::When};

/// The sixth of the stops: this one is for a system call (PTRACE_O_TRACESYSGOOD).
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// Of each kind of thread, which of its calls were made, by their places in its list.
pub type Used = BTreeMap<usize, BTreeSet<usize>>;

/// Sees what a process does from now on, until it ends.
pub fn follow(pid: u32) -> JoinHandle<Used> {
    let pid = libc::pid_t::try_from(pid).unwrap();
    let (ready, seized) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        // It ends with this test, whatever becomes of that.
        let options =
            libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
        ptrace(libc::PTRACE_SEIZE, pid, options.into()).unwrap();
        ptrace(libc::PTRACE_INTERRUPT, pid, 0).unwrap();
        ready.send(()).unwrap();
        let mut tracer = Tracer::new(pid);
        while tracer.step() {}
        tracer.used
    });
    seized.recv().unwrap();
    thread
}

/// What a thread of the machine is, once it is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Confined {
    Not,
    /// It has asked to be.
    Asked,
    As(ThreadKind),
}

struct Tracer {
    pid: libc::pid_t,
    threads: BTreeMap<libc::pid_t, Confined>,
    used: Used,
}

impl Tracer {
    fn new(pid: libc::pid_t) -> Tracer {
        Tracer {
            pid,
            threads: BTreeMap::from([(pid, Confined::Not)]),
            used: Used::new(),
        }
    }

    /// Waits for one thing to happen; false when nobody is left.
    fn step(&mut self) -> bool {
        let mut status = 0;
        let flags = libc::__WALL | libc::__WNOTHREAD;
        // SAFETY: the kernel writes one number, which is there.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, flags) };
        if thread < 0 {
            return false;
        }
        if !libc::WIFSTOPPED(status) {
            self.threads.remove(&thread);
            return true;
        }
        let signal = libc::WSTOPSIG(status);
        let pass_on = match status >> 16 {
            0 if signal == SYSCALL_STOP => {
                self.see(thread);
                0
            }
            0 => signal,
            libc::PTRACE_EVENT_STOP if signal != libc::SIGTRAP => {
                // All of the process was stopped, and stays so.
                let _ = ptrace(libc::PTRACE_LISTEN, thread, 0);
                return true;
            }
            _ => 0,
        };
        // Fails only if the thread was killed meanwhile.
        let _ = ptrace(libc::PTRACE_SYSCALL, thread, pass_on.into());
        true
    }

    /// Takes note of what a thread asks of the kernel, or has been answered.
    fn see(&mut self, thread: libc::pid_t) {
        let Some(info) = syscall_info(thread) else {
            return;
        };
        let confined = *self.threads.entry(thread).or_insert(Confined::Not);
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            if confined == Confined::Asked {
                let kind = Confined::As(self.kind_of(thread));
                self.threads.insert(thread, kind);
            }
            return;
        }
        // SAFETY: it is the entry of a call, of which the kernel has told.
        let (number, arguments) = unsafe { (info.u.entry.nr, info.u.entry.args) };
        match confined {
            Confined::As(kind) => self.note(kind, number, arguments),
            _ if number == libc::SYS_seccomp as u64 && arguments[0] == 1 => {
                self.threads.insert(thread, Confined::Asked);
            }
            _ => {}
        }
    }

    fn kind_of(&self, thread: libc::pid_t) -> ThreadKind {
        let path = format!("/proc/{}/task/{thread}/comm", self.pid);
        let name = fs::read_to_string(path).unwrap_or_default();
        match name.trim_end() {
            name if name.starts_with("vcpu") => ThreadKind::Vcpu,
            name if name.starts_with("disk") => ThreadKind::Disk,
            _ => ThreadKind::EventLoop,
        }
    }

    fn note(&mut self, kind: ThreadKind, number: u64, arguments: [u64; 6]) {
        let fits = |when: When| match when {
            When::Always => true,
            When::Argument(index, value) => arguments[usize::from(index)] & 0xffff_ffff == value,
            When::Without(index, bits) => arguments[usize::from(index)] & bits == 0,
            When::ThisProcess => true,
        };
        for (place, call) in kind.calls().enumerate() {
            if call.number as u64 == number && fits(call.when) {
                self.used.entry(kind as usize).or_default().insert(place);
            }
        }
    }
}

fn ptrace(request: libc::c_uint, thread: libc::pid_t, data: libc::c_long) -> io::Result<()> {
    // SAFETY: none of these requests has the kernel write anywhere.
    if unsafe { libc::ptrace(request, thread, 0, data) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn syscall_info(thread: libc::pid_t) -> Option<libc::ptrace_syscall_info> {
    let mut info = std::mem::MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: the kernel writes at most so many bytes, which are there, and which are
    // a valid value when all are zero.
    unsafe {
        let told = libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            thread,
            size,
            info.as_mut_ptr(),
        );
        (told > 0).then(|| info.assume_init())
    }
}
