//! `cargo xtask test`: every test, with a closing summary.

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    build::{self, cargo},
    image, interrupt, preflight,
    process::{self, Process},
    progress::seconds,
    project::Project,
    setup,
    table::table,
};

/// Run every test, those on real KVM among them.
///
/// Builds what they need first. Where KVM is missing, the tests that need it are
/// skipped and counted as such; with FABRIC_REQUIRE_KVM=1 that is a failure.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only tests with this in their name
    filter: Option<String>,
    /// Only the tests of single crates, not those of the whole system
    #[arg(long)]
    crates_only: bool,
    /// Only the tests of the whole system
    #[arg(long, conflicts_with = "crates_only")]
    system_only: bool,
}

/// The test programs of the workspace, as `cargo metadata` tells them.
#[derive(Debug)]
struct TestPrograms(Vec<TestProgram>);

#[derive(Debug)]
struct TestProgram {
    package: String,
    name: String,
    required_features: Vec<String>,
}

impl TestProgram {
    /// Whether it is of the whole system.
    fn is_story(&self) -> bool {
        self.package == "fabric-tests"
    }
}

/// Tests counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl TestPrograms {
    fn read(project: &Project) -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<Package>,
        }
        #[derive(Deserialize)]
        struct Package {
            name: String,
            targets: Vec<Target>,
        }
        #[derive(Deserialize)]
        struct Target {
            kind: Vec<String>,
            name: String,
            #[serde(rename = "required-features", default)]
            required_features: Vec<String>,
        }
        let args = ["metadata", "--format-version", "1", "--no-deps"];
        let said = process::output(&mut cargo(project, &args))?;
        let metadata: Metadata =
            serde_json::from_str(&said).context("reading what cargo says of the workspace")?;
        let programs = metadata.packages.into_iter().flat_map(|package| {
            let tests = package.targets.into_iter();
            tests
                .filter(|target| target.kind == ["test"])
                .map(move |target| TestProgram {
                    package: package.name.clone(),
                    name: target.name,
                    required_features: target.required_features,
                })
        });
        Ok(Self(programs.collect()))
    }

    /// The arguments with which cargo runs such.
    fn of(&self, wanted: impl Fn(&TestProgram) -> bool) -> Vec<&str> {
        let such = self.0.iter().filter(|program| wanted(program));
        such.flat_map(|program| ["--test", &program.name]).collect()
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// One part of the run.
struct Stage {
    name: &'static str,
    count: Count,
    time: Duration,
    well: bool,
}

/// Runs the task.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    if let Some(reason) = preflight::kvm_missing() {
        if env::var_os("FABRIC_REQUIRE_KVM").is_some_and(|value| value == "1") {
            bail!("FABRIC_REQUIRE_KVM=1, but no guest can run here: {reason}");
        }
        eprintln!("tests that need KVM are skipped: {reason}");
    }
    let begun = Instant::now();
    setup::ensure()?;
    build::programs_for_tests(project)?;
    let places = [
        ("FABRIC_BIN_DIR", project.bin_dir()),
        ("FABRIC_KERNEL", image::kernel(project)?),
        ("FABRIC_GUEST_OS", image::guest_os(project)?),
        ("FABRIC_BUS_PEER", image::bus_peer(project)?),
        ("FABRIC_CACHE", project.cache.clone()),
    ];
    let mut stages = vec![Stage {
        name: "build",
        count: Count::default(),
        time: begun.elapsed(),
        well: true,
    }];
    let mut stage = |name, mut command: Command| -> Result<()> {
        command.envs(places.iter().map(|(name, path)| (name, path)));
        stages.push(run_stage(name, &mut command)?);
        Ok(())
    };
    let filter = options.filter.as_deref();
    let programs = TestPrograms::read(project)?;
    if !options.system_only {
        // Before the others, which put the controller without fail points in its place.
        let fail_points = ["--features", "fabric-controller/fail-points"];
        let killed = programs.of(|it| it.required_features == ["fail-points"]);
        let killed = [&fail_points[..], &killed].concat();
        stage("killed controllers", tests(project, &killed, filter))?;
        let others = programs.of(|it| it.required_features.is_empty() && !it.is_story());
        let others = [&["--lib", "--bins"], &others[..]].concat();
        stage("single crates", tests(project, &others, filter))?;
        stage("documentation", tests(project, &["--doc"], filter))?;
    }
    if !options.crates_only {
        let stories = programs.of(TestProgram::is_story);
        stage("whole system", tests(project, &stories, filter))?;
    }
    finish(&stages)
}

/// Some tests of the whole workspace: of a part of it, cargo would build anew what the
/// parts ask for with different features.
fn tests(project: &Project, which: &[&str], filter: Option<&str>) -> Command {
    let mut command = cargo(project, &["test", "--release", "--no-fail-fast"]);
    command.arg("--workspace").args(which).args(filter);
    command
}

/// Runs one `cargo test`, passes its output on and counts.
fn run_stage(name: &'static str, command: &mut Command) -> Result<Stage> {
    let begun = Instant::now();
    let mut process = Process::start(command.stdout(Stdio::piped()))?;
    let stdout = process.take_stdout().context("no output of cargo test")?;
    let awaited = process.awaited();
    let mut count = Count::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("reading the output of cargo test")?)
            .into_owned();
        println!("{line}");
        if let Some(result) = counted(&line) {
            count += result;
        }
    }
    drop(awaited);
    let status = process.wait()?;
    interrupt::check()?;
    Ok(Stage {
        name,
        count,
        time: begun.elapsed(),
        well: status.success(),
    })
}

/// What a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; ...` says.
fn counted(line: &str) -> Option<Count> {
    let numbers = line
        .trim_start()
        .strip_prefix("test result: ")?
        .split_once(". ")?
        .1;
    let mut count = Count::default();
    for part in numbers.split(';') {
        let (number, word) = part.trim().split_once(' ')?;
        let Ok(number) = number.parse() else { continue };
        match word {
            "passed" => count.passed = number,
            "failed" => count.failed = number,
            "ignored" => count.skipped = number,
            _ => {}
        }
    }
    Some(count)
}

fn finish(stages: &[Stage]) -> Result<()> {
    let mut total = Count::default();
    let rows = stages
        .iter()
        .map(|stage| {
            total += stage.count;
            let Count {
                passed,
                failed,
                skipped,
            } = stage.count;
            [
                stage.name.to_owned(),
                passed.to_string(),
                failed.to_string(),
                skipped.to_string(),
                seconds(stage.time),
            ]
        })
        .collect();
    println!(
        "\n{}",
        table(["stage", "passed", "failed", "skipped", "time"], rows, true)
    );
    let time: Duration = stages.iter().map(|stage| stage.time).sum();
    let Count {
        passed,
        failed,
        skipped,
    } = total;
    println!(
        "{passed} passed, {failed} failed, {skipped} skipped in {}",
        seconds(time)
    );
    let bad: Vec<&str> = stages
        .iter()
        .filter(|stage| !stage.well)
        .map(|stage| stage.name)
        .collect();
    if !bad.is_empty() {
        bail!("failed: {}", bad.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_from_what_test_programs_print() {
        let line = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 1 filtered out; \
                    finished in 0.15s";
        assert_eq!(
            counted(line),
            Some(Count {
                passed: 12,
                failed: 0,
                skipped: 3
            })
        );
        let line = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(
            counted(line),
            Some(Count {
                passed: 1,
                failed: 2,
                skipped: 0
            })
        );
        assert_eq!(counted("test a_result ... ok"), None);
    }
}
