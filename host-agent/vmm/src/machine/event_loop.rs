//! Runs a machine: starts its virtual CPUs, serves everything that is not theirs,
//! and takes it apart when it has ended.

use std::sync::Arc;
use std::time::Instant;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

use super::assemble::{AssembleError, Assembled};
use super::events::{Input, Signals, Wake};
use super::halt_check::HaltCheck;
use super::keeper::{DiskPart, Keeper, Parts};
use super::report::{Operator, Reporter};
use super::restore;
use super::template::{BootedKeeper, TemplateMaker};
use super::trim;
use super::vcpus::Threads;
use crate::config::{ConsoleConfig, VmConfig};
use crate::devices::vsock;
use crate::exit::ExitReport;
use crate::fail_point::{self, Step};
use crate::jail::{Jail, Limits, ThreadKind};
use crate::snapshot;
use crate::vcpu::fault::chain;
use crate::vcpu::{Board, Outcome};

/// How many events are taken from the kernel at a time.
const EVENTS_AT_A_TIME: usize = 32;
/// What the console's ring is longer than what it keeps, at most.
const HEADROOM: u64 = 64 * 1024;

type Subscriber = Box<dyn MutEventSubscriber>;

/// Runs the machine until it ends, and says how.
pub fn run(machine: Assembled, jail: Jail) -> ExitReport {
    let reporter = Reporter::new(&machine, jail.isolation.clone());
    let board = Arc::clone(&machine.board);
    let ended = run_to_end(machine, jail, &reporter);
    if let Err(error) = &ended {
        board.ending.end(Outcome::Failed {
            message: chain(error),
            fault: None,
        });
    }
    let mut report = reporter.exit_report();
    if let Err(error) = ended {
        report.reason = error.reason();
    }
    report
}

fn run_to_end(
    mut machine: Assembled,
    jail: Jail,
    reporter: &Reporter,
) -> Result<(), AssembleError> {
    let board = Arc::clone(&machine.board);
    let mut manager = EventManager::<Subscriber>::new_with_capacity(EVENTS_AT_A_TIME)
        .map_err(|error| AssembleError::host("event loop")(std::io::Error::other(error)))?;
    let signals =
        Signals::new(Arc::clone(&board)).map_err(AssembleError::host("signal descriptor"))?;
    manager.add_subscriber(Box::new(signals));
    manager.add_subscriber(Box::new(Wake::new(Arc::clone(&board))));
    if machine.config.console == ConsoleConfig::Stdio {
        let serial = Arc::clone(&machine.parts.serial);
        let input = Input::new(serial, Arc::clone(&board));
        manager.add_subscriber(Box::new(input));
    }
    if let Some(vsock) = machine.vsock.take() {
        manager.add_subscriber(Box::new(vsock));
    }
    let Assembled {
        config,
        control,
        template_sign,
        booted_sign,
        vcpus,
        disk_threads,
        governor,
        parts,
        reset,
        ..
    } = machine;
    jail.limit(&limits(&config, &parts))?;
    fail_point::reached(Step::Assembled);
    // Here, where the signals are blocked. Threads are born confined only if their
    // maker is, which is confined last: it makes no other then.
    for thread in disk_threads {
        thread
            .start(jail.calls.clone())
            .map_err(AssembleError::host("thread"))?;
    }
    restore::start_devices(&parts)?;
    trim::trim();
    let threads = Arc::new(Threads::start(vcpus, &board, &jail.calls)?);
    jail.calls
        .confine(ThreadKind::EventLoop)
        .map_err(AssembleError::host("confinement"))?;
    let keeper = Keeper::new(parts, Arc::clone(&board), Arc::clone(&threads), reset);
    if let Some(listener) = control {
        let operator = Operator::new(reporter.clone(), Arc::clone(&keeper), governor);
        manager.add_subscriber(Box::new(listener.serve(Box::new(operator))));
    }
    let booted = config.template.as_ref().and_then(|it| it.booted.as_ref());
    if let (Some((sign, vsock)), Some(booted)) = (booted_sign, booted) {
        let (path, keeper) = (booted.path.clone(), Arc::clone(&keeper));
        let booted = BootedKeeper::new(sign, path, vsock, keeper, Arc::clone(&board));
        manager.add_subscriber(Box::new(booted));
    }
    if let (Some(sign), Some(template)) = (template_sign, config.template) {
        let maker = TemplateMaker::new(sign, template, keeper, Arc::clone(&board));
        manager.add_subscriber(Box::new(maker));
    }
    serve(&mut manager, &board, &threads);
    fail_point::reached(Step::Ending);
    threads.leave();
    fail_point::reached(Step::Ended);
    Ok(())
}

/// What a jailed process may have: what its machine can need, and no more.
fn limits(config: &VmConfig, parts: &Parts) -> Limits {
    // A differencing disk has its headers, a table, and a bitmap to each block.
    let disk = |disk: &DiskPart| disk.size_bytes + disk.size_bytes / 512 + (4 << 20);
    let written = parts.disks.iter().filter(|disk| !disk.readonly);
    let snapshot = (config.memory_mib << 20) + snapshot::STATE_MAX;
    let ring = match &config.console {
        ConsoleConfig::Ring(ring) => ring.bytes + HEADROOM,
        // Standard output is its user's, who reads it or keeps it.
        ConsoleConfig::Stdio => u64::MAX,
        ConsoleConfig::None => 0,
    };
    Limits {
        descriptors: (vsock::muxer::MAX_CONNECTIONS + vsock::muxer::MAX_CALLERS) as u64 + 256,
        file_bytes: written.map(disk).fold(snapshot.max(ring), u64::max),
        // This one, and the one by which KVM splits large pages.
        threads: u64::from(config.vcpus) + parts.disks.len() as u64 + 2,
    }
}

/// Serves events until the machine has ended.
fn serve(manager: &mut EventManager<Subscriber>, board: &Board, threads: &Threads) {
    let mut check = HaltCheck::new(Instant::now());
    while !board.ending.has_ended() {
        let wait = check.next().saturating_duration_since(Instant::now());
        let milliseconds = i32::try_from(wait.as_millis())
            .unwrap_or(i32::MAX)
            .saturating_add(1);
        if let Err(error) = manager.run_with_timeout(milliseconds) {
            let message = format!("the event loop failed: {error}");
            board.ending.end(Outcome::Failed {
                message,
                fault: None,
            });
        }
        if check.observe(board.halts.all_dead(), Instant::now()) {
            board.ending.end(Outcome::PowerOff);
        }
        if check.begins_round(Instant::now()) {
            board.halts.begin_round();
            threads.kick();
        }
    }
}
