//! What /proc says about processes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use procfs::process::{Process, Stat};

/// When a process was started, in clock ticks since the machine's start
/// (proc_pid_stat(5), field 22). Nothing if there is no such process.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    Some(stat(pid)?.starttime)
}

/// How long that thread of a process which waited longest for processors did so, since
/// it was started; nothing where the kernel does not count it
/// (Documentation/scheduler/sched-stats.rst, `/proc/<pid>/schedstat`).
#[must_use]
pub fn longest_wait(pid: u32) -> Duration {
    let tasks = pid.try_into().ok().and_then(|pid| Process::new(pid).ok());
    let tasks = tasks.and_then(|process| process.tasks().ok());
    let delays = tasks.into_iter().flatten().flatten();
    let delays = delays.filter_map(|task| Some(task.schedstat().ok()?.run_delay));
    Duration::from_nanos(delays.max().unwrap_or(0))
}

/// The time that a process had of processors, in clock ticks.
#[cfg(test)]
pub fn processor_ticks(pid: u32) -> Option<u64> {
    stat(pid).map(|stat| stat.utime + stat.stime)
}

fn stat(pid: u32) -> Option<Stat> {
    Process::new(pid.try_into().ok()?).ok()?.stat().ok()
}

/// What is at the end of the name of a directory that was removed.
pub const REMOVED: &str = " (deleted)";

/// Where a process works. A directory that was removed has [`REMOVED`] at the end.
#[must_use]
pub fn working_directory(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// A process's arguments, its program first.
#[must_use]
pub fn arguments(pid: u32) -> Vec<String> {
    let Ok(bytes) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end_matches('\0')
        .split('\0')
        .map(str::to_owned)
        .collect()
}

/// Processes that work in `directory` or below, and where.
///
/// # Errors
///
/// When /proc cannot be read.
pub fn working_below(directory: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        match working_directory(pid) {
            Some(place) if place.starts_with(directory) => found.push((pid, place)),
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_where_it_works() {
        let own = std::process::id();
        assert!(start_time(own).is_some_and(|started| started > 0));
        let here = std::env::current_dir().unwrap();
        assert!(working_below(&here).unwrap().contains(&(own, here)));
        assert!(arguments(own)[0].contains("host_agent"));
    }
}
