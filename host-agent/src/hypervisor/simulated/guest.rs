//! One guest: how it boots, runs its role, talks to its host agent, and goes wrong.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use fabric_proto::guest::v1::RoleSpec;
use fastrand::Rng;
use tokio::sync::watch;

use super::{Seen, Temper};
use crate::{
    clock,
    guest::{
        report::{RoleCondition, RoleEnd, RoleEndHow, RoleReport},
        server::{GuestGoal, GuestLink, Heard},
    },
    hypervisor::VmRecord,
    instance::state::{Exit, ExitKind, GuestSaid},
};

/// Where a guest's calls are taken.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) number: u64,
    pub(super) link: GuestLink,
}

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) record: VmRecord,
    pub(super) seen: Seen,
    pub(super) state: State,
    pub(super) is_paused: bool,
    /// When it ends, and how.
    pub(super) ending: Option<(Duration, ExitKind)>,
    pub(super) mishap_at: Option<Duration>,
    pub(super) session: Option<Session>,
    pub(super) call_at: Duration,
    pub(super) boot_id: String,
    pub(super) role: Option<Role>,
    pub(super) end: watch::Sender<Option<Exit>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Booting { until: Duration, well: bool },
    Up,
    Hung,
}

/// A guest's talk with its host agent.
#[derive(Debug)]
pub(super) struct Session {
    number: u64,
    boot: u32,
    /// What it was told; nothing while that is withheld.
    goal: Option<GuestGoal>,
    /// None before there was a goal.
    heartbeat_at: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Role {
    pub(super) spec: Arc<RoleSpec>,
    pub(super) condition: RoleCondition,
    /// When it becomes what comes next.
    pub(super) next_at: Option<Duration>,
    pub(super) restarts: u32,
    pub(super) failures: u32,
    pub(super) told: bool,
}

pub(super) fn draw(rng: &mut Rng, range: &Range<Duration>) -> Duration {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(rng.u64(millis(range.start)..=millis(range.end)))
}

/// When something next goes wrong that does so every `mean` on average.
fn mishap(rng: &mut Rng, now: Duration, mean: Duration) -> Duration {
    now + mean.mul_f64(-(1.0 - rng.f64()).ln())
}

impl Guest {
    /// Lives until `now`.
    pub(super) fn live(
        &mut self,
        now: Duration,
        link: Option<&mut Link>,
        temper: &Temper,
        rng: &mut Rng,
        mishaps: &mut BTreeMap<&'static str, u64>,
    ) {
        match self.state {
            State::Hung => return,
            State::Booting { until, .. } if now < until => return,
            State::Booting { well, .. } => {
                if !well {
                    self.ending = Some((now, ExitKind::KernelPanic));
                    return;
                }
                self.state = State::Up;
                self.call_at = now;
                self.mishap_at = temper.well_for.map(|mean| mishap(rng, now, mean));
            }
            State::Up => {}
        }
        if let (Some(at), Some(mean)) = (self.mishap_at, temper.well_for)
            && now >= at
        {
            self.mishap_at = Some(mishap(rng, now, mean));
            self.go_wrong(now, rng, mishaps);
        }
        self.run_role(now, temper, rng);
        self.talk(now, link, temper, rng);
    }

    fn go_wrong(
        &mut self,
        now: Duration,
        rng: &mut Rng,
        mishaps: &mut BTreeMap<&'static str, u64>,
    ) {
        let what = match rng.u32(0..4) {
            0 => {
                self.state = State::Hung;
                "guest_hung"
            }
            1 => {
                self.ending = Some((now, ExitKind::KernelPanic));
                "guest_panicked"
            }
            2 => {
                self.ending = Some((now, ExitKind::Killed));
                "vmm_killed"
            }
            _ => {
                let Some(role) = &mut self.role else { return };
                role.become_now(
                    RoleCondition::Unhealthy,
                    Some(now + Duration::from_millis(200)),
                );
                role.failures += 1;
                "role_ended"
            }
        };
        *mishaps.entry(what).or_default() += 1;
    }

    fn run_role(&mut self, now: Duration, temper: &Temper, rng: &mut Rng) {
        let Some(role) = &mut self.role else { return };
        if role.next_at.is_none_or(|at| now < at) {
            return;
        }
        match role.condition {
            RoleCondition::Starting => {
                role.become_now(RoleCondition::Ready, None);
                role.failures = 0;
            }
            _ => {
                let ready_at = now + draw(rng, &temper.role);
                role.become_now(RoleCondition::Starting, Some(ready_at));
                role.restarts += 1;
            }
        }
    }

    /// Says hello where somebody listens, does what it is told, and says how it is.
    fn talk(&mut self, now: Duration, link: Option<&mut Link>, temper: &Temper, rng: &mut Rng) {
        let Some(link) = link.filter(|link| !link.link.heard.is_closed()) else {
            self.session = None;
            return;
        };
        if self
            .session
            .as_ref()
            .is_some_and(|one| one.number != link.number)
        {
            // Whoever listened there is gone, and it calls again in its own time.
            self.session = None;
            self.call_at = now + draw(rng, &(Duration::from_millis(20)..Duration::from_secs(1)));
        }
        if self.session.is_none() {
            if now < self.call_at || !self.call(now, link) {
                return;
            }
        } else if link.link.goal.has_changed().unwrap_or(false) {
            let goal = link.link.goal.borrow_and_update().clone();
            self.hear(now, goal);
        }
        self.follow(now, link, temper, rng);
        self.report(now, link);
    }

    fn call(&mut self, now: Duration, link: &mut Link) -> bool {
        let Some(goal) = link.link.goal.borrow_and_update().clone() else {
            return false;
        };
        let hello = GuestSaid::Hello {
            boot_id: self.boot_id.clone(),
        };
        if !say(link, goal.boot, hello) {
            return false;
        }
        if let Some(role) = &mut self.role {
            role.told = false;
        }
        self.session = Some(Session {
            number: link.number,
            boot: goal.boot,
            heartbeat_at: None,
            goal: None,
        });
        self.hear(now, Some(goal));
        true
    }

    /// Is told a goal, unless that is withheld.
    fn hear(&mut self, now: Duration, goal: Option<GuestGoal>) {
        let goal = goal.filter(|goal| !goal.withheld);
        if let (Some(session), Some(goal)) = (&mut self.session, goal) {
            session.heartbeat_at.get_or_insert(now + goal.heartbeat);
            session.goal = Some(goal);
        }
    }

    /// Does what the goal says.
    fn follow(&mut self, now: Duration, link: &Link, temper: &Temper, rng: &mut Rng) {
        let Some(session) = &self.session else { return };
        let Some(goal) = &session.goal else { return };
        if goal.off {
            if self.ending.is_none() {
                let at = now + draw(rng, &temper.end);
                self.ending = Some((at, ExitKind::GuestPowerOff));
                say(link, session.boot, GuestSaid::Goodbye { reboot: false });
            }
            return;
        }
        let Some(spec) = &goal.role else {
            return;
        };
        match &mut self.role {
            Some(role) if role.runs(spec) => {
                if role.spec != *spec {
                    // It is told, and goes on.
                    role.spec = Arc::clone(spec);
                    role.told = false;
                }
            }
            old => {
                let restarts = old.as_ref().map_or(0, |old| old.restarts);
                *old = Some(Role {
                    spec: Arc::clone(spec),
                    condition: RoleCondition::Starting,
                    next_at: Some(now + draw(rng, &temper.role)),
                    restarts,
                    failures: 0,
                    told: false,
                });
            }
        }
    }

    fn report(&mut self, now: Duration, link: &Link) {
        let Some(session) = &mut self.session else {
            return;
        };
        if let Some(role) = self.role.as_mut().filter(|role| !role.told) {
            role.told = say(link, session.boot, GuestSaid::Role(role.report()));
        }
        if let (Some(at), Some(goal)) = (session.heartbeat_at, &session.goal)
            && now >= at
            && say(link, session.boot, GuestSaid::Heartbeat)
        {
            session.heartbeat_at = Some(now + goal.heartbeat);
        }
    }
}

/// Whether it could be said: one that is not listened to says it later.
fn say(link: &Link, boot: u32, said: GuestSaid) -> bool {
    link.link.heard.try_send(Heard { boot, said }).is_ok()
}

impl Role {
    /// Whether its process is one of that role.
    fn runs(&self, spec: &RoleSpec) -> bool {
        self.spec.name == spec.name
            && self.spec.command == spec.command
            && self.spec.environment == spec.environment
            && self.spec.restart_generation >= spec.restart_generation
    }

    fn become_now(&mut self, condition: RoleCondition, next_at: Option<Duration>) {
        self.condition = condition;
        self.next_at = next_at;
        self.told = false;
    }

    fn report(&self) -> RoleReport {
        let failed = self.condition == RoleCondition::Unhealthy;
        RoleReport {
            role: self.spec.name.clone(),
            condition: self.condition,
            reason: String::new(),
            since: Some(clock::wall_time()),
            pid: 100 + self.restarts,
            restarts: self.restarts,
            last_exit: failed.then_some(RoleEnd {
                how: RoleEndHow::Code(1),
                by_agent: false,
            }),
            restart_generation: self.spec.restart_generation,
            consecutive_failures: self.failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::{clock::Clock, output::role_log::RoleLog};

    fn goal(withheld: bool) -> GuestGoal {
        let spec = RoleSpec {
            name: "web".to_owned(),
            ..RoleSpec::default()
        };
        GuestGoal {
            boot: 1,
            resumes: 0,
            incarnation: 1,
            instance: "shop-web-0".parse().ok(),
            heartbeat: Duration::from_secs(1),
            off: false,
            role: Some(Arc::new(spec)),
            withheld,
        }
    }

    /// A guest that is up, and has yet to call.
    fn guest() -> Guest {
        let seen = Seen {
            instance: "shop-web-0".to_owned(),
            epoch: 1,
            number: 1,
            ready: None,
        };
        let record = VmRecord {
            pid: 1,
            started: 1,
            host_boot_id: "boot".to_owned(),
        };
        Guest {
            record,
            seen,
            state: State::Up,
            is_paused: false,
            ending: None,
            mishap_at: None,
            session: None,
            call_at: Duration::ZERO,
            boot_id: "boot-1".to_owned(),
            role: None,
            end: watch::Sender::new(None),
        }
    }

    #[test]
    fn a_guest_whose_goal_is_withheld_says_hello_and_rests_until_it_is_told() {
        let (goals, goal_of) = watch::channel(Some(goal(true)));
        let (heard, mut said) = mpsc::channel(64);
        let folder = tempfile::tempdir().unwrap();
        let link = GuestLink {
            goal: goal_of,
            heard,
            log: Arc::new(RoleLog::open(&folder.path().join("log")).unwrap()),
            clock: Clock::system(),
        };
        let mut link = Link { number: 1, link };
        let mut guest = guest();
        let mut rng = Rng::with_seed(1);
        let mut live = |guest: &mut Guest, link: &mut Link, second: u64| {
            let (now, nothing) = (Duration::from_secs(second), &mut BTreeMap::new());
            guest.live(now, Some(link), &Temper::EVEN, &mut rng, nothing);
        };
        for second in 0..30 {
            live(&mut guest, &mut link, second);
        }
        let hello = said.try_recv().map(|heard| heard.said);
        assert!(matches!(hello, Ok(GuestSaid::Hello { .. })), "{hello:?}");
        assert!(said.try_recv().is_err(), "it has nothing to beat for");
        assert!(guest.role.is_none());

        goals.send_replace(Some(goal(false)));
        for second in 30..40 {
            live(&mut guest, &mut link, second);
        }
        let role = guest.role.as_ref().map(|role| role.condition);
        assert!(matches!(role, Some(RoleCondition::Ready)), "{role:?}");
        let rest: Vec<_> = std::iter::from_fn(|| said.try_recv().ok()).collect();
        let beats = |one: &Heard| matches!(one.said, GuestSaid::Heartbeat);
        assert!(rest.iter().any(beats), "{rest:?}");

        // What it was told it goes on with, whatever is withheld later.
        goals.send_replace(Some(GuestGoal {
            off: true,
            ..goal(true)
        }));
        live(&mut guest, &mut link, 41);
        assert!(guest.ending.is_none());
    }
}
