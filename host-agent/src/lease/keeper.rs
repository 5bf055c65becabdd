//! The process that ends what runs when the lease has ended, whatever the host agent
//! does then: it may be stopped, hung, or gone.
//!
//! It is this program once more (`host-agent keep-lease`), in a session of its own. It
//! looks at the record often enough to be in time, also when the machine has slept, and
//! for as long as the lease is over, kills whatever turns up. It goes when there is no
//! record, or nothing left to keep: no host agent, and nothing that runs.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Signal, pidfd_send_signal};

use super::{Lease, record::Record};
use crate::{clock, files, hypervisor::proc, hypervisor::process};

/// The command, by which it is known.
pub const COMMAND: &str = "keep-lease";
/// Its lock in the data directory, with its process id.
const LOCK: &str = "lease-keeper";
/// How often it looks at least.
const LOOK: Duration = Duration::from_millis(200);
/// How often it kills what turns up without a lease.
const KILL: Duration = Duration::from_millis(100);
/// Before one that has ended is replaced.
const AGAIN: Duration = Duration::from_millis(500);

/// Keeps a keeper for as long as leases are needed. One that an earlier host agent left
/// is replaced, so that it is always of this version.
pub async fn keep(lease: Arc<Lease>, data: PathBuf) {
    let mut length = lease.length();
    loop {
        if length.wait_for(Option::is_some).await.is_err() {
            return;
        }
        end_former(&data);
        match spawn(&data) {
            Ok(mut child) => {
                let status = child.wait().await;
                if length.borrow().is_some() {
                    tracing::error!(?status, "the lease's keeper has ended; starting another");
                }
            }
            Err(error) => tracing::error!(%error, "the lease's keeper cannot be started"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn spawn(data: &Path) -> io::Result<tokio::process::Child> {
    // This program, also when its file has been replaced.
    tokio::process::Command::new("/proc/self/exe")
        .args([COMMAND, "--data-dir"])
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

/// Ends the keeper of a data directory, if there is one, and sees it gone.
pub async fn end(data: &Path) {
    let Some(pid) = end_former(data) else { return };
    let gone = async {
        while is_keeper(pid, data) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(AGAIN, gone).await.is_err() {
        tracing::warn!(pid, "the lease's keeper does not end");
    }
}

/// Ends the one that there is, be it an earlier host agent's; which one that was.
fn end_former(data: &Path) -> Option<u32> {
    let text = fs::read_to_string(data.join(LOCK)).ok()?;
    let pid = text.trim().parse::<u32>().ok()?;
    let process = process::open(pid)?;
    // Whoever has this number now is still the one that is looked at.
    if !is_keeper(pid, data) {
        return None;
    }
    if let Err(error) = pidfd_send_signal(process, Signal::KILL) {
        tracing::warn!(pid, %error, "cannot end the lease's keeper");
    }
    Some(pid)
}

/// Whether a process is the keeper of that directory. One that has ended has no
/// arguments.
fn is_keeper(pid: u32, data: &Path) -> bool {
    let arguments = proc::arguments(pid);
    arguments.iter().any(|one| one == COMMAND) && arguments.iter().any(|one| Path::new(one) == data)
}

/// Runs the keeper of a data directory.
///
/// # Errors
///
/// When there is another one, or the directory cannot be used.
pub fn run(data: &Path) -> anyhow::Result<()> {
    let data = fs::canonicalize(data).with_context(|| format!("cannot use {}", data.display()))?;
    let _lock = take_place(&data)?;
    // Neither whoever started us nor a shortage of memory ends this one first.
    let _ = rustix::process::setsid();
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
    std::env::set_current_dir("/").context("cannot leave the working directory")?;
    let record = Record::open(&data, &clock::host_boot_id()?)?;
    let instances = data.join("instances");
    while record.exists() {
        let left = left(&record);
        if !left.is_zero() {
            thread::sleep(left.min(LOOK));
            continue;
        }
        let killed = process::kill_all_below(&instances);
        if killed == 0 && !has_host_agent(&data) {
            return Ok(());
        }
        thread::sleep(KILL);
    }
    Ok(())
}

/// What is left of the lease. A line that is being written is looked at again.
fn left(record: &Record) -> Duration {
    for _ in 0..3 {
        if let Some(left) = record.left(clock::boot_time()) {
            return left;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Duration::ZERO
}

fn take_place(data: &Path) -> anyhow::Result<File> {
    use std::io::Write as _;
    let path = data.join(LOCK);
    let mut file =
        files::open_or_make(&path).with_context(|| format!("cannot open {}", path.display()))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Whether a host agent works in the data directory.
fn has_host_agent(data: &Path) -> bool {
    let lock = File::open(data.join(crate::serve::LOCK));
    lock.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}
