//! `cargo xtask bench boot`: the way of a guest from start to Ready, through the
//! whole system, booted cold.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{PATIENCE, first_line, median, median_of, millis, telling, until_ready};
use crate::{
    build::Prepare,
    demo::service::{self, INSTANCE, SERVICE, Size},
    fabric::{Fabric, Instance, Seen, fault},
    machine::Machine,
    preflight,
    progress::Work,
    project::Project,
    table::table,
};

/// Figures of one boot.
#[derive(Debug, Clone, Default)]
struct Sample {
    first_run_ms: f64,
    first_line_ms: f64,
    agent_hello_ms: f64,
    role_ready_ms: f64,
    vmm_pss_kib: f64,
    role_restart_ms: f64,
    syscalls: f64,
    exits: BTreeMap<String, f64>,
    instructions: BTreeMap<String, f64>,
}

/// The last line on standard output: medians.
#[derive(Debug, Serialize)]
struct Figures {
    bench: &'static str,
    machine: Machine,
    runs: u32,
    vcpus: u32,
    memory: String,
    first_run_ms: f64,
    first_line_ms: f64,
    agent_hello_ms: f64,
    role_ready_ms: f64,
    vmm_pss_kib: f64,
    role_restart_ms: f64,
    repaired_syscalls: f64,
    repaired_instructions: BTreeMap<String, f64>,
    exits: BTreeMap<String, f64>,
}

/// Runs the benchmark.
pub fn run(project: &Project, runs: u32, size: &Size, prepare: &Prepare) -> Result<()> {
    preflight::before_building(project)?;
    let images = prepare.run(project)?;
    let machine = Machine::look(preflight::with_programs(project)?);
    let mut fabric = Fabric::start(project, "bench", &images.kernel, None)?;
    service::upload(project, &fabric, &images.guest_os)?;

    let mut samples = Vec::new();
    let mut work = Work::begin(format!("Measuring {runs} boots"));
    for run in 1..=runs {
        work.now(format!("boot {run}"));
        let first_line_ms = first_line::measure(project, &images, size)
            .with_context(|| format!("kernel's first line {run}"))?;
        let sample =
            measure(&mut fabric, size, first_line_ms).with_context(|| format!("boot {run}"))?;
        work.now(format!(
            "boot {run}: Ready after {:.0} ms",
            sample.role_ready_ms
        ));
        samples.push(sample);
    }
    fabric.end()?;
    work.done("done");
    let figures = medians(&samples, machine, size);
    show(&figures, &samples);
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// Boots one guest, measures, and removes it.
fn measure(fabric: &mut Fabric, size: &Size, first_line_ms: f64) -> Result<Sample> {
    service::apply(fabric, size)?;
    let mut started = None;
    let mut hello = None;
    let instance = until_ready(fabric, |seen| {
        if let Seen::Event(event) = seen
            && event.subject == INSTANCE
        {
            match event.reason.as_str() {
                "VmmStarted" => started = Some(Instant::now()),
                "GuestHello" => hello = Some(Instant::now()),
                _ => {}
            }
        }
    })?;
    let ready_at = Instant::now();
    let agent_hello_ms = instance
        .boot_to_hello_ms
        .context("the time of the guest agent's hello is not known")?;
    // Both events and the state take the same way to here.
    let after_hello = hello
        .or(started)
        .map_or(Duration::ZERO, |hello| ready_at - hello);
    let dir = fabric.instance_dir(INSTANCE);
    let stats = telling::stats(&dir.join("control.sock"))?;

    let sample = Sample {
        first_run_ms: stats
            .timings
            .first_run_ms
            .context("no time of the first KVM_RUN")?,
        first_line_ms,
        agent_hello_ms,
        role_ready_ms: agent_hello_ms + after_hello.as_secs_f64() * 1000.0,
        vmm_pss_kib: telling::pss_beyond_guest(instance.vmm_pid)?,
        role_restart_ms: role_restart(fabric, &dir, &instance)?,
        syscalls: stats.repair.syscalls,
        exits: stats.exits,
        instructions: stats.repair.instructions,
    };
    fabric.fabctl(&["service", "delete", SERVICE, "--wait"])?;
    Ok(sample)
}

/// Time from the death of the role's process until it is Ready again.
fn role_restart(fabric: &mut Fabric, dir: &Path, before: &Instance) -> Result<f64> {
    let begun = Instant::now();
    fault::inject(dir, "kill-role web")?;
    fabric.wait(
        "the killed role to be Ready again",
        PATIENCE,
        |seen| match seen {
            Seen::Instance(now) if now.instance_id == INSTANCE => {
                (now.role_restarts > before.role_restarts && now.is_ready()).then_some(())
            }
            _ => None,
        },
    )?;
    Ok(millis(begun))
}

fn medians(samples: &[Sample], machine: Machine, size: &Size) -> Figures {
    let of = |figure| median_of(samples, figure);
    let by_name = |figure: fn(&Sample) -> &BTreeMap<String, f64>| {
        let names: std::collections::BTreeSet<&String> = samples
            .iter()
            .flat_map(|sample| figure(sample).keys())
            .collect();
        let value = |name: &String| {
            median(
                samples
                    .iter()
                    .map(|sample| *figure(sample).get(name).unwrap_or(&0.0))
                    .collect(),
            )
        };
        names
            .into_iter()
            .map(|name| (name.clone(), value(name)))
            .collect()
    };
    Figures {
        bench: "boot",
        machine,
        runs: u32::try_from(samples.len()).unwrap_or(u32::MAX),
        vcpus: size.vcpus,
        memory: size.memory.clone(),
        first_run_ms: of(|sample| sample.first_run_ms),
        first_line_ms: of(|sample| sample.first_line_ms),
        agent_hello_ms: of(|sample| sample.agent_hello_ms),
        role_ready_ms: of(|sample| sample.role_ready_ms),
        vmm_pss_kib: of(|sample| sample.vmm_pss_kib),
        role_restart_ms: of(|sample| sample.role_restart_ms),
        repaired_syscalls: of(|sample| sample.syscalls),
        repaired_instructions: by_name(|sample| &sample.instructions),
        exits: by_name(|sample| &sample.exits),
    }
}

fn show(figures: &Figures, samples: &[Sample]) {
    let row = |what: &str, unit: &str, median: f64, figure: fn(&Sample) -> f64| {
        let least = samples.iter().map(figure).fold(f64::INFINITY, f64::min);
        let most = samples.iter().map(figure).fold(0.0, f64::max);
        let text = |value: f64| format!("{value:.1} {unit}");
        [what.to_owned(), text(median), text(least), text(most)]
    };
    let rows = vec![
        row(
            "VMM start to first KVM_RUN",
            "ms",
            figures.first_run_ms,
            |s| s.first_run_ms,
        ),
        row(
            "VMM start to kernel's first line",
            "ms",
            figures.first_line_ms,
            |s| s.first_line_ms,
        ),
        row(
            "VMM start to guest agent's hello",
            "ms",
            figures.agent_hello_ms,
            |s| s.agent_hello_ms,
        ),
        row(
            "VMM start to role Ready",
            "ms",
            figures.role_ready_ms,
            |s| s.role_ready_ms,
        ),
        row(
            "VMM memory beyond the guest's",
            "KiB",
            figures.vmm_pss_kib,
            |s| s.vmm_pss_kib,
        ),
        row(
            "role killed to Ready again",
            "ms",
            figures.role_restart_ms,
            |s| s.role_restart_ms,
        ),
        row(
            "system calls repaired",
            "",
            figures.repaired_syscalls,
            |s| s.syscalls,
        ),
    ];
    println!(
        "\n{}",
        table(["figure", "median", "least", "most"], rows, true)
    );
    for (title, counts) in [
        ("exits until Ready", &figures.exits),
        (
            "instructions repaired until Ready",
            &figures.repaired_instructions,
        ),
    ] {
        if !counts.is_empty() {
            let rows = counts
                .iter()
                .map(|(name, n)| [name.clone(), format!("{n:.0}")])
                .collect();
            println!("{}", table([title, "median"], rows, true));
        }
    }
}
