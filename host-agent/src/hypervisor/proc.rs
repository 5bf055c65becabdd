//! What /proc says about processes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// When a process was started, in clock ticks since the machine's start
/// (proc_pid_stat(5), field 22). Nothing if there is no such process.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&stat)
}

/// The name, field 2, is in parentheses and may hold anything; the last closing
/// one ends it.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Where a process works. A directory that was removed has " (deleted)" at the end.
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
    fn a_process_name_cannot_confuse_the_start_time() {
        let rest = (4..22)
            .map(|field| field.to_string())
            .collect::<Vec<_>>()
            .join(" ");
        let stat = format!("17 (a) R 1 (b)) S {rest} 4711 23 24");
        assert_eq!(parse_start_time(&stat), Some(4711));
        assert_eq!(parse_start_time("17 (short) S 1"), None);
    }

    #[test]
    fn this_process_is_found_where_it_works() {
        let own = std::process::id();
        assert!(start_time(own).is_some_and(|started| started > 0));
        let here = std::env::current_dir().unwrap();
        assert!(working_below(&here).unwrap().contains(&(own, here)));
        assert!(arguments(own)[0].contains("host_agent"));
    }
}
