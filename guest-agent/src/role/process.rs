//! Starts programs as a role's user and sends signals to all that came of them.
//!
//! A new process is made by `posix_spawn`, which in glibc shares the memory of
//! its parent until it executes: a copy of the page tables, as `fork` makes,
//! costs a guest on an interpreting KVM a third of a second. `posix_spawn` can
//! change neither user nor directory, so this thread takes on both for the
//! moment of the call ([`Identity`], [`Directory`]). Root stays its saved user id,
//! which `execve` overwrites with the effective one: the program cannot get it
//! back. The real user id must change too, or an `execve` under no-new-privileges
//! would take the difference for a set-user-id program and go back to root.
//!
//! The guest agent is one thread, and nothing else runs between taking on an
//! identity and putting it off.

use std::{
    env,
    ffi::{CStr, CString, OsStr},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
    process::abort,
};

use nix::{
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::signal::{SigSet, Signal as Handled},
};
use rustix::{
    process::{Gid, Pid, Signal, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::console;

/// The role's program, or one that a probe runs.
#[derive(Debug)]
pub struct Program<'a> {
    /// Program and arguments; a relative program is looked for in the directory.
    pub command: &'a [CString],
    /// The whole environment, as NAME=VALUE.
    pub environment: &'a [CString],
    /// Working directory.
    pub directory: &'a Path,
    /// User and group id to run as; `None` keeps those of the guest agent.
    pub user: Option<u32>,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
}

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There is nothing to run.
    #[error("there is no program to run")]
    Nothing,
    /// Its directory cannot be entered.
    #[error("cannot enter {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// Its user cannot be taken on.
    #[error("cannot become user {0}")]
    User(u32, #[source] io::Error),
    /// It cannot be executed.
    #[error("cannot execute {}", .0.display())]
    Execute(PathBuf, #[source] io::Error),
    /// The system has no room for the call's own bookkeeping.
    #[error("cannot prepare a process")]
    Prepare(#[source] io::Error),
}

/// Starts `program` in a session and process group of its own.
///
/// # Errors
///
/// Says which step failed; a program that cannot be executed is known here, not
/// by its exit status.
pub fn spawn(program: &Program<'_>) -> Result<Pid, SpawnError> {
    let name = program.command.first().ok_or(SpawnError::Nothing)?;
    let path = path(program.directory, name);
    let attributes = attributes().map_err(SpawnError::Prepare)?;
    let actions = stdio(&program.stdio).map_err(SpawnError::Prepare)?;

    let directory = Directory::enter(program.directory)
        .map_err(|error| SpawnError::Directory(program.directory.to_owned(), error))?;
    let identity = program
        .user
        .map(|user| Identity::take_on(user).map_err(|error| SpawnError::User(user, error)))
        .transpose()?;
    let spawned = posix_spawn(
        &*path,
        &actions,
        &attributes,
        program.command,
        program.environment,
    );
    drop(identity);
    drop(directory);

    match spawned.map(|pid| Pid::from_raw(pid.as_raw())) {
        Ok(Some(pid)) => Ok(pid),
        Ok(None) => Err(SpawnError::Prepare(io::ErrorKind::Other.into())),
        Err(error) => Err(SpawnError::Execute(path, error.into())),
    }
}

/// Where the program of that name is which runs in that directory.
pub fn path(directory: &Path, name: &CStr) -> PathBuf {
    directory.join(OsStr::from_bytes(name.to_bytes()))
}

/// A session of its own, no signal blocked, none ignored.
fn attributes() -> io::Result<PosixSpawnAttr> {
    let mut attributes = PosixSpawnAttr::init()?;
    // Not named by nix; glibc since 2.26.
    let new_session = PosixSpawnFlags::from_bits_retain(nix::libc::POSIX_SPAWN_SETSID.into());
    attributes.set_flags(
        new_session
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
    )?;
    attributes.set_sigmask(&SigSet::empty())?;
    // Rust's runtime ignores it, and what is ignored stays so through exec.
    let mut ignored = SigSet::empty();
    ignored.add(Handled::SIGPIPE);
    attributes.set_sigdefault(&ignored)?;
    Ok(attributes)
}

fn stdio(fds: &[BorrowedFd<'_>; 3]) -> io::Result<PosixSpawnFileActions> {
    let mut actions = PosixSpawnFileActions::init()?;
    for (number, fd) in (0..).zip(fds) {
        actions.add_dup2(fd.as_raw_fd(), number)?;
    }
    Ok(actions)
}

/// A role's user and group, with no other groups, on this thread alone; put off
/// when dropped.
struct Identity(());

impl Identity {
    fn take_on(user: u32) -> io::Result<Self> {
        let identity = Self(());
        let (root_user, root_group) = (Uid::ROOT, Gid::ROOT);
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, root_group)?;
        set_thread_res_uid(uid, uid, root_user)?;
        Ok(identity)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        // The saved ids are root's, so this cannot fail; going on as somebody else
        // would be worse than not going on.
        let root = set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
            .and_then(|()| set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT));
        if let Err(error) = root {
            console::say(format_args!("cannot become root again: {error}"));
            abort();
        }
    }
}

/// A working directory; dropped, the guest agent is at `/` again, where it lives.
struct Directory(());

impl Directory {
    fn enter(directory: &Path) -> io::Result<Self> {
        env::set_current_dir(directory).map(|()| Self(()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = env::set_current_dir("/") {
            console::say(format_args!("cannot go back to /: {error}"));
        }
    }
}

/// Asks a process and its group to end. One that is stopped is continued, so that
/// it can.
pub fn terminate(group: Pid) {
    signal(group, Signal::TERM);
    signal(group, Signal::CONT);
}

/// Ends a process and its group.
pub fn kill(group: Pid) {
    signal(group, Signal::KILL);
}

/// Tells a process, and it alone, that what it was started with has changed.
pub fn hang_up(process: Pid) {
    // It may have ended already.
    _ = rustix::process::kill_process(process, Signal::HUP);
}

/// Sends `signal` to a process group that [`spawn`] made.
pub fn signal(group: Pid, signal: Signal) {
    // It may have ended already.
    _ = rustix::process::kill_process_group(group, signal);
}

/// An environment as `execve` takes it; what has a NUL byte is left out.
pub fn environment<'a>(variables: impl IntoIterator<Item = (&'a str, &'a OsStr)>) -> Vec<CString> {
    variables
        .into_iter()
        .filter_map(|(name, value)| {
            let mut variable = name.to_owned().into_bytes();
            variable.push(b'=');
            variable.extend(value.to_owned().into_vec());
            CString::new(variable).ok()
        })
        .collect()
}

/// A program's name and arguments in one line, for people.
pub fn display(command: &[CString]) -> String {
    let words: Vec<_> = command
        .iter()
        .map(CString::as_c_str)
        .map(CStr::to_string_lossy)
        .collect();
    words.join(" ")
}
