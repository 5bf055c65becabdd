//! How a machine's end is told: one JSON object, the last line of standard
//! output, and an exit code.
//!
//! Whoever started the machine reads this line and nothing else to know why it
//! ended. Fields are added, never renamed.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::jail::Isolation;

/// Has panics say what and where they are and no more, for good: a thread that is
/// confined may not look for its number and for the program's symbols.
pub fn keep_panics_short() {
    std::panic::set_hook(Box::new(|panic| crate::say!("fabric-vmm: {panic}")));
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest halted every virtual CPU for good.
    GuestPowerOff,
    /// The guest asked for a reset through the keyboard controller.
    GuestReset,
    /// The guest's kernel panicked.
    KernelPanic,
    /// A virtual CPU met a fault while delivering a double fault.
    TripleFault,
    /// The host asked for it: a signal or the control socket.
    Stopped,
    /// The machine has become a template, and its work is done.
    TemplateMade,
    /// The process was ended by a signal it cannot catch. Never written by the
    /// machine itself; it is what whoever started it says where the line is missing.
    Killed,
    /// The configuration, the kernel or a disk cannot be used.
    ConfigError,
    /// The machine met something it does not understand.
    InternalError,
}

impl ExitReason {
    /// The exit code of the process.
    pub fn code(self) -> u8 {
        match self {
            ExitReason::GuestPowerOff | ExitReason::Stopped | ExitReason::TemplateMade => 0,
            ExitReason::Killed | ExitReason::InternalError => 1,
            ExitReason::ConfigError => 2,
            ExitReason::GuestReset => 10,
            ExitReason::KernelPanic => 11,
            ExitReason::TripleFault => 12,
        }
    }
}

/// What the last line of standard output says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Why the machine ended.
    pub reason: ExitReason,
    /// The machine's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// One sentence for people: what happened, on what, and what to do.
    pub detail: String,
    /// What the kernel said after `Kernel panic - not syncing:`, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic: Option<String>,
    /// Whether the guest had heard its power button: it was asked to go by that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub power_button: bool,
    /// From the start of the process to its end, in milliseconds.
    pub uptime_ms: u64,
    /// When things first happened.
    #[serde(default)]
    pub timings: Timings,
    /// Exits from the guest by kind, all virtual CPUs together.
    #[serde(default)]
    pub exits: BTreeMap<String, u64>,
    /// What the process was jailed by; nothing if it did not come to that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolation: Vec<Isolation>,
    /// What was repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<RepairReport>,
    /// The state of the virtual CPU on which the machine gave up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<CpuFault>,
}

/// When things first happened, in milliseconds from the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// The first entry into the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_run_ms: Option<f64>,
    /// The first byte on the console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    /// The first whole line on the console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_line_ms: Option<f64>,
}

/// How this host's KVM runs guest kernel code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvmKind {
    /// On the processor. Nothing needs repair.
    Hardware,
    /// In an instruction emulator, incompletely.
    Interpreted,
}

impl std::fmt::Display for KvmKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KvmKind::Hardware => "hardware",
            KvmKind::Interpreted => "interpreted",
        })
    }
}

impl std::str::FromStr for KvmKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<KvmKind, UnknownKind> {
        [KvmKind::Hardware, KvmKind::Interpreted]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// A word that names no kind of KVM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of KVM: hardware or interpreted")]
pub struct UnknownKind(String);

/// What was repaired in this run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    /// The kind of KVM that was found, or assumed where that was asked for.
    pub kind: KvmKind,
    /// System calls that were brought to the kernel's entry point.
    pub syscalls: u64,
    /// Instructions carried out here, by name, and exceptional ways taken.
    pub instructions: BTreeMap<String, u64>,
}

/// The state of a virtual CPU when the machine gave up on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFault {
    /// Which one.
    pub vcpu: u8,
    /// The instruction pointer, in hexadecimal.
    pub rip: String,
    /// The bytes there, in hexadecimal; empty where they could not be read.
    pub bytes: String,
    /// The instruction, decoded, if it could be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// Registers by name, in hexadecimal.
    pub registers: BTreeMap<String, String>,
}

impl ExitReport {
    /// A report with nothing measured.
    pub fn new(reason: ExitReason, detail: impl Into<String>) -> ExitReport {
        ExitReport {
            reason,
            name: String::new(),
            detail: detail.into(),
            panic: None,
            power_button: false,
            uptime_ms: 0,
            timings: Timings::default(),
            exits: BTreeMap::new(),
            isolation: Vec::new(),
            repair: None,
            fault: None,
        }
    }

    /// The report of the machine of this name, whose process began at `started`.
    #[must_use]
    pub fn of(self, name: &str, started: Instant) -> ExitReport {
        ExitReport {
            name: name.to_owned(),
            uptime_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..self
        }
    }

    /// Finds the report in what the process wrote: its last line that is not
    /// empty, if that is one.
    pub fn from_output(output: &str) -> Option<ExitReport> {
        let line = output.lines().rev().find(|line| !line.trim().is_empty())?;
        serde_json::from_str(line).ok()
    }
}

impl std::fmt::Display for ExitReport {
    /// The report as one line of JSON.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| std::fmt::Error)?;
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line_and_comes_back_whole() {
        let mut report = ExitReport::new(ExitReason::KernelPanic, "two\nlines");
        report.panic = Some("VFS: Unable to mount root fs".into());
        report.power_button = true;
        report.timings.first_run_ms = Some(12.5);
        report.exits.insert("io_out".into(), 3);
        let line = report.to_string();
        assert!(!line.contains('\n'));
        assert!(
            line.starts_with(r#"{"reason":"kernel_panic","detail":"#),
            "{line}"
        );
        let output = format!("console text\n{line}\n\n");
        assert_eq!(ExitReport::from_output(&output), Some(report));
    }

    #[test]
    fn console_text_alone_is_no_report() {
        assert_eq!(ExitReport::from_output("Linux version 6.1\n"), None);
        assert_eq!(ExitReport::from_output(""), None);
    }

    #[test]
    fn a_later_field_does_not_hurt_an_earlier_reader() {
        let line = r#"{"reason":"stopped","detail":"x","uptime_ms":5,"later":true}"#;
        assert_eq!(
            ExitReport::from_output(line).unwrap().reason,
            ExitReason::Stopped
        );
    }

    #[test]
    fn exit_codes_are_those_promised() {
        let code = ExitReason::code;
        assert_eq!(code(ExitReason::GuestPowerOff), 0);
        assert_eq!(code(ExitReason::Stopped), 0);
        assert_eq!(code(ExitReason::InternalError), 1);
        assert_eq!(code(ExitReason::ConfigError), 2);
        assert_eq!(code(ExitReason::GuestReset), 10);
        assert_eq!(code(ExitReason::KernelPanic), 11);
        assert_eq!(code(ExitReason::TripleFault), 12);
    }
}
