//! What all parts of a running controller share.

use std::{sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    blobs::Blobs,
    clock,
    data_dir::DataDir,
    metrics::{Metrics, store::Counted},
    model::{lease::LeasePolicy, time::WallTime},
    output::Outputs,
    placement::Policy,
    reconcile::Waker,
    registry::Registry,
    store::{Store, StoreError, sqlite::SqliteStore},
    trust::{Trust, TrustError},
};

/// What can be set about a controller.
#[derive(Debug, Clone)]
pub struct Config {
    /// How often nodes report at least.
    pub heartbeat_period: Duration,
    /// How long a silent node is waited for before it is lost.
    pub lost_after: Duration,
    /// How nodes are held to their leases; none: nothing is ever started elsewhere.
    pub lease: Option<LeasePolicy>,
    /// How full nodes may be.
    pub policy: Policy,
    /// How many nodes may be cordoned at once for what fails on them, in percent.
    pub condemn_percent: u32,
    /// Most events that are kept, and most entries of the audit log.
    pub events_kept: u64,
    /// Names and IP addresses by which others reach the controller, beside those of this
    /// machine.
    pub names: Vec<String>,
    /// How long nodes' certificates last.
    pub node_certificates: Duration,
    /// Where metrics are served; nowhere unless somebody wants them.
    pub metrics_listen: Option<fabric_metrics::serve::Address>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat_period: Duration::from_secs(2),
            lost_after: Duration::from_secs(10),
            lease: Some(LeasePolicy::default()),
            policy: Policy::default(),
            condemn_percent: 10,
            events_kept: 100_000,
            names: Vec::new(),
            node_certificates: Duration::from_secs(30 * 24 * 3600),
            metrics_listen: None,
        }
    }
}

/// Why there can be no controller.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its certificates cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// See the [module](self).
pub struct Controller {
    /// What is kept.
    pub store: Arc<dyn Store>,
    /// What is known of nodes while this runs.
    pub registry: Arc<Registry>,
    /// Images and packages.
    pub blobs: Blobs,
    /// Output that operators want to see.
    pub outputs: Arc<Outputs>,
    /// Wakes the reconciler.
    pub waker: Arc<Waker>,
    /// Who is who.
    pub trust: Trust,
    /// What was set.
    pub config: Config,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Since when this runs.
    pub started: WallTime,
    /// Cancelled when everything is to end.
    pub end: CancellationToken,
    /// The tasks of open streams; all have ended before the data directory is
    /// given back.
    pub tasks: TaskTracker,
    /// Holds the lock on the directory until everything has ended.
    data_dir: DataDir,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size, in bytes.
    pub bytes: u64,
    /// Room left on it, in bytes.
    pub free_bytes: u64,
}

impl Controller {
    /// Opens what is kept in a data directory.
    ///
    /// # Errors
    ///
    /// The store or the CA cannot be opened.
    pub async fn open(data_dir: DataDir, config: Config) -> Result<Arc<Self>, OpenError> {
        let store = Arc::new(SqliteStore::open(&data_dir.store_file())?);
        Self::with_store(store, data_dir, config).await
    }

    /// The same, with a store that is open already.
    ///
    /// # Errors
    ///
    /// The CA cannot be opened, or the store failed.
    pub async fn with_store(
        store: Arc<dyn Store>,
        data_dir: DataDir,
        config: Config,
    ) -> Result<Arc<Self>, OpenError> {
        let metrics = Arc::new(Metrics::default());
        let store: Arc<dyn Store> = Arc::new(Counted {
            store,
            metrics: Arc::clone(&metrics),
        });
        let trust = Trust::open(
            data_dir.path(),
            &*store,
            &config.names,
            config.node_certificates,
        );
        let trust = trust.await?;
        let waker = Arc::new(Waker::default());
        Ok(Arc::new(Self {
            registry: Arc::new(Registry::new(config.lost_after)),
            blobs: Blobs::new(Arc::clone(&store), data_dir.path()),
            outputs: Arc::new(Outputs::new(Arc::clone(&waker))),
            store,
            waker,
            trust,
            config,
            metrics,
            started: clock::now(),
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
            data_dir,
        }))
    }

    /// What the data directory is on, if that can be found out.
    #[must_use]
    pub fn disk(&self) -> Option<Disk> {
        let facts = nix::sys::statvfs::statvfs(self.data_dir.path()).ok()?;
        Some(Disk {
            bytes: facts.blocks().saturating_mul(facts.fragment_size()),
            free_bytes: facts
                .blocks_available()
                .saturating_mul(facts.fragment_size()),
        })
    }
}
