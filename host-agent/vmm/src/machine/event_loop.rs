//! Runs a machine: starts its virtual CPUs, serves everything that is not theirs,
//! and takes it apart when it has ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::assemble::{AssembleError, Assembled};
use super::events::{Input, Signals, Wake};
use super::halt_check::HaltCheck;
use super::report::{Reporter, panic_text};
use crate::config::ConsoleConfig;
use crate::control::server::ControlServer;
use crate::exit::ExitReport;
use crate::vcpu::fault::chain;
use crate::vcpu::{Board, Outcome, Vcpu};

/// How long virtual CPUs may take to leave the guest when the machine has ended.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often they are interrupted meanwhile.
const LEAVE_INTERVAL: Duration = Duration::from_millis(2);
/// What a virtual CPU's thread may use as its stack.
const VCPU_STACK: usize = 256 * 1024;
/// How many events are taken from the kernel at a time.
const EVENTS_AT_A_TIME: usize = 32;

type Subscriber = Box<dyn MutEventSubscriber>;

/// Runs the machine until it ends, and says how.
pub fn run(mut machine: Assembled) -> ExitReport {
    let reporter = Reporter::new(&machine);
    let board = Arc::clone(&machine.board);
    if let Err(error) = run_to_end(&mut machine, &reporter) {
        board.ending.end(Outcome::Failed {
            message: chain(&error),
            fault: None,
        });
    }
    // The terminal first, so that what follows is readable.
    drop(machine.terminal.take());
    reporter.exit_report()
}

fn run_to_end(machine: &mut Assembled, reporter: &Reporter) -> Result<(), AssembleError> {
    let board = Arc::clone(&machine.board);
    let mut manager = EventManager::<Subscriber>::new_with_capacity(EVENTS_AT_A_TIME)
        .map_err(|error| AssembleError::host("event loop")(std::io::Error::other(error)))?;
    let signals =
        Signals::new(Arc::clone(&board)).map_err(AssembleError::host("signal descriptor"))?;
    manager.add_subscriber(Box::new(signals));
    manager.add_subscriber(Box::new(Wake::new(Arc::clone(&board))));
    if machine.config.console == ConsoleConfig::Stdio {
        let serial = Arc::clone(&machine.serial);
        let input = Input::new(serial, Arc::clone(&board), machine.terminal.is_some());
        manager.add_subscriber(Box::new(input));
    }
    if let Some(vsock) = machine.vsock.take() {
        manager.add_subscriber(Box::new(vsock));
    }
    if let Some(path) = &machine.config.control {
        let server = ControlServer::bind(path, Box::new(reporter.clone()))?;
        manager.add_subscriber(Box::new(server));
    }
    let threads = start(std::mem::take(&mut machine.vcpus), &board)?;
    serve(&mut manager, &board, &threads);
    leave(threads);
    Ok(())
}

/// Serves events until the machine has ended.
fn serve(manager: &mut EventManager<Subscriber>, board: &Board, threads: &[JoinHandle<()>]) {
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
            kick(threads);
        }
    }
}

fn start(vcpus: Vec<Vcpu>, board: &Arc<Board>) -> Result<Vec<JoinHandle<()>>, AssembleError> {
    extern "C" fn interrupted(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), interrupted)
        .map_err(|error| AssembleError::host("signal handler")(error.into()))?;
    let mut threads = Vec::with_capacity(vcpus.len());
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        let board_of_thread = Arc::clone(board);
        let thread = thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(VCPU_STACK)
            .spawn(move || run_guarded(vcpu, &board_of_thread));
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                board.ending.end(Outcome::Failed {
                    message: error.to_string(),
                    fault: None,
                });
                leave(threads);
                return Err(AssembleError::host("thread")(error));
            }
        }
    }
    Ok(threads)
}

/// A panic in a virtual CPU or in a device it calls ends the machine, in order.
fn run_guarded(vcpu: Vcpu, board: &Board) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| vcpu.run())) {
        let message = format!("internal panic: {}", panic_text(&*payload));
        board.ending.end(Outcome::Failed {
            message,
            fault: None,
        });
    }
}

/// Interrupts KVM_RUN in every virtual CPU.
fn kick(threads: &[JoinHandle<()>]) {
    for thread in threads.iter().filter(|thread| !thread.is_finished()) {
        // Fails only for a thread that has just ended.
        let _ = thread.kill(SIGRTMIN());
    }
}

/// Gets every virtual CPU out of the guest. One that does not come, stuck in the
/// host's kernel, is left to the end of the process.
fn leave(threads: Vec<JoinHandle<()>>) {
    let until = Instant::now() + LEAVE_TIMEOUT;
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
        kick(&threads);
        thread::sleep(LEAVE_INTERVAL);
    }
    for thread in threads.into_iter().filter(JoinHandle::is_finished) {
        let _ = thread.join();
    }
}
