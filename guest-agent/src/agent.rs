//! The guest agent's one loop: takes goals, signals, results of checks, faults
//! and the time, and hands them to what they concern.
//!
//! ```text
//!  session ── goals ──▶ ┌───────┐ ── events ──▶ role::Supervised, one a role
//!  signals, children ─▶ │ Agent │                  │
//!  checks' results ───▶ │       │ ◀─ deadlines ────┤
//!  faults, button ────▶ └───────┘                  ▼
//!                           └── heartbeats ──▶ Outbox ──▶ session
//! ```
//!
//! A heartbeat is sent from this loop and not beside it: when the loop hangs, the
//! host hears of it.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fabric_proto::{
    guest::v1::{Goodbye, GoodbyeReason, Heartbeat, Hello},
    id::RoleName,
};
use nix::time::{ClockId, clock_gettime};
use rustix::process::Signal;
use tokio::{
    sync::mpsc::{self, Receiver},
    task::{JoinHandle, yield_now},
    time::{sleep, timeout},
};

use crate::{
    button::{self, Pressed},
    console, fault,
    fault::Fault,
    init,
    init::{
        identity::{Identity, NoGuest, ThisGuest},
        reaper::{Asked, Children, Signals},
    },
    model::{Down, Goal, Power, Wanted},
    role::{
        Answer, Supervised, Surroundings,
        files::Layout,
        policy::{Event, Moment, StopCause},
    },
    session::{self, Address, outbox::Outbox},
};

/// Heartbeat period until a goal names one.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long the roles' ends are waited for beyond what the roles are given.
const STOP_SLACK: Duration = Duration::from_secs(10);
/// How long a goodbye is waited for to be heard.
const FAREWELL: Duration = Duration::from_secs(1);

/// How the guest agent is run.
#[derive(Debug)]
pub struct Options {
    /// Where the host agent is.
    pub address: Address,
    /// Where roles' files are, and whether this is a guest.
    pub layout: Layout,
    /// When the guest agent started.
    pub start: Instant,
    /// What its copies will run, if this guest will become a template when it first
    /// calls its host.
    pub template: Option<PathBuf>,
}

/// Runs roles as the host agent says, until it is time to go down.
///
/// # Errors
///
/// When signals cannot be taken over: a first process that does not hear of its
/// children's ends is of no use.
pub async fn run(options: Options) -> io::Result<Down> {
    let signals = Signals::new()?;
    let outbox = Outbox::default();
    let (session_sender, session) = mpsc::channel(16);
    let (answer_sender, answers) = mpsc::channel(64);
    let (fault_sender, faults) = mpsc::channel(1);
    let (press_sender, presses) = mpsc::channel(1);
    let identity = Identity::default();
    let facts = Arc::new(Facts {
        kernel_release: kernel_release(),
        boot_id: identity.boot_id(),
        applied: AtomicU64::new(0),
    });
    let mut agent = Agent {
        around: Surroundings {
            start: options.start,
            layout: options.layout,
            instance: String::new(),
            outbox: outbox.clone(),
            children: Children::default(),
            answers: answer_sender,
            null: None,
        },
        roles: BTreeMap::new(),
        facts: facts.clone(),
        identity,
        guest: ThisGuest::default(),
        heartbeats: Heartbeats::default(),
        going: None,
        doors: Some(Doors {
            faults: fault_sender,
            presses: press_sender,
        }),
        template: false,
        link: Link {
            address: options.address,
            events: session_sender,
            session: None,
        },
    };
    if let Some(program) = options.template {
        agent.finish_init();
        init::prepare_copies(&program, &mut agent.guest, &mut agent.around.layout);
    }
    agent.converse();
    Ok(agent
        .run(Inputs {
            signals,
            session,
            answers,
            faults,
            presses,
        })
        .await)
}

/// What the loop listens to.
struct Inputs {
    signals: Signals,
    session: Receiver<session::Event>,
    answers: Receiver<Answer>,
    faults: Receiver<Fault>,
    presses: Receiver<Pressed>,
}

/// What is sent to it from outside of its session.
struct Doors {
    faults: mpsc::Sender<Fault>,
    presses: mpsc::Sender<Pressed>,
}

struct Agent {
    around: Surroundings,
    roles: BTreeMap<RoleName, Supervised>,
    facts: Arc<Facts>,
    identity: Identity,
    guest: ThisGuest,
    heartbeats: Heartbeats,
    going: Option<Going>,
    /// Until somebody listens at them.
    doors: Option<Doors>,
    /// Whether this guest becomes a template when its roles are as far as they go there.
    template: bool,
    link: Link,
}

/// The way to the host agent.
#[derive(Debug)]
struct Link {
    address: Address,
    events: mpsc::Sender<session::Event>,
    session: Option<JoinHandle<()>>,
}

/// What hellos are made of; sessions make them.
#[derive(Debug)]
struct Facts {
    kernel_release: String,
    /// Nothing until the guest has an identity.
    boot_id: Arc<OnceLock<String>>,
    /// Highest incarnation applied.
    applied: AtomicU64,
}

/// On the way down.
#[derive(Debug, Clone, Copy)]
struct Going {
    down: Down,
    asked_by_goal: bool,
    /// When it goes down whether or not the roles have ended.
    at_last: Moment,
}

/// Signs of life.
#[derive(Debug)]
struct Heartbeats {
    period: Duration,
    /// When the next is due; `None` while there is no session, or was no goal yet.
    next: Option<Moment>,
    sequence: u64,
    memory: Option<File>,
}

impl Agent {
    async fn run(mut self, mut inputs: Inputs) -> Down {
        let greeting = self.around.outbox.clone();
        // One timer, moved when the deadline does: arming one costs a system call.
        let mut alarm = pin!(sleep(Duration::ZERO));
        loop {
            let starting = self.doors.is_some();
            let deadline = self.deadline();
            if let Some(deadline) = deadline {
                let deadline = (self.around.start + deadline).into();
                if alarm.deadline() != deadline {
                    alarm.as_mut().reset(deadline);
                }
            }
            tokio::select! {
                biased;
                asked = inputs.signals.next() => self.signalled(asked),
                Some(event) = inputs.session.recv() => self.session(event),
                Some(Answer { role, event }) = inputs.answers.recv() => self.tell(&role, event),
                Some(fault) = inputs.faults.recv() => self.fault(&fault),
                Some(Pressed) = inputs.presses.recv() => {
                    console::say(format_args!("its power button was pressed"));
                    self.go(Down::PowerOff, false);
                }
                () = greeting.greeted(), if starting => {
                    // Lets the hello be written before this thread does other work.
                    yield_now().await;
                    self.finish_init();
                }
                () = &mut alarm, if deadline.is_some() => {}
            }
            self.tick();
            if self.template && self.is_halted() {
                self.become_template(&mut inputs.session).await;
            }
            if let Some(going) = self.going
                && self.is_down(going)
            {
                self.say_goodbye(going, &mut inputs.session).await;
                return going.down;
            }
        }
    }

    /// Begins the conversation with the host agent; ends one that is on.
    fn converse(&mut self) {
        let facts = self.facts.clone();
        let session = session::keep(
            self.link.address.clone(),
            self.around.outbox.clone(),
            move || facts.hello(),
            self.link.events.clone(),
        );
        let former = self.link.session.replace(tokio::spawn(session));
        if let Some(former) = former {
            former.abort();
        }
    }

    fn is_halted(&self) -> bool {
        !self.roles.is_empty() && self.roles.values().all(Supervised::is_halted)
    }

    /// Stops as a template at the next session's call, unanswered as yet; each copy goes on
    /// there, and asks its own host agent who it is.
    async fn become_template(&mut self, session: &mut Receiver<session::Event>) {
        self.template = false;
        if let Some(session) = self.link.session.take() {
            session.abort();
        }
        self.heartbeats.next = None;
        if self.around.layout.guest {
            init::make_room_for_identity(&mut self.guest);
        }
        init::touch_all_pages();
        session::call(&self.link.address).await;
        // What the template's host agent said is nothing to a copy.
        while session.try_recv().is_ok() {}
        self.facts.applied.store(0, Ordering::Relaxed);
        self.converse();
    }

    /// What init does that the hello did not have to wait for.
    fn finish_init(&mut self) {
        let Some(doors) = self.doors.take() else {
            return;
        };
        if self.around.layout.guest {
            init::rest();
            tokio::spawn(button::listen(doors.presses));
            if init::faults_allowed() {
                tokio::spawn(fault::listen(doors.faults));
            }
        }
    }

    fn session(&mut self, event: session::Event) {
        self.finish_init();
        match event {
            session::Event::Up => {
                // Until it has a goal it rests: others may be on their way.
                if self.facts.applied() > 0 {
                    self.heartbeats.begin(self.around.now());
                }
                for role in self.roles.values() {
                    role.report(&self.around);
                }
            }
            session::Event::Goal(goal) => self.apply(*goal),
            session::Event::Down => self.heartbeats.next = None,
        }
    }

    fn apply(&mut self, mut goal: Goal) {
        if goal.incarnation < self.facts.applied() || self.going.is_some() {
            return;
        }
        for remark in &goal.remarks {
            console::say(format_args!("goal {}: {remark}", goal.incarnation));
        }
        self.template = goal.becomes_template;
        let named = if self.template {
            // It is nobody, and a role that runs must not find out who it seems to be.
            if self.around.layout.guest && goal.runs_roles() {
                init::hide_boot_id(&mut self.guest);
            }
            Ok(false)
        } else if self.around.layout.guest {
            self.identity.take(&goal, &mut self.guest)
        } else {
            self.identity.take(&goal, &mut NoGuest)
        };
        let named = named.unwrap_or_else(|error| {
            console::say(format_args!("goal {}: {error}", goal.incarnation));
            goal.refuse_roles(&error.to_string());
            false
        });
        self.facts
            .applied
            .store(goal.incarnation, Ordering::Relaxed);
        if named {
            self.around.outbox.hello(self.facts.hello());
        }
        self.heartbeats.period = goal.heartbeat_period;
        if self.heartbeats.next.is_none() {
            self.heartbeats.begin(self.around.now());
        }
        self.around.instance = goal.instance_id;
        match goal.power {
            Power::Run => self.apply_roles(goal.roles),
            Power::Down(down) => {
                self.give_time(goal.roles);
                self.go(down, true);
            }
        }
    }

    /// Gives the roles that run the time to stop that the goal says now.
    fn give_time(&mut self, wanted: BTreeMap<RoleName, Wanted>) {
        for (name, wanted) in wanted {
            if let (Wanted::Run(spec), Some(role)) = (wanted, self.roles.get_mut(&name)) {
                role.handle(Event::Grace(spec.stop_grace), &mut self.around);
            }
        }
    }

    fn apply_roles(&mut self, wanted: BTreeMap<RoleName, Wanted>) {
        for (name, role) in &mut self.roles {
            if !wanted.contains_key(name) {
                role.handle(Event::Stop(StopCause::NotWanted), &mut self.around);
            }
        }
        for (name, wanted) in wanted {
            let role = self
                .roles
                .entry(name.clone())
                .or_insert_with(|| Supervised::new(name, &self.around.layout));
            let event = match wanted {
                Wanted::Run(spec) => Event::Want(spec),
                Wanted::Refused(why) => Event::Refuse(why),
            };
            role.handle(event, &mut self.around);
        }
    }

    fn signalled(&mut self, asked: io::Result<Asked>) {
        match asked {
            Ok(Asked::Reap) => {
                for (name, ending) in self.around.children.reap() {
                    self.tell(&name, Event::Ended(ending));
                }
            }
            Ok(Asked::Down(down)) => self.go(down, false),
            Err(error) => {
                console::say(format_args!("cannot hear signals: {error}; rebooting"));
                self.go(Down::Reboot, false);
            }
        }
    }

    fn fault(&mut self, fault: &Fault) {
        let signal = |name: &RoleName, signal: Signal| match self.roles.get(name) {
            Some(role) => role.signal(signal),
            None => console::say(format_args!("there is no role {name} to hurt")),
        };
        match fault {
            Fault::KillRole(name) => signal(name, Signal::KILL),
            Fault::HangRole(name) => signal(name, Signal::STOP),
            Fault::Reboot => self.go(Down::Reboot, false),
            Fault::PowerOff => self.go(Down::PowerOff, false),
            Fault::HangAgent | Fault::ExitAgent | Fault::Panic => fault::inflict(fault),
        }
    }

    fn tell(&mut self, name: &RoleName, event: Event) {
        if let Some(role) = self.roles.get_mut(name) {
            role.handle(event, &mut self.around);
        }
    }

    /// Begins to go down: stops the roles, which are waited for.
    fn go(&mut self, down: Down, asked_by_goal: bool) {
        if self.going.is_some() {
            return;
        }
        let mut last = self.around.now();
        for role in self.roles.values_mut() {
            role.handle(Event::Stop(StopCause::GoingDown), &mut self.around);
            last = last.max(role.deadline().unwrap_or_default());
        }
        self.going = Some(Going {
            down,
            asked_by_goal,
            at_last: last.saturating_add(STOP_SLACK),
        });
    }

    fn is_down(&self, going: Going) -> bool {
        self.around.now() >= going.at_last || self.roles.values().all(Supervised::is_stopped)
    }

    async fn say_goodbye(&self, going: Going, session: &mut Receiver<session::Event>) {
        if self.heartbeats.next.is_none() {
            return;
        }
        let reason = match going.down {
            Down::PowerOff => GoodbyeReason::PowerOff,
            Down::Reboot => GoodbyeReason::Reboot,
        };
        let asked_by_goal = going.asked_by_goal;
        self.around.outbox.goodbye(Goodbye {
            reason: reason.into(),
            asked_by_goal,
        });
        // The host agent ends the session when it has heard it.
        let over = async {
            while let Some(event) = session.recv().await {
                if matches!(event, session::Event::Down) {
                    break;
                }
            }
        };
        _ = timeout(FAREWELL, over).await;
    }

    /// When there is something to do next, by itself.
    fn deadline(&self) -> Option<Moment> {
        let roles = self.roles.values().filter_map(Supervised::deadline);
        let others = [self.heartbeats.next, self.going.map(|going| going.at_last)];
        roles.chain(others.into_iter().flatten()).min()
    }

    /// Does what is due; forgets roles that are gone.
    fn tick(&mut self) {
        let now = self.around.now();
        for role in self.roles.values_mut() {
            if role.deadline().is_some_and(|at| at <= now) {
                role.handle(Event::Tick, &mut self.around);
            }
        }
        if self.going.is_none() {
            self.roles.retain(|_, role| {
                let stays = !role.is_stopped();
                if !stays {
                    role.clear();
                }
                stays
            });
        }
        if let Some(heartbeat) = self.heartbeats.due(now, self.facts.applied()) {
            self.around.outbox.heartbeat(heartbeat);
        }
    }
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self {
            period: HEARTBEAT,
            next: None,
            sequence: 0,
            memory: None,
        }
    }
}

impl Heartbeats {
    /// A session has begun.
    fn begin(&mut self, now: Moment) {
        self.sequence = 0;
        self.next = Some(now.saturating_add(self.period));
    }

    fn due(&mut self, now: Moment, applied: u64) -> Option<Heartbeat> {
        let next = self.next?;
        if now < next {
            return None;
        }
        self.next = Some(now.saturating_add(self.period));
        self.sequence += 1;
        Some(Heartbeat {
            sequence: self.sequence,
            uptime: Some(uptime()),
            applied_incarnation: applied,
            memory_available_bytes: self.memory_available().unwrap_or_default(),
        })
    }

    fn memory_available(&mut self) -> Option<u64> {
        let file = match self.memory.take() {
            Some(file) => file,
            None => File::open("/proc/meminfo").ok()?,
        };
        let mut text = [0; 256];
        let read = self.memory.insert(file).read_at(&mut text, 0).ok()?;
        memory_available(text.get(..read)?)
    }
}

/// `MemAvailable` of `/proc/meminfo` (proc(5)), in bytes.
fn memory_available(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

impl Facts {
    fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol_version: fabric_proto::PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.boot_id.get().cloned().unwrap_or_default(),
            kernel_release: self.kernel_release.clone(),
            uptime: Some(uptime()),
            applied_incarnation: self.applied(),
        }
    }
}

fn kernel_release() -> String {
    let system = rustix::system::uname();
    system.release().to_string_lossy().into_owned()
}

/// Time since the kernel started.
fn uptime() -> prost_types::Duration {
    // A kernel without this clock would not run anything of ours.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap_or(Duration::ZERO.into());
    let nanos = i32::try_from(time.tv_nsec()).unwrap_or_default();
    prost_types::Duration {
        seconds: time.tv_sec(),
        nanos,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_as_the_kernel_writes_it() {
        let text = b"MemTotal:         119288 kB\nMemFree:           90188 kB\n\
                     MemAvailable:      93508 kB\nBuffers:  ";
        assert_eq!(memory_available(text), Some(93_508 * 1024));
        assert_eq!(memory_available(b"MemTotal: 1 kB\n"), None);
        assert_eq!(
            memory_available(b"MemAvailable: 99999999999999999999 kB\n"),
            None
        );
        assert_eq!(memory_available(b"\xff"), None);
    }
}
