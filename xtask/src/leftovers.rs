//! What a run may have left behind: processes, mounts and sockets of its folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// How long a killed process may take to vanish.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that still has to do with a folder, one line each.
pub fn of(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in processes_of(dir) {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        found.push(format!("process {process} ({})", name.trim()));
    }
    let dir = dir.to_string_lossy();
    let lines = |file: &str| fs::read_to_string(file).unwrap_or_default();
    for mount in lines("/proc/self/mounts")
        .lines()
        .filter(|line| line.contains(&*dir))
    {
        found.push(format!("mount {mount}"));
    }
    for socket in lines("/proc/net/unix")
        .lines()
        .filter(|line| line.contains(&*dir))
    {
        let path = socket.split_whitespace().last().unwrap_or(socket);
        found.push(format!("socket {path}"));
    }
    found
}

/// Fails, and names them, if there are any or if the folder itself is there.
pub fn none_of(dir: &Path) -> Result<()> {
    let mut found = of(dir);
    if dir.exists() {
        found.push(format!("folder {}", dir.display()));
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("something was left behind:\n  {}", found.join("\n  "))
}

/// Kills every process that works in a folder. For when its owner could not end it.
pub fn kill_processes_of(dir: &Path) {
    for process in processes_of(dir) {
        let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) else {
            continue;
        };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // Looked at again now that the descriptor holds it: the id may have become
        // another's.
        if !works_in(process, dir) || pidfd_send_signal(&pidfd, Signal::KILL).is_err() {
            continue;
        }
        eprintln!(
            "killed process {process}, which worked in {}",
            dir.display()
        );
        let deadline = Instant::now() + PATIENCE;
        let left = deadline.saturating_duration_since(Instant::now());
        if let Ok(timeout) = Timespec::try_from(left) {
            // Whether it has ended shows in what is left at the end.
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
        }
    }
}

fn processes_of(dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = process::id();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|process| *process != own && works_in(*process, dir))
        .collect()
}

/// Whether a process has its working directory in a folder. That of a VMM is its
/// instance's.
fn works_in(process: u32, dir: &Path) -> bool {
    let link = |name: &str| fs::read_link(format!("/proc/{process}/{name}"));
    let inside = |path: PathBuf| path.starts_with(dir);
    link("cwd").is_ok_and(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_in_the_folder_is_found_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        assert_eq!(of(&path), Vec::<String>::new());
        let mut child = process::Command::new("sleep")
            .arg("60")
            .current_dir(&path)
            .spawn()
            .unwrap();
        assert_eq!(of(&path).len(), 1);
        assert!(none_of(&path).unwrap_err().to_string().contains("(sleep)"));
        kill_processes_of(&path);
        assert!(!child.wait().unwrap().success());
        assert_eq!(of(&path), Vec::<String>::new());
    }
}
