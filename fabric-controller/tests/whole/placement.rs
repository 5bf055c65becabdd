//! Why an instance is where it is, and what would be if.

use fabric_proto::v1::{
    ExplainPlacementRequest, ExplainPlacementResponse, SimulatePlacementRequest,
    SimulatePlacementResponse,
};
use tonic::{Code, Status};

use crate::framework::{Client, Controller, Node, register, shop};

async fn explain(client: &Client, id: &str) -> Result<ExplainPlacementResponse, Status> {
    let request = ExplainPlacementRequest {
        instance_id: id.to_owned(),
    };
    let answer = client.placement().explain_placement(request).await;
    answer.map(tonic::Response::into_inner)
}

async fn simulate(
    client: &Client,
    request: SimulatePlacementRequest,
) -> Result<SimulatePlacementResponse, Status> {
    let answer = client.placement().simulate_placement(request).await;
    answer.map(tonic::Response::into_inner)
}

/// A node in a rack.
async fn racked(client: &Client, name: &str, rack: &str) -> Node {
    let mut register = register(name, 0);
    register
        .labels
        .insert("fault-domain".to_owned(), rack.to_owned());
    Node::register(client, register).await.unwrap()
}

#[tokio::test]
async fn a_role_is_spread_over_racks_and_says_why() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let _nodes = [
        racked(&client, "n1", "r1").await,
        racked(&client, "n2", "r1").await,
        racked(&client, "n3", "r2").await,
    ];
    client.apply(&shop(2)).await.unwrap();
    let placed = client.list().await;
    assert_eq!([&placed[0].node_id, &placed[1].node_id], ["n1", "n3"]);
    let why = explain(&client, "shop-web-1").await.unwrap();
    assert_eq!(
        (why.node_id.as_str(), why.chosen_node_id.as_str()),
        ("n3", "n3")
    );
    let domains: Vec<_> = why
        .verdicts
        .iter()
        .map(|one| one.fault_domain.as_str())
        .collect();
    assert_eq!(domains, ["r1", "r1", "r2"]);
    assert_eq!(
        why.verdicts[1].behind,
        "more of its group in this fault domain: 1, not 0"
    );
    assert_eq!(
        explain(&client, "nobody").await.unwrap_err().code(),
        Code::NotFound
    );
}

/// Two roles of one machine each, with that in both.
fn pair(more: &str) -> String {
    let role = |name: &str| {
        format!(
            "[[role]]\nname = \"{name}\"\nkind = \"vm\"\nsize = \"tiny\"\n\
             image = \"guest-os\"\n{more}\n"
        )
    };
    let size = "name = \"dir\"\n[sizes.tiny]\nvcpus = 1\nmemory = \"128MiB\"\n";
    format!("{size}{}{}", role("east"), role("west"))
}

#[tokio::test]
async fn two_roles_of_one_availability_set_do_not_share_a_rack() {
    // The only node of the other rack is a small one: nobody goes there without a reason.
    let mut told = Vec::new();
    for more in ["", "availability_set = \"dc\""] {
        let (_controller, client) = Controller::start().await;
        client.upload_guest_os().await;
        let mut small = register("n3", 0);
        small.inventory.as_mut().unwrap().memory_bytes = 256 << 20;
        let rack = ("fault-domain".to_owned(), "r2".to_owned());
        small.labels.extend([rack]);
        let _nodes = [
            racked(&client, "n1", "r1").await,
            racked(&client, "n2", "r1").await,
            Node::register(&client, small).await.unwrap(),
        ];
        client.apply(&pair(more)).await.unwrap();
        let placed = client.list().await.into_iter();
        let nodes: Vec<_> = placed.map(|one| (one.instance_id, one.node_id)).collect();
        told.push(nodes);
    }
    let of = |role: &str, node: &str| (format!("dir-{role}-0"), node.to_owned());
    assert_eq!(told[0], [of("east", "n1"), of("west", "n1")]);
    assert_eq!(told[1], [of("east", "n1"), of("west", "n3")]);
}

#[tokio::test]
async fn what_finds_no_node_is_told_what_would_help() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let _node = Node::join(&client, "n1").await;
    let big = shop(1).replace("128MiB", "200GiB");
    client.apply(&big).await.unwrap();
    let why = explain(&client, "shop-web-0").await.unwrap();
    assert_eq!(why.verdicts[0].refusals[0].reason, "Memory");
    assert_eq!(why.remedies, ["add a node with 1 vCPU and 204800 MiB free"]);
    let bigger = SimulatePlacementRequest {
        add_nodes: 1,
        add_cpus: 8,
        add_memory_bytes: 256 << 30,
        ..SimulatePlacementRequest::default()
    };
    let then = simulate(&client, bigger).await.unwrap();
    assert_eq!(then.moves.len(), 1);
    assert_eq!(then.moves[0].to_node_id, "new-1");
}

#[tokio::test]
async fn a_simulation_says_who_would_go_where_and_does_nothing() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let _nodes = [
        racked(&client, "n1", "r1").await,
        racked(&client, "n2", "r2").await,
    ];
    client.apply(&shop(2)).await.unwrap();
    let before = client.list().await;
    let dead = SimulatePlacementRequest {
        kill_domains: vec!["r1".to_owned()],
        definition_toml: shop(3),
        ..SimulatePlacementRequest::default()
    };
    let then = simulate(&client, dead).await.unwrap();
    let moves: Vec<_> = then
        .moves
        .iter()
        .map(|one| {
            (
                one.instance_id.as_str(),
                one.from_node_id.as_str(),
                one.to_node_id.as_str(),
            )
        })
        .collect();
    assert_eq!(
        moves,
        [("shop-web-0", "n1", "n2"), ("shop-web-2", "", "n2")]
    );
    assert_eq!((then.staying, then.misses.len()), (1, 0));
    assert_eq!(client.list().await, before);
    let gone = SimulatePlacementRequest {
        kill_nodes: vec!["n9".to_owned()],
        ..SimulatePlacementRequest::default()
    };
    let refused = simulate(&client, gone).await.unwrap_err();
    assert_eq!(refused.message(), "there is no node n9");
    let nothing = simulate(&client, SimulatePlacementRequest::default()).await;
    assert_eq!(nothing.unwrap_err().code(), Code::InvalidArgument);
}
