//! Who is who, and who may do what.
//!
//! | module | what it does |
//! |---|---|
//! | [`ca`] | makes certificates |
//! | [`tls`] | what the controller shows of itself, and whom it lets in |
//! | [`gate`] | connections over TCP: how many, for how long, until when |
//! | [`caller`] | who is at the other end of a connection |
//! | [`table`] | which call is for whom: the one table |
//! | [`guard`] | holds every call to the table, and writes the audit log |
//! | [`audit`] | the audit log |
//! | [`grant`] | join tokens, and what is kept of certificates |
//! | [`setup`] | a new data directory's CA and its administrator's context |

pub mod audit;
pub mod ca;
pub mod caller;
pub mod gate;
pub mod grant;
pub mod guard;
pub mod setup;
pub mod table;
pub mod tls;

use std::{path::Path, sync::Arc, time::Duration};

use fabric_trust::context::FileError;

use self::{
    ca::{Ca, CaError},
    gate::Gate,
    tls::{Revoked, Tls},
};
use crate::{
    error::{Error, Result},
    store::Store,
};

/// Directory of the CA in the data directory.
pub const DIRECTORY: &str = "trust";

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The CA cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS does not take the certificates.
    #[error("TLS cannot use the controller's certificate")]
    Tls(#[from] rustls::Error),
    /// Whom not to let in cannot be read.
    #[error("the revoked certificates cannot be read")]
    Revoked(#[source] Error),
    /// The administrator's context cannot be written.
    #[error(transparent)]
    Context(#[from] FileError),
}

/// All of it, of a running controller.
pub struct Trust {
    /// Makes certificates.
    pub ca: Arc<Ca>,
    /// Serials that are not let in.
    pub revoked: Arc<Revoked>,
    /// What is shown at connections.
    pub tls: Arc<Tls>,
    /// Lets connections in.
    pub gate: Arc<Gate>,
    /// Writes denials.
    pub denials: Arc<audit::Denials>,
    /// How long nodes' certificates last.
    pub node_ttl: Duration,
}

impl Trust {
    /// Opens or makes the CA of a data directory.
    ///
    /// # Errors
    ///
    /// It cannot be had.
    pub async fn open(
        data_dir: &Path,
        store: &dyn Store,
        names: &[String],
        node_ttl: Duration,
    ) -> Result<Self, TrustError> {
        let directory = data_dir.join(DIRECTORY);
        let (ca, _) = Ca::open(&directory)?;
        let ca = Arc::new(ca);
        let names = setup::names(&directory, names)?;
        grant::note_admin(store, &data_dir.join(setup::CONTEXT))
            .await
            .map_err(TrustError::Revoked)?;
        let revoked = Arc::new(Revoked::default());
        for serial in grant::revoked(store).await.map_err(TrustError::Revoked)? {
            revoked.add(&serial);
        }
        let tls = Arc::new(Tls::new(Arc::clone(&ca), Arc::clone(&revoked), names)?);
        let gate = Arc::new(Gate::new(Arc::clone(&tls), Arc::clone(&revoked)));
        Ok(Self {
            ca,
            revoked,
            tls,
            gate,
            denials: Arc::default(),
            node_ttl,
        })
    }
}
