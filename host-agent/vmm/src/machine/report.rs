//! What is told of a machine: while it runs over the control socket, and at its
//! end.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::assemble::Assembled;
use super::governor::Governor;
use super::keeper::{self, Keeper, SharedKeeper};
use crate::console::Watch;
use crate::control::knock::{self, Knock, KnockError};
use crate::control::protocol::{Answer, Request, Stats, Status};
use crate::control::server::{Answerer, Reply};
use crate::devices::vsock::VsockHandle;
use crate::exit::{ExitReason, ExitReport, KvmKind, Timings};
use crate::jail::Isolation;
use crate::repair::counters::RepairCounters;
use crate::vcpu::fault::chain;
use crate::vcpu::{Board, Outcome};

/// Knows all that can be told of a machine.
#[derive(Debug, Clone)]
pub struct Reporter {
    started: Instant,
    pid: u32,
    name: String,
    vcpus: u8,
    memory_mib: u64,
    kvm: KvmKind,
    board: Arc<Board>,
    repaired: Arc<RepairCounters>,
    watch: Arc<Mutex<Watch>>,
    isolation: Arc<[Isolation]>,
    /// Whether this boot of the guest has heard its power button.
    power_button: Arc<AtomicBool>,
}

impl Reporter {
    /// The reporter of this machine.
    pub fn new(machine: &Assembled, isolation: Vec<Isolation>) -> Reporter {
        Reporter {
            started: machine.started,
            pid: machine.pid,
            name: machine.config.name.clone(),
            vcpus: machine.config.vcpus,
            memory_mib: machine.config.memory_mib,
            kvm: machine.kvm,
            board: Arc::clone(&machine.board),
            repaired: Arc::clone(&machine.repaired),
            watch: Arc::clone(&machine.watch),
            isolation: isolation.into(),
            power_button: Arc::default(),
        }
    }

    fn isolation(&self) -> Vec<Isolation> {
        self.isolation.to_vec()
    }

    /// The report at the machine's end.
    pub fn exit_report(&self) -> ExitReport {
        let panic = self.watch().panic().map(str::to_owned);
        let outcome = self.board.ending.outcome();
        let power_button = self.power_button.load(Ordering::Relaxed);
        let (reason, detail) = explain(outcome.as_ref(), panic.as_deref(), power_button);
        let mut report = ExitReport::new(reason, detail);
        report.fault = match outcome {
            Some(Outcome::TripleFault(fault)) => Some(*fault),
            Some(Outcome::Failed { fault, .. }) => fault.map(|fault| *fault),
            _ => None,
        };
        report.panic = panic;
        report.power_button = power_button;
        report.timings = self.timings();
        report.exits = self.board.exits.report();
        report.isolation = self.isolation();
        report.repair = Some(self.repaired.report(self.kvm));
        report
    }

    /// The machine has been reset: its guest is another.
    fn begin_anew(&self) {
        self.watch().begin_anew();
        self.power_button.store(false, Ordering::Relaxed);
    }

    /// The guest has heard its power button, or has not.
    fn knocked(&self, heard: Result<(), KnockError>) -> Answer {
        self.power_button.fetch_or(heard.is_ok(), Ordering::Relaxed);
        answer(heard)
    }

    fn status(&self, keeper: &Keeper) -> Status {
        let state = if self.board.ending.has_ended() {
            "stopping"
        } else if keeper.is_paused() {
            "paused"
        } else {
            "running"
        };
        Status {
            name: self.name.clone(),
            state: state.to_owned(),
            pid: self.pid,
            uptime_ms: self.uptime_ms(),
            resets: keeper.resets(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            kvm: self.kvm,
            isolation: self.isolation(),
        }
    }

    fn stats(&self, governor: &Governor) -> Stats {
        Stats {
            uptime_ms: self.uptime_ms(),
            timings: self.timings(),
            exits: self.board.exits.report(),
            repair: self.repaired.report(self.kvm),
            disks: governor.disk_stats(),
            vsock: governor.vsock.as_ref().map(VsockHandle::stats),
            console: governor.console.lock().throttled(),
        }
    }

    fn timings(&self) -> Timings {
        let since_start = |at: Option<Instant>| {
            let elapsed = at?.saturating_duration_since(self.started);
            Some((elapsed.as_secs_f64() * 1e5).round() / 1e2)
        };
        let watch = self.watch();
        Timings {
            first_run_ms: since_start(self.board.first_run.get().copied()),
            first_byte_ms: since_start(watch.first_byte()),
            first_line_ms: since_start(watch.first_line()),
        }
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the control socket.
#[derive(Debug)]
pub struct Operator {
    reporter: Reporter,
    keeper: SharedKeeper,
    governor: Governor,
}

impl Operator {
    /// Tells what the reporter knows, and has the keeper and the governor do the rest.
    pub fn new(reporter: Reporter, keeper: SharedKeeper, governor: Governor) -> Operator {
        Operator {
            reporter,
            keeper,
            governor,
        }
    }
}

impl Operator {
    /// Knocks at the guest's power button.
    fn knock(&self, keeper: &Keeper) -> Result<Knock, KnockError> {
        if keeper.is_paused() {
            return Err(KnockError::Paused);
        }
        let vsock = self.governor.vsock.as_ref().ok_or(KnockError::NoVsock)?;
        let stream = vsock.call_guest(knock::PORT)?.ok_or(KnockError::NotUp)?;
        Ok(Knock::new(stream, Instant::now()))
    }

    fn carry_out(&mut self, request: Request) -> Reply {
        let mut keeper = keeper::lock(&self.keeper);
        let done = match request {
            Request::Status => return Answer::status(self.reporter.status(&keeper)).into(),
            Request::Stats => return Answer::stats(self.reporter.stats(&self.governor)).into(),
            Request::Limit { limits } => return answer(self.governor.limit(&limits)).into(),
            Request::PowerButton => {
                return match self.knock(&keeper) {
                    Ok(knock) => Reply::Later(knock),
                    Err(error) => self.reporter.knocked(Err(error)).into(),
                };
            }
            Request::Stop => {
                let by = "the control socket".to_owned();
                self.reporter.board.ending.end(Outcome::Stopped { by });
                Ok(())
            }
            Request::Pause => keeper.pause(),
            Request::Resume => keeper.resume(),
            Request::Reset => keeper.reset().inspect(|()| self.reporter.begin_anew()),
            Request::Snapshot { path } => keeper.snapshot(&path),
        };
        answer(done).into()
    }
}

impl Answerer for Operator {
    fn answer(&mut self, request: Request) -> Reply {
        self.carry_out(request)
    }

    fn knocked(&mut self, heard: Result<(), KnockError>) -> Answer {
        self.reporter.knocked(heard)
    }
}

fn answer<E: std::error::Error + 'static>(done: Result<(), E>) -> Answer {
    match done {
        Ok(()) => Answer::done(),
        Err(error) => Answer::refused(chain(&error)),
    }
}

/// The process, as whoever mounted /proc numbers it; a jailed one is 1 to itself.
pub(super) fn pid_on_the_host() -> u32 {
    let own = std::fs::read_link("/proc/self").ok();
    let number = own.and_then(|path| path.to_str()?.parse().ok());
    number.unwrap_or_else(std::process::id)
}

/// Why the machine ended, in a word and in a sentence. A guest that panicked and
/// was then reset, halted or lost has panicked.
fn explain(
    outcome: Option<&Outcome>,
    panic: Option<&str>,
    power_button: bool,
) -> (ExitReason, String) {
    let guest = |reason, detail: &str| match panic {
        Some(text) => (
            ExitReason::KernelPanic,
            format!("the guest's kernel panicked: {text}"),
        ),
        None => (reason, detail.to_owned()),
    };
    match outcome {
        Some(Outcome::PowerOff) if power_button => guest(
            ExitReason::GuestPowerOff,
            "the guest halted every virtual CPU for good, after its power button was pressed",
        ),
        Some(Outcome::PowerOff) => guest(
            ExitReason::GuestPowerOff,
            "the guest halted every virtual CPU for good",
        ),
        Some(Outcome::Reset) => guest(ExitReason::GuestReset, "the guest asked for a reset"),
        Some(Outcome::TripleFault(fault)) => {
            let (vcpu, rip) = (fault.vcpu, &fault.rip);
            let detail = format!("vCPU {vcpu} met a triple fault near {rip}");
            guest(ExitReason::TripleFault, &detail)
        }
        Some(Outcome::TemplateMade { path }) => (
            ExitReason::TemplateMade,
            format!("the machine has become template {}", path.display()),
        ),
        Some(Outcome::Stopped { by }) => (ExitReason::Stopped, format!("stopped by {by}")),
        Some(Outcome::Failed {
            message,
            fault: None,
        }) => (ExitReason::InternalError, message.clone()),
        Some(Outcome::Failed {
            message,
            fault: Some(fault),
        }) => {
            let instruction = fault.instruction.as_deref().unwrap_or("no instruction");
            let detail = format!(
                "{message}, at {} ({}: {instruction})",
                fault.rip, fault.bytes
            );
            (ExitReason::InternalError, detail)
        }
        None => (
            ExitReason::InternalError,
            "the machine ended without saying why".to_owned(),
        ),
    }
}

/// What a panic said.
pub fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_explains_whatever_end_it_had() {
        for outcome in [Outcome::Reset, Outcome::PowerOff] {
            let (reason, detail) = explain(Some(&outcome), Some("no init"), false);
            assert_eq!(reason, ExitReason::KernelPanic);
            assert!(detail.ends_with("no init"));
        }
        let stopped = Outcome::Stopped {
            by: "signal SIGTERM".into(),
        };
        let (reason, detail) = explain(Some(&stopped), Some("no init"), true);
        assert_eq!(
            (reason, detail.as_str()),
            (ExitReason::Stopped, "stopped by signal SIGTERM")
        );
    }

    #[test]
    fn ends_without_a_panic_are_what_they_are() {
        assert_eq!(
            explain(Some(&Outcome::Reset), None, true).0,
            ExitReason::GuestReset
        );
        assert_eq!(
            explain(Some(&Outcome::PowerOff), None, false).0,
            ExitReason::GuestPowerOff
        );
        let failed = Outcome::Failed {
            message: "vCPU 0: bad".into(),
            fault: None,
        };
        assert_eq!(
            explain(Some(&failed), None, false),
            (ExitReason::InternalError, "vCPU 0: bad".into())
        );
        assert_eq!(explain(None, None, false).0, ExitReason::InternalError);
    }
}
