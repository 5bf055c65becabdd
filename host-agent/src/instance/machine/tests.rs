use proptest::prelude::*;

use super::*;
use crate::{
    guest::report::{RoleCondition, RoleEnd, RoleEndHow},
    instance::state::{
        Cause, Exit, ExitKind, GuestSaid, Handled, Launch, SnapshotWanted, StoppedBy, Taken,
        Unprepared,
    },
};

/// What a guest has beyond its role's time, of [`Limits`].
const POWER_OFF: Duration = Duration::from_secs(5);

/// A machine and what it did, for stories.
struct Story {
    machine: Machine,
    limits: Limits,
    now: Duration,
    wanted: Wanted,
    done: Vec<Action>,
}

impl Story {
    fn new() -> Self {
        Self {
            machine: Machine::default(),
            limits: Limits::default(),
            now: Duration::from_secs(1000),
            wanted: Wanted {
                presence: Presence::Run,
                disk: "image-1".to_owned(),
                epoch: 1,
                shape: "small".to_owned(),
                restart_generation: 0,
                restart_scope: Scope::Role,
                always_on: true,
                stop_grace: Duration::from_secs(5),
                snapshots: Vec::new(),
                restore: None,
            },
            done: Vec::new(),
        }
    }

    fn happens(&mut self, input: Input) -> &mut Self {
        let actions = self.machine.step(self.now, input, &self.limits);
        self.done.extend(actions);
        self
    }

    fn goal(&mut self, change: impl FnOnce(&mut Wanted)) -> &mut Self {
        change(&mut self.wanted);
        let wanted = self.wanted.clone();
        self.happens(Input::Goal(wanted))
    }

    fn says_hello(&mut self, boot_id: &str) -> &mut Self {
        let boot_id = boot_id.to_owned();
        self.hears(GuestSaid::Hello { boot_id })
    }

    fn hears(&mut self, said: GuestSaid) -> &mut Self {
        self.happens(Input::Guest(said))
    }

    fn exits(&mut self, kind: ExitKind) -> &mut Self {
        self.happens(Input::Exited(Exit {
            kind,
            detail: String::new(),
            json: String::new(),
        }))
    }

    fn starts(&mut self) -> &mut Self {
        self.happens(Input::Prepared(Ok(())))
            .happens(Input::Launched(Ok(Launch::Boot)))
    }

    /// From nothing, or from just having been started again, to a ready role.
    fn becomes_ready(&mut self) -> &mut Self {
        self.starts();
        let boot_id = format!("boot-{}", self.machine.boots);
        self.after(2)
            .says_hello(&boot_id)
            .role(RoleCondition::Ready, 0)
    }

    fn role(&mut self, condition: RoleCondition, consecutive_failures: u32) -> &mut Self {
        self.hears(GuestSaid::Role(RoleReport {
            role: "web".to_owned(),
            condition,
            reason: "as told".to_owned(),
            since: None,
            pid: 7,
            restarts: consecutive_failures,
            last_exit: None,
            restart_generation: 0,
            consecutive_failures,
        }))
    }

    /// The guest agent has ended the role, for it was told to.
    fn role_stops(&mut self) -> &mut Self {
        let role = self.machine.role().unwrap().clone();
        self.hears(GuestSaid::Role(RoleReport {
            condition: RoleCondition::Stopped,
            ..role
        }))
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self
    }

    /// Waits for the next deadline.
    fn waits(&mut self) -> &mut Self {
        self.now = self
            .machine
            .deadline(&self.limits)
            .expect("a deadline")
            .max(self.now);
        self.happens(TICK)
    }

    /// What was done since this was asked last, without what was told.
    fn did(&mut self) -> Vec<Action> {
        let mut done = std::mem::take(&mut self.done);
        done.retain(|action| !matches!(action, Action::Tell(_)));
        done
    }

    /// What was told since anything was asked last, each with what led to it.
    fn linked(&mut self) -> Vec<String> {
        let done = std::mem::take(&mut self.done).into_iter();
        let notes = done.filter_map(|action| match action {
            Action::Tell(note) => Some(note),
            _ => None,
        });
        let link = |note: Note| match note.because {
            Because::Event(cause) => format!("{:?} < {cause}", note.reason),
            Because::Nothing => format!("{:?}", note.reason),
            Because::Before => panic!("{note:?} was not linked"),
        };
        notes.map(link).collect()
    }

    /// What was told since anything was asked last.
    fn told(&mut self) -> Vec<Reason> {
        let done = std::mem::take(&mut self.done);
        done.into_iter()
            .filter_map(|action| match action {
                Action::Tell(note) => Some(note.reason),
                _ => None,
            })
            .collect()
    }
}

const TICK: Input = Input::Tick {
    starved: Duration::ZERO,
};
const KEEP: Action = Action::Prepare {
    fresh: false,
    cold: false,
    restore: None,
};
const FRESH: Action = Action::Prepare {
    fresh: true,
    cold: false,
    restore: None,
};
const COLD: Action = Action::Prepare {
    fresh: true,
    cold: true,
    restore: None,
};

#[test]
fn what_is_told_names_what_led_to_it() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready();
    let started = ["VmmStarted < InstancePlaced", "GuestHello < VmmStarted"];
    assert_eq!(story.linked()[..2], started);
    story.exits(ExitKind::Killed).becomes_ready();
    assert_eq!(
        story.linked(),
        [
            "VmmExited",
            "VmRestarting < VmmExited",
            "VmmStarted < VmRestarting",
            "GuestHello < VmmStarted",
            "RoleReady < GuestHello",
        ]
    );
    // The same over a restart of the host agent, which has this on record.
    let record = serde_json::to_string(&story.machine).unwrap();
    story.machine = serde_json::from_str(&record).unwrap();
    story.role(RoleCondition::Unhealthy, 0);
    story.role(RoleCondition::Ready, 0);
    assert_eq!(
        story.linked(),
        ["RoleUnhealthy", "RoleReady < RoleUnhealthy"]
    );
    story.goal(|wanted| {
        wanted.restart_generation = 1;
        wanted.restart_scope = Scope::Vm;
    });
    assert_eq!(story.linked(), ["VmRestarting < RestartRequested"]);
}

#[test]
fn a_restart_that_an_update_asks_for_is_not_an_operators() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready();
    story.linked();
    story.goal(|wanted| {
        wanted.epoch += 1;
        wanted.restart_generation = 1;
        wanted.restart_scope = Scope::Reimage;
    });
    assert_eq!(story.linked(), ["VmRestarting"]);
}

#[test]
fn a_goal_leads_to_a_ready_role() {
    let mut story = Story::new();
    assert_eq!(story.goal(|_| {}).did(), [FRESH]);
    assert_eq!(story.starts().did(), [Action::Launch]);
    story.after(7).says_hello("a");
    story
        .role(RoleCondition::Starting, 0)
        .role(RoleCondition::Ready, 0);
    assert_eq!(
        story.told(),
        [Reason::GuestHello, Reason::RoleStarting, Reason::RoleReady]
    );
    assert_eq!(story.machine.boot_to_hello(), Some(Duration::from_secs(7)));
    assert_eq!((story.machine.boots(), story.machine.vm_restarts()), (1, 0));
}

/// A machine that has been started from a template and said nothing yet.
fn copied() -> Story {
    let mut story = Story::new();
    story
        .goal(|_| {})
        .happens(Input::Prepared(Ok(())))
        .happens(Input::Launched(Ok(Launch::Template)));
    story.did();
    story
}

fn refused(did: &[Action]) -> bool {
    matches!(did.first(), Some(Action::RefuseTemplate { .. }))
}

#[test]
fn a_template_that_cannot_be_started_from_costs_a_boot_and_no_blame() {
    let mut story = copied();
    let exit = Exit {
        kind: ExitKind::Failed,
        detail: "`memory_mib` is 64: the snapshot has 128".to_owned(),
        json: "{}".to_owned(),
    };
    let did = story.happens(Input::Exited(exit)).did();
    assert!(refused(&did), "{did:?}");
    assert_eq!(did[1..], [COLD]);
    story.becomes_ready();
    assert_eq!(story.machine.vm_restarts(), 0);
}

#[test]
fn a_template_whose_guest_says_nothing_is_not_waited_for_as_long_as_a_boot() {
    let mut story = copied();
    let began = story.now;
    let did = story.waits().did();
    assert_eq!(story.now - began, story.limits.from_template);
    assert!(refused(&did), "{did:?}");
    assert_eq!(did[1..], [Action::Kill]);
    assert_eq!(story.exits(ExitKind::Failed).did(), [COLD]);
    story.becomes_ready();
    assert_eq!(story.machine.vm_restarts(), 0);
}

#[test]
fn a_template_whose_guests_would_all_be_the_same_is_not_used() {
    let mut story = copied();
    let did = story.says_hello("everyone's").did();
    assert!(refused(&did), "{did:?}");
    assert_eq!(did[1..], [Action::Kill]);
    assert_eq!(story.machine.boot_id(), "");
    assert_eq!(story.exits(ExitKind::Failed).did(), [COLD]);
}

/// A machine that ran, was started again where its template's kernel had booted, and has said
/// nothing yet.
fn booted() -> Story {
    let mut story = copied();
    story.becomes_ready().exits(ExitKind::KernelPanic);
    story
        .happens(Input::Prepared(Ok(())))
        .happens(Input::Launched(Ok(Launch::Booted)));
    story.did();
    story
}

#[test]
fn a_booted_kernel_from_which_no_guest_comes_up_costs_a_boot_and_not_the_disk() {
    const COLD_ON_ITS_DISK: Action = Action::Prepare {
        fresh: false,
        cold: true,
        restore: None,
    };
    let mut story = booted();
    let did = story.exits(ExitKind::Refused).did();
    assert!(refused(&did), "{did:?}");
    assert_eq!(did[1..], [COLD_ON_ITS_DISK]);

    let mut story = booted();
    let began = story.now;
    let did = story.waits().did();
    assert_eq!(story.now - began, story.limits.from_template);
    assert!(refused(&did), "{did:?}");
    assert_eq!(story.exits(ExitKind::Failed).did(), [COLD_ON_ITS_DISK]);

    let mut story = booted();
    let did = story.says_hello("everyone's").did();
    assert!(refused(&did), "{did:?}");
    assert_eq!(story.exits(ExitKind::Failed).did(), [COLD_ON_ITS_DISK]);

    // Killed from outside: once more, on the same disk.
    let mut story = booted();
    assert_eq!(story.exits(ExitKind::Killed).did(), [KEEP]);
}

#[test]
fn a_template_is_not_to_blame_for_what_comes_after_hello_or_from_outside() {
    let mut story = copied();
    story
        .says_hello("")
        .says_hello("a")
        .exits(ExitKind::KernelPanic);
    assert_eq!(story.did(), [KEEP]);

    // Killed from outside: it is copied once more, there is nothing to keep.
    let mut story = copied();
    assert_eq!(story.exits(ExitKind::Killed).did(), [FRESH]);

    // Taken over by another process of the host agent.
    let mut story = copied();
    let (now, limits) = (story.now, story.limits.clone());
    _ = story.machine.resume(now, true, true, &limits);
    assert_eq!(story.says_hello("a").did(), []);
    assert_eq!(story.machine.boot_id(), "a");
}

#[test]
fn a_guest_is_there_with_its_first_hello_and_known_with_its_second() {
    let mut story = Story::new();
    story.goal(|_| {}).starts().told();
    story.after(1).says_hello("");
    assert!(matches!(story.machine.state(), State::Running { .. }));
    assert_eq!(story.machine.boot_id(), "");
    story.says_hello("a");
    assert_eq!(story.machine.boot_id(), "a");
    // It lost its connection, and says all it knows.
    story.says_hello("a").says_hello("");
    assert_eq!(story.machine.boot_id(), "a");
    assert_eq!(story.told(), [Reason::GuestHello]);
}

#[test]
fn a_guest_that_misses_heartbeats_is_killed_and_started_again_at_once() {
    let mut story = Story::new();
    story
        .goal(|_| {})
        .becomes_ready()
        .after(2)
        .hears(GuestSaid::Heartbeat)
        .did();
    let heard = story.now;
    assert_eq!(story.waits().did(), [Action::Kill]);
    assert_eq!(story.now - heard, Duration::from_secs(6));
    assert_eq!(story.exits(ExitKind::Failed).did(), [KEEP]);
    story.becomes_ready();
    assert_eq!((story.machine.boots(), story.machine.vm_restarts()), (2, 1));
}

#[test]
fn a_guest_that_starts_its_role_may_be_silent_for_longer() {
    let mut story = Story::new();
    story.goal(|_| {}).starts().after(2).says_hello("a");
    let silence = story.limits.silence();
    let since_hello = story.now;
    assert_eq!(
        story.machine.deadline(&story.limits),
        Some(since_hello + story.limits.settle + silence)
    );
    story.after(3).role(RoleCondition::Starting, 0);
    story.after(1).role(RoleCondition::Ready, 0);
    let deadline = story.machine.deadline(&story.limits);
    assert_eq!(deadline, Some(story.now + silence));
}

#[test]
fn a_guest_without_a_goal_need_not_say_anything() {
    let mut story = Story::new();
    story.goal(|_| {}).starts().after(2).says_hello("").did();
    for _ in 0..10 {
        story.now = story.machine.deadline(&story.limits).unwrap();
        assert_eq!(story.happens(Input::Resting).did(), []);
    }
    let silence = story.limits.settle + story.limits.silence();
    let deadline = story.machine.deadline(&story.limits);
    assert_eq!(deadline, Some(story.now + silence));
    assert_eq!(story.waits().did(), [Action::Kill]);
}

#[test]
fn a_guest_that_never_says_hello_is_killed_and_started_again() {
    let mut story = Story::new();
    story.goal(|_| {}).starts().did();
    let start = story.now;
    assert_eq!(story.waits().did(), [Action::Kill]);
    assert_eq!(story.now - start, story.limits.boot);
    assert_eq!(story.exits(ExitKind::Failed).did(), [KEEP]);
}

#[test]
fn time_without_a_processor_is_not_held_against_a_guest() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().told();
    let starve = |story: &mut Story, starved| {
        story.now = story.machine.deadline(&story.limits).unwrap();
        story.happens(Input::Tick { starved }).told()
    };
    let second = Duration::from_secs(1);
    let begun = story.now;
    assert_eq!(starve(&mut story, 5 * second), []);
    assert_eq!(starve(&mut story, 2 * second), []);
    // It had its time; the little that it still lacks changes nothing.
    let little = story.limits.starved;
    assert_eq!(starve(&mut story, little), [Reason::HeartbeatsMissed]);
    assert_eq!(story.now - begun, story.limits.silence() + 7 * second);

    let mut story = Story::new();
    story.goal(|_| {}).starts().told();
    let begun = story.now;
    assert_eq!(starve(&mut story, 30 * second), []);
    assert_eq!(story.waits().told(), [Reason::HeartbeatsMissed]);
    assert_eq!(story.now - begun, story.limits.boot + 30 * second);
}

#[test]
fn a_host_agent_that_did_not_run_does_not_blame_the_guest() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().after(3600).happens(TICK);
    assert_eq!(
        *story.machine.state(),
        State::Running {
            heard: story.now - Duration::from_secs(4),
        }
    );
    story.told();
    // But only once.
    assert_eq!(story.waits().told(), [Reason::HeartbeatsMissed]);
}

#[test]
fn a_vmm_that_dies_and_a_kernel_that_panics_are_recovered_at_once() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    assert_eq!(story.exits(ExitKind::Failed).did(), [KEEP]);
    story.becomes_ready().did();
    assert_eq!(
        story.exits(ExitKind::KernelPanic).told(),
        [Reason::VmmExited, Reason::VmRestarting]
    );
    story.becomes_ready();
    assert_eq!(story.machine.vm_restarts(), 2);
}

#[test]
fn a_guest_that_reboots_is_started_again_without_blame() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready();
    for _ in 0..4 {
        story.did();
        assert_eq!(story.exits(ExitKind::GuestReset).did(), [KEEP]);
        story.starts().says_hello("x");
    }
    assert_eq!(story.machine.reimages(), 0);
}

#[test]
fn a_guest_that_powers_off_by_itself_comes_back_if_its_policy_is_always() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    assert_eq!(
        story.exits(ExitKind::GuestPowerOff).told(),
        [
            Reason::VmmExited,
            Reason::GuestPoweredOff,
            Reason::VmRestarting,
        ]
    );
    story
        .becomes_ready()
        .goal(|wanted| wanted.always_on = false)
        .did();
    assert_eq!(story.exits(ExitKind::GuestPowerOff).did(), []);
    assert_eq!(
        *story.machine.state(),
        State::Stopped {
            by: StoppedBy::Guest
        }
    );
    // The same goal again changes nothing; being asked does.
    assert_eq!(story.goal(|_| {}).did(), []);
    assert_eq!(
        story.goal(|wanted| wanted.restart_generation += 1).did(),
        [KEEP]
    );
}

#[test]
fn a_guest_that_says_goodbye_is_given_time_and_then_help_but_no_blame() {
    let mut story = Story::new();
    story
        .goal(|_| {})
        .becomes_ready()
        .hears(GuestSaid::Goodbye { reboot: false })
        .did();
    let goodbye = story.now;
    assert_eq!(story.waits().did(), [Action::Kill]);
    assert_eq!(story.now - goodbye, story.limits.leave);
    assert_eq!(
        story.exits(ExitKind::Failed).told(),
        [
            Reason::VmmExited,
            Reason::GuestPoweredOff,
            Reason::VmRestarting,
        ]
    );
    story
        .becomes_ready()
        .hears(GuestSaid::Goodbye { reboot: true })
        .did();
    assert_eq!(story.exits(ExitKind::GuestReset).did(), [KEEP]);
}

#[test]
fn a_crash_loop_gets_a_fresh_disk_and_is_then_given_up() {
    let mut story = Story::new();
    let mut fresh = Vec::new();
    story.goal(|_| {});
    while !matches!(story.machine.state(), State::Failed { .. }) {
        if matches!(story.machine.state(), State::Backoff { .. }) {
            story.waits();
        }
        fresh.push(story.did() == [FRESH]);
        story.starts().exits(ExitKind::KernelPanic);
        story
            .done
            .retain(|action| !matches!(action, Action::Launch));
    }
    assert_eq!(fresh, [true, false, false, true, false, false]);
    assert_eq!((story.machine.boots(), story.machine.reimages()), (6, 1));
    assert!(story.told().contains(&Reason::GaveUp));
    assert_eq!(story.machine.why(), "gave up: the guest's kernel panicked");

    // Asking gives it everything again.
    assert_eq!(
        story.goal(|wanted| wanted.restart_generation += 1).did(),
        [KEEP]
    );
    story.starts().did();
    assert_eq!(story.exits(ExitKind::KernelPanic).did(), [KEEP]);
}

#[test]
fn what_was_given_up_is_tried_once_more_after_a_long_while() {
    let mut story = Story::new();
    story.limits.ladder.failures_per_disk = 1;
    story.limits.ladder.reimages = 0;
    story.goal(|_| {}).starts().exits(ExitKind::Failed).did();
    let given_up = story.now;
    assert_eq!(story.waits().did(), [FRESH]);
    assert_eq!(story.now - given_up, story.limits.ladder.retry_initial);
    story.starts().exits(ExitKind::Failed);
    assert!(matches!(story.machine.state(), State::Failed { .. }));
}

#[test]
fn a_role_that_keeps_failing_costs_its_machine() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready();
    story.role(RoleCondition::Unhealthy, 4).did();
    assert!(matches!(story.machine.state(), State::Running { .. }));
    story.role(RoleCondition::Unhealthy, 5);
    assert!(story.machine.guest_should_be_off());
    story.did();
    assert_eq!(story.exits(ExitKind::GuestPowerOff).did(), [KEEP]);
    assert_eq!(story.becomes_ready().machine.vm_restarts(), 1);
}

#[test]
fn stopping_gets_harder_step_by_step() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    assert_eq!(
        story.goal(|wanted| wanted.presence = Presence::Stop).did(),
        []
    );
    assert!(story.machine.guest_should_be_off());
    let asked = story.now;
    assert_eq!(story.waits().did(), [Action::OrderStop]);
    assert_eq!(story.now - asked, Duration::from_secs(10));
    assert_eq!(story.waits().did(), [Action::Kill]);
    assert_eq!(story.waits().did(), [Action::Kill]);
    assert_eq!(story.exits(ExitKind::Failed).did(), []);
    assert_eq!(
        *story.machine.state(),
        State::Stopped {
            by: StoppedBy::Goal
        }
    );
    assert_eq!(story.machine.deadline(&story.limits), None);
    assert_eq!(
        story.goal(|wanted| wanted.presence = Presence::Run).did(),
        [KEEP]
    );
}

/// What an operator's stop comes to, and what is shown of it.
fn stopped(ends: impl FnOnce(&mut Story)) -> (Cause, String) {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready();
    story.goal(|wanted| wanted.presence = Presence::Stop).did();
    ends(&mut story);
    let by = StoppedBy::Goal;
    assert_eq!(*story.machine.state(), State::Stopped { by });
    let cause = story.machine.end().unwrap().cause;
    let mut told = story.linked();
    told.retain(|one| !one.starts_with("RoleStopped"));
    assert_eq!(
        told,
        [
            "VmmExited < StopRequested",
            "InstanceStopped < StopRequested"
        ]
    );
    // It is said once, and stays.
    let why = story.machine.why().to_owned();
    assert!(story.goal(|_| {}).linked().is_empty());
    assert_eq!(story.machine.why(), why);
    (cause, why)
}

#[test]
fn a_stop_says_whether_it_was_gentle() {
    let gentle = stopped(|story| _ = story.exits(ExitKind::GuestPowerOff));
    let how = "an operator stopped it; the guest powered off";
    assert_eq!(gentle, (Cause::Stopped, how.to_owned()));

    let ordered = stopped(|story| _ = story.waits().exits(ExitKind::Stopped));
    assert_eq!(ordered.0, Cause::StoppedByForce);
    assert!(
        ordered.1.contains("did not power off in time"),
        "{ordered:?}"
    );
    let killed = stopped(|story| _ = story.waits().waits().exits(ExitKind::Killed));
    assert_eq!(killed.0, Cause::StoppedByForce);
    assert!(killed.1.ends_with("in time; killed"), "{killed:?}");

    let role = |signal| {
        stopped(|story| {
            story.hears(GuestSaid::Role(RoleReport {
                last_exit: Some(RoleEnd {
                    how: RoleEndHow::Signal(signal),
                    by_agent: true,
                }),
                ..story.machine.role().unwrap().clone()
            }));
            story.role_stops().exits(ExitKind::GuestPowerOff);
        })
    };
    assert_eq!(role(15).0, Cause::Stopped);
    let deaf = role(9);
    assert_eq!(deaf.0, Cause::StoppedByForce);
    assert!(deaf.1.contains("within 5s and was killed"), "{deaf:?}");
}

#[test]
fn what_comes_before_a_stop_is_not_taken_for_it() {
    for (kind, cause) in [
        (ExitKind::KernelPanic, Cause::Panicked),
        (ExitKind::Killed, Cause::Killed),
        (ExitKind::OutOfMemory, Cause::OutOfMemory),
    ] {
        assert_eq!(stopped(|story| _ = story.exits(kind)).0, cause);
    }
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().waits();
    story.goal(|wanted| wanted.presence = Presence::Stop);
    story.exits(ExitKind::Killed);
    assert_eq!(story.machine.end().unwrap().cause, Cause::Hung);
    let why = story.machine.why();
    assert_eq!(why, "an operator stopped it; 3 heartbeats missed; killed");
}

#[test]
fn what_is_stopped_while_nothing_runs_says_so_and_a_start_is_told() {
    let mut story = Story::new();
    story.goal(|wanted| wanted.presence = Presence::Stop);
    assert_eq!(story.linked(), ["InstanceStopped < StopRequested"]);
    let why = story.machine.why();
    assert_eq!(why, "an operator stopped it; no virtual machine ran");
    // Another process of the host agent has nothing to add.
    let limits = story.limits.clone();
    for same_boot in [true, false] {
        let actions = story.machine.resume(story.now, false, same_boot, &limits);
        assert_eq!(actions, []);
    }
    assert!(story.goal(|_| {}).linked().is_empty());
    story.goal(|wanted| wanted.presence = Presence::Run);
    assert_eq!(story.linked(), ["InstanceStarted < StartRequested"]);
}

#[test]
fn a_restart_of_what_is_stopped_waits_until_it_is_started() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    story.goal(|wanted| {
        wanted.presence = Presence::Stop;
        wanted.restart_generation = 1;
        wanted.restart_scope = Scope::Reimage;
    });
    assert_eq!(story.exits(ExitKind::GuestPowerOff).did(), []);
    assert_eq!(story.machine.restart_generation(), 0);
    let start = story.goal(|wanted| wanted.presence = Presence::Run).did();
    assert_eq!(start, [FRESH]);
}

#[test]
fn a_guest_that_was_asked_to_go_has_its_time_across_a_restart_of_the_host_agent() {
    let mut story = Story::new();
    story.wanted.stop_grace = Duration::from_secs(60);
    story.goal(|_| {}).becomes_ready();
    story.goal(|wanted| wanted.presence = Presence::Stop);
    let deadline = story.machine.deadline(&story.limits).unwrap();
    story.after(1);
    let limits = story.limits.clone();
    _ = story.machine.resume(story.now, true, true, &limits);
    assert_eq!(story.machine.deadline(&limits), Some(deadline));
    story.exits(ExitKind::GuestPowerOff);
    assert_eq!(story.machine.end().unwrap().cause, Cause::Stopped);
}

#[test]
fn a_guest_whose_agent_has_no_session_is_stopped_by_its_power_button_in_the_same_time() {
    let stops = |story: &mut Story| {
        let from = story.now;
        let stop = story.goal(|wanted| wanted.presence = Presence::Stop).did();
        let deadline = story.machine.deadline(&story.limits);
        assert_eq!(deadline, Some(from + story.wanted.stop_grace + POWER_OFF));
        stop
    };
    let mut cut = Story::new();
    cut.goal(|_| {})
        .becomes_ready()
        .hears(GuestSaid::Gone)
        .did();
    assert_eq!(stops(&mut cut), [Action::PressPowerButton]);
    cut.exits(ExitKind::GuestPowerOff);
    assert_eq!(cut.machine.end().unwrap().cause, Cause::Stopped);

    // One that does not hear it is ended as any other.
    let mut deaf = Story::new();
    deaf.goal(|_| {})
        .becomes_ready()
        .hears(GuestSaid::Gone)
        .did();
    stops(&mut deaf);
    assert_eq!(deaf.waits().did(), [Action::OrderStop]);
    deaf.exits(ExitKind::Stopped);
    assert_eq!(deaf.machine.end().unwrap().cause, Cause::StoppedByForce);

    // After a restart of the host agent nobody is there yet.
    let mut found = Story::new();
    found.goal(|_| {}).becomes_ready().did();
    let text = serde_json::to_string(&found.machine).unwrap();
    found.machine = serde_json::from_str(&text).unwrap();
    let limits = found.limits.clone();
    _ = found.machine.resume(found.now, true, true, &limits);
    assert_eq!(stops(&mut found), [Action::PressPowerButton]);

    // Who is back is told by the goal.
    let mut back = Story::new();
    back.goal(|_| {}).becomes_ready().hears(GuestSaid::Gone);
    back.hears(GuestSaid::Heartbeat).did();
    assert_eq!(stops(&mut back), []);
}

#[test]
fn the_end_of_a_session_is_no_sign_of_life() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready();
    let deadline = story.machine.deadline(&story.limits);
    story.after(3).hears(GuestSaid::Gone);
    assert_eq!(story.machine.deadline(&story.limits), deadline);
}

#[test]
fn a_guest_that_is_being_stopped_has_the_time_that_was_said_last_from_then() {
    let mut story = Story::new();
    story.wanted.stop_grace = Duration::from_secs(600);
    story.goal(|_| {}).becomes_ready();
    story.goal(|wanted| wanted.presence = Presence::Stop).did();
    story
        .after(30)
        .goal(|wanted| wanted.stop_grace = Duration::ZERO);
    let deadline = story.machine.deadline(&story.limits);
    assert_eq!(deadline, Some(story.now + POWER_OFF));
    assert_eq!(story.waits().did(), [Action::OrderStop]);
    // Beyond asking, nothing is given any more.
    let deadline = story.machine.deadline(&story.limits);
    story.goal(|wanted| wanted.stop_grace = Duration::from_secs(600));
    assert_eq!(story.machine.deadline(&story.limits), deadline);
    story.exits(ExitKind::Stopped);
    assert_eq!(story.machine.end().unwrap().cause, Cause::StoppedByForce);
}

#[test]
fn a_machine_that_boots_is_stopped_without_its_guest() {
    let mut story = Story::new();
    story.goal(|_| {}).starts().did();
    assert_eq!(
        story
            .goal(|wanted| wanted.presence = Presence::Remove)
            .did(),
        [Action::OrderStop]
    );
    assert_eq!(story.exits(ExitKind::Stopped).did(), [Action::Remove]);
    assert_eq!(*story.machine.state(), State::Removed);
}

#[test]
fn a_goal_that_changes_its_mind_while_stopping_is_followed_after_it() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready();
    story.goal(|wanted| wanted.presence = Presence::Stop);
    story.goal(|wanted| wanted.presence = Presence::Run).did();
    assert_eq!(story.exits(ExitKind::GuestPowerOff).did(), [KEEP]);
}

#[test]
fn a_stop_while_it_is_being_launched_is_carried_out_once_it_runs() {
    let mut story = Story::new();
    story.goal(|_| {}).happens(Input::Prepared(Ok(())));
    story.goal(|wanted| wanted.presence = Presence::Stop).did();
    assert_eq!(
        story.happens(Input::Launched(Ok(Launch::Boot))).did(),
        [Action::OrderStop]
    );
    story.exits(ExitKind::Stopped);
    assert_eq!(
        *story.machine.state(),
        State::Stopped {
            by: StoppedBy::Goal
        }
    );
}

#[test]
fn operators_restarts_are_carried_out_once_each() {
    let mut story = Story::new();
    story
        .goal(|wanted| wanted.restart_generation = 4)
        .becomes_ready()
        .did();
    assert_eq!(story.machine.restart_generation(), 4);

    story.goal(|wanted| {
        wanted.restart_generation = 5;
        wanted.restart_scope = Scope::Role;
    });
    assert!(
        matches!(story.machine.state(), State::Running { .. }),
        "that is the guest's"
    );
    for (scope, prepare) in [(Scope::Vm, KEEP), (Scope::Reimage, FRESH)] {
        story.goal(|wanted| {
            wanted.restart_generation += 1;
            wanted.restart_scope = scope;
        });
        story.goal(|_| {}).did();
        assert_eq!(story.exits(ExitKind::GuestPowerOff).did(), [prepare]);
        story.becomes_ready().goal(|_| {}).did();
    }
    assert_eq!(
        (story.machine.vm_restarts(), story.machine.reimages()),
        (0, 0)
    );
}

#[test]
fn a_changed_image_means_a_fresh_disk_and_a_changed_size_a_restart() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready();
    story
        .goal(|wanted| "image-2".clone_into(&mut wanted.disk))
        .did();
    assert_eq!(story.exits(ExitKind::GuestPowerOff).did(), [FRESH]);
    story.becomes_ready();
    story
        .goal(|wanted| "large".clone_into(&mut wanted.shape))
        .did();
    assert_eq!(story.exits(ExitKind::GuestPowerOff).did(), [KEEP]);
    // And when it changes while it is stopped.
    story
        .becomes_ready()
        .goal(|wanted| wanted.presence = Presence::Stop);
    story.exits(ExitKind::GuestPowerOff);
    story
        .goal(|wanted| "image-3".clone_into(&mut wanted.disk))
        .did();
    assert_eq!(
        story.goal(|wanted| wanted.presence = Presence::Run).did(),
        [FRESH]
    );
}

#[test]
fn one_that_is_wanted_again_while_it_goes_is_another_with_a_disk_of_its_own() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready();
    story
        .goal(|wanted| wanted.presence = Presence::Remove)
        .goal(|wanted| {
            wanted.presence = Presence::Run;
            wanted.epoch = 2;
        })
        .did();
    assert_eq!(story.exits(ExitKind::GuestPowerOff).did(), [FRESH]);
    // Before it had begun to go, too.
    story.becomes_ready().goal(|wanted| wanted.epoch = 3).did();
    assert_eq!(story.exits(ExitKind::GuestPowerOff).did(), [FRESH]);
}

#[test]
fn a_disk_on_a_record_without_its_epoch_stays() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    let mut record = serde_json::to_value(&story.machine).unwrap();
    for part in ["made_for", "wanted"] {
        record[part].as_object_mut().unwrap().remove("epoch");
    }
    story.machine = serde_json::from_value(record).unwrap();
    assert_eq!(story.goal(|wanted| wanted.epoch = 7).did(), []);
}

#[test]
fn what_cannot_be_prepared_waits_for_ever_or_is_given_up() {
    let mut story = Story::new();
    story.goal(|_| {});
    let unprepared = |may_pass| {
        Input::Prepared(Err(Unprepared {
            reason: "no".to_owned(),
            may_pass,
        }))
    };
    for _ in 0..20 {
        story.happens(unprepared(true));
        assert!(matches!(story.machine.state(), State::Backoff { .. }));
        story.waits();
    }
    story.happens(unprepared(false));
    assert!(matches!(story.machine.state(), State::Failed { .. }));
    assert_eq!(story.machine.why(), "gave up: no");
}

#[test]
fn a_running_machine_is_taken_over_and_given_time_to_call_back() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().after(100).did();
    let limits = story.limits.clone();
    let actions = story.machine.resume(story.now, true, true, &limits);
    story.done.extend(actions);
    assert_eq!(story.told(), [Reason::InstanceAdopted]);
    let patience = story.machine.deadline(&limits).unwrap() - story.now;
    assert_eq!(patience, limits.reconnect);
    assert!(story.machine.role().is_some(), "the last report stays");
}

#[test]
fn after_a_restart_of_the_node_everything_starts_again_without_blame() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    story.now = Duration::from_secs(5);
    let limits = story.limits.clone();
    let actions = story.machine.resume(story.now, false, false, &limits);
    assert_eq!(actions, [KEEP]);
}

#[test]
fn a_start_that_was_cut_off_is_made_as_if_it_had_not_been_begun() {
    let mut story = Story::new();
    let limits = story.limits.clone();
    assert_eq!(story.goal(|_| {}).did(), [FRESH]);
    assert_eq!(
        story.machine.resume(story.now, false, true, &limits),
        [FRESH]
    );
    story.happens(Input::Prepared(Ok(())));
    assert_eq!(
        story.machine.resume(story.now, false, true, &limits),
        [FRESH]
    );
    story.becomes_ready();
    assert_eq!(story.machine.boots(), 1);

    // What a machine has run on stays.
    story.exits(ExitKind::Killed).did();
    story.happens(Input::Prepared(Ok(())));
    assert_eq!(
        story.machine.resume(story.now, false, true, &limits),
        [KEEP]
    );
    story.becomes_ready();
    assert_eq!(story.machine.boots(), 2);
}

#[test]
fn each_end_is_told_apart() {
    let after = |ends: fn(&mut Story)| {
        let mut story = Story::new();
        story.goal(|_| {}).becomes_ready();
        ends(&mut story);
        story.machine.end().cloned().expect("it ended")
    };
    let by_itself = [
        (ExitKind::GuestPowerOff, Cause::PoweredOff),
        (ExitKind::GuestReset, Cause::Rebooted),
        (ExitKind::KernelPanic, Cause::Panicked),
        (ExitKind::TripleFault, Cause::TripleFault),
        (ExitKind::Killed, Cause::Killed),
        (ExitKind::OutOfMemory, Cause::OutOfMemory),
        (ExitKind::ForbiddenCall, Cause::ForbiddenCall),
        (ExitKind::Refused, Cause::Refused),
        (ExitKind::Failed, Cause::VmmFailed),
    ];
    for (kind, cause) in by_itself {
        let mut story = Story::new();
        story.goal(|_| {}).becomes_ready().exits(kind);
        let end = story.machine.end().unwrap();
        assert_eq!(end.cause, cause);
        assert!(end.detail.starts_with(&kind.to_string()), "{}", end.detail);
    }

    let hung = after(|story| _ = story.waits().exits(ExitKind::Killed));
    assert_eq!(hung.cause, Cause::Hung);
    assert_eq!(hung.detail, "3 heartbeats missed; killed");

    let asked = after(|story| {
        story.goal(|wanted| wanted.presence = Presence::Stop);
        story.exits(ExitKind::GuestPowerOff);
    });
    assert_eq!(asked.cause, Cause::Stopped);
    assert!(
        asked.detail.contains("the guest powered off"),
        "{}",
        asked.detail
    );

    // A goodbye is believed, whatever it took then.
    let goodbye = after(|story| {
        story.hears(GuestSaid::Goodbye { reboot: true });
        story.waits().exits(ExitKind::Killed);
    });
    assert_eq!(goodbye.cause, Cause::Rebooted);

    let mut story = Story::new();
    story.goal(|_| {}).starts().waits().exits(ExitKind::Killed);
    assert_eq!(story.machine.end().unwrap().cause, Cause::NotUp);
}

fn snapshot(generation: u64) -> SnapshotWanted {
    SnapshotWanted {
        name: format!("s{generation}").parse().unwrap(),
        generation,
    }
}

fn taken() -> Taken {
    Taken {
        at: std::time::SystemTime::UNIX_EPOCH,
        bytes: 1,
    }
}

#[test]
fn a_pause_lasts_until_it_is_over_and_silence_is_not_held_against_it() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    let pause = story.goal(|wanted| wanted.presence = Presence::Pause);
    assert_eq!(pause.did(), [Action::Pause]);
    story.happens(Input::Handled(Handled::Paused(Ok(()))));
    assert_eq!(story.told(), [Reason::InstancePaused]);
    assert_eq!(story.machine.state(), &State::Paused);
    assert_eq!(story.machine.deadline(&story.limits), None);

    // Another host agent finds it as it is.
    let limits = story.limits.clone();
    story.after(9999);
    let actions = story.machine.resume(story.now, true, true, &limits);
    story.done.extend(actions);
    assert_eq!(story.told(), [Reason::InstanceAdopted]);
    assert_eq!(story.machine.state(), &State::Paused);

    let go_on = story.goal(|wanted| wanted.presence = Presence::Run);
    assert_eq!(go_on.did(), [Action::Resume]);
    story.happens(Input::Handled(Handled::Resumed(Ok(()))));
    assert_eq!(story.told(), [Reason::InstanceResumed]);
    assert!(story.machine.role().is_some(), "it is what it was");
    assert_eq!(story.machine.resumes(), 1);
    // From here on, silence counts again.
    assert_eq!(story.waits().did(), [Action::Kill]);
}

fn reset(wanted: &mut Wanted) {
    wanted.restart_generation += 1;
    wanted.restart_scope = Scope::Reset;
}

#[test]
fn a_reset_is_another_boot_of_the_same_machine() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    assert_eq!(story.goal(reset).did(), [Action::Reset]);

    // Another host agent that finds it so does it again: it may not have been done.
    let limits = story.limits.clone();
    let actions = story.machine.resume(story.now, true, true, &limits);
    story.done.extend(actions);
    assert_eq!(story.did(), [Action::Reset]);

    story.happens(Input::Handled(Handled::Reset(Ok(()))));
    assert_eq!(story.told(), [Reason::VmReset]);
    assert!(matches!(story.machine.state(), State::Booting { .. }));
    assert_eq!(story.machine.boots(), 2);
    assert_eq!(story.machine.end().unwrap().cause, Cause::Reset);
    assert!(story.machine.role().is_none() && story.machine.boot_id().is_empty());
    let boot_id = "boot-2".to_owned();
    story.after(1).says_hello(&boot_id).did();
    assert!(matches!(story.machine.state(), State::Running { .. }));
    assert_eq!(story.goal(|_| {}).did(), [], "it happens once");
}

#[test]
fn a_machine_that_cannot_be_reset_is_started_anew() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    assert_eq!(story.goal(reset).did(), [Action::Reset]);
    story.happens(Input::Handled(Handled::Reset(Err("no kernel".to_owned()))));
    assert_eq!(story.did(), [Action::Kill]);
    assert_eq!(story.exits(ExitKind::Killed).did(), [KEEP]);

    // And where there is none to reset, one is started.
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready();
    story.goal(|wanted| wanted.always_on = false);
    story.exits(ExitKind::GuestPowerOff).did();
    assert_eq!(story.goal(reset).did(), [KEEP]);
}

#[test]
fn a_pause_that_fails_is_tried_with_every_sign_of_life_and_told_once() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    story.goal(|wanted| wanted.presence = Presence::Pause).did();
    let fails = || Input::Handled(Handled::Paused(Err("no".to_owned())));
    assert_eq!(story.happens(fails()).told(), [Reason::PauseFailed]);
    for _ in 0..3 {
        assert_eq!(story.hears(GuestSaid::Heartbeat).did(), [Action::Pause]);
        assert_eq!(story.happens(fails()).told(), []);
    }
}

#[test]
fn whatever_is_done_to_a_machine_can_fail_and_is_not_waited_for_then() {
    let name = snapshot(1).name;
    for what in [
        Handling::Pausing,
        Handling::Resuming { asked: true },
        Handling::Resetting,
        Handling::Snapshot(snapshot(1)),
        Handling::Checking {
            name,
            paused: false,
        },
    ] {
        let mut story = Story::new();
        story.goal(|_| {}).becomes_ready();
        let failed = what.failed("it was cut off".to_owned());
        story.machine.state = State::Handling { what: what.clone() };
        story.happens(Input::Handled(failed));
        assert_ne!(*story.machine.state(), State::Handling { what });
    }
}

#[test]
fn a_machine_that_ends_while_it_is_paused_waits_for_whoever_paused_it() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    story.goal(|wanted| wanted.presence = Presence::Pause);
    story.happens(Input::Handled(Handled::Paused(Ok(())))).did();
    assert_eq!(story.exits(ExitKind::Failed).did(), []);
    assert!(matches!(story.machine.state(), State::Stopped { .. }));
    assert!(story.machine.why().contains("resumed"));
    let go_on = story.goal(|wanted| wanted.presence = Presence::Run);
    assert_eq!(go_on.did(), [KEEP]);
}

#[test]
fn a_snapshot_is_taken_once_and_the_machine_is_then_as_it_was() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    let goal = story.goal(|wanted| wanted.snapshots.push(snapshot(1)));
    assert_eq!(goal.did(), [Action::TakeSnapshot(snapshot(1))]);
    story.happens(Input::Handled(Handled::Snapshot(Ok(taken()))));
    assert_eq!(story.did(), [Action::Resume]);
    story.happens(Input::Handled(Handled::Resumed(Ok(()))));
    assert_eq!(story.goal(|_| {}).did(), []);

    // One that is paused stays so.
    story.goal(|wanted| wanted.presence = Presence::Pause);
    story.happens(Input::Handled(Handled::Paused(Ok(())))).did();
    let goal = story.goal(|wanted| wanted.snapshots.push(snapshot(2)));
    assert_eq!(goal.did(), [Action::TakeSnapshot(snapshot(2))]);
    story.happens(Input::Handled(Handled::Snapshot(Err("full".to_owned()))));
    assert_eq!(story.told(), [Reason::SnapshotFailed]);
    assert_eq!(story.machine.state(), &State::Paused);
    assert_eq!(story.goal(|_| {}).did(), [], "it is not tried again");

    let goal = story.goal(|wanted| wanted.snapshots.clear());
    let names = ["s1", "s2"].map(|name| Action::DeleteSnapshot(name.parse().unwrap()));
    assert_eq!(goal.did(), names);
}

#[test]
fn a_snapshot_that_ends_its_machine_is_not_tried_again() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    story
        .goal(|wanted| wanted.snapshots.push(snapshot(1)))
        .did();
    assert_eq!(story.exits(ExitKind::Failed).did(), [KEEP]);
    assert!(story.becomes_ready().did().contains(&Action::Launch));
    assert!(story.machine.snapshots()[0].taken.is_err());
}

/// Asks for a restore.
fn restore(wanted: &mut Wanted) {
    wanted.restart_generation += 1;
    wanted.restart_scope = Scope::Restore;
    wanted.restore = Some("s1".parse().unwrap());
}

#[test]
fn a_machine_is_given_up_for_a_snapshot_only_when_that_has_been_verified() {
    let name = || "s1".parse().unwrap();
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    assert_eq!(story.goal(restore).did(), [Action::CheckSnapshot(name())]);
    story.happens(Input::Handled(Handled::Checked(Err("damaged".to_owned()))));
    assert_eq!(story.told(), [Reason::RestoreFailed]);
    assert!(matches!(story.machine.state(), State::Running { .. }));
    assert_eq!(story.machine.restored().error, "damaged");

    assert_eq!(story.goal(restore).did(), [Action::CheckSnapshot(name())]);
    story.happens(Input::Handled(Handled::Checked(Ok(()))));
    assert_eq!(story.did(), [Action::Kill]);
    assert_eq!(story.exits(ExitKind::Killed).did(), [back()]);
    let end = story.machine.end().unwrap();
    assert_eq!(end.cause, Cause::Stopped);
    assert_eq!(end.detail, "it goes back to a snapshot; killed");
    story
        .happens(Input::Prepared(Ok(())))
        .happens(Input::Launched(Ok(Launch::Snapshot)));
    assert_eq!(
        story.machine.restored().generation,
        1,
        "its guest is silent"
    );
    let boot_id = "boot-1".to_owned();
    story.says_hello(&boot_id).did();
    assert_eq!(story.machine.restored().error, "");
    assert_eq!(story.machine.restored().generation, 2);
    assert_eq!(story.goal(|_| {}).did(), [], "it happens once");
}

/// Prepares for a start from the snapshot of [`restore`].
fn back() -> Action {
    Action::Prepare {
        fresh: false,
        cold: false,
        restore: Some("s1".parse().unwrap()),
    }
}

#[test]
fn a_snapshot_from_which_no_guest_comes_up_is_told_and_its_disk_is_booted() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    story.goal(restore);
    story.happens(Input::Handled(Handled::Checked(Ok(()))));
    story.exits(ExitKind::Killed);
    story
        .happens(Input::Prepared(Ok(())))
        .happens(Input::Launched(Ok(Launch::Snapshot)))
        .done
        .clear();
    story.exits(ExitKind::Refused);
    assert_eq!(
        story.told(),
        [
            Reason::VmmExited,
            Reason::RestoreFailed,
            Reason::VmRestarting
        ]
    );
    let restored = story.machine.restored();
    assert_eq!(restored.generation, 1);
    assert!(restored.error.contains("cannot be run"), "{restored:?}");
    assert_eq!(
        story.machine.state(),
        &State::Preparing {
            start: Start {
                recovery: true,
                ..Start::default()
            }
        }
    );
}

#[test]
fn a_guest_that_boots_is_not_waited_for_when_it_goes_back() {
    let mut story = Story::new();
    story.goal(|_| {}).happens(Input::Prepared(Ok(())));
    story.happens(Input::Launched(Ok(Launch::Boot))).did();
    assert_eq!(story.goal(restore).did(), [Action::Kill]);
    assert_eq!(story.exits(ExitKind::Killed).did(), [back()]);
}

#[test]
fn a_restart_does_not_wait_for_a_snapshot_and_not_for_nothing() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    story
        .goal(|wanted| wanted.snapshots.push(snapshot(1)))
        .did();
    let restart = |wanted: &mut Wanted| {
        wanted.restart_generation += 1;
        wanted.restart_scope = Scope::Vm;
    };
    assert_eq!(story.goal(restart).did(), [Action::OrderStop]);
    assert_eq!(story.exits(ExitKind::Stopped).did(), [KEEP]);
    assert!(
        story
            .becomes_ready()
            .did()
            .contains(&Action::TakeSnapshot(snapshot(1)))
    );
    story.happens(Input::Handled(Handled::Snapshot(Ok(taken()))));
    story
        .happens(Input::Handled(Handled::Resumed(Ok(()))))
        .did();

    // One that is paused is restarted when it is resumed.
    story.goal(|wanted| wanted.presence = Presence::Pause);
    story.happens(Input::Handled(Handled::Paused(Ok(())))).did();
    assert_eq!(story.goal(restart).did(), []);
    let go_on = story.goal(|wanted| wanted.presence = Presence::Run);
    assert_eq!(go_on.did(), [Action::OrderStop]);
}

#[test]
fn a_restore_waits_while_its_machine_is_paused_and_another_restart_takes_its_place() {
    let mut story = Story::new();
    story.goal(|_| {}).becomes_ready().did();
    story.goal(restore).did();
    story.goal(|wanted| wanted.presence = Presence::Pause);
    story.happens(Input::Handled(Handled::Checked(Ok(()))));
    assert_eq!(story.did(), [Action::Pause]);
    story.happens(Input::Handled(Handled::Paused(Ok(())))).did();
    let go_on = story.goal(|wanted| wanted.presence = Presence::Run);
    assert!(matches!(go_on.did()[..], [Action::CheckSnapshot(_)]));

    let restart = story.goal(|wanted| {
        wanted.restart_generation += 1;
        wanted.restart_scope = Scope::Reimage;
    });
    assert_eq!(restart.did(), [Action::OrderStop]);
    assert_eq!(story.exits(ExitKind::Stopped).did(), [FRESH]);
    assert!(story.machine.restored().error.contains("another restart"));
}

#[derive(Debug, Clone)]
enum Move {
    Goal(Presence, u64, u8, bool),
    Keep(u8),
    Handled(bool),
    Prepared(bool, bool),
    Launched(bool, Launch),
    Exited(u8),
    Hello,
    Heartbeat,
    Gone,
    Goodbye(bool),
    Role(u8, u32),
    Wait(u64),
    Resume(bool),
}

fn launches() -> impl Strategy<Value = Launch> {
    prop_oneof![
        Just(Launch::Boot),
        Just(Launch::Template),
        Just(Launch::Booted)
    ]
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let presence = prop_oneof![
        3 => Just(Presence::Run), 2 => Just(Presence::Pause), 1 => Just(Presence::Stop),
        1 => Just(Presence::Remove)
    ];
    prop::collection::vec(
        prop_oneof![
            (presence, 0u64..4, 0u8..3, any::<bool>())
                .prop_map(|(p, generation, disk, on)| Move::Goal(p, generation, disk, on)),
            (0u8..5).prop_map(Move::Keep),
            any::<bool>().prop_map(Move::Handled),
            any::<bool>().prop_map(Move::Handled),
            (any::<bool>(), any::<bool>()).prop_map(|(ok, passes)| Move::Prepared(ok, passes)),
            (any::<bool>(), launches()).prop_map(|(ok, launch)| Move::Launched(ok, launch)),
            (0u8..5).prop_map(Move::Exited),
            Just(Move::Hello),
            Just(Move::Heartbeat),
            Just(Move::Gone),
            any::<bool>().prop_map(Move::Goodbye),
            (0u8..5, 0u32..7).prop_map(|(condition, failures)| Move::Role(condition, failures)),
            (0u64..100_000).prop_map(Move::Wait),
            any::<bool>().prop_map(Move::Resume),
        ],
        0..120,
    )
}

/// The world around a machine, as far as it matters: whether there is a VM.
#[derive(Default)]
struct World {
    preparing: bool,
    launching: bool,
    vm: bool,
    /// What has been asked of the machine last, and waits for an answer.
    handling: Option<Action>,
    removed: bool,
}

impl World {
    fn carry_out(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Prepare { .. } => {
                    assert!(!self.vm, "a disk is made while a machine uses it");
                    self.preparing = true;
                }
                Action::Launch => {
                    assert!(!self.vm, "two machines at once");
                    self.launching = true;
                }
                Action::Remove => {
                    assert!(!self.vm, "removed while it runs");
                    self.removed = true;
                }
                Action::PressPowerButton | Action::OrderStop | Action::Kill => {
                    assert!(self.vm, "nothing to stop");
                }
                Action::Pause
                | Action::Resume
                | Action::Reset
                | Action::TakeSnapshot(_)
                | Action::CheckSnapshot(_) => {
                    assert!(self.vm, "nothing to do it to");
                    self.handling = Some(action.clone());
                }
                Action::Tell(_) | Action::RefuseTemplate { .. } | Action::DeleteSnapshot(_) => {}
            }
        }
    }
}

proptest! {
    /// Whatever happens in whatever order: never two machines at once, no disk
    /// made or removed under a running one, a record that can be read again, and
    /// what the goal stops is not started until the goal says so.
    #[test]
    fn nothing_ever_starts_twice_or_against_the_goal(moves in moves()) {
        let mut story = Story::new();
        let mut world = World::default();
        story.goal(|_| {});
        world.carry_out(&std::mem::take(&mut story.done));
        for one in moves {
            match one {
                Move::Goal(presence, generation, disk, always_on) if !world.removed => {
                    story.goal(|wanted| {
                        wanted.presence = presence;
                        wanted.restart_generation += generation / 2;
                        wanted.restart_scope = Scope::Reimage;
                        wanted.disk = format!("image-{disk}");
                        wanted.always_on = always_on;
                    });
                }
                Move::Keep(what) if !world.removed => {
                    story.goal(|wanted| match what {
                        0 => wanted.snapshots.clear(),
                        1 | 2 => {
                            let next = wanted.snapshots.last().map_or(1, |one| one.generation + 1);
                            wanted.snapshots.push(snapshot(next));
                        }
                        3 => reset(wanted),
                        _ => {
                            wanted.restart_generation += 1;
                            wanted.restart_scope = Scope::Restore;
                            wanted.restore = Some("s1".parse().unwrap());
                        }
                    });
                }
                Move::Handled(ok)
                    if matches!(story.machine.state(), State::Handling { .. }) =>
                {
                    let done = ok.then_some(()).ok_or("no".to_owned());
                    let asked = world.handling.take();
                    prop_assert!(asked.is_some(), "waits for nothing");
                    story.happens(Input::Handled(match asked {
                        Some(Action::Resume) => Handled::Resumed(done),
                        Some(Action::TakeSnapshot(_)) => {
                            Handled::Snapshot(done.map(|()| taken()))
                        }
                        Some(Action::CheckSnapshot(_)) => Handled::Checked(done),
                        Some(Action::Reset) => Handled::Reset(done),
                        _ => Handled::Paused(done),
                    }));
                }
                Move::Prepared(ok, may_pass)
                    if world.preparing
                        && matches!(story.machine.state(), State::Preparing { .. }) =>
                {
                    world.preparing = false;
                    let unprepared = Unprepared { reason: "no".to_owned(), may_pass };
                    story.happens(Input::Prepared(ok.then_some(()).ok_or(unprepared)));
                }
                Move::Launched(ok, launch) if world.launching => {
                    world.launching = false;
                    world.vm = ok;
                    story.happens(Input::Launched(ok.then_some(launch).ok_or("no".to_owned())));
                }
                Move::Exited(kind) if world.vm => {
                    world.vm = false;
                    story.exits(match kind {
                        0 => ExitKind::GuestPowerOff,
                        1 => ExitKind::GuestReset,
                        2 => ExitKind::KernelPanic,
                        3 => ExitKind::Stopped,
                        _ => ExitKind::Failed,
                    });
                }
                Move::Hello if world.vm => {
                    story.says_hello("x");
                }
                Move::Heartbeat if world.vm => { story.hears(GuestSaid::Heartbeat); }
                Move::Gone if world.vm => { story.hears(GuestSaid::Gone); }
                Move::Goodbye(reboot) if world.vm => {
                    story.hears(GuestSaid::Goodbye { reboot });
                }
                Move::Role(condition, failures) if world.vm => {
                    story.role(match condition {
                        0 => RoleCondition::Starting,
                        1 => RoleCondition::Ready,
                        2 => RoleCondition::Busy,
                        3 => RoleCondition::Unhealthy,
                        _ => RoleCondition::Stopped,
                    }, failures);
                }
                Move::Wait(milliseconds) => {
                    story.now += Duration::from_millis(milliseconds);
                    story.happens(TICK);
                }
                Move::Resume(same_boot) if !world.launching && !world.removed => {
                    let record = serde_json::to_string(&story.machine).unwrap();
                    story.machine = serde_json::from_str(&record).unwrap();
                    world.vm &= same_boot;
                    world.preparing = false;
                    world.handling = None;
                    let limits = story.limits.clone();
                    let actions = story.machine.resume(story.now, world.vm, same_boot, &limits);
                    story.done.extend(actions);
                    if !world.vm && story.machine.has_vm() {
                        story.exits(ExitKind::Failed);
                    }
                }
                _ => {}
            }
            let actions = std::mem::take(&mut story.done);
            world.carry_out(&actions);
            prop_assert_eq!(world.vm, story.machine.has_vm());
            if story.wanted.presence != Presence::Run {
                prop_assert!(!actions.iter().any(|action| matches!(
                    action,
                    Action::Prepare { .. } | Action::Launch | Action::Resume
                )), "started against the goal: {:?}", actions);
            }
            prop_assert_eq!(world.removed, *story.machine.state() == State::Removed);
            if story.wanted.presence == Presence::Run {
                prop_assert!(*story.machine.state() != State::Paused, "left standing still");
            }
        }
    }

    /// A machine that is wanted and does not run always has something coming:
    /// work in progress, or a time at which it goes on.
    #[test]
    fn nothing_is_ever_forgotten(moves in moves()) {
        let mut story = Story::new();
        story.goal(|_| {});
        for one in moves {
            match one {
                Move::Prepared(ok, may_pass) => {
                    let unprepared = Unprepared { reason: "no".to_owned(), may_pass };
                    story.happens(Input::Prepared(ok.then_some(()).ok_or(unprepared)));
                }
                Move::Launched(ok, launch) => {
                    story.happens(Input::Launched(ok.then_some(launch).ok_or("no".to_owned())));
                }
                Move::Exited(_) => { story.exits(ExitKind::Failed); }
                Move::Hello => { story.says_hello("x"); }
                Move::Wait(_) if story.machine.deadline(&story.limits).is_some() => {
                    story.waits();
                }
                _ => {}
            }
            let working = matches!(
                story.machine.state(),
                State::Preparing { .. } | State::Launching
            );
            prop_assert!(working || story.machine.deadline(&story.limits).is_some());
        }
    }
}
