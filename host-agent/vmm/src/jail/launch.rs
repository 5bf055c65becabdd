//! Starts a process as the first one of a pid namespace of its own.
//!
//! What happens between the two processes is written out call by call: the child
//! of a process with threads may do nothing that takes a lock or memory. All that
//! it needs is ready before it exists.
//!
//! And says how a process ended that somebody else has started, as far as the kernel tells.

use std::ffi::{CString, NulError, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::ptr;

use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid};

/// What is to be started, and how.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments, without the program.
    pub arguments: &'a [&'a str],
    /// All of its environment.
    pub environment: &'a [(&'a str, OsString)],
    /// Its working directory.
    pub directory: &'a Path,
    /// Its standard input; nothing comes of it without one.
    pub stdin: Option<&'a File>,
    /// Its standard output.
    pub stdout: &'a File,
    /// Its standard error.
    pub stderr: &'a File,
    /// The control groups that it is to be in, one of each hierarchy.
    pub groups: &'a [Door],
}

/// How a process gets into a control group (cgroups(7)).
///
/// Not by writing to `cgroup.procs`: for that the kernel keeps all processes from forking,
/// and waits 10 to 20 ms until none does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// Version 1: the group's `tasks`. The new process has one thread, which goes in.
    Tasks(PathBuf),
    /// Version 2: the group's directory. The process begins in there (`CLONE_INTO_CGROUP`).
    Directory(PathBuf),
}

/// Starts it: in a session of its own, with no descriptor but these, and in a pid
/// namespace if the host gives one. Returns its process id, of a child of ours.
///
/// # Errors
///
/// When there is no process, or it cannot become the program.
pub fn launch(launch: &Launch<'_>) -> io::Result<u32> {
    let prepared = Prepared::new(launch)?;
    let pid_namespace = libc::CLONE_NEWPID as u64;
    let with_user = pid_namespace | libc::CLONE_NEWUSER as u64;
    // Unprivileged, only as root of a user namespace.
    for flags in [pid_namespace, with_user] {
        match prepared.start(flags) {
            Err(StartError::NoProcess(_)) => {}
            Err(StartError::NoProgram(error)) => return Err(error),
            Ok(pid) => return Ok(pid),
        }
    }
    prepared.start(0).map_err(|error| match error {
        StartError::NoProcess(error) | StartError::NoProgram(error) => error,
    })
}

/// How the process of a pidfd ended, whoever's child it was (`PIDFD_GET_INFO`, linux/pidfd.h);
/// nothing while its parent has not collected it.
///
/// # Errors
///
/// When the kernel does not tell: those before Linux 6.15.
pub fn status_of(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    // SAFETY: it is made of numbers, of which all may be zero.
    let mut info = unsafe { std::mem::zeroed::<libc::pidfd_info>() };
    let asked = u64::from(libc::PIDFD_INFO_EXIT);
    info.mask = asked;
    // SAFETY: the call fills a structure of the size that is part of its number.
    if unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let told = info.mask & asked != 0;
    Ok(told.then(|| ExitStatus::from_raw(info.exit_code)))
}

enum StartError {
    /// There is no process.
    NoProcess(io::Error),
    /// There was one, and it could not become the program.
    NoProgram(io::Error),
}

/// Everything that the child needs, at its place.
struct Prepared {
    program: CString,
    /// Kept for the pointers into them.
    _strings: [Vec<CString>; 2],
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    directory: CString,
    /// Files by which it goes into groups, and the group that it begins in.
    tasks: Vec<CString>,
    group: Option<File>,
    /// Kept for where nothing is to come.
    _null: File,
    stdin: RawFd,
    stdout: RawFd,
    stderr: RawFd,
    uid_map: String,
    gid_map: String,
}

impl Prepared {
    fn new(launch: &Launch<'_>) -> Result<Prepared, io::Error> {
        let c = |text: &OsStr| CString::new(text.as_bytes());
        let program = c(launch.program.as_os_str())?;
        let rest = launch.arguments.iter().map(|text| c(OsStr::new(text)));
        let arguments: Vec<CString> = std::iter::once(Ok(program.clone()))
            .chain(rest)
            .collect::<Result<_, NulError>>()?;
        let environment: Vec<CString> = launch
            .environment
            .iter()
            .map(|(name, value)| {
                let mut text = OsString::from(name);
                text.push("=");
                text.push(value);
                CString::new(text.into_vec())
            })
            .collect::<Result<_, NulError>>()?;
        let pointers = |strings: &[CString]| {
            let strings = strings.iter().map(|text| text.as_ptr());
            strings.chain([ptr::null()]).collect()
        };
        let (mut tasks, mut group) = (Vec::new(), None);
        for door in launch.groups {
            match door {
                Door::Tasks(path) => tasks.push(c(path.as_os_str())?),
                Door::Directory(path) => group = Some(File::open(path)?),
            }
        }
        let null = File::open("/dev/null")?;
        Ok(Prepared {
            directory: c(launch.directory.as_os_str())?,
            tasks,
            group,
            program,
            arguments: pointers(&arguments),
            environment: pointers(&environment),
            _strings: [arguments, environment],
            stdin: launch.stdin.unwrap_or(&null).as_raw_fd(),
            _null: null,
            stdout: launch.stdout.as_raw_fd(),
            stderr: launch.stderr.as_raw_fd(),
            uid_map: format!("0 {} 1", Uid::effective()),
            gid_map: format!("0 {} 1", Gid::effective()),
        })
    }

    /// Starts the child, and waits until it has become the program.
    fn start(&self, flags: u64) -> Result<u32, StartError> {
        let (said, says) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|error| StartError::NoProcess(error.into()))?;
        let pid = self.clone(flags, &says).map_err(StartError::NoProcess)?;
        drop(says);
        let mut error = [0; 4];
        if File::from(said).read_exact(&mut error).is_ok() {
            // It has ended, or is about to.
            let _ = waitpid(Pid::from_raw(pid), None);
            let error = io::Error::from_raw_os_error(i32::from_ne_bytes(error));
            return Err(StartError::NoProgram(error));
        }
        Ok(pid.unsigned_abs())
    }

    fn clone(&self, flags: u64, says: &OwnedFd) -> io::Result<libc::pid_t> {
        // SAFETY: a clone_args of zeroes asks for nothing.
        let mut arguments = unsafe { std::mem::zeroed::<libc::clone_args>() };
        arguments.flags = flags;
        arguments.exit_signal = libc::SIGCHLD as u64;
        if let Some(group) = &self.group {
            arguments.flags |= CLONE_INTO_CGROUP;
            arguments.cgroup = group.as_raw_fd() as u64;
        }
        let size = size_of::<libc::clone_args>();
        // No handler of ours is to run in the child, which shares its pipes with us.
        let blocked = Blocked::all()?;
        // SAFETY: without CLONE_VM the child has memory of its own, and goes on here
        // on a copy of this stack. It calls nothing but system calls until it becomes
        // another program or ends.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
        if pid == 0 {
            // SAFETY: this is the child.
            unsafe { self.become_program(flags, says.as_raw_fd()) };
        }
        let error = io::Error::last_os_error();
        drop(blocked);
        match pid {
            ..0 => Err(error),
            _ => Ok(pid as libc::pid_t),
        }
    }

    /// In the child: becomes the program, or says why not and ends.
    ///
    /// # Safety
    ///
    /// To be called in a child with memory and descriptors of its own.
    unsafe fn become_program(&self, flags: u64, says: RawFd) -> ! {
        // SAFETY: plain system calls, on strings and descriptors that the copy of the
        // parent's memory and descriptors holds; `_exit` runs nothing of the parent's.
        unsafe {
            self.try_to_become_program(flags);
            let error = (*libc::__errno_location()).to_ne_bytes();
            libc::write(says, error.as_ptr().cast(), error.len());
            libc::_exit(127)
        }
    }

    /// Returns, with the error number set, at the first step that fails.
    ///
    /// # Safety
    ///
    /// That of [`become_program`](Self::become_program).
    unsafe fn try_to_become_program(&self, flags: u64) {
        // SAFETY: as above; each pointer is to a string with its NUL, to a list that
        // ends in a null pointer, or to a buffer given with its length.
        unsafe {
            if flags & libc::CLONE_NEWUSER as u64 != 0 {
                let uid = write_file(c"/proc/self/uid_map", self.uid_map.as_bytes());
                let deny = write_file(c"/proc/self/setgroups", b"deny");
                let gid = write_file(c"/proc/self/gid_map", self.gid_map.as_bytes());
                if !(uid && deny && gid) {
                    return;
                }
            }
            for tasks in &self.tasks {
                if !write_file(tasks, b"0") {
                    return;
                }
            }
            if libc::setsid() < 0 || libc::chdir(self.directory.as_ptr()) < 0 {
                return;
            }
            for (from, to) in [(self.stdin, 0), (self.stdout, 1), (self.stderr, 2)] {
                if libc::dup2(from, to) < 0 {
                    return;
                }
            }
            let on_exec = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
            if libc::close_range(3, libc::c_uint::MAX, on_exec) < 0 {
                return;
            }
            for signal in 1..=SIGNALS {
                // Some cannot be changed.
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &none, ptr::null_mut());
            libc::execve(
                self.program.as_ptr(),
                self.arguments.as_ptr(),
                self.environment.as_ptr(),
            );
        }
    }
}

/// `CLONE_INTO_CGROUP` (linux/sched.h), which libc has as a number that is too short for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// The highest number of a signal (signal(7)).
const SIGNALS: libc::c_int = 64;

/// Writes all of a file that is there; false, with the error number set, if not.
///
/// # Safety
///
/// To be called in a child with descriptors of its own.
unsafe fn write_file(path: &std::ffi::CStr, text: &[u8]) -> bool {
    // SAFETY: the path ends in a NUL, the text is given with its length.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        file >= 0 && {
            let written = libc::write(file, text.as_ptr().cast(), text.len());
            written >= 0 && libc::close(file) == 0
        }
    }
}

/// All signals, blocked in this thread until this is dropped.
struct Blocked(nix::sys::signal::SigSet);

impl Blocked {
    fn all() -> io::Result<Blocked> {
        use nix::sys::signal::{SigSet, SigmaskHow};
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Blocked(before))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // Fails for no set.
        let _ = self.0.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group of this host, where it has a hierarchy of that type that we may use.
    fn group(kind: &str) -> Option<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mut points = mounts.lines().filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (point, its) = (words.next()?, words.next()?);
            (its == kind).then(|| PathBuf::from(point))
        });
        let name = format!("fabric-launch-test-{kind}-{}", std::process::id());
        points.find_map(|point| {
            let path = point.join(&name);
            std::fs::create_dir(&path).ok().map(|()| path)
        })
    }

    /// What a process that is started in a group says of its groups.
    fn said_in(door: Door) -> String {
        let mut said = tempfile::tempfile().unwrap();
        let pid = launch(&Launch {
            program: Path::new("/bin/cat"),
            arguments: &["/proc/self/cgroup"],
            environment: &[],
            directory: Path::new("/"),
            stdin: None,
            stdout: &said,
            stderr: &said,
            groups: &[door],
        });
        waitpid(Pid::from_raw(pid.unwrap() as i32), None).unwrap();
        let mut text = String::new();
        std::io::Seek::rewind(&mut said).unwrap();
        said.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_process_begins_in_its_group_of_either_version() {
        for (kind, version_two) in [("cgroup", false), ("cgroup2", true)] {
            let Some(group) = group(kind) else {
                eprintln!("skipped: no group of type {kind} can be made here");
                continue;
            };
            let said = said_in(if version_two {
                Door::Directory(group.clone())
            } else {
                Door::Tasks(group.join("tasks"))
            });
            std::fs::remove_dir(&group).unwrap();
            let name = group.file_name().unwrap().to_str().unwrap();
            let its = said
                .lines()
                .find(|line| line.ends_with(&format!("/{name}")));
            let its = its.unwrap_or_else(|| panic!("not in {name}: {said}"));
            assert_eq!(its.starts_with("0::"), version_two, "{said}");
        }
    }

    #[test]
    fn a_group_that_is_not_there_is_an_error_and_no_process() {
        for door in [
            Door::Tasks("/nowhere/tasks".into()),
            Door::Directory("/nowhere".into()),
            Door::Directory("/tmp".into()),
        ] {
            let said = tempfile::tempfile().unwrap();
            let started = launch(&Launch {
                program: Path::new("/bin/true"),
                arguments: &[],
                environment: &[],
                directory: Path::new("/"),
                stdin: None,
                stdout: &said,
                stderr: &said,
                groups: std::slice::from_ref(&door),
            });
            assert!(started.is_err(), "{door:?}: {started:?}");
        }
    }
}
