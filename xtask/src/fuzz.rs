//! `cargo xtask fuzz`: the fuzz targets in `fuzz/`, for a time.
//!
//! Builds them all at once, as `cargo fuzz` would (its manual, "Tutorial"; the
//! flags are those of Clang's SanitizerCoverage), so that nothing has to be
//! installed but a nightly toolchain. What libFuzzer learns is kept in the cache;
//! what it finds is put into `fuzz/artifacts/TARGET`, and fails the task.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    num::NonZeroUsize,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::{
    interrupt, process,
    progress::seconds,
    project::{HOST_TARGET, Project},
    setup,
    table::table,
};

/// What makes a program tell libFuzzer where it has been, and AddressSanitizer see
/// what it does to memory.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Bounds for one input: its length, the memory it may cost in MiB, its time.
const LIMITS: [&str; 4] = [
    "-max_len=4096",
    "-len_control=20",
    "-rss_limit_mb=2048",
    "-timeout=20",
];

/// What libFuzzer says at its end before the number of inputs that it ran.
const EXECUTIONS: &str = "stat::number_of_executed_units:";

/// Run the fuzz targets: hostile guests, disks, files and peers, made up.
///
/// Needs a nightly toolchain. Prints executions and findings as a table, and as
/// JSON in the last line.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only these; all if none is named
    targets: Vec<String>,
    /// For how long each
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// How many at once; as many as there are processors if not given
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    /// Where there is no nightly toolchain, say so and do nothing
    #[arg(long)]
    if_possible: bool,
}

/// What has come of a target.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Ran {
    executions: u64,
    seconds: f64,
    /// Files with inputs that it failed on.
    found: Vec<PathBuf>,
    /// Its last words, if it failed.
    #[serde(skip)]
    failure: Option<String>,
}

/// Runs the task.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    let targets = targets(project, &options.targets)?;
    if !has_nightly() {
        let remedy = "no nightly toolchain; run: rustup toolchain install nightly";
        ensure!(options.if_possible, "{remedy}");
        println!("fuzz: skipped, {remedy}");
        return Ok(());
    }
    setup::ensure()?;
    build(project)?;
    let jobs = options.jobs.map_or_else(processors, NonZeroUsize::get);
    let ran = run_all(project, targets, options.seconds, jobs)?;
    finish(&ran)
}

fn targets(project: &Project, wanted: &[String]) -> Result<Vec<String>> {
    let folder = project.root.join("fuzz/fuzz_targets");
    let mut all = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        all.extend(
            path.file_stem()
                .and_then(|stem| stem.to_str())
                .map(str::to_owned),
        );
    }
    all.sort();
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
        bail!(
            "no target is named {unknown:?}; there are: {}",
            all.join(", ")
        );
    }
    all.retain(|name| wanted.is_empty() || wanted.contains(name));
    Ok(all)
}

fn nightly(args: &[&str]) -> Command {
    let mut command = process::command("rustup", ["run", "nightly", "cargo"]);
    command.args(args);
    command
}

fn has_nightly() -> bool {
    nightly(&["--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn target_dir(project: &Project) -> PathBuf {
    project.target.join("fuzz")
}

fn build(project: &Project) -> Result<()> {
    let args = ["build", "--release", "--bins", "--target", HOST_TARGET];
    let mut command = nightly(&args);
    command
        .current_dir(project.root.join("fuzz"))
        .env("CARGO_TARGET_DIR", target_dir(project))
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    process::run(&mut command).context("building the fuzz targets")
}

/// Runs the targets, so many at a time.
fn run_all(
    project: &Project,
    targets: Vec<String>,
    time: u32,
    jobs: usize,
) -> Result<BTreeMap<String, Ran>> {
    let waiting = Mutex::new(VecDeque::from(targets));
    let ran = Mutex::new(BTreeMap::new());
    let work = || -> Result<()> {
        loop {
            let next = waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some(target) = next else { return Ok(()) };
            let result = run_one(project, &target, time)?;
            eprintln!("fuzz {target}: {}", result.in_words());
            ran.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(target, result);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread panicked"),
            })
    })?;
    Ok(ran.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn run_one(project: &Project, target: &str, time: u32) -> Result<Ran> {
    let program = target_dir(project)
        .join(HOST_TARGET)
        .join("release")
        .join(target);
    let learnt = project.cache_dir(&format!("fuzz/{target}"))?;
    let kept = project.root.join("fuzz/corpus").join(target);
    let artifacts = project.root.join("fuzz/artifacts").join(target);
    fs::create_dir_all(&artifacts).with_context(|| format!("making {}", artifacts.display()))?;
    let before = files_in(&artifacts)?;
    let mut command = process::command(&program, LIMITS);
    command
        .args([
            format!("-max_total_time={time}"),
            "-print_final_stats=1".into(),
        ])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(learnt)
        .args(kept.is_dir().then_some(kept));
    let begun = Instant::now();
    let mut executions = 0;
    let ended = process::run_quietly(&mut command, |line| {
        executions = executed(line).unwrap_or(executions);
    });
    interrupt::check()?;
    let mut found = files_in(&artifacts)?;
    found.retain(|file| !before.contains(file));
    Ok(Ran {
        executions,
        seconds: begun.elapsed().as_secs_f64().round(),
        found,
        failure: ended.err().map(|error| format!("{error:#}")),
    })
}

fn files_in(folder: &PathBuf) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The number in a line that tells how many inputs were run.
fn executed(line: &str) -> Option<u64> {
    line.strip_prefix(EXECUTIONS)?.trim().parse().ok()
}

impl Ran {
    fn in_words(&self) -> String {
        let time = seconds(Duration::from_secs_f64(self.seconds));
        match &self.failure {
            None => format!("{} executions, nothing found ({time})", self.executions),
            Some(failure) => format!("FAILED after {time}: {failure}"),
        }
    }
}

fn finish(ran: &BTreeMap<String, Ran>) -> Result<()> {
    let rows = ran.iter().map(|(target, ran)| {
        let found = if ran.failure.is_some() {
            ran.found.len().max(1)
        } else {
            0
        };
        [
            target.clone(),
            ran.executions.to_string(),
            found.to_string(),
            format!("{:.0} s", ran.seconds),
        ]
    });
    println!(
        "{}",
        table(
            ["target", "executions", "findings", "time"],
            rows.collect(),
            true
        )
    );
    for file in ran.values().flat_map(|ran| &ran.found) {
        println!("an input that fails: {}", file.display());
    }
    let executions: u64 = ran.values().map(|ran| ran.executions).sum();
    println!(
        "{}",
        serde_json::json!({ "executions": executions, "targets": ran })
    );
    let failed: Vec<&str> = ran
        .iter()
        .filter(|(_, ran)| ran.failure.is_some())
        .map(|(name, _)| name.as_str())
        .collect();
    ensure!(
        failed.is_empty(),
        "failed: {}; fuzz/README.md says how to go on",
        failed.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_read_from_what_libfuzzer_prints_at_its_end() {
        assert_eq!(
            executed("stat::number_of_executed_units: 56285"),
            Some(56285)
        );
        assert_eq!(executed("stat::average_exec_per_sec:     1631"), None);
        assert_eq!(executed("#56285\tDONE   cov: 2897 ft: 10591"), None);
    }

    #[test]
    fn every_target_stands_in_the_manifest() {
        let project = Project::find().unwrap();
        let manifest = fs::read_to_string(project.root.join("fuzz/Cargo.toml")).unwrap();
        let targets = targets(&project, &[]).unwrap();
        assert!(targets.len() > 1);
        for target in &targets {
            let path = format!("path = \"fuzz_targets/{target}.rs\"");
            assert!(manifest.contains(&path), "{target}");
        }
        let error = super::targets(&project, &["nothing".into()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"nothing\"") && error.contains(&targets[0]),
            "{error}"
        );
    }
}
