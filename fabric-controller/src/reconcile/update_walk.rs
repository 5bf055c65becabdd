//! What an update does next. Pure: from how far it is, how its instances are, what
//! the policy says and what time it is, to whom to change now.
//!
//! An update goes by upgrade domain, all of its roles in step. A domain is through
//! when every instance in it has what it should and has been `Ready` for the bake
//! time, as the controller saw it. For each role:
//!
//! - An instance that is up is changed only while nothing is down in any *other*
//!   domain of its role, for whatever reason. So the update itself never takes a
//!   second domain down, and an accident elsewhere makes it wait.
//! - A domain in which something is down already goes first: it loses the least, and
//!   often the new version is what mends it. What is down there may be changed even
//!   while other domains are down too, as when a bad version is everywhere. Where all is
//!   well in the current domain but for what may not be taken down, what is down elsewhere
//!   is changed at once: it would hold the update up for good.
//! - An instance that has no node is not running: it is given the new spec at once, and
//!   the update waits until it has a place.
//! - One that nothing is known of, or that an operator has paused or stopped, is not touched;
//!   it counts as down, but never as a failure of the version.
//!
//! An update fails when an instance that it has changed is `Failed`, or not `Ready` in
//! time: counted from its change in the current domain, and in a domain that was
//! through already from when that was seen.

use std::collections::BTreeSet;

use fabric_proto::id::{InstanceId, RoleName};

use crate::model::{
    time::WallTime,
    update::{Current, Update, UpdatePolicy, UpdateState},
};

/// How an instance is, as what it is to be now and not as what it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It is usable.
    Ready,
    /// It is not, and that may be its version's fault; how it is.
    Down(String),
    /// Its node has given it up; why.
    Failed(String),
    /// It has no node.
    Homeless,
    /// Nothing can be said about its version; why.
    Unseen(String),
}

/// An instance, as the walk sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: InstanceId,
    /// Its role.
    pub role: RoleName,
    /// Its upgrade domain.
    pub domain: u32,
    /// Whether it is yet to be changed.
    pub old: bool,
    /// When this update has changed it, or it was placed anew since; `None` if
    /// this update has not changed it.
    pub changed: Option<WallTime>,
    /// How it is.
    pub health: Health,
}

/// What becomes of the update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It goes on, or stands still.
    On,
    /// Every instance has what it should have.
    Done,
    /// It has failed; why.
    Failed(String),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// How far the update is then.
    pub update: Update,
    /// The instances to change now.
    pub take: BTreeSet<InstanceId>,
    /// What becomes of it.
    pub fate: Fate,
    /// What it waits for, for people; empty if for nothing.
    pub waits_for: String,
    /// When to look again though nothing has changed.
    pub again: Option<WallTime>,
}

/// See the [module](self).
#[must_use]
pub fn step(policy: &UpdatePolicy, update: &Update, all: &[Seen], now: WallTime) -> Step {
    let mine = all.iter().filter(|one| update.roles.contains(&one.role));
    let mut walk = Walk {
        policy,
        mine: mine.collect(),
        now,
        step: Step {
            update: update.clone(),
            take: BTreeSet::new(),
            fate: Fate::On,
            waits_for: String::new(),
            again: None,
        },
    };
    match &update.state {
        UpdateState::Walking => walk.walk(),
        UpdateState::Paused => walk.wait("an operator to resume it".to_owned()),
        UpdateState::Stopped(_) => walk.wait("an operator to resume or abort it".to_owned()),
        UpdateState::Done => {}
    }
    walk.step
}

struct Walk<'a> {
    policy: &'a UpdatePolicy,
    mine: Vec<&'a Seen>,
    now: WallTime,
    step: Step,
}

impl<'a> Walk<'a> {
    fn walk(&mut self) {
        self.take_back_clock();
        if let Some(why) = self.failure() {
            self.step.fate = Fate::Failed(why);
            return;
        }
        let homeless = self
            .mine
            .iter()
            .filter(|one| one.old && one.health == Health::Homeless);
        self.step.take = homeless.map(|one| one.id.clone()).collect();
        if self.is_through() {
            self.begin_next();
        }
    }

    /// What was noted by a clock that was ahead, and has been set right since, is taken
    /// for noted now: nothing waits until it comes true.
    fn take_back_clock(&mut self) {
        let now = self.now;
        let update = &mut self.step.update;
        update.held = update.held.map(|held| held.min(now));
        if let Some(current) = &mut update.current {
            current.begun = current.begun.min(now);
            current.ready_since = current.ready_since.map(|since| since.min(now));
        }
    }

    /// Why the update has failed, if it has.
    fn failure(&mut self) -> Option<String> {
        let mut elsewhere = None;
        for one in self.mine.clone().into_iter().filter(|one| !one.old) {
            let Some(changed) = one.changed else { continue };
            match (&one.health, self.step.update.current) {
                (Health::Failed(why), _) => {
                    return Some(format!("instance {} has failed: {why}", one.id));
                }
                (Health::Down(how), Some(current)) if current.domain == one.domain => {
                    let begun = match changed <= self.now {
                        true => changed.max(current.begun),
                        false => current.begun,
                    };
                    if self.is_over(begun) {
                        return Some(self.not_ready(one, how, "it was changed"));
                    }
                }
                (Health::Down(how), _) => elsewhere = elsewhere.or(Some((one, how))),
                _ => {}
            }
        }
        let Some((one, how)) = elsewhere else {
            self.step.update.held = None;
            return None;
        };
        let held = *self.step.update.held.get_or_insert(self.now);
        self.is_over(held)
            .then(|| self.not_ready(one, how, "it was seen to be down"))
    }

    /// Whether an instance has had its time; looks again when it has.
    fn is_over(&mut self, begun: WallTime) -> bool {
        let end = begun.after(self.policy.timeout);
        if self.now < end {
            self.look_again(end);
        }
        self.now >= end
    }

    fn not_ready(&self, one: &Seen, how: &str, since: &str) -> String {
        let timeout = humantime::format_duration(self.policy.timeout);
        format!(
            "instance {} is not Ready {timeout} after {since}: {how}",
            one.id
        )
    }

    /// Sees to the current domain; whether there is none any more.
    fn is_through(&mut self) -> bool {
        let Some(current) = self.step.update.current else {
            return true;
        };
        let here = self.in_domain(current.domain);
        let Some(waited) = here
            .iter()
            .find(|one| one.old || one.health != Health::Ready)
        else {
            return self.is_baked(current);
        };
        let waits_for = describe(waited);
        self.step.update.current = Some(Current {
            ready_since: None,
            ..current
        });
        let is_up = here.iter().all(|one| one.health == Health::Ready);
        let mut take: Vec<_> = here.into_iter().filter(|one| self.may_take(one)).collect();
        if take.is_empty() && is_up {
            let elsewhere = self.mine.iter().copied();
            take = elsewhere.filter(|one| one.old && one.is_down()).collect();
        }
        if take.is_empty() {
            self.wait(waits_for);
        }
        self.step.take.extend(take.iter().map(|one| one.id.clone()));
        false
    }

    fn is_baked(&mut self, current: Current) -> bool {
        let since = current.ready_since.unwrap_or(self.now);
        let end = since.after(self.policy.bake);
        if self.now < end && !current.hurried {
            self.step.update.current = Some(Current {
                ready_since: Some(since),
                ..current
            });
            self.look_again(end);
            let bake = humantime::format_duration(self.policy.bake);
            let domain = current.domain;
            self.wait(format!(
                "upgrade domain {domain} to have been Ready for {bake}"
            ));
            return false;
        }
        self.step.update.done.insert(current.domain);
        self.step.update.current = None;
        true
    }

    fn begin_next(&mut self) {
        let old = self
            .mine
            .iter()
            .filter(|one| one.old && one.health != Health::Homeless);
        let domains: BTreeSet<_> = old.map(|one| one.domain).collect();
        if domains.is_empty() {
            match self.mine.iter().find(|one| one.health == Health::Homeless) {
                // As it should be, and nowhere: that is neither done nor its version's fault.
                Some(one) => self.wait(format!(
                    "a place for instance {0}, which has no node: `fabctl explain {0}`",
                    one.id
                )),
                None => self.step.fate = Fate::Done,
            }
            return;
        }
        let is_down = |domain: &u32| {
            self.in_domain(*domain)
                .iter()
                .any(|one| one.old && one.is_down())
        };
        let (down, up): (Vec<u32>, Vec<u32>) = domains.iter().copied().partition(is_down);
        for domain in down.into_iter().chain(up) {
            let here = self.in_domain(domain).into_iter();
            let take = here.filter(|one| self.may_take(one));
            let take: Vec<_> = take.map(|one| one.id.clone()).collect();
            if !take.is_empty() {
                self.step.take.extend(take);
                self.step.update.current = Some(Current {
                    domain,
                    begun: self.now,
                    ready_since: None,
                    hurried: false,
                });
                return;
            }
        }
        let down = self.mine.iter().find(|one| one.health != Health::Ready);
        self.wait(down.map_or_else(String::new, |one| describe(one)));
    }

    fn in_domain(&self, domain: u32) -> Vec<&'a Seen> {
        let mine = self.mine.iter().copied();
        mine.filter(|one| one.domain == domain).collect()
    }

    /// Whether it can be changed without a second domain of its role being down
    /// because of that.
    fn may_take(&self, one: &Seen) -> bool {
        let elsewhere = |other: &&Seen| {
            other.role == one.role && other.domain != one.domain && other.health != Health::Ready
        };
        one.old
            && match one.health {
                Health::Ready => !self.mine.iter().any(elsewhere),
                Health::Down(_) | Health::Failed(_) => true,
                Health::Homeless | Health::Unseen(_) => false,
            }
    }

    fn wait(&mut self, what: String) {
        self.step.waits_for = what;
    }

    fn look_again(&mut self, at: WallTime) {
        let again = self.step.again.map_or(at, |again| again.min(at));
        self.step.again = Some(again);
    }
}

impl Seen {
    /// Whether it is known to be down.
    const fn is_down(&self) -> bool {
        matches!(self.health, Health::Down(_) | Health::Failed(_))
    }
}

/// An instance that is waited for, for people.
pub(super) fn describe(one: &Seen) -> String {
    let how = match &one.health {
        Health::Ready => "yet to be changed",
        Health::Homeless => "has no node",
        Health::Down(how) | Health::Failed(how) | Health::Unseen(how) => how,
    };
    format!("instance {} ({how})", one.id)
}

#[cfg(test)]
#[path = "update_walk_tests.rs"]
mod tests;
