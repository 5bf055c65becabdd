//! The store under the simulated controller: in memory, as slow as a disk, full when it
//! is to be, and looked at by the simulation.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use fabric_controller::{
    model::instance::InstanceRecord,
    records,
    store::{
        Entry, Op, Outcome, Range, Revision, Snapshot, Store, StoreError, Txn, Watch,
        memory::MemoryStore,
    },
};
use fastrand::Rng;

use crate::Break;

/// How long a commit takes before it is durable, and until that is known, in µs.
const COMMIT: std::ops::Range<u64> = 100..4_000;

/// See the [module](self).
pub struct SimulatedStore {
    memory: MemoryStore,
    state: Mutex<State>,
    broken: Option<Break>,
}

struct State {
    rng: Rng,
    is_full: bool,
    /// Transactions that were committed and not looked at.
    committed: Vec<Vec<Op>>,
    /// How many services were written.
    services: u64,
}

impl SimulatedStore {
    /// An empty one.
    #[must_use]
    pub fn new(seed: u64, broken: Option<Break>) -> Arc<Self> {
        Arc::new(Self {
            memory: MemoryStore::default(),
            state: Mutex::new(State {
                rng: Rng::with_seed(seed),
                is_full: false,
                committed: Vec::new(),
                services: 0,
            }),
            broken,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there is no room on its disk, or there is again.
    pub fn set_full(&self, is_full: bool) {
        self.lock().is_full = is_full;
    }

    /// What was committed since this was asked last.
    pub fn take_committed(&self) -> Vec<Vec<Op>> {
        std::mem::take(&mut self.lock().committed)
    }

    /// A disk's time.
    async fn wait(&self) {
        let time = Duration::from_micros(self.lock().rng.u64(COMMIT));
        tokio::time::sleep(time).await;
    }

    /// Breaks what is to be broken: nothing, unless a simulation is to find it.
    async fn spoil(&self, txn: Txn) -> Result<Option<Txn>, StoreError> {
        match self.broken {
            Some(Break::ForgetWrite) => {
                let writes_service = |op: &Op| matches!(op, Op::Put { key, .. } if key.starts_with(records::SERVICES));
                let mut state = self.lock();
                state.services += u64::from(txn.ops.iter().any(writes_service));
                let forget = txn.ops.iter().any(writes_service) && state.services.is_multiple_of(3);
                Ok((!forget).then_some(txn))
            }
            Some(Break::DropEpoch) => {
                let mut txn = txn;
                for op in &mut txn.ops {
                    if let Op::Put { key, value } = op
                        && key.starts_with(records::INSTANCES)
                        && let Some(old) = self.memory.get(key).await?
                        && let Some(same) = with_old_epoch(&old.value, value)
                    {
                        *value = same;
                    }
                }
                Ok(Some(txn))
            }
            Some(Break::LowerEpoch | Break::NoEpochCheck) => {
                let mut txn = txn;
                for op in &mut txn.ops {
                    if let Op::Put { key, value } = op
                        && key.starts_with(records::INSTANCES)
                        && let Some(old) = self.memory.get(key).await?
                        && let Some(lower) = with_lower_epoch(&old.value, value)
                    {
                        *value = lower;
                    }
                }
                Ok(Some(txn))
            }
            _ => Ok(Some(txn)),
        }
    }
}

/// The new record with the epoch of the old one.
fn with_old_epoch(old: &Bytes, new: &Bytes) -> Option<Bytes> {
    let old: InstanceRecord = serde_json::from_slice(old).ok()?;
    let new: InstanceRecord = serde_json::from_slice(new).ok()?;
    let same = InstanceRecord {
        epoch: old.epoch,
        ..new
    };
    serde_json::to_vec(&same).ok().map(Bytes::from)
}

/// The new record with an epoch from before the old one's; none if it is not made anew
/// where it is.
fn with_lower_epoch(old: &Bytes, new: &Bytes) -> Option<Bytes> {
    let old: InstanceRecord = serde_json::from_slice(old).ok()?;
    let new: InstanceRecord = serde_json::from_slice(new).ok()?;
    let anew = new.epoch > old.epoch && new.node.is_some() && new.node == old.node;
    let lower = InstanceRecord {
        epoch: old.epoch.saturating_sub(1),
        ..new
    };
    let bytes = serde_json::to_vec(&lower).ok()?;
    anew.then(|| Bytes::from(bytes))
}

#[async_trait]
impl Store for SimulatedStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.memory.get(key).await
    }

    async fn range(&self, range: Range) -> Result<Snapshot, StoreError> {
        self.memory.range(range).await
    }

    async fn ranges(&self, ranges: Vec<Range>) -> Result<(Vec<Vec<Entry>>, Revision), StoreError> {
        self.memory.ranges(ranges).await
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.wait().await;
        let grows = |op: &Op| matches!(op, Op::Put { .. } | Op::Append { .. });
        if self.lock().is_full && txn.ops.iter().any(grows) {
            return Err(StoreError::Full {
                path: "store.db".into(),
            });
        }
        let Some(txn) = self.spoil(txn).await? else {
            let revision = self
                .memory
                .range(Range::prefix("-").limit(0))
                .await?
                .revision;
            return Ok(Outcome::Committed(revision));
        };
        let ops = txn.ops.clone();
        let outcome = self.memory.txn(txn).await?;
        if matches!(outcome, Outcome::Committed(_)) {
            self.lock().committed.push(ops);
        }
        // A controller that dies here does not know what it has done.
        self.wait().await;
        Ok(outcome)
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.memory.watch(prefix, after)
    }
}
