//! The audit log: every call that changes something, and every denial.

use fabric_proto::v1::{AuditEntry, ListAuditEntriesRequest, WatchAuditEntriesRequest};
use fabric_trust::identity::Role;

use crate::framework::*;

async fn entries(client: &Client) -> Vec<AuditEntry> {
    let request = ListAuditEntriesRequest::default();
    let answer = client.audit().list_audit_entries(request).await.unwrap();
    answer.into_inner().entries
}

/// Call without its package, and result.
fn brief(entries: &[AuditEntry]) -> Vec<(&str, &str)> {
    let brief = |entry: &'_ AuditEntry| {
        let call = entry.call.rsplit('/').next().map_or(0, str::len);
        entry.call.len() - call
    };
    entries
        .iter()
        .map(|entry| (&entry.call[brief(entry)..], entry.result.as_str()))
        .collect()
}

#[tokio::test]
async fn what_was_done_and_by_whom_is_in_the_log_with_what_it_changed() {
    let (controller, local) = Controller::start().await;
    local.upload_guest_os().await;
    let operator = controller.client(Role::Operator, "alice").await;
    let before = entries(&local).await.len();
    operator.apply_with_id(&shop(2), "my-id").await.unwrap();
    let log = entries(&local).await;
    assert_eq!(brief(&log[before..]), [("ApplyService", "OK")]);
    let entry = log.last().unwrap();
    assert_eq!(entry.who, "operator alice");
    assert_eq!(entry.call, "fabric.v1.ServiceService/ApplyService");
    assert_eq!(entry.request_id, "my-id");
    assert_eq!(entry.serial.len(), 32);
    assert!(entry.from.starts_with("127.0.0.1:") && entry.time.is_some());
    // The instances are the reconciler's doing, on behalf of the service.
    assert_eq!(
        entry.changed,
        [
            "services/shop",
            "revisions/shop/00000000000000000001",
            "blobs/image/guest-os"
        ]
    );

    // The same call again changes nothing, and is in the log all the same.
    operator.apply_with_id(&shop(2), "my-id").await.unwrap();
    let entry = entries(&local).await.pop().unwrap();
    assert!(entry.changed.is_empty() && entry.result == "OK");

    // It is there after a restart.
    let seen = entries(&local).await;
    let (_controller, local) = controller.restart().await;
    assert_eq!(entries(&local).await[..seen.len()], seen);
}

#[tokio::test]
async fn failures_and_denials_are_in_the_log() {
    let (controller, local) = Controller::start().await;
    let reader = controller.client(Role::Reader, "bob").await;
    reader.apply(&shop(1)).await.unwrap_err();
    local.apply("nonsense").await.unwrap_err();
    let log = entries(&local).await;
    assert_eq!(
        brief(&log),
        [
            ("ApplyService", "PERMISSION_DENIED"),
            ("ApplyService", "INVALID_ARGUMENT")
        ]
    );
    assert_eq!(log[0].who, "reader bob");
    assert!(log[1].who.starts_with("local uid "), "{}", log[1].who);
    assert!(!log[1].detail.is_empty());
    // Reading is not.
    local.list().await;
    assert_eq!(entries(&local).await.len(), 2);
}

#[tokio::test]
async fn nobody_fills_the_log_by_being_denied() {
    let (controller, local) = Controller::start().await;
    let reader = controller.client(Role::Reader, "bob").await;
    for _ in 0..300 {
        reader.apply(&shop(1)).await.unwrap_err();
    }
    let count = entries(&local).await.len();
    assert!((100..300).contains(&count), "{count} entries");
}

#[tokio::test]
async fn the_log_can_be_followed() {
    let (_controller, local) = Controller::start().await;
    let request = WatchAuditEntriesRequest::default();
    let mut client = local.audit();
    let mut followed = client
        .watch_audit_entries(request)
        .await
        .unwrap()
        .into_inner();
    for number in 1..=3 {
        local.apply("nonsense").await.unwrap_err();
        let next = tokio::time::timeout(SOON, followed.message())
            .await
            .unwrap();
        let entry = next.unwrap().unwrap().entry.unwrap();
        assert_eq!(entry.cursor, number);
    }
}
