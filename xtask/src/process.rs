//! Programs that a task runs: none outlives it.
//!
//! Each runs in a process group of its own, so that Ctrl-C reaches the task alone
//! and the task ends them in its own order.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, waitid},
};

use crate::interrupt::{self, Awaited, signal_group};

/// How long a program has between SIGTERM and SIGKILL, if nothing else is said.
const GRACE: Duration = Duration::from_secs(15);

/// Lines of output that an error repeats.
const TAIL_LINES: usize = 40;

/// Makes a command of a program and its arguments.
pub fn command<I, S>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// A program that runs. Dropped, it is ended.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    grace: Duration,
}

impl Process {
    /// Starts a program, without standard input unless the command says otherwise.
    pub fn start(command: &mut Command) -> Result<Self> {
        interrupt::check()?;
        let name = name_of(command);
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name,
            child,
            ended: None,
            grace: GRACE,
        })
    }

    /// The same, with another time between SIGTERM and SIGKILL.
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The program's name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, which is that of its group as well.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, once.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits until it ends; Ctrl-C ends it.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        {
            let _awaited = self.awaited();
            self.await_end()?;
        }
        // It is reaped only now: until here its id was its own, and Ctrl-C could
        // reach no other.
        let status = self.wait_within(Duration::ZERO)?;
        interrupt::check()?;
        status.with_context(|| format!("{} has ended without a status", self.name))
    }

    /// While this is held, Ctrl-C ends the program. For reading its output to the
    /// end, after which [`wait`](Self::wait) reaps it.
    pub fn awaited(&self) -> Awaited {
        Awaited::new(self.group())
    }

    /// How it ended, if it does within a time. Zero: if it has.
    pub fn wait_within(&mut self, time: Duration) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            if !time.is_zero() {
                self.poll_end(time)?;
            }
            self.ended = self
                .child
                .try_wait()
                .with_context(|| format!("waiting for {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Ends it: SIGTERM to the program, and SIGKILL to its group when it does not
    /// end in time.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.wait_within(Duration::ZERO)? {
            return Ok(status);
        }
        if let Some(pid) = Pid::from_raw(self.group()) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        if let Some(status) = self.wait_within(self.grace)? {
            return Ok(status);
        }
        eprintln!(
            "{} did not end within {:?} of SIGTERM: killed",
            self.name, self.grace
        );
        self.kill()
    }

    /// Ends it at once, without a word.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.wait_within(Duration::ZERO)? {
            return Ok(status);
        }
        signal_group(self.group(), Signal::KILL);
        let status = self
            .child
            .wait()
            .with_context(|| format!("waiting for {}", self.name))?;
        self.ended = Some(status);
        Ok(status)
    }

    fn group(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    fn await_end(&self) -> Result<()> {
        let pid = Pid::from_raw(self.group()).context("a process id of zero")?;
        loop {
            match waitid(
                WaitId::Pid(pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("waiting for {}", self.name));
                }
                Ok(_) => return Ok(()),
            }
        }
    }

    fn poll_end(&self, time: Duration) -> Result<()> {
        let pid = Pid::from_raw(self.group()).context("a process id of zero")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .with_context(|| format!("watching {}", self.name))?;
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).context("a wait that is too long")?;
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("waiting for {}", self.name));
                }
                Ok(_) => return Ok(()),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none()
            && let Err(error) = self.stop()
        {
            eprintln!(
                "could not end {} (process {}): {error:#}",
                self.name,
                self.pid()
            );
        }
    }
}

/// Runs a program to its end, its output going where the task's goes.
pub fn run(command: &mut Command) -> Result<()> {
    let mut process = Process::start(command)?;
    let status = process.wait()?;
    if !status.success() {
        bail!("{} failed: {status}", process.name());
    }
    Ok(())
}

/// Runs a program to its end and returns its standard output. Its standard error
/// goes where the task's goes.
pub fn output(command: &mut Command) -> Result<String> {
    let mut process = Process::start(command.stdout(Stdio::piped()))?;
    let _awaited = process.awaited();
    let mut text = String::new();
    if let Some(mut stdout) = process.take_stdout() {
        stdout
            .read_to_string(&mut text)
            .with_context(|| format!("reading the output of {}", process.name()))?;
    }
    let status = process.wait()?;
    if !status.success() {
        bail!("{} failed: {status}", process.name());
    }
    Ok(text)
}

/// Runs a program to its end and hands on each line of its output, standard error
/// included. When it fails, the error repeats the last lines.
pub fn run_quietly(command: &mut Command, mut line: impl FnMut(&str)) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let second = writer.try_clone().context("making a pipe")?;
    let mut process = Process::start(command.stdout(writer).stderr(second))?;
    let _awaited = process.awaited();
    // The command holds the pipe's writing end; without this there is no end of it.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    for text in BufReader::new(reader).split(b'\n') {
        let text = text.with_context(|| format!("reading the output of {}", process.name()))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        line(&text);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text);
    }
    let status = process.wait()?;
    if !status.success() {
        let tail: Vec<String> = tail.into();
        bail!(
            "{} failed: {status}; its last words:\n{}",
            process.name(),
            tail.join("\n")
        );
    }
    Ok(())
}

fn name_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy();
    match command.get_args().next() {
        Some(first) if !first.is_empty() => format!("{name} {}", first.to_string_lossy()),
        _ => name.into_owned(),
    }
}
