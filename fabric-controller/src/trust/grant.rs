//! Join tokens, and what is kept of certificates.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use fabric_proto::id::NodeId;
use fabric_trust::{context::Contexts, identity::Role};
use serde::{Deserialize, Serialize};

use super::ca::Issued;
use crate::{
    error::Result,
    model::time::WallTime,
    records::{self, Kept},
    store::{Op, Store, Txn},
};

/// A token that was not spent yet, under the hash of its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Who may join with it; `None`: any name that is not taken.
    pub node: Option<NodeId>,
    /// Until when.
    pub expires: WallTime,
    /// Who had it made.
    pub issued_by: String,
}

/// A certificate that was made, under its serial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// Serial number, in hexadecimal.
    pub serial: String,
    /// Name of its holder.
    pub name: String,
    /// What its holder is, in a word.
    pub role: String,
    /// When it was made.
    pub issued: WallTime,
    /// Until when it is valid.
    pub expires: WallTime,
    /// Who had it made.
    pub issued_by: String,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<WallTime>,
}

impl CertificateRecord {
    /// Of a certificate just made.
    #[must_use]
    pub fn new(issued: &Issued, role: Role, name: &str, by: &str, now: WallTime) -> Self {
        Self {
            serial: issued.serial.clone(),
            name: name.to_owned(),
            role: role.word().to_owned(),
            issued: now,
            expires: issued.not_after.into(),
            issued_by: by.to_owned(),
            revoked: None,
        }
    }

    /// True if it could still be used.
    #[must_use]
    pub fn is_live(&self, now: WallTime) -> bool {
        self.revoked.is_none() && now < self.expires
    }
}

/// What is kept of all certificates.
///
/// # Errors
///
/// The store failed.
pub async fn certificates(store: &dyn Store) -> Result<Vec<Kept<CertificateRecord>>> {
    records::list(store, records::CERTIFICATES).await
}

/// Serials of the revoked ones.
///
/// # Errors
///
/// The store failed.
pub async fn revoked(store: &dyn Store) -> Result<Vec<String>> {
    let all = certificates(store).await?.into_iter();
    Ok(all
        .filter(|kept| kept.value.revoked.is_some())
        .map(|kept| kept.value.serial)
        .collect())
}

/// Notes the certificate of the first administrator, which was made before there was a
/// store, so that it can be revoked like any other.
///
/// # Errors
///
/// The store failed.
pub async fn note_admin(store: &dyn Store, file: &Path) -> Result<()> {
    let context = Contexts::read(file)
        .ok()
        .and_then(|mut all| all.contexts.remove(&all.current));
    let Some(identity) = context.and_then(|context| context.identity().ok()) else {
        return Ok(());
    };
    let key = &records::certificate(&identity.serial);
    let record = &CertificateRecord {
        serial: identity.serial.clone(),
        name: identity.name,
        role: identity.role.word().to_owned(),
        issued: identity.not_before.into(),
        expires: identity.not_after.into(),
        issued_by: "init".to_owned(),
        revoked: None,
    };
    records::commit(store, || async move {
        if store.get(key).await?.is_some() {
            return Ok((Txn::new(), ()));
        }
        Ok((records::replace(Txn::new(), key, None, record)?, ()))
    })
    .await
}

/// Forgets tokens and certificates that have expired: nobody can use them, by the clock
/// alone. Answers the serials that are left.
///
/// # Errors
///
/// The store failed.
pub async fn forget_expired(store: &dyn Store, now: WallTime) -> Result<Vec<String>> {
    /// Clocks are not set by more without anyone noticing.
    const SLACK: Duration = Duration::from_secs(24 * 3600);
    let (mut txn, mut left) = (Txn::new(), Vec::new());
    for kept in certificates(store).await? {
        let CertificateRecord {
            serial, expires, ..
        } = kept.value;
        if now.since(expires) > SLACK {
            let key = records::certificate(&serial);
            txn = txn.when(&key, Some(kept.modified)).op(Op::Delete { key });
        } else {
            left.push(serial);
        }
    }
    let tokens = store
        .range(crate::store::Range::prefix(records::TOKENS))
        .await?;
    for entry in &tokens.entries {
        let token: TokenRecord = records::decode(entry)?.value;
        if now.since(token.expires) > SLACK {
            let key = entry.key.clone();
            txn = txn.when(&key, Some(entry.modified)).op(Op::Delete { key });
        }
    }
    if !txn.ops.is_empty() {
        store.txn(txn).await?;
    }
    Ok(left)
}

/// Now, as certificates have it.
#[must_use]
pub fn system_time(time: WallTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(time.as_micros())
}
