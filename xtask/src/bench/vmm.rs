//! What a running VMM tells: by its control socket, and by its memory map.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// How long the VMM may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Name of the mapping that is the guest's memory, in `/proc/PID/smaps`.
const GUEST_MEMORY: &str = "/memfd:guest-memory";

/// What the VMM has counted, by its control socket.
#[derive(Debug, Deserialize)]
pub struct Stats {
    /// When things first happened.
    pub timings: Timings,
    /// Exits from the guest by kind.
    pub exits: BTreeMap<String, f64>,
    /// What was repaired.
    pub repair: Repair,
}

/// When things first happened, in milliseconds from the start of the process.
#[derive(Debug, Deserialize)]
pub struct Timings {
    /// The first entry into the guest.
    pub first_run_ms: Option<f64>,
    /// The first whole line on the console.
    pub first_line_ms: Option<f64>,
}

/// What was repaired, where KVM interprets guest kernels.
#[derive(Debug, Deserialize)]
pub struct Repair {
    /// System calls.
    pub syscalls: f64,
    /// Instructions by name.
    pub instructions: BTreeMap<String, f64>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    stats: Option<Stats>,
}

/// Asks a VMM what it has counted.
pub fn stats(control: &Path) -> Result<Stats> {
    let mut stream =
        UnixStream::connect(control).context("connecting to the VMM's control socket")?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"{\"op\":\"stats\"}\n")?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("asking the VMM for its statistics")?;
    let answer: Answer =
        serde_json::from_str(&line).with_context(|| format!("the VMM has answered {line:?}"))?;
    answer
        .stats
        .with_context(|| format!("the VMM has answered {line:?}"))
}

/// Proportional set size of a VMM beside its guest's memory, in KiB.
pub fn pss_beyond_guest(pid: u32) -> Result<f64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))
        .with_context(|| format!("reading the memory map of the VMM, process {pid}"))?;
    let (own, guest) = pss(&smaps);
    ensure!(guest > 0.0, "process {pid} has no mapping {GUEST_MEMORY}");
    Ok(own)
}

/// Sums of an smaps file: of all mappings but the guest's memory, and of that.
fn pss(smaps: &str) -> (f64, f64) {
    let (mut own, mut guest, mut in_guest) = (0.0, 0.0, false);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if first.contains('-') && !first.ends_with(':') {
            in_guest = line.contains(GUEST_MEMORY);
        } else if first == "Pss:" {
            let kib: f64 = line
                .split_whitespace()
                .nth(1)
                .and_then(|kib| kib.parse().ok())
                .unwrap_or(0.0);
            if in_guest { guest += kib } else { own += kib }
        }
    }
    (own, guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_told_from_the_vmms() {
        let smaps = "5600-5700 r-xp 0 08:01 1 /usr/bin/fabric-vmm\nPss:  100 kB\nPss_Dirty: 7 kB\n\
                     7f00-7f99 rw-s 0 00:01 2 /memfd:guest-memory (deleted)\nPss: 4000 kB\n\
                     7fa0-7fa1 rw-p 0 00:00 0 [stack]\nPss: 20 kB\n";
        assert_eq!(pss(smaps), (120.0, 4000.0));
    }
}
