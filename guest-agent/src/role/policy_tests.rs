//! A role's life, told by example, and then by whatever a goal, a process, its
//! probes and the time may do to it in any order.

use proptest::prelude::*;

use super::*;
use crate::model::{Check, Hooks, RestartPolicy};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn probe(period: u64) -> ProbeSpec {
    ProbeSpec {
        check: Check::Tcp(80),
        period: ms(period),
        timeout: ms(1_000),
        failure_threshold: 3,
        success_threshold: 1,
    }
}

fn spec() -> RoleSpec {
    RoleSpec {
        launch: LaunchSpec {
            command: vec![c"server".into()],
            environment: [].into(),
            settings: [].into(),
            uid: 1000,
            package: None,
            hooks: Hooks::default(),
        },
        generation: 1,
        liveness: None,
        readiness: None,
        startup_grace: ms(10_000),
        restart: RestartPolicy {
            mode: RestartMode::Always,
            backoff_initial: ms(200),
            backoff_max: ms(3_000),
        },
        stop_grace: ms(5_000),
        halt: None,
        deliver_settings: false,
    }
}

/// The same, with a probe and hooks, as it is wanted in a guest that becomes a template.
fn warm() -> RoleSpec {
    let mut spec = RoleSpec {
        readiness: Some(probe(2_000)),
        halt: Some(Halt::Ready),
        ..spec()
    };
    spec.launch.hooks = Hooks {
        before_snapshot: vec![c"before".into()],
        after_start: vec![c"after".into()],
    };
    spec
}

/// As a copy wants it: with settings, and an operator's restart behind it.
fn warm_copy() -> RoleSpec {
    let mut spec = RoleSpec {
        halt: None,
        generation: 7,
        ..warm()
    };
    let setting = ("colour".to_owned(), "red".to_owned());
    spec.launch.settings = [setting].into();
    spec
}

/// A role, the time, and what is to be done.
struct Story {
    role: Role,
    now: Moment,
    next_pid: u32,
}

impl Story {
    fn of(spec: RoleSpec) -> Self {
        let mut story = Self {
            role: Role::new(),
            now: ms(1_000),
            next_pid: 100,
        };
        story.event(Event::Want(Box::new(spec)));
        story
    }

    /// Gives an event, launching what is to be launched; returns what else is to be
    /// done, reports aside.
    fn event(&mut self, event: Event) -> Vec<Action> {
        let mut rest = vec![];
        let mut actions = self.role.handle(event, self.now);
        while !actions.is_empty() {
            let launch = actions.contains(&Action::Launch);
            actions.retain(|action| !matches!(action, Action::Launch | Action::Report));
            rest.append(&mut actions);
            if launch {
                self.next_pid += 1;
                actions = self.role.handle(Event::Launched(self.next_pid), self.now);
            }
        }
        rest
    }

    fn ended(&mut self, code: i32) -> Vec<Action> {
        self.event(Event::Ended(Ending::Code(code)))
    }

    /// Lets time pass up to the next deadline.
    fn wait(&mut self) -> Vec<Action> {
        self.now = self.role.deadline().expect("there is nothing to wait for");
        self.event(Event::Tick)
    }

    /// Lets the next check happen, with this outcome.
    fn check(&mut self, success: bool) -> ProbeKind {
        let actions = self.wait();
        let (kind, actions) = self.answer(&actions, success);
        assert_eq!(actions, []);
        kind
    }

    /// Answers the one check that is asked for.
    fn answer(&mut self, actions: &[Action], success: bool) -> (ProbeKind, Vec<Action>) {
        let [Action::Check { run, kind, .. }] = *actions else {
            panic!("{actions:?} instead of one check")
        };
        let outcome = success.then_some(()).ok_or("refused".to_owned());
        (kind, self.event(Event::Probed { run, kind, outcome }))
    }

    fn state(&self) -> State {
        self.role.status().state
    }
}

#[test]
fn a_role_without_probes_is_ready_when_its_process_runs() {
    let story = Story::of(spec());
    let status = story.role.status();
    assert_eq!(
        (status.state, status.pid, status.restarts),
        (State::Ready, 101, 0)
    );
    assert_eq!(story.role.deadline(), None, "nothing polls");
}

#[test]
fn a_role_is_ready_when_its_readiness_says_so_and_its_liveness_is_checked_then() {
    let mut story = Story::of(RoleSpec {
        liveness: Some(probe(2_000)),
        readiness: Some(probe(3_000)),
        ..spec()
    });
    assert_eq!(story.state(), State::Starting);
    for _ in 0..3 {
        assert_eq!(story.check(false), ProbeKind::Readiness);
        assert_eq!(story.state(), State::Starting);
    }
    assert_eq!(story.check(true), ProbeKind::Readiness);
    assert_eq!(story.state(), State::Ready);
    let ready = story.now;
    assert_eq!(story.check(true), ProbeKind::Liveness);
    assert_eq!(story.state(), State::Ready);
    assert!(story.now - ready < ms(500), "it is not left alone for long");
}

#[test]
fn a_role_with_no_other_probe_is_ready_when_it_is_live() {
    let mut story = Story::of(RoleSpec {
        liveness: Some(probe(2_000)),
        ..spec()
    });
    story.check(false);
    assert_eq!(story.state(), State::Starting);
    story.check(true);
    assert_eq!(story.state(), State::Ready);
}

#[test]
fn a_role_that_is_ready_first_has_its_grace_to_become_live() {
    let mut story = Story::of(RoleSpec {
        liveness: Some(probe(1_000)),
        readiness: Some(probe(60_000)),
        ..spec()
    });
    story.check(true);
    let mut answered = vec![];
    while story.state() == State::Ready {
        assert_eq!(answered, []);
        let actions = story.wait();
        let kind;
        (kind, answered) = story.answer(&actions, false);
        assert_eq!(kind, ProbeKind::Liveness);
    }
    assert_eq!(story.state(), State::Unhealthy);
    assert_eq!(answered, [Action::Terminate]);
    assert!(story.now >= ms(13_000), "three failures after its grace");
}

#[test]
fn a_role_that_is_ready_again_and_again_and_never_live_is_not_forgiven() {
    let mut story = Story::of(RoleSpec {
        liveness: Some(probe(1_000)),
        readiness: Some(probe(60_000)),
        ..spec()
    });
    for failures in 1..4 {
        let mut asked_to_end = false;
        while !asked_to_end {
            let actions = story.wait();
            let [Action::Check { run, kind, .. }] = actions[..] else {
                continue;
            };
            let outcome = match kind {
                ProbeKind::Readiness => Ok(()),
                ProbeKind::Liveness => Err("refused".to_owned()),
            };
            let actions = story.event(Event::Probed { run, kind, outcome });
            asked_to_end = actions == [Action::Terminate];
        }
        story.ended(0);
        assert_eq!(story.role.status().failures, failures);
    }
}

#[test]
fn a_role_whose_readiness_is_gone_is_busy_before_it_was_found_live() {
    let mut story = Story::of(RoleSpec {
        liveness: Some(probe(60_000)),
        readiness: Some(probe(1_000)),
        ..spec()
    });
    story.check(true);
    let liveness = story.wait();
    for _ in 0..3 {
        assert_eq!(story.state(), State::Ready);
        assert_eq!(story.check(false), ProbeKind::Readiness);
    }
    assert_eq!(story.state(), State::Busy);
    assert_eq!(story.answer(&liveness, true), (ProbeKind::Liveness, vec![]));
    assert_eq!(story.state(), State::Busy);
}

#[test]
fn a_role_that_never_gets_ready_has_to_be_live_after_its_grace() {
    let mut story = Story::of(RoleSpec {
        liveness: Some(probe(1_000)),
        readiness: Some(probe(60_000)),
        ..spec()
    });
    while story.now < ms(11_000) {
        let actions = story.wait();
        let early = story.now < ms(11_000);
        let (kind, _) = story.answer(&actions, false);
        assert_eq!(kind == ProbeKind::Readiness, early);
    }
    let mut last = vec![];
    while story.state() == State::Starting {
        let actions = story.wait();
        for action in actions {
            if let Action::Check { run, kind, .. } = action {
                let outcome = Err("refused".to_owned());
                last = story.event(Event::Probed { run, kind, outcome });
            }
        }
    }
    assert_eq!(story.state(), State::Unhealthy);
    assert_eq!(last, [Action::Terminate]);
}

#[test]
fn a_role_that_says_something_while_it_starts_is_checked_then() {
    let mut story = Story::of(RoleSpec {
        readiness: Some(probe(60_000)),
        ..spec()
    });
    for _ in 0..4 {
        story.check(false);
    }
    story.now += ms(120);
    let actions = story.event(Event::Spoke);
    story.answer(&actions, true);
    assert_eq!(story.state(), State::Ready);
    assert_eq!(story.event(Event::Spoke), []);
}

#[test]
fn a_role_that_is_not_live_is_stopped_and_started_again() {
    let mut story = Story::of(RoleSpec {
        liveness: Some(probe(2_000)),
        ..spec()
    });
    story.check(true);
    story.check(false);
    story.check(false);
    assert_eq!(story.state(), State::Ready, "two are not three");
    let actions = story.wait();
    assert_eq!(story.answer(&actions, false).1, [Action::Terminate]);
    assert_eq!(story.state(), State::Unhealthy);
    assert_eq!(story.wait(), [Action::Kill]);
    story.event(Event::Ended(Ending::Signal(9)));
    assert_eq!(
        story.role.status().last_exit,
        Some(Exit::Process(Ending::Signal(9), true))
    );
    assert_eq!(story.state(), State::Unhealthy);
    story.wait();
    let status = story.role.status();
    assert_eq!((status.state, status.restarts), (State::Starting, 1));
}

#[test]
fn failures_before_it_has_been_ready_do_not_count_within_the_grace() {
    let mut story = Story::of(RoleSpec {
        liveness: Some(probe(1_000)),
        ..spec()
    });
    while story.now < ms(11_000) - ms(500) {
        story.check(false);
        assert_eq!(story.state(), State::Starting);
    }
    story.now = ms(11_000);
    for _ in 0..2 {
        story.check(false);
    }
    assert_eq!(story.state(), State::Starting);
    let actions = story.wait();
    let [Action::Check { run, kind, .. }] = actions[..] else {
        panic!("{actions:?}")
    };
    story.event(Event::Probed {
        run,
        kind,
        outcome: Err("refused".into()),
    });
    assert_eq!(story.state(), State::Unhealthy);
}

#[test]
fn waits_double_up_to_the_longest_and_are_forgiven_after_it() {
    let mut story = Story::of(spec());
    let mut waits = vec![];
    for _ in 0..6 {
        let from = story.now;
        story.ended(1);
        story.wait();
        waits.push((story.now - from).as_millis());
    }
    assert_eq!(waits, [200, 400, 800, 1_600, 3_000, 3_000]);
    assert_eq!(story.role.status().failures, 6);

    let since = story.now;
    story.wait();
    assert_eq!(story.now - since, ms(3_000), "ready for the longest wait");
    assert_eq!(
        (story.state(), story.role.status().failures),
        (State::Ready, 0)
    );
    assert_eq!(story.role.deadline(), None);
    story.ended(1);
    assert_eq!(story.role.status().failures, 1);
}

#[test]
fn a_role_that_could_not_be_started_is_tried_again() {
    let mut role = Role::new();
    let actions = role.handle(Event::Want(Box::new(spec())), ms(0));
    assert_eq!(actions, [Action::Launch, Action::Report]);
    role.handle(Event::LaunchFailed("no such file".into()), ms(0));
    assert_eq!(
        role.status().reason,
        "cannot be started: no such file; starts again in 200 ms"
    );
    assert_eq!(
        role.status().last_exit,
        Some(Exit::NotStarted("no such file".into()))
    );
    assert_eq!(role.handle(Event::Tick, ms(199)), []);
    assert_eq!(
        role.handle(Event::Tick, ms(200)),
        [Action::Launch, Action::Report]
    );
}

#[test]
fn a_change_does_not_wait_for_a_back_off() {
    let mut story = Story::of(spec());
    story.ended(1);
    let mut changed = spec();
    changed.launch.command.push(c"--fixed".into());
    story.event(Event::Want(Box::new(changed)));
    let status = story.role.status();
    assert_eq!((status.state, status.failures), (State::Ready, 0));
}

#[test]
fn a_result_for_an_earlier_run_says_nothing_of_this_one() {
    let mut story = Story::of(RoleSpec {
        readiness: Some(probe(1_000)),
        ..spec()
    });
    let actions = story.wait();
    let [Action::Check { run, kind, .. }] = actions[..] else {
        panic!("{actions:?}")
    };
    story.ended(1);
    story.wait();
    story.event(Event::Probed {
        run,
        kind,
        outcome: Ok(()),
    });
    assert_eq!(story.state(), State::Starting);
}

#[test]
fn a_role_that_stops_while_it_is_being_stopped_for_another_reason_stays_stopped() {
    let mut story = Story::of(spec());
    let changed = RoleSpec {
        generation: 2,
        ..spec()
    };
    assert_eq!(
        story.event(Event::Want(Box::new(changed))),
        [Action::Terminate]
    );
    assert_eq!(story.state(), State::Busy);
    assert_eq!(story.event(Event::Stop(StopCause::GoingDown)), []);
    story.ended(0);
    assert!(story.role.is_stopped());
    assert_eq!(story.state(), State::Stopped);
}

#[test]
fn a_refused_role_says_why_and_runs_once_it_is_mended() {
    let mut story = Story::of(spec());
    story.event(Event::Refuse(InvalidRole::Root));
    story.ended(0);
    assert_eq!(story.state(), State::Unhealthy);
    assert!(story.role.status().reason.starts_with("uid 0 is refused"));
    story.event(Event::Want(Box::new(spec())));
    assert_eq!(story.state(), State::Ready);
}

#[test]
fn changed_settings_are_delivered_to_a_role_that_asks_for_them() {
    let with = |deliver_settings, colour: &str| {
        let mut spec = RoleSpec {
            deliver_settings,
            ..spec()
        };
        let setting = ("colour".to_owned(), colour.to_owned());
        spec.launch.settings = [setting].into();
        Event::Want(Box::new(spec))
    };
    let mut story = Story::of(spec());
    assert_eq!(story.event(with(true, "red")), [Action::Deliver]);
    assert_eq!(story.role.launch_spec().unwrap().settings["colour"], "red");
    assert_eq!(story.state(), State::Ready);
    assert_eq!(story.event(with(true, "red")), []);
    let actions = story.event(with(false, "blue"));
    assert!(actions.contains(&Action::Terminate), "{actions:?}");
}

#[test]
fn a_role_is_frozen_when_it_is_ready_and_goes_on_in_a_copy_with_its_settings() {
    let mut story = Story::of(warm());
    assert_eq!(story.state(), State::Starting);
    let actions = story.wait();
    let (_, actions) = story.answer(&actions, true);
    assert_eq!(actions, [Action::Hook(Hook::BeforeSnapshot)]);
    assert_eq!(story.event(Event::Hooked(Ok(()))), []);
    let before = story.now;
    assert_eq!(story.wait(), [Action::Freeze]);
    assert_eq!(story.now - before, ms(1_000), "it has had a rest");
    assert!(story.role.is_halted());
    assert_eq!(story.state(), State::Starting, "a copy begins like this");
    assert_eq!(story.event(Event::Want(Box::new(warm()))), []);
    assert_eq!(story.role.deadline(), None, "nothing happens in a template");

    let actions = story.event(Event::Want(Box::new(warm_copy())));
    assert_eq!(actions, [Action::Thaw, Action::Hook(Hook::AfterStart)]);
    assert_eq!(story.state(), State::Starting);
    let launch = story.role.launch_spec().unwrap();
    assert_eq!(launch.settings["colour"], "red");
    let actions = story.event(Event::Hooked(Ok(())));
    // It is checked at once.
    story.answer(&actions, true);
    let status = story.role.status();
    assert_eq!((status.state, status.pid), (State::Ready, 101));
    assert_eq!((status.generation, status.restarts), (7, 0));
}

#[test]
fn a_role_is_prepared_in_a_template_and_launched_in_a_copy() {
    let prepared = RoleSpec {
        halt: Some(Halt::Prepared),
        ..spec()
    };
    let mut role = Role::new();
    let actions = role.handle(Event::Want(Box::new(prepared.clone())), ms(1));
    assert_eq!(actions, [Action::Prepare, Action::Report]);
    role.handle(Event::Prepared, ms(2));
    assert!(role.is_halted());
    assert_eq!(role.handle(Event::Want(Box::new(prepared)), ms(3)), []);
    assert_eq!(role.deadline(), None, "nothing happens in a template");

    let wanted = Event::Want(Box::new(spec()));
    let actions = role.handle(wanted, ms(4));
    assert_eq!(actions, [Action::Launch, Action::Report]);
    role.handle(Event::Launched(7), ms(5));
    let status = role.status();
    assert_eq!((status.state, status.since), (State::Ready, ms(5)));
    assert_eq!((status.pid, status.restarts), (7, 0));
}

#[test]
fn what_a_role_lacks_in_a_template_is_a_failure_that_the_host_hears_of() {
    let mut role = Role::new();
    let prepared = RoleSpec {
        halt: Some(Halt::Prepared),
        ..spec()
    };
    role.handle(Event::Want(Box::new(prepared)), ms(1));
    role.handle(Event::LaunchFailed("no disk".to_owned()), ms(2));
    assert_eq!(role.status().state, State::Unhealthy);
    assert!(!role.is_halted());
    let again = role.deadline().unwrap();
    let actions = role.handle(Event::Tick, again);
    assert_eq!(actions, [Action::Prepare, Action::Report]);
    assert_eq!(role.handle(Event::Stop(StopCause::NotWanted), again), []);
    role.handle(Event::Prepared, again);
    assert!(role.is_stopped());
}

/// One whose processes stand still.
fn frozen() -> Story {
    let mut spec = warm();
    spec.readiness = None;
    spec.launch.hooks = Hooks::default();
    let mut story = Story::of(spec);
    story.wait();
    assert!(story.role.is_halted());
    story
}

#[test]
fn a_role_that_is_ready_is_not_frozen_before_it_is_live() {
    let mut spec = warm();
    spec.liveness = Some(probe(2_000));
    spec.launch.hooks = Hooks::default();
    let mut story = Story::of(spec);
    assert_eq!(story.check(true), ProbeKind::Readiness);
    assert_eq!(story.state(), State::Ready);
    assert_eq!(story.check(true), ProbeKind::Liveness);
    assert_eq!(story.wait(), [Action::Freeze]);
}

#[test]
fn a_copy_that_wants_another_process_starts_one() {
    let mut story = frozen();
    let mut other = warm_copy();
    other.launch.command = vec![c"other".into()];
    assert_eq!(
        story.event(Event::Want(Box::new(other))),
        [Action::Terminate]
    );
    story.ended(0);
    assert_eq!(story.role.status().pid, 102);
}

#[test]
fn a_hook_that_fails_after_the_start_has_the_role_started_anew() {
    let mut story = Story::of(RoleSpec {
        readiness: None,
        ..warm()
    });
    story.event(Event::Hooked(Ok(())));
    story.wait();
    story.event(Event::Want(Box::new(warm_copy())));
    let failed = || Event::Hooked(Err("its hook failed".to_owned()));
    assert_eq!(story.event(failed()), [Action::Terminate]);
    assert_eq!(story.state(), State::Unhealthy);
    story.ended(0);
    assert!(story.role.status().reason.starts_with("its hook failed"));
    story.wait();
    assert_eq!(story.role.status().pid, 102);

    // Before the snapshot, it is a failure that the host hears of.
    let mut story = Story::of(RoleSpec {
        readiness: None,
        ..warm()
    });
    assert_eq!(story.event(failed()), [Action::Terminate]);
    assert_eq!(story.state(), State::Unhealthy);
}

/// What the world may do, and when.
#[derive(Debug, Clone)]
enum Deed {
    Want {
        generation: u64,
        mode: RestartMode,
        command: bool,
        liveness: bool,
        readiness: bool,
        halt: Option<Halt>,
        hooks: bool,
    },
    Hooked(bool),
    Spoke,
    Refuse,
    Stop,
    Launch(bool),
    End(i32),
    Probe {
        behind: u32,
        liveness: bool,
        success: bool,
    },
    Wait(u64),
    Due,
}

fn deed() -> impl Strategy<Value = Deed> {
    let mode = prop_oneof![
        Just(RestartMode::Always),
        Just(RestartMode::OnFailure),
        Just(RestartMode::Never)
    ];
    let halt = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Halt::Prepared)),
        1 => Just(Some(Halt::Ready))
    ];
    let wanted = (0..3_u64, mode, halt, any::<[bool; 4]>());
    prop_oneof![
        2 => wanted.prop_map(|(generation, mode, halt, flags)| {
            let [command, liveness, readiness, hooks] = flags;
            Deed::Want { generation, mode, command, liveness, readiness, halt, hooks }
        }),
        3 => any::<bool>().prop_map(Deed::Hooked),
        2 => Just(Deed::Spoke),
        1 => Just(Deed::Refuse),
        1 => Just(Deed::Stop),
        6 => any::<bool>().prop_map(Deed::Launch),
        3 => (0..2).prop_map(Deed::End),
        6 => (0..2_u32, any::<bool>(), any::<bool>())
            .prop_map(|(behind, liveness, success)| Deed::Probe { behind, liveness, success }),
        3 => (0..20_000_u64).prop_map(Deed::Wait),
        8 => Just(Deed::Due),
    ]
}

/// The world that a role is in, which checks what it is asked to do.
struct World {
    role: Role,
    now: Moment,
    /// Whether a launch waits for its answer.
    launching: bool,
    /// Whether what prepares one does.
    preparing: bool,
    process: bool,
    /// Whether its processes stand still.
    frozen: bool,
    runs: u32,
    /// When the last failure said that it would be started again.
    not_before: Option<Moment>,
    wanted: bool,
}

impl World {
    fn give(&mut self, event: Event) -> Result<(), TestCaseError> {
        let before = self.role.status().clone();
        for action in self.role.handle(event, self.now) {
            match action {
                Action::Launch | Action::Prepare => {
                    prop_assert!(self.wanted, "launched though it is not wanted");
                    let busy = self.launching || self.preparing || self.process;
                    prop_assert!(!busy, "two at once");
                    if let Some(not_before) = self.not_before {
                        prop_assert!(self.now >= not_before, "launched within its back-off");
                    }
                    if action == Action::Launch {
                        self.launching = true;
                        self.runs += 1;
                    } else {
                        self.preparing = true;
                    }
                }
                Action::Terminate | Action::Kill => {
                    prop_assert!(self.process, "a signal to nobody");
                }
                Action::Check { run, .. } => prop_assert_eq!(run, self.runs),
                Action::Hook(_) => {}
                Action::Freeze => {
                    prop_assert!(!self.frozen, "frozen twice");
                    self.frozen = true;
                }
                Action::Thaw => {
                    prop_assert!(self.frozen, "not frozen");
                    self.frozen = false;
                }
                Action::Deliver | Action::Report => {}
            }
        }
        self.frozen &= self.role.is_halted();
        let prepared = self.role.is_halted() && !self.process;
        prop_assert_eq!(self.frozen || prepared, self.role.is_halted());
        let status = self.role.status();
        prop_assert!(status.restarts >= before.restarts);
        prop_assert_eq!(status.restarts, self.runs.saturating_sub(1));
        prop_assert_eq!(status.pid != 0, self.process);
        if matches!(status.state, State::Ready | State::Busy) {
            prop_assert!(!self.launching && !self.preparing);
        }
        if self.role.is_stopped() {
            let busy = self.launching || self.preparing || self.process;
            prop_assert!(!busy && !self.wanted);
            prop_assert_eq!(self.role.deadline(), None);
        }
        Ok(())
    }

    fn waits_from_now(&mut self, initial: Duration, most: Duration) {
        self.not_before = match (self.role.status().state, self.role.deadline()) {
            (State::Unhealthy, Some(until)) if !self.process => {
                let wait = until - self.now;
                assert!(wait >= initial && wait <= most, "waits {wait:?}");
                Some(until)
            }
            _ => None,
        };
    }

    fn act(&mut self, deed: Deed) -> Result<(), TestCaseError> {
        let (initial, most) = (spec().restart.backoff_initial, spec().restart.backoff_max);
        match deed {
            Deed::Want {
                generation,
                mode,
                command,
                liveness,
                readiness,
                halt,
                hooks,
            } => {
                let mut spec = RoleSpec {
                    generation,
                    halt,
                    ..spec()
                };
                if hooks {
                    spec.launch.hooks = warm().launch.hooks;
                }
                spec.restart.mode = mode;
                if !command {
                    spec.launch.command.clear();
                }
                spec.liveness = liveness.then(|| probe(500));
                spec.readiness = readiness.then(|| probe(1_000));
                self.wanted = true;
                // A change may start it before its back-off is over.
                self.not_before = None;
                self.give(Event::Want(Box::new(spec)))
            }
            Deed::Hooked(well) => {
                let outcome = well.then_some(()).ok_or("no".to_owned());
                let failures = self.role.status().failures;
                self.give(Event::Hooked(outcome))?;
                // It may be the answer of a hook that nobody waits for any more.
                if self.role.status().failures > failures {
                    self.waits_from_now(initial, most);
                }
                Ok(())
            }
            Deed::Spoke => self.give(Event::Spoke),
            Deed::Refuse => {
                self.wanted = false;
                self.give(Event::Refuse(InvalidRole::Root))
            }
            Deed::Stop => {
                self.wanted = false;
                self.give(Event::Stop(StopCause::NotWanted))
            }
            Deed::Launch(success) if self.launching => {
                self.launching = false;
                let bare = self
                    .role
                    .launch_spec()
                    .is_some_and(|spec| spec.command.is_empty());
                if success {
                    self.process = !bare;
                    self.give(Event::Launched(if bare { 0 } else { 7 }))
                } else {
                    self.give(Event::LaunchFailed("no".into()))?;
                    self.waits_from_now(initial, most);
                    Ok(())
                }
            }
            Deed::Launch(success) if self.preparing => {
                self.preparing = false;
                if success {
                    return self.give(Event::Prepared);
                }
                self.give(Event::LaunchFailed("no".into()))?;
                self.waits_from_now(initial, most);
                Ok(())
            }
            Deed::Launch(_) => Ok(()),
            Deed::End(code) if self.process => {
                self.process = false;
                self.give(Event::Ended(Ending::Code(code)))?;
                if !self.launching && !self.preparing {
                    self.waits_from_now(initial, most);
                }
                Ok(())
            }
            // An end that nobody waits for any more.
            Deed::End(code) => self.give(Event::Ended(Ending::Code(code))),
            Deed::Probe {
                behind,
                liveness,
                success,
            } => {
                let kind = if liveness {
                    ProbeKind::Liveness
                } else {
                    ProbeKind::Readiness
                };
                let outcome = if success {
                    Ok(())
                } else {
                    Err("no".to_owned())
                };
                let run = self.runs.saturating_sub(behind);
                self.give(Event::Probed { run, kind, outcome })
            }
            Deed::Wait(millis) => {
                self.now += ms(millis);
                self.give(Event::Tick)
            }
            Deed::Due => {
                if let Some(deadline) = self.role.deadline() {
                    self.now = self.now.max(deadline);
                    self.give(Event::Tick)?;
                    let next = self.role.deadline();
                    prop_assert!(next.is_none_or(|next| next > self.now), "it spins");
                }
                Ok(())
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_there_is_at_most_one_process_and_it_never_spins(
        deeds in proptest::collection::vec(deed(), 1..120),
    ) {
        let mut world = World {
            role: Role::new(),
            now: ms(1),
            launching: false,
            preparing: false,
            process: false,
            frozen: false,
            runs: 0,
            not_before: None,
            wanted: false,
        };
        for deed in deeds {
            world.act(deed)?;
        }
        // Told to stop, it does, if only its process ends when it is killed.
        world.act(Deed::Stop)?;
        for _ in 0..4 {
            world.act(Deed::Launch(true))?;
            world.act(Deed::Due)?;
        }
        world.act(Deed::End(0))?;
        prop_assert!(world.role.is_stopped(), "{:?}", world.role);
        prop_assert_eq!(world.role.status().state, State::Stopped);
    }
}
