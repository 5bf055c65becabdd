//! A lease by a clock that the test sets, told by example.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::clock::boot_time;

const LENGTH: Duration = Duration::from_secs(10);

/// A lease and its clock, in milliseconds.
struct Story {
    clock: Arc<AtomicU64>,
    lease: Arc<Lease>,
}

impl Story {
    fn new() -> Self {
        let clock = Arc::new(AtomicU64::new(50_000));
        let read = Arc::clone(&clock);
        let now = move || Duration::from_millis(read.load(Ordering::SeqCst));
        let lease = Arc::new(Lease::unrecorded(Arc::new(now)));
        Self { clock, lease }
    }

    fn pass(&self, millis: u64) {
        self.clock.fetch_add(millis, Ordering::SeqCst);
    }
}

#[test]
fn without_a_goal_that_needs_one_nothing_ends() {
    let story = Story::new();
    assert_eq!(story.lease.request(), 0);
    story.pass(1_000_000);
    assert!(!story.lease.is_over());
}

#[test]
fn it_is_counted_from_when_it_was_asked_for() {
    let story = Story::new();
    story.lease.require(Some(LENGTH));
    assert!(story.lease.is_over(), "none was granted yet");
    let request = story.lease.request();
    story.pass(4_000);
    story.lease.granted(request);
    story.pass(5_999);
    assert!(!story.lease.is_over());
    story.pass(1);
    assert!(story.lease.is_over());
}

#[test]
fn a_grant_that_comes_late_or_was_never_asked_for_gives_nothing() {
    let story = Story::new();
    story.lease.require(Some(LENGTH));
    let request = story.lease.request();
    story.pass(10_000);
    story.lease.granted(request);
    assert!(story.lease.is_over());
    story.lease.granted(request + 1_000_000);
    assert!(story.lease.is_over());
    let newer = story.lease.request();
    story.lease.granted(newer);
    story.lease.granted(request);
    assert!(!story.lease.is_over(), "an older one takes nothing away");
}

#[test]
fn a_controller_that_is_down_prolongs_a_lease_and_gives_none() {
    let story = Story::new();
    story.lease.require(Some(LENGTH));
    story.lease.nobody_grants(story.lease.request());
    assert!(story.lease.is_over());
    story.lease.granted(story.lease.request());
    for _ in 0..10 {
        story.pass(9_000);
        story.lease.nobody_grants(story.lease.request());
        assert!(!story.lease.is_over());
    }
    story.pass(10_001);
    story.lease.nobody_grants(story.lease.request());
    assert!(story.lease.is_over(), "something may run elsewhere by now");
}

#[test]
fn a_goal_without_leases_sets_free() {
    let story = Story::new();
    story.lease.require(Some(LENGTH));
    assert!(story.lease.is_over());
    story.lease.require(None);
    assert!(!story.lease.is_over());
}

#[tokio::test(start_paused = true)]
async fn its_end_and_its_return_are_told() {
    let start = tokio::time::Instant::now();
    let now = move || Duration::from_secs(100) + start.elapsed();
    let lease = Arc::new(Lease::unrecorded(Arc::new(now)));
    lease.require(Some(LENGTH));
    lease.granted(lease.request());
    let mut watch = lease.watch();
    watch.turned().await;
    assert_eq!(start.elapsed().as_secs(), LENGTH.as_secs());
    assert!(lease.is_over());
    let granting = {
        let lease = Arc::clone(&lease);
        async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            lease.granted(lease.request());
        }
    };
    tokio::join!(granting, watch.turned());
    assert!(!lease.is_over());
}

#[test]
fn the_next_host_agent_finds_it() {
    let data = tempfile::tempdir().unwrap();
    let open = || Lease::open(data.path(), "boot-1", Arc::new(boot_time)).unwrap();
    let lease = open();
    lease.require(Some(LENGTH));
    lease.granted(lease.request());
    let next = open();
    next.require(Some(LENGTH));
    assert!(!next.is_over());
    let after_restart = Lease::open(data.path(), "boot-2", Arc::new(boot_time)).unwrap();
    after_restart.require(Some(LENGTH));
    assert!(after_restart.is_over());
}
