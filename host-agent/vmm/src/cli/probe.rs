//! `fabric-vmm probe`

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use fabric_vmm::probe::{Probe, probe};

const EXAMPLES: &str = "\
Examples:
  fabric-vmm probe
  fabric-vmm probe --output json | jq -e .usable

FABRIC_KVM names another device than /dev/kvm.

Exit codes:
  0 machines can be run here   1 they cannot; each problem comes with a remedy";

/// Say whether this host can run machines, and what to do where it cannot.
///
/// Tells by trying, in a throw-away machine, whether KVM runs guest kernels on
/// the processor (`hardware`) or in an instruction emulator (`interpreted`), which
/// is slower, and where `fabric-vmm run` repairs what the emulator lacks.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ProbeArgs {
    /// How to print it.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Prints what is found out.
pub fn run(args: &ProbeArgs) -> ExitCode {
    let found = probe();
    let text = match args.output {
        Output::Table => table(&found),
        Output::Json => serde_json::to_string(&found).unwrap_or_default(),
    };
    println!("{text}");
    if found.usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn table(found: &Probe) -> String {
    let mut lines = vec![format!("device    {}", found.device)];
    lines.push(format!(
        "usable    {}",
        if found.usable { "yes" } else { "no" }
    ));
    if let Some(kind) = found.kind {
        lines.push(format!("kernels   {kind}"));
    }
    if let Some(nanoseconds) = found.kernel_instruction_ns {
        lines.push(format!(
            "speed     {nanoseconds:.1} ns an instruction of a guest's kernel"
        ));
    }
    if let Some(vcpus) = found.vcpus_max {
        lines.push(format!("vCPUs     up to {vcpus} each"));
    }
    lines.extend(
        found
            .problems
            .iter()
            .map(|problem| format!("problem   {problem}")),
    );
    lines.join("\n")
}
