//! Logs and consoles, from the node to the operator.

use bytes::Bytes;
use fabric_proto::{
    node::v1::{OutputKind, SendOutputRequest},
    v1::{StreamOutputRequest, StreamOutputResponse},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::framework::*;

async fn ask(client: &Client, follow: bool) -> Streaming<StreamOutputResponse> {
    let request = StreamOutputRequest {
        instance_id: "shop-web-0".to_owned(),
        kind: OutputKind::Log.into(),
        tail_bytes: 0,
        follow,
    };
    client
        .instances()
        .stream_output(request)
        .await
        .unwrap()
        .into_inner()
}

fn piece(stream_id: &str, data: &str, error: &str) -> SendOutputRequest {
    SendOutputRequest {
        stream_id: stream_id.to_owned(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        error: error.to_owned(),
    }
}

/// A node with one instance.
async fn ready_node(client: &Client) -> Node {
    client.upload_guest_os().await;
    let mut node = Node::join(client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    node
}

/// Takes in goals until so many outputs are asked for; answers their ids.
async fn outputs(node: &mut Node, count: usize) -> Vec<String> {
    while node.goal.outputs.len() != count {
        node.next_goal().await;
    }
    node.goal
        .outputs
        .iter()
        .map(|output| output.stream_id.clone())
        .collect()
}

async fn read_all(stream: &mut Streaming<StreamOutputResponse>) -> Result<String, Status> {
    let mut text = String::new();
    while let Some(piece) = stream.message().await? {
        text.push_str(std::str::from_utf8(&piece.data).unwrap());
    }
    Ok(text)
}

#[tokio::test]
async fn what_the_node_sends_arrives_and_ends() {
    let (_controller, client) = Controller::start().await;
    let mut node = ready_node(&client).await;
    let mut stream = ask(&client, false).await;
    let id = outputs(&mut node, 1).await.remove(0);
    let asked = &node.goal.outputs[0];
    assert_eq!(
        (asked.instance_id.as_str(), asked.kind()),
        ("shop-web-0", OutputKind::Log)
    );
    assert_eq!((asked.tail_bytes, asked.follow), (u64::MAX, false));
    let sent = [piece(&id, "hello ", ""), piece("", "world", "")];
    client
        .host_agent()
        .send_output(tokio_stream::iter(sent))
        .await
        .unwrap();
    assert_eq!(read_all(&mut stream).await.unwrap(), "hello world");
    outputs(&mut node, 0).await;
    let late = client
        .host_agent()
        .send_output(tokio_stream::iter([piece(&id, "x", "")]))
        .await;
    assert_eq!(late.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_operator_who_leaves_ends_the_nodes_call() {
    let (_controller, client) = Controller::start().await;
    let mut node = ready_node(&client).await;
    let mut stream = ask(&client, true).await;
    let id = outputs(&mut node, 1).await.remove(0);
    let (pieces, sent) = mpsc::channel(4);
    let mut host_agent = client.host_agent();
    let sending =
        tokio::spawn(async move { host_agent.send_output(ReceiverStream::new(sent)).await });
    pieces.send(piece(&id, "line\n", "")).await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().data, "line\n");
    drop(stream);
    sending.await.unwrap().unwrap();
    outputs(&mut node, 0).await;
}

#[tokio::test]
async fn an_error_of_the_node_is_the_operators() {
    let (_controller, client) = Controller::start().await;
    let mut node = ready_node(&client).await;
    let mut stream = ask(&client, true).await;
    let id = outputs(&mut node, 1).await.remove(0);
    let sent = [piece(&id, "", "there is no console yet")];
    client
        .host_agent()
        .send_output(tokio_stream::iter(sent))
        .await
        .unwrap();
    let status = read_all(&mut stream).await.unwrap_err();
    assert!(
        status.message().contains("there is no console yet"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn two_operators_have_a_stream_each() {
    let (_controller, client) = Controller::start().await;
    let mut node = ready_node(&client).await;
    let mut first = ask(&client, false).await;
    let one = outputs(&mut node, 1).await;
    let mut second = ask(&client, false).await;
    let both = outputs(&mut node, 2).await;
    let other = both.iter().find(|id| !one.contains(id)).unwrap();
    for (id, text) in [(other, "second"), (&one[0], "first")] {
        let sent = [piece(id, text, "")];
        client
            .host_agent()
            .send_output(tokio_stream::iter(sent))
            .await
            .unwrap();
    }
    assert_eq!(read_all(&mut first).await.unwrap(), "first");
    assert_eq!(read_all(&mut second).await.unwrap(), "second");
}

#[tokio::test]
async fn output_that_cannot_be_had_says_why() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let request = |id: &str| StreamOutputRequest {
        instance_id: id.to_owned(),
        kind: OutputKind::Console.into(),
        ..StreamOutputRequest::default()
    };
    let status = client
        .instances()
        .stream_output(request("shop-web-0"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    client.apply(&shop(1)).await.unwrap();
    let status = client
        .instances()
        .stream_output(request("shop-web-0"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let mut node = Node::join(&client, "n1").await;
    node.goal_with(&["shop-web-0"]).await;
    drop(node);
    let refused = until(
        "the node to be gone",
        async || {
            client
                .instances()
                .stream_output(request("shop-web-0"))
                .await
                .map(drop)
        },
        |answer| {
            answer
                .as_ref()
                .is_err_and(|status| status.code() == Code::Unavailable)
        },
    )
    .await;
    assert!(
        refused
            .unwrap_err()
            .message()
            .contains("node n1 of instance shop-web-0")
    );
}
