//! The node's lease: for how long it may run what its goal says.
//!
//! Whoever holds the goals starts a silent node's instances elsewhere, after a time.
//! That nothing runs twice then is this node's doing: a lease is asked for with every
//! report, counted from when it was asked for, and when it ends, everything here is
//! killed.
//!
//! ```text
//!  session: status, asked at t ──▶ controller        lease ends at t + length
//!           grant for t        ◀──
//!                │ written down (record)
//!     ┌──────────┴──────────┐
//!  supervisors            keeper, a process of its own: reads the record, and kills
//!  kill and start none    while it has ended, also when the host agent is stopped
//! ```
//!
//! - Time is that since the machine's start with its sleep counted (CLOCK_BOOTTIME),
//!   so that a machine that wakes up knows that it has slept.
//! - A grant names the goal that it is for. One for a goal that has not been taken up
//!   yet gives nothing: what is started under a lease is what is wanted now.
//! - A controller on this very machine that is not running grants as well: it has a
//!   grace for every node before it moves anything, counted from its start, which is
//!   yet to come. Only a lease that is held is prolonged by that.
//!
//! [`record`] is what the keeper reads, [`keeper`] is the other process.

pub mod keeper;
pub mod record;

use std::{
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use self::record::Record;

/// Time since the machine's start, its sleep counted.
pub type BootTime = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Until when the node may run what its goal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// No lease is needed.
    Ever,
    /// It ends then, or has ended.
    Time(Duration),
}

impl Until {
    fn is_over(self, now: Duration) -> bool {
        matches!(self, Self::Time(end) if end <= now)
    }
}

/// See the [module](self).
pub struct Lease {
    now: BootTime,
    until: watch::Sender<Until>,
    length: watch::Sender<Option<Duration>>,
    record: Option<Mutex<Record>>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease")
            .field(&*self.until.borrow())
            .finish_non_exhaustive()
    }
}

impl Lease {
    /// The lease whose record is in the data directory, as the host agent before left
    /// it. Whether one is needed, the goal says.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn open(data: &Path, host_boot_id: &str, now: BootTime) -> io::Result<Self> {
        let record = Record::open(data, host_boot_id)?;
        let end = record.read().unwrap_or_default();
        let mut lease = Self::unrecorded(now);
        lease.until = watch::Sender::new(Until::Time(end));
        lease.record = Some(Mutex::new(record));
        Ok(lease)
    }

    /// A lease that nothing outlives the process by; none is needed until a goal says so.
    #[must_use]
    pub fn unrecorded(now: BootTime) -> Self {
        Self {
            now,
            until: watch::Sender::new(Until::Ever),
            length: watch::Sender::new(None),
            record: None,
        }
    }

    /// The goal says how long leases are, and whether there are any.
    pub fn require(&self, length: Option<Duration>) {
        let until = match (length, *self.until.borrow()) {
            (None, _) => Until::Ever,
            (Some(_), Until::Ever) => Until::Time(Duration::ZERO),
            (Some(_), held) => held,
        };
        // On record before anyone hears that it is needed.
        self.set(until);
        self.length.send_if_modified(|old| {
            let changed = *old != length;
            *old = length;
            changed
        });
    }

    /// Whether leases are needed, and when that changes.
    #[must_use]
    pub fn length(&self) -> watch::Receiver<Option<Duration>> {
        self.length.subscribe()
    }

    /// What to ask with: the time, in milliseconds; 0 while none is needed.
    #[must_use]
    pub fn request(&self) -> u64 {
        if self.length.borrow().is_none() {
            return 0;
        }
        u64::try_from((self.now)().as_millis()).unwrap_or(u64::MAX)
    }

    /// A lease was granted that had been asked for like that.
    pub fn granted(&self, request: u64) {
        let asked = Duration::from_millis(request);
        // What was never asked for gives nothing.
        if asked <= (self.now)() {
            self.prolong(asked);
        }
    }

    /// A controller of this machine was not there at that time.
    pub fn nobody_grants(&self, request: u64) {
        if request > 0 && !self.is_over() {
            self.granted(request);
        }
    }

    fn prolong(&self, asked: Duration) {
        let Some(length) = *self.length.borrow() else {
            return;
        };
        let end = asked.saturating_add(length);
        let later = match *self.until.borrow() {
            Until::Ever => true,
            Until::Time(old) => old < end,
        };
        if later {
            self.set(Until::Time(end));
        }
    }

    /// Nothing runs any more for which one would be needed.
    pub fn forget(&self) {
        self.require(None);
    }

    /// Whether nothing may run.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.until.borrow().is_over((self.now)())
    }

    /// How long it lasts if it is not prolonged; none if none is needed.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        match *self.until.borrow() {
            Until::Ever => None,
            Until::Time(end) => Some(end.saturating_sub((self.now)())),
        }
    }

    /// Word of its end, and of its return.
    #[must_use]
    pub fn watch(self: &Arc<Self>) -> Watch {
        Watch {
            until: self.until.subscribe(),
            was_over: self.is_over(),
            lease: Arc::clone(self),
        }
    }

    /// The record first: who sees a lease may start something.
    fn set(&self, until: Until) {
        if let Some(record) = &self.record {
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            let end = match until {
                Until::Ever => None,
                Until::Time(end) => Some(end),
            };
            if let Err(error) = record.write(end) {
                // Without it, the keeper may kill too early; never too late.
                tracing::error!(%error, "cannot write down the lease");
            }
        }
        self.until.send_if_modified(|old| {
            let changed = *old != until;
            *old = until;
            changed
        });
    }
}

/// Waits for a lease to end, and to be there again.
#[derive(Debug)]
pub struct Watch {
    lease: Arc<Lease>,
    until: watch::Receiver<Until>,
    was_over: bool,
}

impl Watch {
    /// Waits until it is over, if it was not when this was asked last, or is not any
    /// longer, if it was. May be dropped and called again.
    pub async fn turned(&mut self) {
        loop {
            let until = *self.until.borrow_and_update();
            let now = (self.lease.now)();
            if until.is_over(now) != self.was_over {
                self.was_over = !self.was_over;
                return;
            }
            let end = match until {
                Until::Time(end) if !self.was_over => Some(end.saturating_sub(now)),
                Until::Time(_) | Until::Ever => None,
            };
            let ended = async {
                match end {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = ended => {}
                changed = self.until.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                }
            }
        }
    }
}

/// A lease for tests of what does not need one.
#[cfg(test)]
pub fn unneeded() -> Arc<Lease> {
    Arc::new(Lease::unrecorded(Arc::new(crate::clock::boot_time)))
}

#[cfg(test)]
mod tests;
