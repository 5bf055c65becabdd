//! Turns of the copies that are started on a node.
//!
//! So many at a time: more would take the processors from one another until all are
//! late, and their template is taken for broken. A copy has its turn twice: on its way
//! to its guest agent's hello, and again, behind all that wait or are being made ready by
//! then, for its goal: to become somebody and to start its role. So guests arrive first,
//! and rest, and their roles come after them.
//!
//! What boots its kernel has no turn: it takes long, and whoever never says hello would keep
//! others waiting. A role that is in a template already runs when its copy arrives.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// So many copies at once for each processor of the node.
const PER_CPU: usize = 2;
/// How long the start of a role keeps others waiting at the most.
const LONGEST: Duration = Duration::from_secs(20);
/// How long a role waits for copies that are being made ready while none of them comes: a
/// template of one may have to be made first.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same while they keep coming.
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);

type Place = OwnedSemaphorePermit;

/// The places of a node.
#[derive(Debug, Clone)]
pub struct Turns {
    places: Arc<Semaphore>,
    /// How many instances are being made ready, or wait for their turn to arrive.
    coming: Arc<watch::Sender<usize>>,
}

/// An instance that is being made ready, or waits for its turn.
#[derive(Debug)]
pub struct Coming(Turns);

impl Coming {
    /// Waits for the turn of a copy.
    pub async fn arrive(self, role_too: bool) -> Turn {
        let turns = self.0.clone();
        match turns.next().await {
            Some(place) => Turn::Arriving {
                _place: place,
                turns: role_too.then_some(turns),
            },
            None => Turn::Free,
        }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.coming.send_modify(|coming| *coming -= 1);
    }
}

impl Turns {
    /// So many places.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            coming: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Those of this machine.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, usize::from) * PER_CPU)
    }

    /// An instance is being made ready from now on.
    #[must_use]
    pub fn announce(&self) -> Coming {
        self.coming.send_modify(|coming| *coming += 1);
        Coming(self.clone())
    }

    /// In the order in which they ask; nobody closes the places.
    async fn next(&self) -> Option<Place> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Waits until nobody comes, or nobody has for too long.
    async fn nobody_comes(&self) {
        let mut coming = self.coming.subscribe();
        let others = async {
            while *coming.borrow_and_update() > 0 {
                // The sender is its own.
                let Ok(Ok(())) = timeout(PATIENCE, coming.changed()).await else {
                    return;
                };
            }
        };
        let _ = timeout(LONGEST_PATIENCE, others).await;
    }

    fn role(self) -> Turn {
        if *self.coming.borrow() == 0
            // None is free while anyone waits.
            && let Ok(place) = Arc::clone(&self.places).try_acquire_owned()
        {
            return Turn::starting(Some(place));
        }
        Turn::Waiting(AbortOnDropHandle::new(tokio::spawn(async move {
            self.nobody_comes().await;
            self.next().await
        })))
    }
}

/// An instance's turn.
#[derive(Debug, Default)]
pub enum Turn {
    /// It waits for nothing, and keeps nobody waiting.
    #[default]
    Free,
    /// Its guest is on its way to its hello.
    Arriving {
        /// Until then.
        _place: Place,
        /// Where its role waits for its own turn.
        turns: Option<Turns>,
    },
    /// Its guest is there; its role waits.
    Waiting(AbortOnDropHandle<Option<Place>>),
    /// Its role is being started.
    Starting {
        /// Until it has been.
        _place: Place,
        /// When others need not wait for it any longer.
        until: Instant,
    },
}

/// How far an instance has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Its guest is not there yet.
    Arriving,
    /// Its guest is there, its role is not started.
    Arrived,
    /// There is nothing that others need to wait for.
    Settled,
}

impl Turn {
    fn starting(place: Option<Place>) -> Self {
        place.map_or(Self::Free, |place| Self::Starting {
            _place: place,
            until: Instant::now() + LONGEST,
        })
    }

    /// Brings it in line with how far its instance has come.
    pub fn follow(&mut self, progress: Progress) {
        *self = match (std::mem::take(self), progress) {
            (turn @ Self::Arriving { .. }, Progress::Arriving) => turn,
            (Self::Arriving { _place, turns }, Progress::Arrived) => {
                // Before it asks again: it goes to the next that arrives.
                drop(_place);
                turns.map_or(Self::Free, Turns::role)
            }
            (turn @ (Self::Waiting(_) | Self::Starting { .. }), Progress::Arrived) => turn,
            _ => Self::Free,
        };
    }

    /// Whether the guest is not told yet who it is, and what to run.
    #[must_use]
    pub fn withholds_goal(&self) -> bool {
        match self {
            Self::Arriving { turns, .. } => turns.is_some(),
            Self::Waiting(_) => true,
            Self::Free | Self::Starting { .. } => false,
        }
    }

    /// Whether the guest is there and waits to be told.
    #[must_use]
    pub fn rests(&self) -> bool {
        matches!(self, Self::Waiting(_))
    }

    /// Waits until time changes it. May be dropped and called again.
    pub async fn change(&mut self) {
        match self {
            Self::Waiting(place) => *self = Self::starting(place.await.ok().flatten()),
            Self::Starting { until, .. } => {
                tokio::time::sleep_until(*until).await;
                *self = Self::Free;
            }
            Self::Free | Self::Arriving { .. } => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn guests_arrive_first_and_their_roles_after_them() {
        let turns = Turns::new(1);
        let mut first = turns.announce().arrive(true).await;
        let second = tokio::spawn({
            let turns = turns.clone();
            async move { turns.announce().arrive(true).await }
        });
        tokio::task::yield_now().await;
        assert!(first.withholds_goal());

        first.follow(Progress::Arrived);
        assert!(first.withholds_goal(), "another guest waits to arrive");
        assert!(first.rests());
        let mut second = second.await.unwrap();
        second.follow(Progress::Arrived);
        first.change().await;
        assert!(!first.withholds_goal());
        assert!(second.withholds_goal(), "the role of another is starting");

        first.follow(Progress::Settled);
        second.change().await;
        assert!(!second.withholds_goal());
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_lets_those_go_first_who_are_being_made_ready() {
        let turns = Turns::new(1);
        let mut first = turns.announce().arrive(true).await;
        let second = turns.announce();
        first.follow(Progress::Arrived);
        assert!(first.withholds_goal(), "another is being made ready");

        let mut second = second.arrive(true).await;
        assert!(timeout(PATIENCE, first.change()).await.is_err());
        second.follow(Progress::Arrived);
        first.change().await;
        assert!(!first.withholds_goal());
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_does_not_wait_long_for_what_takes_long_to_make_ready() {
        let turns = Turns::new(1);
        let mut first = turns.announce().arrive(true).await;
        let _another = turns.announce();
        first.follow(Progress::Arrived);
        let begun = Instant::now();
        first.change().await;
        assert!(!first.withholds_goal());
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_waits_while_others_keep_coming_but_not_without_end() {
        let turns = Turns::new(1);
        let mut first = turns.announce().arrive(true).await;
        let mut others: Vec<_> = (0..3).map(|_| turns.announce()).collect();
        first.follow(Progress::Arrived);
        let begun = Instant::now();
        let come = async {
            while let Some(other) = others.pop() {
                tokio::time::sleep(PATIENCE * 4 / 5).await;
                drop(other);
            }
        };
        tokio::join!(come, first.change());
        assert_eq!(begun.elapsed(), PATIENCE * 4 / 5 * 3);

        let turns = Turns::new(1);
        let mut first = turns.announce().arrive(true).await;
        let other = turns.announce();
        first.follow(Progress::Arrived);
        let begun = Instant::now();
        let keep_coming = async {
            loop {
                tokio::time::sleep(PATIENCE * 4 / 5).await;
                drop(turns.announce());
            }
        };
        tokio::select! {
            () = keep_coming => {}
            () = first.change() => {}
        }
        assert!(!first.withholds_goal());
        assert_eq!(begun.elapsed(), LONGEST_PATIENCE);
        drop(other);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_without_end_for_a_role_that_does_not_start() {
        let turns = Turns::new(1);
        let mut slow = turns.announce().arrive(true).await;
        slow.follow(Progress::Arrived);
        assert!(!slow.withholds_goal(), "nobody else is there");
        let begun = Instant::now();
        let next = turns.announce().arrive(true);
        tokio::join!(slow.change(), next);
        assert_eq!(begun.elapsed(), LONGEST);
    }

    #[tokio::test]
    async fn what_is_stopped_on_its_way_keeps_nobody_waiting() {
        let turns = Turns::new(1);
        let mut stopped = turns.announce().arrive(true).await;
        stopped.follow(Progress::Settled);
        assert!(!stopped.withholds_goal());
        turns.announce().arrive(true).await;
    }

    #[tokio::test]
    async fn a_role_that_runs_already_has_no_turn_of_its_own() {
        let turns = Turns::new(1);
        let mut warm = turns.announce().arrive(false).await;
        assert!(!warm.withholds_goal());
        warm.follow(Progress::Arrived);
        assert!(matches!(warm, Turn::Free));
    }
}
