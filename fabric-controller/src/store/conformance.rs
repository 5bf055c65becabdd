//! What every [`Store`] must do, told once for all implementations.

use std::time::Duration;

use super::*;

/// Runs all tests, each on a new empty store.
pub async fn run(new: impl AsyncFn() -> Box<dyn Store>) {
    an_empty_store_is_at_revision_zero(&*new().await).await;
    what_was_put_is_there(&*new().await).await;
    a_condition_that_does_not_hold_undoes_everything(&*new().await).await;
    of_two_that_compare_the_same_one_wins(&*new().await).await;
    a_range_is_in_order_and_bounded(&*new().await).await;
    a_log_counts_up_and_never_back(&*new().await).await;
    deleting_what_is_not_there_changes_nothing(&*new().await).await;
    a_watcher_sees_every_change_once_and_in_order(&*new().await).await;
    a_watcher_waits_for_what_comes(&*new().await).await;
    a_watcher_that_is_too_slow_is_told(&*new().await).await;
    many_writers_lose_nothing(&*new().await).await;
}

async fn commit(store: &dyn Store, txn: Txn) -> Revision {
    match store.txn(txn).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict { key } => panic!("conflict on {key}"),
    }
}

async fn keys(store: &dyn Store, range: Range) -> Vec<String> {
    store
        .range(range)
        .await
        .unwrap()
        .entries
        .into_iter()
        .map(|entry| entry.key)
        .collect()
}

async fn an_empty_store_is_at_revision_zero(store: &dyn Store) {
    let snapshot = store.range(Range::prefix("")).await.unwrap();
    assert_eq!(
        snapshot,
        Snapshot {
            entries: vec![],
            revision: 0
        }
    );
    assert_eq!(store.get("a").await.unwrap(), None);
}

async fn what_was_put_is_there(store: &dyn Store) {
    assert_eq!(
        commit(store, Txn::new().put("a", "1").put("b", "2")).await,
        1
    );
    assert_eq!(commit(store, Txn::new().put("a", "3")).await, 2);
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((entry.value.as_ref(), entry.modified), (&b"3"[..], 2));
    assert_eq!(store.get("b").await.unwrap().unwrap().modified, 1);
}

async fn a_condition_that_does_not_hold_undoes_everything(store: &dyn Store) {
    commit(store, Txn::new().put("a", "1")).await;
    for modified in [None, Some(2)] {
        let txn = Txn::new()
            .put("b", "1")
            .when("a", modified)
            .append("log/", "x");
        let outcome = store.txn(txn).await.unwrap();
        assert_eq!(
            outcome,
            Outcome::Conflict {
                key: "a".to_owned()
            }
        );
    }
    assert_eq!(keys(store, Range::prefix("")).await, ["a"]);
    assert_eq!(
        commit(
            store,
            Txn::new().when("a", Some(1)).when("b", None).delete("a")
        )
        .await,
        2
    );
}

async fn of_two_that_compare_the_same_one_wins(store: &dyn Store) {
    let claim = || store.txn(Txn::new().when("a", None).put("a", "mine"));
    let (one, other) = tokio::join!(claim(), claim());
    let committed = [one.unwrap(), other.unwrap()]
        .iter()
        .filter(|outcome| matches!(outcome, Outcome::Committed(_)))
        .count();
    assert_eq!(committed, 1);
}

async fn a_range_is_in_order_and_bounded(store: &dyn Store) {
    let txn = ["p/b", "p/a", "p/c", "q", "p", "o"]
        .iter()
        .fold(Txn::new(), |txn, key| txn.put(*key, "x"));
    commit(store, txn).await;
    assert_eq!(
        keys(store, Range::prefix("p/")).await,
        ["p/a", "p/b", "p/c"]
    );
    assert_eq!(
        keys(store, Range::prefix("p/").after("p/a").limit(1)).await,
        ["p/b"]
    );
    assert_eq!(
        keys(store, Range::prefix("p/").newest_first().limit(2)).await,
        ["p/c", "p/b"]
    );
    let (both, revision) = store
        .ranges(vec![Range::prefix("q"), Range::prefix("o")])
        .await
        .unwrap();
    assert_eq!((both.len(), both[0][0].key.as_str(), revision), (2, "q", 1));
}

async fn a_log_counts_up_and_never_back(store: &dyn Store) {
    commit(
        store,
        Txn::new()
            .append("l/", "1")
            .append("l/", "2")
            .append("m/", "1"),
    )
    .await;
    let last = format!("l/{:020}", 2);
    assert_eq!(
        keys(store, Range::prefix("l/")).await,
        [format!("l/{:020}", 1), last.clone()]
    );
    commit(
        store,
        Txn::new().op(Op::DeleteUpTo {
            prefix: "l/".to_owned(),
            last,
        }),
    )
    .await;
    assert_eq!(keys(store, Range::prefix("l/")).await.len(), 0);
    commit(store, Txn::new().append("l/", "3")).await;
    assert_eq!(
        keys(store, Range::prefix("l/")).await,
        [format!("l/{:020}", 3)]
    );
    assert_eq!(keys(store, Range::prefix("m/")).await.len(), 1);
}

async fn deleting_what_is_not_there_changes_nothing(store: &dyn Store) {
    commit(store, Txn::new().put("a", "1")).await;
    assert_eq!(commit(store, Txn::new().delete("b")).await, 1);
}

async fn a_watcher_sees_every_change_once_and_in_order(store: &dyn Store) {
    commit(store, Txn::new().put("w/a", "1")).await;
    commit(store, Txn::new().put("x", "1")).await;
    commit(store, Txn::new().put("w/b", "2").delete("w/a")).await;
    let mut watch = store.watch("w/", 1).unwrap();
    let mut seen = watch.next().await.unwrap();
    commit(store, Txn::new().put("w/c", "3")).await;
    seen.extend(watch.next().await.unwrap());
    let seen: Vec<_> = seen
        .iter()
        .map(|change| (change.key.as_str(), change.value.is_some(), change.revision))
        .collect();
    assert_eq!(
        seen,
        [("w/b", true, 3), ("w/a", false, 3), ("w/c", true, 4)]
    );
}

async fn a_watcher_waits_for_what_comes(store: &dyn Store) {
    let mut watch = store.watch("w/", 0).unwrap();
    let nothing = tokio::time::timeout(Duration::from_millis(20), watch.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    let (seen, _) = tokio::join!(watch.next(), commit(store, Txn::new().put("w/a", "1")));
    assert_eq!(seen.unwrap()[0].key, "w/a");
}

async fn a_watcher_that_is_too_slow_is_told(store: &dyn Store) {
    let mut watch = store.watch("", 0).unwrap();
    for _ in 0..20 {
        commit(store, Txn::new().put("big", vec![0_u8; 1 << 20])).await;
    }
    assert!(matches!(
        watch.next().await,
        Err(StoreError::Compacted { after: 0 })
    ));
}

async fn many_writers_lose_nothing(store: &dyn Store) {
    let all = (0..300).map(|index| store.txn(Txn::new().put(format!("k{index:03}"), "x")));
    for outcome in futures_util::future::join_all(all).await {
        assert!(matches!(outcome.unwrap(), Outcome::Committed(_)));
    }
    let snapshot = store.range(Range::prefix("k")).await.unwrap();
    assert_eq!((snapshot.entries.len(), snapshot.revision), (300, 300));
}
