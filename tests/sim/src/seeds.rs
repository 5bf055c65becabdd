//! One seed, or many: each of many in a process of its own, so that nothing of one is in
//! another, and as many at a time as there are processors. One that does not end in time
//! is ended, and has failed.

use std::{
    collections::BTreeMap,
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd},
    process::{Command, Stdio},
    str::FromStr,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use fabric_controller::model::blob::BlobKind;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use rand::{SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};

use crate::{
    Break, host,
    image::Shelf,
    plan::{IMAGES, PACKAGE, Plan},
    world::{Outcome, World, panics},
};

/// Seeds, first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    last: u64,
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| text.parse::<u64>().ok();
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err("must be FIRST..LAST, two numbers in order; the last is run too".to_owned()),
        }
    }
}

/// What has become of one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// What does not hold, and since when, in seconds.
    pub failure: Option<(f64, String)>,
    /// What was wrong on purpose, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Calls of the operator that were acknowledged, by kind.
    pub calls: BTreeMap<String, u64>,
}

impl Report {
    /// Of how a seed has ended.
    #[must_use]
    pub fn of(seed: u64, outcome: &Outcome) -> Self {
        let failure = outcome.failure.as_ref();
        Self {
            seed,
            failure: failure.map(|(at, what)| (at.as_secs_f64(), what.clone())),
            faults: outcome.faults.clone(),
            calls: outcome.calls.clone(),
        }
    }

    /// Of one that has no word of its own.
    fn of_silent(seed: u64, why: String) -> Self {
        Self {
            seed,
            failure: Some((0.0, why)),
            faults: BTreeMap::new(),
            calls: BTreeMap::new(),
        }
    }
}

/// The last line: what has become of all of them.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// How many were run.
    pub seeds: u64,
    /// Those that failed.
    pub failed: Vec<u64>,
    /// What was wrong on purpose, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Calls of the operator that were acknowledged, by kind.
    pub calls: BTreeMap<String, u64>,
}

impl Summary {
    /// Counts one more.
    pub fn add(&mut self, report: &Report) {
        self.seeds += 1;
        if report.failure.is_some() {
            self.failed.push(report.seed);
        }
        for (kind, times) in &report.faults {
            *self.faults.entry(kind.clone()).or_default() += times;
        }
        for (kind, times) in &report.calls {
            *self.calls.entry(kind.clone()).or_default() += times;
        }
    }
}

/// Images and the package that plans of seeds name.
///
/// # Errors
///
/// They cannot be made.
pub fn shelf() -> anyhow::Result<Shelf> {
    let mut shelf = Shelf::default();
    for image in IMAGES {
        shelf.add(BlobKind::Image, image)?;
    }
    shelf.add(BlobKind::Package, PACKAGE)?;
    Ok(shelf)
}

/// Lives through a plan, in this process. Whatever is random in it comes from the seed;
/// there can be one only.
///
/// # Errors
///
/// There is no room for it.
pub fn run_here(
    plan: Plan,
    broken: Option<Break>,
    shelf: impl FnOnce() -> anyhow::Result<Shelf> + Send + 'static,
) -> anyhow::Result<Outcome> {
    fabric_controller::clock::simulate(host::wall_clock);
    host_agent::clock::simulate(host::wall_clock);
    panics::watch();
    // What hashes and picks at random takes its keys from here when it is first used by a
    // thread.
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(plan.seed));
    let thread = thread::spawn(move || {
        fastrand::seed(plan.seed);
        Ok(World::new(plan, shelf()?, broken)?.run())
    });
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the simulation has panicked: {:?}", panics::take()))?
}

/// How seeds are run.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// What is broken on purpose.
    pub broken: Option<&'a str>,
    /// How long one may take, by the clock on the wall.
    pub longest: Duration,
}

/// Runs seeds in processes of their own; `told` hears of each when it has ended.
///
/// # Errors
///
/// A process cannot be started, or does not say what has become of it.
pub fn run_all(
    seeds: Seeds,
    terms: Terms<'_>,
    told: impl Fn(&Report) + Sync,
) -> anyhow::Result<Summary> {
    let program = std::env::current_exe().context("this program cannot be found")?;
    let next = Mutex::new(seeds.first..=seeds.last);
    let summary = Mutex::new(Summary::default());
    let work = || -> anyhow::Result<()> {
        loop {
            let seed = next.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(seed) = seed else { return Ok(()) };
            let mut command = Command::new(&program);
            command.args(["--seed", &seed.to_string(), "--report"]);
            if let Some(broken) = terms.broken {
                command.args(["--break", broken]);
            }
            let report = report_of(seed, &mut command, terms.longest)?;
            told(&report);
            let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
            summary.add(&report);
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| -> anyhow::Result<()> {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker has panicked"))??;
        }
        Ok(())
    })?;
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.failed.sort_unstable();
    Ok(summary)
}

/// Runs a seed's process, and ends it if it takes longer than that.
fn report_of(seed: u64, command: &mut Command, longest: Duration) -> anyhow::Result<Report> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.spawn();
    let mut child = child.context("a seed's process cannot be started")?;
    let mut output = child.stdout.take().context("it has no output")?;
    let is_in_time = says_something(output.as_fd(), longest)?;
    if !is_in_time {
        child.kill().context("a seed's process cannot be ended")?;
    }
    let mut text = String::new();
    let read = output.read_to_string(&mut text);
    let status = child.wait().context("a seed's process has no end")?;
    if !is_in_time {
        let longest = humantime::format_duration(longest);
        let why = format!(
            "it was not done after {longest} by the clock on the wall, and was ended; alone, and \
             with RUST_LOG=debug, it says what it is at"
        );
        return Ok(Report::of_silent(seed, why));
    }
    read.context("what a seed's process says cannot be read")?;
    let report = serde_json::from_str(text.lines().last().unwrap_or_default());
    Ok(report
        .unwrap_or_else(|_| Report::of_silent(seed, format!("its process has ended: {status}"))))
}

/// Whether something comes, or the end, within that time: a seed's process says all that it
/// has to say when it is done. The system keeps the time, for the clocks that this program
/// could look at are those of the simulation, and stand still.
fn says_something(output: BorrowedFd<'_>, longest: Duration) -> anyhow::Result<bool> {
    let longest = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
    let mut waited = [PollFd::new(output, PollFlags::POLLIN)];
    loop {
        match poll(&mut waited, longest) {
            Err(Errno::EINTR) => {}
            other => return Ok(other.context("a seed's process cannot be waited for")? > 0),
        }
    }
}
