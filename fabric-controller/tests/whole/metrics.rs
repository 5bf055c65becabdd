//! What Prometheus is told.

use std::path::Path;

use fabric_controller::metrics::Metrics;
use fabric_metrics::list::exposed;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::framework::*;

/// What is at /metrics.
async fn scrape(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    body.to_owned()
}

fn assert_has(text: &str, line: &str) {
    assert!(text.contains(line), "{line} is not in\n{text}");
}

#[tokio::test]
async fn what_is_listed_is_exposed_with_a_value_and_nothing_else() {
    let (controller, client) = Controller::start().await;
    let mut node = Node::join(&client, "n1").await;
    client.upload_guest_os().await;
    client.apply(&shop(2)).await.unwrap();
    node.goal_with(&["shop-web-0", "shop-web-1"]).await;
    node.lease().await;
    node.all_ready().await;
    client
        .wait_for_words(&[("shop-web-0", "Ready"), ("shop-web-1", "Ready")])
        .await;

    let text = scrape(&controller.metrics()).await;
    let metrics = Metrics::default();
    let rows = metrics.list().rows();
    let listed: Vec<_> = rows
        .iter()
        .map(|row| (row.name.clone(), row.kind.to_string()))
        .collect();
    assert_eq!(exposed(&text), listed);
    for row in rows {
        let sample = |line: &str| line.starts_with(&row.name);
        assert!(
            text.lines().any(sample),
            "{} has no value in\n{text}",
            row.name
        );
    }
    for line in [
        "fabric_controller_instances{state=\"Ready\"} 2.0",
        "fabric_controller_instances{state=\"Failed\"} 0.0",
        "fabric_controller_nodes{state=\"connected\"} 1.0",
        "fabric_controller_sessions 1.0",
        "fabric_controller_services 1.0",
        "fabric_controller_placements_total{outcome=\"placed\"} 2",
        "fabric_controller_events_total{reason=\"ServiceApplied\"} 1",
        "fabric_controller_calls_total{method=\"fabric.v1.ServiceService/ApplyService\",code=\"Ok\"} 1",
        "fabric_controller_store_transactions_total{outcome=\"failed\"} 0",
    ] {
        assert_has(&text, line);
    }
}

#[tokio::test]
async fn calls_that_are_refused_are_counted_by_why() {
    let (controller, client) = Controller::start().await;
    client.apply("nonsense").await.unwrap_err();
    let text = scrape(&controller.metrics()).await;
    assert_has(
        &text,
        "method=\"fabric.v1.ServiceService/ApplyService\",code=\"InvalidArgument\"} 1",
    );
}
