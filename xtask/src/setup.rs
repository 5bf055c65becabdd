//! `cargo xtask setup`: the Debian packages that building and testing need, and the target
//! of the programs for guests.

use std::process::Stdio;

use anyhow::{Result, bail};

use crate::{
    apt::{self, apt_get, is_root},
    process,
    progress::Work,
    project::{GUEST_TARGET, has_target},
};

/// What is needed, and for what.
const PACKAGES: [(&str, &str); 14] = [
    ("gcc", "to link Rust programs and to build the guest kernel"),
    ("libc6-dev", "to link Rust programs"),
    ("g++", "to build libFuzzer"),
    ("make", "to build the guest kernel"),
    ("flex", "to build the guest kernel"),
    ("bison", "to build the guest kernel"),
    ("bc", "to build the guest kernel"),
    ("libelf-dev", "to build the guest kernel"),
    ("libssl-dev", "to build the guest kernel"),
    ("xz-utils", "to unpack the guest kernel's source"),
    ("e2fsprogs", "to make file systems for guests"),
    ("iproute2", "to give nodes networks of their own"),
    ("qemu-utils", "to test VHDs against another implementation"),
    (
        "libvhdi-utils",
        "to test differencing VHDs against another implementation",
    ),
];

/// Install the Debian packages that building and testing need, and the target of the
/// programs for guests.
///
/// Installs by name with apt-get, as root or where sudo asks for no password.
/// Otherwise prints the one line to run, and fails.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Install nothing: only say what is missing
    #[arg(long)]
    check: bool,
}

/// Runs the task.
pub fn run(options: &Options) -> Result<()> {
    let missing = missing()?;
    if !options.check {
        ensure_target();
    }
    if missing.is_empty() {
        println!("setup: all {} packages are there", PACKAGES.len());
        return Ok(());
    }
    if options.check {
        bail!("missing packages; run: {}", install_line(&missing));
    }
    ensure()
}

/// Installs what is missing, or fails with the line to run.
pub fn ensure() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    for (package, purpose) in &missing {
        eprintln!("missing: {package}, {purpose}");
    }
    let sudo = if is_root() {
        false
    } else if may_sudo() {
        true
    } else {
        bail!(
            "missing packages, and this user may not install them; run: {}",
            install_line(&missing)
        );
    };
    let mut work = Work::begin("Installing packages");
    let install = |work: &mut Work| {
        let mut args = vec!["install", "--yes", "--no-install-recommends"];
        args.extend(missing.iter().map(|(package, _)| *package));
        process::run_quietly(&mut as_root(sudo, &args), |line| work.now(line))
    };
    if install(&mut work).is_err() {
        // Most often the list of packages is missing or old.
        process::run_quietly(&mut as_root(sudo, &["update"]), |line| work.now(line))?;
        install(&mut work)?;
    }
    let names: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    work.done(&names.join(" "));
    Ok(())
}

/// Adds the target of the programs for guests. Without it they are linked with glibc, and
/// guests start slower.
pub fn ensure_target() {
    if has_target(GUEST_TARGET) {
        return;
    }
    let mut work = Work::begin("Adding a target to the toolchain");
    // Where nobody answers, rustup would ask for many minutes.
    let mut add = process::command("timeout", ["120", "rustup", "target", "add", GUEST_TARGET]);
    match process::run_quietly(&mut add, |line| work.now(line)) {
        Ok(()) => work.done(GUEST_TARGET),
        Err(error) => eprintln!(
            "without {GUEST_TARGET}, programs for guests are larger and start slower: {error:#}"
        ),
    }
}

fn missing() -> Result<Vec<(&'static str, &'static str)>> {
    let mut missing = Vec::new();
    for (package, purpose) in PACKAGES {
        if !apt::is_installed(package)? {
            missing.push((package, purpose));
        }
    }
    Ok(missing)
}

fn install_line(missing: &[(&str, &str)]) -> String {
    let mut line = String::from("sudo apt-get install");
    for (package, _) in missing {
        line.push(' ');
        line.push_str(package);
    }
    line
}

fn may_sudo() -> bool {
    process::command("sudo", ["--non-interactive", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn as_root(sudo: bool, args: &[&str]) -> std::process::Command {
    if !sudo {
        return apt_get(args);
    }
    let mut command = process::command("sudo", ["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    command.args(args);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_run_names_every_package_once() {
        assert_eq!(
            install_line(&[("flex", "x"), ("bc", "y")]),
            "sudo apt-get install flex bc"
        );
    }
}
