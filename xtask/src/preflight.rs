//! `cargo xtask preflight`: can this machine run guests?

use std::{fs, io, path::Path, process::Stdio};

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{build, image, machine::memory_kib, process, project::Project, table::table};

/// Memory for one small guest, the programs around it, and a build.
const MEMORY: u64 = 1 << 30;
/// Room for the programs, the images and a run.
const DISK: u64 = 2 << 30;
/// Room for building the kernel on top.
const DISK_FOR_KERNEL: u64 = 3 << 30;
/// Room for a run's own folder.
const DISK_FOR_RUN: u64 = 1 << 30;

/// Check that this machine can run guests, with a remedy for what is missing.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    found: String,
    /// What to do; empty if it is well.
    remedy: String,
}

/// Runs the task.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    let mut findings = vec![kvm(Path::new("/dev/kvm"))];
    if findings.iter().all(|finding| finding.ok) {
        build::program(project, "fabric-vmm")?;
        findings.push(probe(project)?.0);
    }
    findings.extend(resources(project)?);
    match options.output {
        Format::Json => println!("{}", serde_json::to_string(&findings)?),
        Format::Table => show(&findings),
    }
    fail_unless_well(&findings)
}

/// What can be checked before anything is built: the task ends here rather than
/// after minutes.
pub fn before_building(project: &Project) -> Result<()> {
    let mut findings = vec![kvm(Path::new("/dev/kvm"))];
    findings.extend(resources(project)?);
    if findings.iter().any(|finding| !finding.ok) {
        show(&findings);
    }
    fail_unless_well(&findings)
}

/// Instructions from a guest's start to its role being ready, roughly.
const BOOT_INSTRUCTIONS: f64 = 20e6;

/// What the VMM finds out about KVM.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Kvm {
    /// How it runs guests: "hardware" or "interpreted".
    #[serde(default, rename(serialize = "kvm_kind"))]
    pub kind: String,
    /// How long an instruction of a guest's kernel takes.
    #[serde(default)]
    pub kernel_instruction_ns: Option<f64>,
}

/// Looks at KVM with the VMM's own eyes and shows all findings.
pub fn with_programs(project: &Project) -> Result<Kvm> {
    let (probed, kvm_found) = probe(project)?;
    let mut findings = vec![kvm(Path::new("/dev/kvm")), probed];
    findings.extend(resources(project)?);
    show(&findings);
    fail_unless_well(&findings)?;
    Ok(kvm_found)
}

/// Why no guest can run here, if none can.
pub fn kvm_missing() -> Option<String> {
    let finding = kvm(Path::new("/dev/kvm"));
    (!finding.ok).then(|| format!("{}: {}; {}", finding.what, finding.found, finding.remedy))
}

fn kvm(device: &Path) -> Finding {
    let opened = fs::OpenOptions::new().read(true).write(true).open(device);
    let (found, remedy) = match opened.as_ref().map_err(io::Error::kind) {
        Ok(_) => ("there, and this user may use it".to_owned(), ""),
        Err(io::ErrorKind::NotFound) => (
            "not there".to_owned(),
            "load it with `sudo modprobe kvm_intel` or `kvm_amd`; if that fails, switch on \
             virtualization in the firmware, or nested virtualization for this virtual machine",
        ),
        Err(io::ErrorKind::PermissionDenied) => (
            "this user may not use it".to_owned(),
            "join its group with `sudo usermod -aG kvm $USER` and log in again, or run as root",
        ),
        Err(kind) => (
            format!("cannot be opened: {kind}"),
            "see `dmesg | grep -i kvm`",
        ),
    };
    Finding {
        what: "/dev/kvm",
        ok: opened.is_ok(),
        found,
        remedy: remedy.to_owned(),
    }
}

/// What `fabric-vmm probe` says.
fn probe(project: &Project) -> Result<(Finding, Kvm)> {
    let mut command = process::command(project.bin("fabric-vmm"), ["probe", "--output", "json"]);
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("asking fabric-vmm about KVM")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let answer: Value = serde_json::from_str(text.trim()).with_context(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!("fabric-vmm probe has given no JSON: {}", errors.trim())
    })?;
    let found = Kvm::deserialize(&answer)?;
    let meaning = match (found.kind.as_str(), found.kernel_instruction_ns) {
        ("hardware", _) => "runs guests on the processor".to_owned(),
        ("interpreted", Some(nanoseconds)) => format!(
            "interprets guest kernels, {nanoseconds:.0} ns an instruction: one boots in about {:.0} s",
            nanoseconds * BOOT_INSTRUCTIONS / 1e9
        ),
        ("interpreted", None) => "interprets guest kernels".to_owned(),
        _ => "of unknown kind".to_owned(),
    };
    let problems: Vec<String> = list(&answer["problems"], &["problem", "what", "found"]);
    let remedies: Vec<String> = list(&answer["problems"], &["remedy"]);
    let summary = if problems.is_empty() {
        meaning
    } else {
        problems.join("; ")
    };
    let finding = Finding {
        what: "KVM",
        ok: output.status.success(),
        found: summary,
        remedy: remedies.join("; "),
    };
    Ok((finding, found))
}

fn list(problems: &Value, names: &[&str]) -> Vec<String> {
    let text = |problem: &Value| {
        let named = names.iter().find_map(|name| problem[*name].as_str());
        named.or(problem.as_str()).map(str::to_owned)
    };
    problems
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(text)
        .collect()
}

fn resources(project: &Project) -> Result<Vec<Finding>> {
    let available = memory_kib("MemAvailable") * 1024;
    let memory = enough(
        "memory",
        available,
        MEMORY,
        "end other programs, or add memory",
    );
    let for_kernel = if image::has_kernel(project) {
        0
    } else {
        DISK_FOR_KERNEL
    };
    let cache = project.cache_dir("tmp")?;
    let in_cache = format!(
        "make room below {}, or set FABRIC_CACHE",
        project.cache.display()
    );
    let run = std::env::temp_dir();
    let in_run = format!("make room in {}, or set TMPDIR", run.display());
    Ok(vec![
        memory,
        enough(
            "disk space for images",
            free_space(&cache)?,
            DISK + for_kernel,
            &in_cache,
        ),
        enough(
            "disk space for a run",
            free_space(&run)?,
            DISK_FOR_RUN,
            &in_run,
        ),
    ])
}

fn enough(what: &'static str, available: u64, needed: u64, remedy: &str) -> Finding {
    let ok = available >= needed;
    let found = format!("{} of at least {}", ByteSize(available), ByteSize(needed));
    let remedy = if ok { String::new() } else { remedy.to_owned() };
    Finding {
        what,
        ok,
        found,
        remedy,
    }
}

fn free_space(dir: &Path) -> Result<u64> {
    let space = rustix::fs::statvfs(dir)
        .with_context(|| format!("asking for the free space of {}", dir.display()))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

fn show(findings: &[Finding]) {
    let rows = findings
        .iter()
        .map(|finding| {
            let ok = if finding.ok { "ok" } else { "MISSING" };
            [finding.what, ok, &finding.found, &finding.remedy].map(str::to_owned)
        })
        .collect();
    println!(
        "{}",
        table(["preflight", "", "found", "what to do"], rows, false)
    );
}

fn fail_unless_well(findings: &[Finding]) -> Result<()> {
    let bad: Vec<&str> = findings
        .iter()
        .filter(|finding| !finding.ok)
        .map(|finding| finding.what)
        .collect();
    if !bad.is_empty() {
        bail!("this machine cannot run guests yet: {}", bad.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_kvm_comes_with_a_remedy() {
        let finding = kvm(Path::new("/nonexistent/kvm"));
        assert!(!finding.ok);
        assert!(finding.remedy.contains("modprobe"), "{finding:?}");
        let error = fail_unless_well(&[finding]).unwrap_err().to_string();
        assert!(error.ends_with("/dev/kvm"), "{error}");
    }

    #[test]
    fn too_little_of_something_comes_with_a_remedy_and_enough_without() {
        let finding = enough("memory", 1 << 20, 1 << 30, "buy some");
        assert_eq!((finding.ok, finding.remedy.as_str()), (false, "buy some"));
        let finding = enough("memory", 1 << 31, 1 << 30, "buy some");
        assert_eq!((finding.ok, finding.remedy.as_str()), (true, ""));
    }
}
