//! Whether this host can run machines.

use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

use crate::exit::KvmKind;
use crate::kvm;
use crate::repair::detect::{DetectError, Trial};
use crate::vcpu::fault::chain;

/// What was found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Whether machines can be run.
    pub usable: bool,
    /// The device.
    pub device: String,
    /// How KVM runs guest kernels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<KvmKind>,
    /// How long an instruction of a guest's kernel takes, in nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_instruction_ns: Option<f64>,
    /// The most virtual CPUs that KVM gives a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus_max: Option<usize>,
    /// What stands in the way, and what to do about it.
    pub problems: Vec<String>,
}

/// Finds out. Takes some milliseconds and leaves nothing behind.
pub fn probe() -> Probe {
    let mut found = Probe {
        usable: false,
        device: kvm::device().display().to_string(),
        kind: None,
        kernel_instruction_ns: None,
        vcpus_max: None,
        problems: Vec::new(),
    };
    let kvm = match kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            found.problems.push(chain(&error));
            return found;
        }
    };
    found.vcpus_max = Some(kvm.get_max_vcpus());
    if let Err(error) = try_out(&kvm, &mut found) {
        found.problems.push(chain(&error));
    }
    if found.kind == Some(KvmKind::Interpreted)
        && let Err(error) = kvm::check_repairable(&kvm)
    {
        found.problems.push(chain(&error));
    }
    found.usable = found.problems.is_empty();
    found
}

fn try_out(kvm: &Kvm, found: &mut Probe) -> Result<(), DetectError> {
    let mut trial = Trial::new(kvm)?;
    found.kind = Some(trial.run()?);
    found.kernel_instruction_ns = trial.kernel_instruction_ns()?;
    Ok(())
}
