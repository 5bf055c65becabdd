//! How an instance failed and came back, out of the events about it.
//!
//! Pure. Each event names what led to it by reason and subject ([`EventCause`]); here
//! that becomes one event, the newest such before it. A [`Failure`] is what happened from
//! the first sign of trouble until the role was Ready again, with what led to it from
//! elsewhere: the node that was lost, say.
//!
//! Events are in the order of their times, except that none is before its cause: clocks
//! of machines differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use fabric_proto::v1::{Event, EventCause};

/// Who says what the controller says.
const CONTROLLER: &str = "controller";
/// The event with which all is well again.
const READY: &str = "RoleReady";
/// The event after which there is no instance any more, if the controller says so.
const REMOVED: &str = "InstanceRemoved";
/// Warnings that are not about whether the instance works.
const NO_FAILURES: [&str; 5] = [
    "PauseFailed",
    "SnapshotFailed",
    "RestoreFailed",
    "TemplateFailed",
    "TemplateRefused",
];
/// Longest chain of causes that is followed.
const LONGEST_CHAIN: usize = 32;

/// How a failure has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The role was Ready again.
    Recovered,
    /// The instance was removed.
    Removed,
    /// It has not, as far as is known.
    Open,
}

/// A failure, from its first sign.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What happened, in order.
    pub lines: Vec<Line>,
    /// How it has ended.
    pub ending: Ending,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// It.
    pub event: Event,
    /// Which line led to it, by its number in the failure, from 0.
    pub cause: Option<usize>,
    /// How long after the line before.
    pub after: Duration,
}

impl Failure {
    /// From its first sign to its last line.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.lines.iter().map(|line| line.after).sum()
    }
}

/// The failures of an instance, oldest first. `events` are those about it and about
/// what may have led to them, in any order.
#[must_use]
pub fn failures(instance: &str, events: &[Event]) -> Vec<Failure> {
    let told = Told::new(events);
    let mut own: Vec<u64> = told.events.keys().copied().collect();
    own.retain(|cursor| {
        let event = told.events[cursor];
        event.subject_kind == "instance" && event.subject == instance
    });
    own.sort_by_key(|cursor| told.order(*cursor));
    let mut failures = Vec::new();
    let mut open: Option<BTreeSet<u64>> = None;
    // What was over before is not told again.
    let mut over: BTreeSet<u64> = BTreeSet::new();
    for cursor in own {
        let event = told.events[&cursor];
        let fails = event.warning && !NO_FAILURES.contains(&event.reason.as_str());
        if open.is_none() && fails {
            open = Some(BTreeSet::new());
        }
        let Some(lines) = &mut open else {
            over.insert(cursor);
            continue;
        };
        lines.insert(cursor);
        lines.extend(told.causes(cursor, &over));
        let ending = match event.reason.as_str() {
            READY => Ending::Recovered,
            REMOVED if event.source == CONTROLLER => Ending::Removed,
            _ => continue,
        };
        over.extend(lines.iter());
        failures.push(told.failure(lines, ending));
        open = None;
    }
    failures.extend(open.map(|lines| told.failure(&lines, Ending::Open)));
    failures
}

/// All events, and what led to each.
struct Told<'a> {
    events: BTreeMap<u64, &'a Event>,
    causes: BTreeMap<u64, u64>,
    times: BTreeMap<u64, SystemTime>,
}

impl<'a> Told<'a> {
    fn new(events: &'a [Event]) -> Self {
        let events: BTreeMap<u64, _> = events.iter().map(|one| (one.cursor, one)).collect();
        let mut told = Self {
            events: BTreeMap::new(),
            causes: BTreeMap::new(),
            times: BTreeMap::new(),
        };
        let mut newest: BTreeMap<(&str, &str, &str, &str), u64> = BTreeMap::new();
        for (cursor, event) in events {
            let cause = event.cause.as_ref().and_then(|cause| {
                let EventCause {
                    reason,
                    subject_kind,
                    subject,
                } = cause;
                // A node knows what it has told itself, and what the controller has.
                let by = |source| {
                    newest
                        .get(&(reason, subject_kind, subject, source))
                        .copied()
                };
                by(event.source.as_str()).max(by(CONTROLLER))
            });
            let time = event.time.and_then(|time| SystemTime::try_from(time).ok());
            let mut time = time.unwrap_or(SystemTime::UNIX_EPOCH);
            if let Some(cause) = cause {
                time = time.max(told.times[&cause]);
                told.causes.insert(cursor, cause);
            }
            told.times.insert(cursor, time);
            told.events.insert(cursor, event);
            let Event {
                reason,
                subject_kind,
                subject,
                source,
                ..
            } = event;
            newest.insert((reason, subject_kind, subject, source), cursor);
        }
        told
    }

    fn order(&self, cursor: u64) -> (SystemTime, u64) {
        (self.times[&cursor], cursor)
    }

    /// What led to it, and what led to that.
    fn causes(&self, cursor: u64, over: &BTreeSet<u64>) -> Vec<u64> {
        let chain = std::iter::successors(Some(cursor), |one| self.causes.get(one).copied());
        chain
            .skip(1)
            .take(LONGEST_CHAIN)
            .take_while(|one| !over.contains(one))
            .collect()
    }

    fn failure(&self, cursors: &BTreeSet<u64>, ending: Ending) -> Failure {
        let mut ordered: Vec<u64> = cursors.iter().copied().collect();
        ordered.sort_by_key(|cursor| self.order(*cursor));
        let place = |cursor: &u64| ordered.iter().position(|one| one == cursor);
        let mut before = None;
        let lines = ordered.iter().map(|cursor| {
            let time = self.times[cursor];
            let after = before.map(|before| time.duration_since(before).unwrap_or_default());
            before = Some(time);
            Line {
                event: self.events[cursor].clone(),
                cause: self.causes.get(cursor).and_then(place),
                after: after.unwrap_or_default(),
            }
        });
        Failure {
            lines: lines.collect(),
            ending,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    struct Log(Vec<Event>);

    impl Log {
        /// An event of the instance, and the reason of what led to it.
        fn own(&mut self, source: &str, seconds: i64, reason: &str, cause: &str) {
            let cause = (!cause.is_empty()).then_some(("instance", "shop-web-0", cause));
            self.add(source, seconds, ("instance", "shop-web-0"), reason, cause);
        }

        fn add(
            &mut self,
            source: &str,
            seconds: i64,
            about: (&str, &str),
            reason: &str,
            cause: Option<(&str, &str, &str)>,
        ) {
            let warnings = [
                "VmmExited",
                "VmRestarting",
                "NodeLost",
                "NodeFenced",
                "InstanceFailedOver",
                "LeaseEnded",
                "SnapshotFailed",
            ];
            self.0.push(Event {
                cursor: self.0.len() as u64 + 1,
                time: Some(Timestamp { seconds, nanos: 0 }),
                reason: reason.to_owned(),
                warning: warnings.contains(&reason),
                subject_kind: about.0.to_owned(),
                subject: about.1.to_owned(),
                source: source.to_owned(),
                cause: cause.map(|(kind, subject, reason)| EventCause {
                    reason: reason.to_owned(),
                    subject_kind: kind.to_owned(),
                    subject: subject.to_owned(),
                }),
                ..Event::default()
            });
        }

        fn placed_and_ready(&mut self, node: &str, at: i64, why: &str) {
            self.own(CONTROLLER, at, "InstancePlaced", why);
            self.own(node, at + 1, "VmmStarted", "InstancePlaced");
            self.own(node, at + 2, "RoleReady", "VmmStarted");
        }

        fn failures(&self) -> Vec<Failure> {
            failures("shop-web-0", &self.0)
        }
    }

    fn reasons(failure: &Failure) -> Vec<&str> {
        let lines = failure.lines.iter();
        lines.map(|line| line.event.reason.as_str()).collect()
    }

    #[test]
    fn an_instance_that_never_failed_has_no_story() {
        let mut log = Log(Vec::new());
        log.placed_and_ready("n1", 0, "");
        log.own("n1", 10, "SnapshotFailed", "SnapshotRequested");
        assert_eq!(log.failures(), []);
        assert_eq!(failures("shop-web-0", &[]), []);
    }

    #[test]
    fn a_killed_machine_is_told_from_its_end_to_ready() {
        let mut log = Log(Vec::new());
        log.placed_and_ready("n1", 0, "");
        log.own("n1", 100, "VmmExited", "");
        log.own("n1", 100, "VmRestarting", "VmmExited");
        log.own("n1", 103, "VmmStarted", "VmRestarting");
        log.own("n1", 109, "RoleReady", "VmmStarted");
        log.own("n1", 200, "VmmExited", "");
        let all = log.failures();
        assert_eq!(all.len(), 2);
        let first = &all[0];
        assert_eq!(
            reasons(first),
            ["VmmExited", "VmRestarting", "VmmStarted", "RoleReady"]
        );
        let causes: Vec<_> = first.lines.iter().map(|line| line.cause).collect();
        assert_eq!(causes, [None, Some(0), Some(1), Some(2)]);
        assert_eq!(first.took(), Duration::from_secs(9));
        assert_eq!(first.ending, Ending::Recovered);
        assert_eq!(all[1].ending, Ending::Open);
    }

    #[test]
    fn a_move_to_another_node_begins_with_the_node_that_was_lost() {
        let mut log = Log(Vec::new());
        log.placed_and_ready("n1", 0, "");
        log.add(CONTROLLER, 110, ("node", "n1"), "NodeLost", None);
        let lost = Some(("node", "n1", "NodeLost"));
        log.add(CONTROLLER, 115, ("node", "n1"), "NodeFenced", lost);
        let fenced = Some(("node", "n1", "NodeFenced"));
        let own = ("instance", "shop-web-0");
        log.add(CONTROLLER, 115, own, "InstanceFailedOver", fenced);
        log.placed_and_ready("n2", 115, "InstanceFailedOver");
        // The node comes back, and tells what it did at the end of its lease.
        log.own("n1", 111, "LeaseEnded", "");
        log.own("n1", 112, "VmmExited", "LeaseEnded");
        let all = log.failures();
        assert_eq!(all.len(), 1);
        assert_eq!(
            reasons(&all[0]),
            [
                "NodeLost",
                "LeaseEnded",
                "VmmExited",
                "NodeFenced",
                "InstanceFailedOver",
                "InstancePlaced",
                "VmmStarted",
                "RoleReady"
            ]
        );
        let causes: Vec<_> = all[0].lines.iter().map(|line| line.cause).collect();
        assert_eq!(
            causes,
            [
                None,
                None,
                Some(1),
                Some(0),
                Some(3),
                Some(4),
                Some(5),
                Some(6)
            ]
        );
        assert_eq!(all[0].ending, Ending::Recovered);
    }

    #[test]
    fn no_effect_is_before_its_cause_whatever_the_clocks_say() {
        let mut log = Log(Vec::new());
        let own = ("instance", "shop-web-0");
        log.add(CONTROLLER, 100, own, "InstanceFailedOver", None);
        // The clock of n2 is a minute behind.
        log.own(CONTROLLER, 100, "InstancePlaced", "InstanceFailedOver");
        log.own("n2", 41, "VmmStarted", "InstancePlaced");
        log.own("n2", 42, "RoleReady", "VmmStarted");
        let all = log.failures();
        assert_eq!(
            reasons(&all[0]),
            [
                "InstanceFailedOver",
                "InstancePlaced",
                "VmmStarted",
                "RoleReady"
            ]
        );
        assert_eq!(all[0].ending, Ending::Recovered);
    }

    #[test]
    fn what_another_node_told_is_not_taken_for_the_cause() {
        let mut log = Log(Vec::new());
        log.own("n1", 10, "VmmExited", "");
        log.own("n2", 20, "VmRestarting", "VmmExited");
        assert_eq!(log.failures()[0].lines[1].cause, None);
    }

    #[test]
    fn an_instance_that_is_removed_has_not_recovered() {
        let mut log = Log(Vec::new());
        log.own("n1", 10, "VmmExited", "");
        log.own("n1", 11, "InstanceRemoved", "");
        log.own(CONTROLLER, 12, "InstanceRemoved", "");
        log.placed_and_ready("n1", 20, "");
        let all = log.failures();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].ending, Ending::Removed);
        assert_eq!(all[0].lines.len(), 3);
    }
}
