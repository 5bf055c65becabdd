//! A role's process while it runs: what its two probes amount to together, and
//! whether it has been ready for long enough. Pure, like `policy`, of which it is
//! a part.

use super::{
    gauge::{Gauge, Verdict},
    policy::{Moment, State},
};
use crate::model::{ProbeKind, ProbeSpec, RoleSpec};

/// What is known of a process that runs.
#[derive(Debug)]
pub struct Running {
    started: Moment,
    liveness: Option<Gauge>,
    readiness: Option<Gauge>,
    /// Whether it has been ready at all: its start-up is over then.
    was_ready: bool,
    /// Since when it has been ready without a break.
    ready_since: Option<Moment>,
}

impl Running {
    /// A process that has started now, with these probes.
    pub fn new(now: Moment, liveness: Option<ProbeSpec>, readiness: Option<ProbeSpec>) -> Self {
        Self {
            started: now,
            liveness: liveness.map(|spec| Gauge::new(spec, now)),
            readiness: readiness.map(|spec| Gauge::new(spec, now)),
            was_ready: false,
            ready_since: None,
        }
    }

    /// A process that goes on now, after it was ready once: it is checked at once.
    pub fn warm(now: Moment, liveness: Option<ProbeSpec>, readiness: Option<ProbeSpec>) -> Self {
        let at_once = |spec| Gauge::at_once(spec, now);
        Self {
            liveness: liveness.map(at_once),
            readiness: readiness.map(at_once),
            ..Self::new(now, None, None)
        }
    }

    /// Failures of a probe do not count while the role starts up, as far as that probe can
    /// tell: until it has been ready, and been live, and no longer than its grace.
    fn is_starting_up(&self, spec: &RoleSpec, kind: ProbeKind, now: Moment) -> bool {
        let started =
            self.was_ready && (kind == ProbeKind::Readiness || self.is_through_liveness());
        !started && now < self.started.saturating_add(spec.startup_grace)
    }

    /// Whether its liveness has been checked often enough to tell, if it is checked.
    pub fn is_through_liveness(&self) -> bool {
        let known = |gauge: &Gauge| gauge.verdict() != Verdict::Unknown;
        self.liveness.as_ref().is_none_or(known)
    }

    /// Takes over probes that have changed, without forgetting what was known.
    pub fn adopt(&mut self, spec: &RoleSpec, now: Moment) {
        let change = |gauge: &mut Option<Gauge>, wanted: &Option<ProbeSpec>| {
            if gauge.as_ref().map(Gauge::spec) != wanted.as_ref() {
                let verdict = gauge.as_ref().map_or(Verdict::Passing, Gauge::verdict);
                *gauge = wanted.clone().map(|spec| Gauge::resume(spec, now, verdict));
            }
        };
        change(&mut self.liveness, &spec.liveness);
        change(&mut self.readiness, &spec.readiness);
    }

    /// The process has shown a sign of life.
    pub fn hurry(&mut self, now: Moment) {
        for gauge in [&mut self.liveness, &mut self.readiness] {
            gauge.iter_mut().for_each(|gauge| gauge.hurry(now));
        }
    }

    /// From when on liveness is checked. What starts up is asked one thing at a time: a
    /// failed liveness says nothing then, and each check takes time from the start-up.
    fn liveness_from(&self, spec: &RoleSpec) -> Moment {
        let unready = |gauge: &Gauge| gauge.verdict() == Verdict::Unknown;
        if !self.was_ready && self.readiness.as_ref().is_some_and(unready) {
            self.started.saturating_add(spec.startup_grace)
        } else {
            self.started
        }
    }

    /// The checks to start now, which are taken to have started.
    pub fn due(
        &mut self,
        spec: &RoleSpec,
        now: Moment,
    ) -> impl Iterator<Item = (ProbeKind, ProbeSpec)> {
        let liveness_from = self.liveness_from(spec);
        let gauges = [
            (ProbeKind::Liveness, liveness_from, &mut self.liveness),
            (ProbeKind::Readiness, self.started, &mut self.readiness),
        ];
        gauges.into_iter().filter_map(move |(kind, from, gauge)| {
            let gauge = gauge.as_mut()?;
            let due = from <= now && gauge.begin(now);
            due.then(|| (kind, gauge.spec().clone()))
        })
    }

    /// Takes the result of a check.
    pub fn record(
        &mut self,
        spec: &RoleSpec,
        kind: ProbeKind,
        outcome: Result<(), String>,
        now: Moment,
    ) {
        let starting = self.is_starting_up(spec, kind, now);
        let gauge = match kind {
            ProbeKind::Liveness => &mut self.liveness,
            ProbeKind::Readiness => &mut self.readiness,
        };
        if let Some(gauge) = gauge {
            gauge.record(outcome, now, starting);
        }
    }

    /// Why it is not live, if it is not.
    pub fn not_live(&self) -> Option<String> {
        let gauge = self.liveness.as_ref()?;
        (gauge.verdict() == Verdict::Failing)
            .then(|| format!("not live: the probe {}", gauge.failure()))
    }

    /// How it is, given that it is not dead.
    pub fn health(&mut self, now: Moment) -> (State, String) {
        let (state, reason) = self.look();
        if state == State::Ready {
            if !self.was_ready {
                // Whoever waits for it hears of it before it is asked the next thing.
                self.liveness
                    .iter_mut()
                    .for_each(|gauge| gauge.put_off(now));
            }
            self.was_ready = true;
            self.ready_since.get_or_insert(now);
        } else {
            self.ready_since = None;
        }
        (state, reason)
    }

    /// Readiness alone says that it is ready, and liveness only where nothing else does.
    fn look(&self) -> (State, String) {
        let starting = || (State::Starting, String::new());
        match &self.readiness {
            None if !self.is_through_liveness() => starting(),
            None => (State::Ready, String::new()),
            Some(gauge) => match gauge.verdict() {
                Verdict::Passing => (State::Ready, String::new()),
                Verdict::Failing if self.was_ready || self.is_through_liveness() => (
                    State::Busy,
                    format!("not ready: the probe {}", gauge.failure()),
                ),
                Verdict::Unknown | Verdict::Failing => starting(),
            },
        }
    }

    /// When earlier failures are forgiven: once it has stayed ready for the longest
    /// back-off, and been found live.
    fn forgiven_at(&self, spec: &RoleSpec) -> Option<Moment> {
        let live = |gauge: &Gauge| gauge.verdict() == Verdict::Passing;
        let live = self.liveness.as_ref().is_none_or(live);
        let since = self.ready_since.filter(|_| live)?;
        Some(since.saturating_add(spec.restart.backoff_max))
    }

    /// Forgives earlier failures when it is time to.
    pub fn forgive(&self, spec: &RoleSpec, failures: &mut u32, now: Moment) {
        if self.forgiven_at(spec).is_some_and(|at| at <= now) {
            *failures = 0;
        }
    }

    /// When something is due, by itself.
    pub fn deadline(&self, spec: &RoleSpec, failures: u32) -> Option<Moment> {
        let liveness = self.liveness.as_ref().and_then(Gauge::deadline);
        let liveness = liveness.map(|at| at.max(self.liveness_from(spec)));
        let readiness = self.readiness.as_ref().and_then(Gauge::deadline);
        let forgiven = self.forgiven_at(spec).filter(|_| failures > 0);
        [liveness, readiness, forgiven].into_iter().flatten().min()
    }
}
