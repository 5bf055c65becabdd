//! What a running VMM tells: by its control socket, and by its memory map.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

/// How long the VMM may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// What /proc/PID/stat counts in (proc_pid_stat(5)); the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;
/// Names of the mapping that is the guest's memory, in `/proc/PID/smaps`: its own,
/// or a snapshot's.
const GUEST_MEMORY: [&str; 2] = ["/memfd:guest-memory", "/snapshot/memory"];

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
    ok: bool,
    stats: Option<Stats>,
}

/// Asks a VMM what it has counted.
pub fn stats(control: &Path) -> Result<Stats> {
    let answer = ask(control, &json!({"op": "stats"}))?;
    answer.stats.context("the VMM has told no statistics")
}

/// Tells a VMM something; returns how long it took to answer, in milliseconds.
pub fn tell(control: &Path, request: &Value) -> Result<f64> {
    let begun = Instant::now();
    ask(control, request)?;
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}

fn ask(control: &Path, request: &Value) -> Result<Answer> {
    let mut stream =
        UnixStream::connect(control).context("connecting to the VMM's control socket")?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .with_context(|| format!("telling the VMM {request}"))?;
    let answer: Answer =
        serde_json::from_str(&line).with_context(|| format!("the VMM has answered {line:?}"))?;
    ensure!(answer.ok, "the VMM has answered {line:?} to {request}");
    Ok(answer)
}

/// Memory of the guest that its VMM has for itself alone, in KiB: what it has
/// written since it was cloned.
pub fn private_guest_memory(pid: u32) -> Result<f64> {
    let (_, guest) = sums(&smaps(pid)?, "Private_Dirty:");
    Ok(guest)
}

/// Processor time that a process has used, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("reading the times of process {pid}"))?;
    // The name may hold anything, spaces too; the fields after it are numbers.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    Ok(ticks / TICKS_PER_SECOND)
}

/// Proportional set size of a VMM beside its guest's memory, in KiB.
pub fn pss_beyond_guest(pid: u32) -> Result<f64> {
    let (own, guest) = sums(&smaps(pid)?, "Pss:");
    ensure!(
        guest > 0.0,
        "process {pid} has no mapping {}",
        GUEST_MEMORY.join(" or ")
    );
    Ok(own)
}

fn smaps(pid: u32) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/smaps"))
        .with_context(|| format!("reading the memory map of the VMM, process {pid}"))
}

/// Sums of a field of an smaps file: of all mappings but the guest's memory, and
/// of that.
fn sums(smaps: &str, field: &str) -> (f64, f64) {
    let (mut own, mut guest, mut in_guest) = (0.0, 0.0, false);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if first.contains('-') && !first.ends_with(':') {
            in_guest = GUEST_MEMORY.iter().any(|name| line.contains(name));
        } else if first == field {
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
        assert_eq!(sums(smaps, "Pss:"), (120.0, 4000.0));
        let clone = "7f00-7f99 rw-p 0 00:01 2 /t/snapshot/memory\nPrivate_Dirty: 64 kB\n";
        assert_eq!(sums(clone, "Private_Dirty:"), (0.0, 64.0));
    }
}
