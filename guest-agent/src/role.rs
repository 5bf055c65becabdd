//! One role as it is run: carries out what [`policy`] decides and tells it what
//! became of it. Decides nothing itself.
//!
//! | module | for |
//! |---|---|
//! | [`policy`] | a role's life: what to do when what happened (pure; the diagram is there) |
//! | [`running`] | what a running role's two probes amount to (pure) |
//! | [`gauge`] | one probe's schedule and verdict (pure) |
//! | [`process`] | starting programs as the role's user; signals |
//! | [`probe`] | making one check |
//! | [`output`] | reading what the role writes |
//! | [`files`] | the package's mount and the settings file |

pub mod files;
pub mod gauge;
pub mod output;
pub mod policy;
pub mod probe;
pub mod process;
pub mod running;

use std::{
    ffi::{CString, OsStr},
    fs::File,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use fabric_proto::{
    guest::v1::{self as wire, RoleStatus},
    id::RoleName,
};
use rustix::{
    process::{Pid, Signal},
    thread::sched_yield,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
};

use self::{
    files::{Files, FilesError, Layout},
    output::Capture,
    policy::{Action, Ending, Event, Exit, Moment, Role, State, Status},
    process::{Program, SpawnError},
};
use crate::{
    console, init,
    init::reaper::{Child, Children},
    model::{Check, Hook, LaunchSpec, ProbeKind, ProbeSpec},
    session::{logs, outbox::Outbox},
};

/// After so many turns of all tasks the host has been told of an answer: of the agent's, and
/// of the session's.
const TOLD: u32 = 2;
/// How long a hook may take.
const HOOK: Duration = Duration::from_secs(30);
/// Search path of roles.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// The result of a check or a hook, or that a role has written something.
#[derive(Debug)]
pub struct Answer {
    /// Of which role.
    pub role: RoleName,
    /// What its policy is told.
    pub event: Event,
}

/// What all roles are run with.
#[derive(Debug)]
pub struct Surroundings {
    /// When the guest agent started.
    pub start: Instant,
    /// Where roles' files are.
    pub layout: Layout,
    /// The instance that this guest is.
    pub instance: String,
    /// What is to be said to the host agent.
    pub outbox: Outbox,
    /// The processes that were started here.
    pub children: Children,
    /// Takes results of checks and hooks.
    pub answers: mpsc::Sender<Answer>,
    /// `/dev/null`, once it is there.
    pub null: Option<File>,
}

impl Surroundings {
    /// Time since the guest agent started.
    pub fn now(&self) -> Moment {
        self.start.elapsed()
    }
}

/// Why a role could not be started.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("cannot read {}", .0.display())]
    Program(PathBuf, #[source] std::io::Error),
    #[error("no pipe for its output")]
    Pipe(#[source] std::io::Error),
    #[error("cannot open /dev/null")]
    Null(#[source] std::io::Error),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

/// A role that is run.
#[derive(Debug)]
pub struct Supervised {
    name: RoleName,
    /// The name, as the outbox files its output.
    label: Arc<str>,
    policy: Role,
    files: Files,
    /// Its environment, as it was launched; probes run with it too.
    environment: Vec<CString>,
    pid: Option<Pid>,
    capture: Option<Capture>,
    /// When its state changed last, by the guest's clock. Taken once, so that two
    /// reports of one state agree.
    since: (Moment, SystemTime),
}

impl Supervised {
    /// A role that is not run yet.
    pub fn new(name: RoleName, layout: &Layout) -> Self {
        Self {
            label: name.as_str().into(),
            files: Files::new(layout, &name),
            name,
            policy: Role::new(),
            environment: Vec::new(),
            pid: None,
            capture: None,
            since: (Moment::ZERO, SystemTime::now()),
        }
    }

    /// Takes an event and does what follows from it.
    pub fn handle(&mut self, event: Event, around: &mut Surroundings) {
        if let Event::Ended(ending) = event {
            self.ended(ending, around);
        }
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let now = around.now();
            let actions = self.policy.handle(event, now);
            if self.policy.status().since != self.since.0 {
                self.since = (self.policy.status().since, SystemTime::now());
            }
            for action in actions {
                match action {
                    // Those that have an answer at once, and never two of them.
                    Action::Launch => next = Some(self.launch(around)),
                    Action::Prepare => next = Some(self.prepare(around)),
                    Action::Thaw => next = self.thaw(around),
                    Action::Freeze => self.group(|pid| process::signal(pid, Signal::STOP)),
                    Action::Hook(hook) => self.hook(hook, around),
                    Action::Terminate => self.group(process::terminate),
                    Action::Kill => self.group(process::kill),
                    Action::Check { run, kind, spec } => self.check(run, kind, spec, around),
                    Action::Deliver => self.deliver(around),
                    Action::Report => self.report(around),
                }
            }
        }
    }

    /// When it wants to be given a [`Event::Tick`].
    pub fn deadline(&self) -> Option<Moment> {
        self.policy.deadline()
    }

    /// True when it has stopped because it was told to.
    pub fn is_stopped(&self) -> bool {
        self.policy.is_stopped()
    }

    /// True when it stands as it is to be copied.
    pub fn is_halted(&self) -> bool {
        self.policy.is_halted()
    }

    /// Says how it is, whether or not that is new.
    pub fn report(&self, around: &Surroundings) {
        let status = to_wire(&self.name, self.policy.status(), self.since.1);
        around.outbox.status(status);
    }

    /// Sends a signal to all of its processes; for faults.
    pub fn signal(&self, signal: Signal) {
        self.group(|pid| process::signal(pid, signal));
    }

    /// Takes away what it leaves behind.
    pub fn clear(&mut self) {
        self.files.clear();
    }

    fn group(&self, send: impl FnOnce(Pid)) {
        if let Some(pid) = self.pid {
            send(pid);
        }
    }

    fn ended(&mut self, ending: Ending, around: &Surroundings) {
        self.remark(around, &ending.to_string());
        self.pid = None;
        self.capture = None;
    }

    fn remark(&self, around: &Surroundings, remark: &str) {
        let line = format!("{remark}\n");
        let now = SystemTime::now();
        around
            .outbox
            .log(&self.label, logs::Stream::Agent, line.as_bytes(), now);
    }

    fn launch(&mut self, around: &mut Surroundings) -> Event {
        let Some(spec) = self.policy.launch_spec().cloned() else {
            return Event::LaunchFailed(String::new());
        };
        match self.try_launch(&spec, around) {
            Ok(None) => Event::Launched(0),
            Ok(Some(pid)) => {
                let number = pid.as_raw_nonzero().get().unsigned_abs();
                let command = process::display(&spec.command);
                self.remark(around, &format!("started {command} as process {number}"));
                Event::Launched(number)
            }
            Err(error) => self.launch_failed(&error, around),
        }
    }

    fn launch_failed(&self, error: &LaunchError, around: &Surroundings) -> Event {
        let error = console::chain(error);
        self.remark(around, &format!("cannot be started: {error}"));
        Event::LaunchFailed(error)
    }

    fn prepare(&mut self, around: &mut Surroundings) -> Event {
        let Some(spec) = self.policy.launch_spec().cloned() else {
            return Event::LaunchFailed(String::new());
        };
        match self.try_prepare(&spec, around) {
            Ok(()) => Event::Prepared,
            Err(error) => self.launch_failed(&error, around),
        }
    }

    /// Does what is the same in every copy of a launch, and has in memory what it reads.
    fn try_prepare(
        &mut self,
        spec: &LaunchSpec,
        around: &mut Surroundings,
    ) -> Result<(), LaunchError> {
        self.files.lay_out_package(spec)?;
        if let Some(program) = spec.command.first() {
            let program = process::path(&self.files.directory, program);
            init::have_in_memory(&program).map_err(|error| LaunchError::Program(program, error))?;
        }
        null(&mut around.null).map_err(LaunchError::Null)?;
        Ok(())
    }

    fn try_launch(
        &mut self,
        spec: &LaunchSpec,
        around: &mut Surroundings,
    ) -> Result<Option<Pid>, LaunchError> {
        self.files.lay_out(spec)?;
        self.environment = environment(&self.name, spec, &self.files, &around.instance);
        if spec.command.is_empty() {
            return Ok(None);
        }
        let (role, answers) = (self.name.clone(), around.answers.clone());
        let spoke = move || {
            let (role, event) = (role.clone(), Event::Spoke);
            // Where so much waits, this one is not missed.
            _ = answers.try_send(Answer { role, event });
        };
        let (capture, [stdout, stderr]) =
            output::capture(&around.outbox, &self.label, spoke).map_err(LaunchError::Pipe)?;
        let null = null(&mut around.null).map_err(LaunchError::Null)?;
        let pid = process::spawn(&Program {
            command: &spec.command,
            environment: &self.environment,
            directory: &self.files.directory,
            user: around.layout.guest.then_some(spec.uid),
            stdio: [null.as_fd(), stdout.as_fd(), stderr.as_fd()],
        })?;
        around.children.add(pid, Child::Role(self.name.clone()));
        self.capture = Some(capture);
        self.pid = Some(pid);
        Ok(Some(pid))
    }

    /// Gives it what it could not have in the template, and lets it go on.
    fn thaw(&mut self, around: &mut Surroundings) -> Option<Event> {
        let spec = self.policy.launch_spec().cloned()?;
        if let Err(error) = self.files.lay_out_what_is_new(&spec) {
            return Some(Event::Hooked(Err(console::chain(&error))));
        }
        self.environment = environment(&self.name, &spec, &self.files, &around.instance);
        self.remark(around, "goes on from a template");
        self.group(|pid| process::signal(pid, Signal::CONT));
        None
    }

    /// Gives its process other settings, and tells it so.
    fn deliver(&mut self, around: &Surroundings) {
        let Some(spec) = self.policy.launch_spec().cloned() else {
            return;
        };
        match self.files.lay_out(&spec) {
            Ok(()) => {
                self.remark(around, "its settings have changed");
                if let Some(pid) = self.pid {
                    process::hang_up(pid);
                }
            }
            Err(error) => {
                let error = console::chain(&error);
                self.remark(around, &format!("cannot be given its settings: {error}"));
            }
        }
    }

    fn hook(&mut self, hook: Hook, around: &mut Surroundings) {
        let command = self
            .policy
            .launch_spec()
            .map(|spec| spec.hooks.of(hook).to_vec());
        let started = self.exec(&command.unwrap_or_default(), around);
        let (role, answers) = (self.name.clone(), around.answers.clone());
        tokio::spawn(async move {
            let outcome = match started {
                Ok((pid, ended)) => probe::exec(pid, ended, HOOK).await,
                Err(error) => Err(probe::Failure::Start(error)),
            };
            let outcome = outcome
                .map_err(|failure| format!("its hook {hook} failed: {}", console::chain(&failure)));
            let event = Event::Hooked(outcome);
            _ = answers.send(Answer { role, event }).await;
        });
    }

    fn check(&mut self, run: u32, kind: ProbeKind, spec: ProbeSpec, around: &mut Surroundings) {
        let exec = match &spec.check {
            Check::Exec(command) => Some(self.exec(command, around)),
            Check::Tcp(_) | Check::Http { .. } => None,
        };
        let (role, answers) = (self.name.clone(), around.answers.clone());
        tokio::spawn(async move {
            let limit = spec.timeout;
            let found = match (spec.check, exec) {
                (Check::Tcp(port), _) => probe::tcp(port, limit).await.map(Some),
                (Check::Http { port, path }, _) => probe::http(port, &path, limit).await.map(Some),
                (Check::Exec(_), Some(Ok((pid, ended)))) => {
                    probe::exec(pid, ended, limit).await.map(|()| None)
                }
                (Check::Exec(_), Some(Err(error))) => Err(probe::Failure::Start(error)),
                (Check::Exec(_), None) => Err(probe::Failure::GivenUp),
            };
            let (outcome, connection) = match found {
                Ok(connection) => (Ok(()), connection),
                Err(failure) => (Err(console::chain(&failure)), None),
            };
            // Nobody wants it any more when the guest goes down.
            let event = Event::Probed { run, kind, outcome };
            _ = answers.send(Answer { role, event }).await;
            // To close a connection takes a guest as long as to tell what came of it.
            for _ in 0..TOLD {
                yield_now().await;
            }
            sched_yield(); // What was told is sent by a thread of the kernel's.
            drop(connection);
        });
    }

    fn exec(
        &self,
        command: &[CString],
        around: &mut Surroundings,
    ) -> Result<(Pid, oneshot::Receiver<Ending>), SpawnError> {
        let null = null(&mut around.null).map_err(SpawnError::Prepare)?.as_fd();
        let user = self.policy.launch_spec().map(|spec| spec.uid);
        let pid = process::spawn(&Program {
            command,
            environment: &self.environment,
            directory: &self.files.directory,
            user: user.filter(|_| around.layout.guest),
            stdio: [null, null, null],
        })?;
        let (sender, receiver) = oneshot::channel();
        around.children.add(pid, Child::Probe(sender));
        Ok((pid, receiver))
    }
}

fn null(null: &mut Option<File>) -> std::io::Result<&File> {
    let opened = match null.take() {
        Some(file) => file,
        None => File::options().read(true).write(true).open("/dev/null")?,
    };
    Ok(null.insert(opened))
}

/// The environment of a role's programs: its own variables cannot replace those
/// that the guest agent promises, save PATH and HOME.
fn environment(name: &RoleName, spec: &LaunchSpec, files: &Files, instance: &str) -> Vec<CString> {
    let defaults: [(&str, &OsStr); 2] = [
        ("PATH", PATH.as_ref()),
        ("HOME", files.directory.as_os_str()),
    ];
    let promised: [(&str, &OsStr); 3] = [
        ("FABRIC_ROLE", name.as_str().as_ref()),
        ("FABRIC_INSTANCE", instance.as_ref()),
        ("FABRIC_SETTINGS_FILE", files.settings.as_os_str()),
    ];
    let own = spec
        .environment
        .iter()
        .map(|(name, value)| (name.as_str(), OsStr::new(value)))
        .filter(|(name, _)| !promised.iter().any(|(promised, _)| promised == name));
    let defaults = defaults
        .into_iter()
        .filter(|(name, _)| !spec.environment.contains_key(*name));
    process::environment(defaults.chain(own).chain(promised))
}

fn to_wire(name: &RoleName, status: &Status, since: SystemTime) -> RoleStatus {
    let state = match status.state {
        State::Starting => wire::RoleState::Starting,
        State::Ready => wire::RoleState::Ready,
        State::Busy => wire::RoleState::Busy,
        State::Unhealthy => wire::RoleState::Unhealthy,
        State::Stopped => wire::RoleState::Stopped,
    };
    RoleStatus {
        role: name.to_string(),
        state: state.into(),
        reason: status.reason.clone(),
        since: Some(since.into()),
        pid: status.pid,
        restarts: status.restarts,
        last_exit: status.last_exit.as_ref().map(exit_to_wire),
        restart_generation: status.generation,
        consecutive_failures: status.failures,
    }
}

fn exit_to_wire(exit: &Exit) -> wire::RoleExit {
    use wire::role_exit::How;
    let (how, by_agent) = match exit {
        Exit::Process(Ending::Code(code), by_agent) => {
            (How::ExitCode(code.unsigned_abs()), *by_agent)
        }
        Exit::Process(Ending::Signal(signal), by_agent) => {
            (How::Signal(signal.unsigned_abs()), *by_agent)
        }
        Exit::NotStarted(why) => (How::SpawnError(why.clone()), false),
    };
    wire::RoleExit {
        how: Some(how),
        by_agent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Hooks;

    #[test]
    fn a_role_cannot_replace_what_the_guest_agent_promises() {
        let layout = Layout {
            roles: "/role".into(),
            run: "/run/fabric".into(),
            guest: false,
            disks: Vec::new(),
        };
        let name: RoleName = "web".parse().unwrap();
        let own = [
            ("FABRIC_ROLE", "other"),
            ("PATH", "/opt"),
            ("GREETING", "hello=there"),
        ];
        let spec = LaunchSpec {
            command: vec![],
            environment: own
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            settings: [].into(),
            uid: 1000,
            package: None,
            hooks: Hooks::default(),
        };
        let environment = environment(&name, &spec, &Files::new(&layout, &name), "shop-web-0");
        let environment: Vec<_> = environment
            .iter()
            .map(|variable| variable.to_str().unwrap())
            .collect();
        assert_eq!(
            environment,
            [
                "HOME=/role/web",
                "GREETING=hello=there",
                "PATH=/opt",
                "FABRIC_ROLE=web",
                "FABRIC_INSTANCE=shop-web-0",
                "FABRIC_SETTINGS_FILE=/run/fabric/web/settings.json",
            ]
        );
    }
}
