//! What every [`Store`] must do, told once for all implementations, those in other crates
//! too: with the feature `conformance`.
//!
//! Nothing is presumed of a store that others may use at the same time, or that is kept on
//! several machines: revisions are compared with each other only, and each case keeps to
//! keys that begin with its own name.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::{sync::Arc, time::Duration};

use super::*;

/// How long a watcher waits for what was committed.
const SOON: Duration = Duration::from_secs(30);
/// How long it is seen not to be told what was not.
const A_WHILE: Duration = Duration::from_millis(20);
/// Clients that write at the same time.
const CLIENTS: u32 = 8;
/// What each of them does.
const TIMES: u32 = 25;

/// Runs all cases. `open` is called with a case's name: the first time it opens a store in
/// which no key begins with that name; when it is called with the name again, everything
/// that had been opened for it is dropped, and it opens the same store once more, as the
/// next process would.
///
/// # Panics
///
/// The store does something else than it must.
pub async fn run(open: impl AsyncFn(&str) -> Arc<dyn Store>) {
    let case = async |name: &'static str| Case {
        store: open(name).await,
        name,
    };
    nothing_is_there_at_first(&case("empty").await).await;
    what_was_put_is_there(&case("put").await).await;
    a_condition_that_does_not_hold_undoes_everything(&case("condition").await).await;
    of_two_that_compare_the_same_one_wins(&case("two").await).await;
    a_range_is_in_order_and_bounded(&case("range").await).await;
    a_log_counts_up_and_never_back(&case("log").await).await;
    deleting_what_is_not_there_changes_nothing(&case("nothing").await).await;
    a_watcher_sees_every_change_once_and_in_order(&case("watch").await).await;
    a_watcher_waits_for_what_comes(&case("wait").await).await;
    a_watcher_that_is_slow_misses_nothing_unless_it_is_told(&case("slow").await).await;
    many_writers_lose_nothing(&case("many").await).await;
    clients_that_count_together_count_everything(&case("count").await).await;
    a_reader_sees_all_of_a_transaction_or_nothing(&case("whole").await).await;
    let (kept, log, last) = before_it_is_opened_again(case("again").await).await;
    it_goes_on_where_it_was(&case("again").await, &kept, &log, last).await;
}

/// A store, and the keys that a case may use in it.
struct Case {
    store: Arc<dyn Store>,
    name: &'static str,
}

impl Case {
    fn key(&self, key: &str) -> String {
        format!("{}/{key}", self.name)
    }

    /// All of the case's.
    fn all(&self) -> Range {
        Range::prefix(self.key(""))
    }

    async fn revision(&self) -> Revision {
        self.store.range(self.all()).await.unwrap().revision
    }

    async fn commit(&self, txn: Txn) -> Revision {
        match self.store.txn(txn).await.unwrap() {
            Outcome::Committed(revision) => revision,
            Outcome::Conflict { key } => panic!("conflict on {key}"),
        }
    }

    async fn put(&self, key: &str, value: &'static str) -> Revision {
        self.commit(Txn::new().put(self.key(key), value)).await
    }

    async fn get(&self, key: &str) -> Option<Entry> {
        self.store.get(&self.key(key)).await.unwrap()
    }

    async fn keys(&self, range: Range) -> Vec<String> {
        let entries = self.store.range(range).await.unwrap().entries;
        let own = |entry: Entry| entry.key.strip_prefix(&self.key("")).map(str::to_owned);
        entries.into_iter().filter_map(own).collect()
    }

    fn watch(&self, prefix: &str, after: Revision) -> Box<dyn Watch> {
        self.store.watch(&self.key(prefix), after).unwrap()
    }

    /// So many changes more, as the key, whether it is there, and when.
    async fn seen(&self, watch: &mut dyn Watch, count: usize) -> Vec<(String, bool, Revision)> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let next = tokio::time::timeout(SOON, watch.next()).await;
            let next = next.unwrap_or_else(|_| panic!("of {count} changes came {seen:?}"));
            seen.extend(next.unwrap().into_iter().map(|change| {
                let key = change.key.strip_prefix(&self.key("")).unwrap().to_owned();
                (key, change.value.is_some(), change.revision)
            }));
        }
        seen
    }
}

async fn nothing_is_there_at_first(case: &Case) {
    assert_eq!(case.keys(case.all()).await.len(), 0);
    assert_eq!(case.get("a").await, None);
}

async fn what_was_put_is_there(case: &Case) {
    let before = case.revision().await;
    let both = Txn::new().put(case.key("a"), "1").put(case.key("b"), "2");
    let first = case.commit(both).await;
    let second = case.put("a", "3").await;
    assert!(
        before < first && first < second,
        "{before} {first} {second}"
    );
    let entry = case.get("a").await.unwrap();
    assert_eq!((entry.value.as_ref(), entry.modified), (&b"3"[..], second));
    assert_eq!(case.get("b").await.unwrap().modified, first);
    assert!(case.revision().await >= second);
}

async fn a_condition_that_does_not_hold_undoes_everything(case: &Case) {
    let put = case.put("a", "1").await;
    for modified in [None, Some(put + 1), Some(put - 1)] {
        let txn = Txn::new()
            .put(case.key("b"), "1")
            .when(case.key("a"), modified)
            .append(case.key("log/"), "x");
        let key = case.key("a");
        assert_eq!(
            case.store.txn(txn).await.unwrap(),
            Outcome::Conflict { key }
        );
    }
    assert_eq!(case.keys(case.all()).await, ["a"]);
    let txn = Txn::new()
        .when(case.key("a"), Some(put))
        .when(case.key("b"), None)
        .delete(case.key("a"));
    assert!(case.commit(txn).await > put);
    assert_eq!(case.get("a").await, None);
}

async fn of_two_that_compare_the_same_one_wins(case: &Case) {
    let claim = || {
        let txn = Txn::new().when(case.key("a"), None);
        case.store.txn(txn.put(case.key("a"), "mine"))
    };
    let (one, other) = tokio::join!(claim(), claim());
    let committed = [one.unwrap(), other.unwrap()]
        .iter()
        .filter(|outcome| matches!(outcome, Outcome::Committed(_)))
        .count();
    assert_eq!(committed, 1);
}

async fn a_range_is_in_order_and_bounded(case: &Case) {
    let txn = ["p/b", "p/a", "p/c", "q", "p", "o"]
        .iter()
        .fold(Txn::new(), |txn, key| txn.put(case.key(key), "x"));
    let put = case.commit(txn).await;
    let all = || Range::prefix(case.key("p/"));
    assert_eq!(case.keys(all()).await, ["p/a", "p/b", "p/c"]);
    let after = all().after(case.key("p/a")).limit(1);
    assert_eq!(case.keys(after).await, ["p/b"]);
    let newest = all().newest_first().limit(2);
    assert_eq!(case.keys(newest).await, ["p/c", "p/b"]);
    let ranges = ["q", "o"].map(|key| Range::prefix(case.key(key)));
    let (both, revision) = case.store.ranges(ranges.to_vec()).await.unwrap();
    assert_eq!((both.len(), &both[0][0].key), (2, &case.key("q")));
    assert!(revision >= put);
}

async fn a_log_counts_up_and_never_back(case: &Case) {
    let append = |txn: Txn, log: &str, value: &'static str| txn.append(case.key(log), value);
    let txn = append(append(Txn::new(), "l/", "1"), "l/", "2");
    case.commit(append(txn, "m/", "1")).await;
    let (first, last) = (format!("l/{:020}", 1), format!("l/{:020}", 2));
    let log = || case.keys(Range::prefix(case.key("l/")));
    assert_eq!(log().await, [first, last.clone()]);
    let txn = Txn::new().op(Op::DeleteUpTo {
        prefix: case.key("l/"),
        last: case.key(&last),
    });
    case.commit(txn).await;
    assert_eq!(log().await.len(), 0);
    case.commit(append(Txn::new(), "l/", "3")).await;
    assert_eq!(log().await, [format!("l/{:020}", 3)]);
    assert_eq!(case.keys(Range::prefix(case.key("m/"))).await.len(), 1);
}

async fn deleting_what_is_not_there_changes_nothing(case: &Case) {
    let put = case.put("a", "1").await;
    let mut watch = case.watch("", put);
    let deleted = Txn::new().delete(case.key("b"));
    assert!(case.commit(deleted).await >= put);
    let nothing = tokio::time::timeout(A_WHILE, watch.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    assert_eq!(case.get("a").await.unwrap().modified, put);
}

async fn a_watcher_sees_every_change_once_and_in_order(case: &Case) {
    let first = case.put("w/a", "1").await;
    case.put("x", "1").await;
    let txn = Txn::new().put(case.key("w/b"), "2");
    let second = case.commit(txn.delete(case.key("w/a"))).await;
    let mut watch = case.watch("w/", first);
    let mut seen = case.seen(&mut *watch, 2).await;
    let third = case.put("w/c", "3").await;
    seen.extend(case.seen(&mut *watch, 1).await);
    let change = |key: &str, there, revision| (key.to_owned(), there, revision);
    assert_eq!(
        seen,
        [
            change("w/b", true, second),
            change("w/a", false, second),
            change("w/c", true, third)
        ]
    );
}

async fn a_watcher_waits_for_what_comes(case: &Case) {
    let mut watch = case.watch("w/", case.revision().await);
    let nothing = tokio::time::timeout(A_WHILE, watch.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    let (seen, put) = tokio::join!(case.seen(&mut *watch, 1), case.put("w/a", "1"));
    assert_eq!(seen, [("w/a".to_owned(), true, put)]);
}

/// How much is remembered is the store's own affair.
async fn a_watcher_that_is_slow_misses_nothing_unless_it_is_told(case: &Case) {
    let after = case.revision().await;
    let mut watch = case.watch("", after);
    let mut puts = Vec::new();
    for _ in 0..20 {
        let big = vec![0_u8; 1 << 20];
        puts.push(case.commit(Txn::new().put(case.key("big"), big)).await);
    }
    let mut seen = Vec::new();
    while seen.len() < puts.len() {
        let next = tokio::time::timeout(SOON, watch.next()).await.unwrap();
        match next {
            Ok(changes) => seen.extend(changes.iter().map(|change| change.revision)),
            Err(StoreError::Compacted { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        assert_eq!(seen, puts[..seen.len()]);
    }
}

async fn many_writers_lose_nothing(case: &Case) {
    let put = |index| Txn::new().put(case.key(&format!("k{index:03}")), "x");
    let all = (0..300).map(|index| case.store.txn(put(index)));
    let mut revisions = Vec::new();
    for outcome in futures_util::future::join_all(all).await {
        match outcome.unwrap() {
            Outcome::Committed(revision) => revisions.push(revision),
            Outcome::Conflict { key } => panic!("conflict on {key}"),
        }
    }
    let snapshot = case.store.range(case.all()).await.unwrap();
    assert_eq!(snapshot.entries.len(), 300);
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 300, "two have the same revision");
    assert!(revisions.iter().all(|one| *one <= snapshot.revision));
}

/// Reads a number, and when it was written.
async fn number(store: &dyn Store, key: &str) -> (u32, Option<Revision>) {
    let Some(entry) = store.get(key).await.unwrap() else {
        return (0, None);
    };
    let text = String::from_utf8(entry.value.to_vec()).unwrap();
    (text.parse().unwrap(), Some(entry.modified))
}

async fn clients_that_count_together_count_everything(case: &Case) {
    let key = case.key("sum");
    let mut watch = case.watch("", case.revision().await);
    let clients = (0..CLIENTS).map(|_| {
        let (store, key) = (Arc::clone(&case.store), key.clone());
        tokio::spawn(async move {
            for _ in 0..TIMES {
                loop {
                    let (sum, modified) = number(&*store, &key).await;
                    let txn = Txn::new().when(&key, modified);
                    let txn = txn.put(&key, (sum + 1).to_string());
                    if let Outcome::Committed(_) = store.txn(txn).await.unwrap() {
                        break;
                    }
                }
            }
        })
    });
    for client in futures_util::future::join_all(clients).await {
        client.unwrap();
    }
    let (sum, modified) = number(&*case.store, &key).await;
    assert_eq!(sum, CLIENTS * TIMES);
    // A watcher has seen each of them, in the order in which they were.
    let seen = case.seen(&mut *watch, sum as usize).await;
    assert!(seen.is_sorted_by(|one, next| one.2 < next.2), "{seen:?}");
    assert_eq!(seen.last().map(|one| one.2), modified);
}

async fn a_reader_sees_all_of_a_transaction_or_nothing(case: &Case) {
    let keys = ["a", "z"].map(|key| case.key(key));
    let store = Arc::clone(&case.store);
    let of = keys.clone();
    let writer = tokio::spawn(async move {
        for turn in 0..CLIENTS * TIMES {
            let txn = of.iter().fold(Txn::new(), |txn, key| {
                txn.put(key.clone(), turn.to_string())
            });
            store.txn(txn).await.unwrap();
        }
    });
    let mut last = 0;
    while !writer.is_finished() {
        let ranges = keys.iter().map(Range::prefix).collect();
        let (both, revision) = case.store.ranges(ranges).await.unwrap();
        let [one, other] = [0, 1].map(|at| both[at].first().map(|entry| &entry.value));
        assert_eq!(one, other, "half of a transaction is there");
        assert!(revision >= last, "{revision} comes after {last}");
        last = revision;
        // Also where one thread runs both.
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}

/// What is kept, its log, and the revision of the last transaction.
async fn before_it_is_opened_again(case: Case) -> (Vec<Entry>, String, Revision) {
    case.put("a", "1").await;
    case.put("gone", "1").await;
    let log = case.key("log/");
    for _ in 0..3 {
        case.commit(Txn::new().append(log.clone(), "x")).await;
    }
    let (prefix, last) = (log.clone(), format!("{log}{:020}", 3));
    let emptied = Txn::new().op(Op::DeleteUpTo { prefix, last });
    let last = case.commit(emptied.delete(case.key("gone"))).await;
    let snapshot = case.store.range(case.all()).await.unwrap();
    (snapshot.entries, log, last)
}

async fn it_goes_on_where_it_was(case: &Case, kept: &[Entry], log: &str, last: Revision) {
    let snapshot = case.store.range(case.all()).await.unwrap();
    assert_eq!((&snapshot.entries[..], kept.len()), (kept, 1));
    assert!(snapshot.revision >= last, "{} < {last}", snapshot.revision);
    // Whoever watched before is told that it has missed something, or has not.
    match case.store.watch(&case.key(""), kept[0].modified) {
        Ok(mut watch) => drop(case.seen(&mut *watch, 5).await),
        Err(error) => assert!(matches!(error, StoreError::Compacted { .. }), "{error}"),
    }
    let mut watch = case.watch("", snapshot.revision);
    let next = case.commit(Txn::new().append(log, "x")).await;
    assert!(next > snapshot.revision);
    let number = format!("log/{:020}", 4);
    assert_eq!(case.seen(&mut *watch, 1).await, [(number, true, next)]);
}

/// What a store that nobody else uses does beyond that: the stores of this crate.
#[cfg(test)]
pub(super) async fn it_counts_by_one(store: &dyn Store) {
    let commit = async |txn| match store.txn(txn).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict { key } => panic!("conflict on {key}"),
    };
    let snapshot = store.range(Range::prefix("")).await.unwrap();
    assert_eq!((snapshot.entries.len(), snapshot.revision), (0, 0));
    assert_eq!(commit(Txn::new().put("a", "1").put("b", "2")).await, 1);
    assert_eq!(commit(Txn::new().put("a", "3")).await, 2);
    assert_eq!(
        commit(Txn::new().delete("c")).await,
        2,
        "it changes nothing"
    );
    let refused = store.txn(Txn::new().when("a", None).put("b", "3")).await;
    assert!(matches!(refused.unwrap(), Outcome::Conflict { .. }));
    let txn = Txn::new().when("a", Some(2)).delete("a");
    assert_eq!(commit(txn).await, 3);
    // What is too much for its memory is forgotten, and who wanted it told.
    let mut watch = store.watch("", 3).unwrap();
    for _ in 0..20 {
        commit(Txn::new().put("big", vec![0_u8; 1 << 20])).await;
    }
    let told = watch.next().await;
    assert!(matches!(told, Err(StoreError::Compacted { after: 3 })));
}
