//! A mutation with a request id is done once, whatever the network does.
//!
//! What was answered is kept in the same transaction as what was done: either
//! both are there or neither is. The same call with the same id is given that
//! answer again; another call with that id is refused. Answers are kept for a
//! day, and the newest [`MOST`] of them.

use std::{collections::BTreeMap, time::Duration};

use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    model::time::WallTime,
    records,
    store::{Op, Range, Store, Txn},
    trust::audit,
};

/// Longest request id.
const LONGEST: usize = 128;
/// How long answers are kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Most answers that are kept.
pub const MOST: usize = 10_000;

/// A request that was done.
#[derive(Debug, Serialize, Deserialize)]
struct RequestRecord {
    call: String,
    fingerprint: String,
    response_hex: String,
    time: WallTime,
}

/// A call and its request id.
#[derive(Debug, Clone)]
pub struct Once {
    call: &'static str,
    /// `None`: the caller asks for no protection.
    key: Option<String>,
    fingerprint: String,
}

impl Once {
    /// This call, with the id at `id` in its request. What else the request
    /// holds is what the id stands for.
    ///
    /// # Errors
    ///
    /// The id is not one.
    pub fn of<M: Message + Clone>(
        call: &'static str,
        request: &M,
        id: fn(&mut M) -> &mut String,
    ) -> Result<Self> {
        let mut content = request.clone();
        let request_id = std::mem::take(id(&mut content));
        if request_id.len() > LONGEST || !request_id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Invalid(format!(
                "request_id: it must be visible ASCII without spaces, at most {LONGEST} characters"
            )));
        }
        audit::note_request_id(&request_id);
        let key = (!request_id.is_empty()).then(|| format!("{}{request_id}", records::REQUESTS));
        Ok(Self {
            call,
            key,
            fingerprint: hex(&Sha256::digest(content.encode_to_vec())),
        })
    }

    /// The answer that was given, if the call was done before.
    ///
    /// # Errors
    ///
    /// The id was used for another call, or the store failed.
    async fn replay<R: Message + Default>(&self, store: &dyn Store) -> Result<Option<R>> {
        let Some(key) = &self.key else {
            return Ok(None);
        };
        let Some(done) = records::get::<RequestRecord>(store, key).await? else {
            return Ok(None);
        };
        if done.value.call != self.call || done.value.fingerprint != self.fingerprint {
            return Err(Error::Invalid(format!(
                "request_id: it was used for another {} call; take a new one for a new request",
                done.value.call
            )));
        }
        let bytes = unhex(&done.value.response_hex).unwrap_or_default();
        R::decode(bytes.as_slice())
            .map(Some)
            .map_err(|_| Error::Internal(format!("the kept answer {key:?} cannot be read")))
    }

    /// The transaction with the answer in it.
    fn guard(&self, txn: Txn, response: &impl Message, now: WallTime) -> Result<Txn> {
        let Some(key) = &self.key else { return Ok(txn) };
        let record = RequestRecord {
            call: self.call.to_owned(),
            fingerprint: self.fingerprint.clone(),
            response_hex: hex(&response.encode_to_vec()),
            time: now,
        };
        records::replace(txn, key, None, &record)
    }

    /// Plans and commits the call unless it was done before, and answers it.
    ///
    /// # Errors
    ///
    /// The id was used for another call; planning or the store failed.
    pub async fn commit<R, F>(
        &self,
        store: &dyn Store,
        now: WallTime,
        plan: impl Fn() -> F + Send + Sync,
    ) -> Result<R>
    where
        R: Message + Default,
        F: Future<Output = Result<(Txn, R)>> + Send,
    {
        let plan = &plan;
        records::commit(store, || async move {
            if let Some(answer) = self.replay(store).await? {
                return Ok((Txn::new(), answer));
            }
            let (txn, answer) = plan().await?;
            Ok((self.guard(txn, &answer, now)?, answer))
        })
        .await
    }
}

/// Forgets the answers that are too old or too many.
///
/// # Errors
///
/// The store failed.
pub async fn forget_old(store: &dyn Store, now: WallTime) -> Result<()> {
    let snapshot = store.range(Range::prefix(records::REQUESTS)).await?;
    let mut by_age = BTreeMap::new();
    for entry in &snapshot.entries {
        let time =
            records::decode::<RequestRecord>(entry).map_or(WallTime::EPOCH, |done| done.value.time);
        by_age.insert((time, &entry.key), entry);
    }
    let too_many = by_age.len().saturating_sub(MOST);
    let mut txn = Txn::new();
    for (index, (time, key)) in by_age.keys().enumerate() {
        if index < too_many || now.since(*time) > KEPT {
            txn = txn.op(Op::Delete {
                key: (*key).clone(),
            });
        }
    }
    if !txn.ops.is_empty() {
        store.txn(txn).await?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
