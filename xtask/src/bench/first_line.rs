//! How long a VMM takes to its kernel's first line.
//!
//! Guests of the fabric boot with `quiet`: their kernel says nothing when all is
//! well. So this is measured in VMMs of its own, without a fabric, on whose command
//! line `quiet` is undone. They end as soon as the line is there.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::telling;
use crate::{
    build::Images, demo::service::Size, interrupt, process, process::Process, project::Project,
};

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks. The figure does not depend on it: the VMM takes the time.
const LOOK: Duration = Duration::from_millis(50);

/// Makes the kernel speak, from its first moment on.
const LOUD: &str = "loglevel=7 earlyprintk=serial,ttyS0,115200";

/// Starts one VMM and returns the time to the first line, in milliseconds.
pub fn measure(project: &Project, images: &Images, size: &Size) -> Result<f64> {
    let dir = tempfile::Builder::new().prefix("fabric-bench-").tempdir()?;
    let control = dir.path().join("control.sock");
    let mut command = process::command(project.bin("fabric-vmm"), ["run", "--cmdline", LOUD]);
    command.args(["--memory", &size.memory, "--vcpus", &size.vcpus.to_string()]);
    command
        .arg("--kernel")
        .arg(&images.kernel)
        .arg("--control")
        .arg(&control);
    command
        .arg("--disk")
        .arg(format!("{},readonly", images.guest_os.display()));
    command.arg("--console").arg(format!(
        "ring:{}",
        dir.path().join("console.ring").display()
    ));
    let mut process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        interrupt::check()?;
        if let Some(status) = process.wait_within(LOOK)? {
            bail!("fabric-vmm has ended before its kernel's first line: {status}");
        }
        // Its socket takes a moment to be there.
        let first_line = telling::stats(&control)
            .ok()
            .and_then(|stats| stats.timings.first_line_ms);
        if let Some(first_line) = first_line {
            process.stop().context("ending the VMM")?;
            return Ok(first_line);
        }
    }
    bail!("no line from the kernel within {} s", PATIENCE.as_secs())
}
