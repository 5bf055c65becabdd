//! Whether this machine can run guests: each thing that must be there, and what
//! to do when it is not.

use std::{fs, os::unix::ffi::OsStrExt as _, path::Path, process::Stdio, time::Duration};

use serde::Serialize;

use fabric_vmm::jail::{Isolation, Missing};

use crate::{
    files,
    hypervisor::{jails::Jails, trial},
};

/// Free space below which guests will soon fail.
const LEAST_FREE: u64 = 512 * 1024 * 1024;
/// Longest path of a unix socket (unix(7)).
const LONGEST_SOCKET: usize = 107;
/// What to do when KVM cannot be used.
const REMEDY: &str = "do what it says, then see: fabric-vmm probe";
/// How long the VMM may take to look at KVM.
const PATIENCE: Duration = Duration::from_secs(20);

/// How something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// As it should be.
    Good,
    /// Will do, but.
    Warning,
    /// Guests cannot run like this.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it was found.
    pub finding: Finding,
    /// What was found.
    pub detail: String,
    /// What to do; empty if nothing.
    pub remedy: String,
}

/// All that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Preflight {
    /// Each thing.
    pub checks: Vec<Check>,
    /// How KVM runs guests: "hardware" or "interpreted"; empty if it does not.
    pub kvm_kind: String,
    /// What the host does not give for jails, and may not be missing.
    #[serde(skip)]
    pub not_isolated_by: Vec<Isolation>,
}

impl Preflight {
    /// Whether guests can run.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks
            .iter()
            .all(|check| check.finding != Finding::Bad)
    }
}

/// Looks at everything.
pub async fn run(vmm: &Path, kernel: &Path, data: &Path, jails: &Jails) -> Preflight {
    let (kvm, kvm_kind) = kvm(vmm).await;
    let (isolation, not_isolated_by) = isolation(vmm, jails).await;
    Preflight {
        checks: vec![kvm, kernel_file(kernel), space(data), path(data), isolation],
        kvm_kind,
        not_isolated_by,
    }
}

/// Whether each virtual machine can be jailed as it is to be, and what is missing for
/// that.
async fn isolation(vmm: &Path, jails: &Jails) -> (Check, Vec<Isolation>) {
    let check = |finding, detail, remedy| Check {
        name: "isolation",
        finding,
        detail,
        remedy,
    };
    let trial = match trial::try_jail(vmm, jails).await {
        Ok(trial) => trial,
        Err(error) => {
            let detail = format!("cannot try {} jail: {error}", vmm.display());
            let remedy = "do what it says".to_owned();
            return (check(Finding::Bad, detail, remedy), Vec::new());
        }
    };
    let refused = |one: &&Missing| !jails.allow_missing.contains(&one.name);
    let lines = trial.missing.iter().map(|one| {
        let allowed = if refused(&one) { "" } else { " (allowed)" };
        format!("no {}{allowed}: {}", one.name, one.why)
    });
    let remedies = trial.missing.iter().filter(refused).map(|one| {
        let name = one.name;
        format!(
            "{}, or start with --allow-missing-isolation {name}",
            one.remedy
        )
    });
    let remedy = remedies.collect::<Vec<_>>().join("; ");
    let found = if trial.missing.is_empty() {
        let names: Vec<_> = trial.isolation.iter().map(|one| one.name()).collect();
        check(Finding::Good, names.join(" "), remedy)
    } else {
        let finding = if remedy.is_empty() {
            Finding::Warning
        } else {
            Finding::Bad
        };
        check(finding, lines.collect::<Vec<_>>().join("; "), remedy)
    };
    let unmet = trial.missing.iter().filter(refused).map(|one| one.name);
    (found, unmet.collect())
}

/// The VMM knows best what it needs of KVM.
async fn kvm(vmm: &Path) -> (Check, String) {
    let check = |finding, detail: String, remedy: String| Check {
        name: "kvm",
        finding,
        detail,
        remedy,
    };
    let probe = tokio::process::Command::new(vmm)
        .args(["probe", "--output", "json"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(PATIENCE, probe).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            let detail = format!("cannot run {}: {error}", vmm.display());
            let remedy = "build fabric-vmm, or name it with --vmm".to_owned();
            return (check(Finding::Bad, detail, remedy), String::new());
        }
        Err(_) => {
            let detail = format!("{} probe gave no answer", vmm.display());
            let remedy = "see whether /dev/kvm hangs: dmesg".to_owned();
            return (check(Finding::Bad, detail, remedy), String::new());
        }
    };
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let kind = answer["kind"].as_str().unwrap_or_default().to_owned();
    if output.status.success() {
        return (
            check(Finding::Good, format!("usable, {kind}"), String::new()),
            kind,
        );
    }
    (
        check(
            Finding::Bad,
            problems(&answer, &output.stderr),
            REMEDY.to_owned(),
        ),
        kind,
    )
}

/// Each problem in the VMM's answer says what to do about it.
fn problems(answer: &serde_json::Value, stderr: &[u8]) -> String {
    let problems = answer["problems"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let problems: Vec<&str> = problems
        .iter()
        .filter_map(serde_json::Value::as_str)
        .collect();
    if problems.is_empty() {
        crate::guest::report::cut(String::from_utf8_lossy(stderr).trim())
    } else {
        problems.join("; ")
    }
}

fn kernel_file(kernel: &Path) -> Check {
    let check = |finding, detail, remedy: &str| Check {
        name: "kernel",
        finding,
        detail,
        remedy: remedy.to_owned(),
    };
    match fs::metadata(kernel) {
        Ok(facts) if facts.is_file() && facts.len() > 0 => {
            check(Finding::Good, kernel.display().to_string(), "")
        }
        Ok(_) => check(
            Finding::Bad,
            format!("{} is not a file with something in it", kernel.display()),
            "name a kernel image with --kernel",
        ),
        Err(error) => check(
            Finding::Bad,
            format!("{}: {error}", kernel.display()),
            "build one with cargo xtask image kernel, and name it with --kernel",
        ),
    }
}

fn space(data: &Path) -> Check {
    let check = |finding, detail, remedy: &str| Check {
        name: "disk",
        finding,
        detail,
        remedy: remedy.to_owned(),
    };
    let place = data
        .ancestors()
        .find(|place| place.exists())
        .unwrap_or(Path::new("/"));
    match files::free_bytes(place) {
        Ok(free) => {
            let shown = bytesize::ByteSize::b(free);
            let detail = format!("{shown} free at {}", place.display());
            if free < LEAST_FREE {
                check(
                    Finding::Warning,
                    detail,
                    "free some, or choose another --data-dir",
                )
            } else {
                check(Finding::Good, detail, "")
            }
        }
        Err(error) => check(
            Finding::Bad,
            format!("{}: {error}", place.display()),
            "choose another --data-dir",
        ),
    }
}

/// Guests' sockets are reached whatever the length; only our own has to be short
/// for others to reach it.
fn path(data: &Path) -> Check {
    let socket = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    let length = socket
        .join(crate::serve::SOCKET)
        .as_os_str()
        .as_bytes()
        .len();
    let (finding, remedy) = if length > LONGEST_SOCKET {
        (
            Finding::Warning,
            format!(
                "clients cannot name {} there, which is over {LONGEST_SOCKET} bytes: use a \
                 shorter --data-dir, or --listen",
                crate::serve::SOCKET
            ),
        )
    } else {
        (Finding::Good, String::new())
    };
    Check {
        name: "data_dir",
        finding,
        detail: data.display().to_string(),
        remedy,
    }
}
