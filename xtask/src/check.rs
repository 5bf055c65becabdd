//! `cargo xtask check`: formatting, lints and documentation, warnings being errors.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{build::cargo, interrupt::Interrupted, process, progress::seconds, project::Project};

/// Check formatting, lints and documentation, warnings being errors.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only these
    #[arg(value_enum)]
    only: Vec<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Stage {
    /// cargo fmt
    Fmt,
    /// cargo clippy, all targets
    Clippy,
    /// cargo doc, private items included
    Docs,
    /// cargo deny, if it is installed
    Deny,
}

const STAGES: [Stage; 4] = [Stage::Fmt, Stage::Clippy, Stage::Docs, Stage::Deny];

/// Runs the task.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    let mut failed = Vec::new();
    for stage in STAGES {
        if !options.only.is_empty() && !options.only.contains(&stage) {
            continue;
        }
        let begun = Instant::now();
        let result = run_stage(project, stage);
        let time = seconds(begun.elapsed());
        match result {
            Ok(said) => println!("check {}: {said} ({time})", stage.name()),
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                println!("check {}: FAILED, {error:#} ({time})", stage.name());
                failed.push(stage.name());
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn run_stage(project: &Project, stage: Stage) -> Result<&'static str> {
    let mut command = match stage {
        Stage::Fmt => {
            // A workspace of its own.
            let fuzz = ["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"];
            process::run(&mut cargo(project, &fuzz))?;
            cargo(project, &["fmt", "--all", "--check"])
        }
        Stage::Clippy => cargo(
            project,
            &[
                "clippy",
                "--release",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ],
        ),
        Stage::Docs => {
            let args = [
                "doc",
                "--release",
                "--workspace",
                "--no-deps",
                "--document-private-items",
                "--quiet",
            ];
            let mut command = cargo(project, &args);
            // Private items are documented too, so links to them lead somewhere.
            let flags = "-D warnings -A rustdoc::private-intra-doc-links";
            command.env("RUSTDOCFLAGS", flags);
            command
        }
        Stage::Deny => {
            let version = cargo(project, &["deny", "--version"]).output();
            if !version.is_ok_and(|output| output.status.success()) {
                return Ok("skipped, cargo-deny is not installed");
            }
            cargo(project, &["deny", "--log-level", "error", "check"])
        }
    };
    process::run(&mut command)?;
    Ok("ok")
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Docs => "docs",
            Self::Deny => "deny",
        }
    }
}
