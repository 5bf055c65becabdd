//! Why an instance is where it is, and what would be if.

use fabric_proto::{
    node::v1::{NodeStatus, Template, session_request::Report},
    v1::{
        ApplyServiceRequest, BlobKind, Effect, ExplainPlacementRequest, ExplainPlacementResponse,
        GetServiceRequest, Instance, LabelNodeRequest, Node as NodeMessage,
        SimulatePlacementRequest, SimulatePlacementResponse,
    },
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use crate::framework::{Client, Controller, Node, register, shop, until, vhd};

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

#[tokio::test]
async fn rules_for_nodes_that_change_move_only_who_is_on_one_that_does_not_meet_them() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut fast = register("n1", 0);
    fast.labels.insert("disk".to_owned(), "nvme".to_owned());
    let mut fast = Node::register(&client, fast).await.unwrap();
    fast.next_goal().await;
    fast.status(vec![]).await;
    let _slow = Node::join(&client, "n2").await.live();
    let file = |more: &str| format!("{}{more}[update]\nbake = \"0s\"\n", shop(2));
    let (any, picky) = (file(""), file("node_labels = { disk = \"nvme\" }\n"));
    client.apply(&any).await.unwrap();
    fast.goal_with(&["shop-web-0"]).await;
    let told = fast.goal.instances[0].clone();
    let _fast = fast.live();
    let both = [("shop-web-0", "Ready"), ("shop-web-1", "Ready")];
    client.wait_for_words(&both).await;
    let before = client.list().await;
    assert_eq!([&*before[0].node_id, &*before[1].node_id], ["n1", "n2"]);

    let request = ApplyServiceRequest {
        definition_toml: picky.clone(),
        file_name: "service.toml".to_owned(),
        dry_run: true,
        ..ApplyServiceRequest::default()
    };
    let plan = client.services().apply_service(request).await.unwrap();
    let steps = plan.into_inner().steps;
    assert_eq!(steps.len(), 1, "{steps:#?}");
    assert_eq!(steps[0].instance_ids, ["shop-web-1"]);
    assert_eq!(steps[0].effect(), Effect::Replace);
    assert_eq!(steps[0].why, "nodes: any → disk=nvme");

    client.apply(&picky).await.unwrap();
    let after = until(
        "both on the node with that label",
        async || client.list().await,
        |all| {
            let is_there = |one: &Instance| one.node_id == "n1" && one.state == "Ready";
            all.len() == 2 && all.iter().all(is_there)
        },
    )
    .await;
    assert!(after[1].epoch > before[1].epoch);
    // The other one was told nothing.
    assert_eq!(after[0].epoch, before[0].epoch);
    assert_eq!(after[0].status, before[0].status);
    let restart = told.role.map_or(0, |role| role.restart_generation);
    let status = after[0].status.as_ref().and_then(|one| one.role.as_ref());
    assert_eq!(status.map(|role| role.restart_generation), Some(restart));

    let finished = async || {
        let reasons = client.reasons("shop").await;
        let finished = reasons.iter().filter(|one| *one == "UpdateFinished");
        finished.count()
    };
    until("the update to be done", finished, |count| *count == 1).await;

    // Any node will do again: nobody moves, and the plan has no steps.
    let applied = client.apply(&any).await.unwrap();
    assert!(applied.steps.is_empty(), "{:#?}", applied.steps);
    until("that to be done too", finished, |count| *count == 2).await;
    let same = client.list().await;
    assert_eq!(same[1].epoch, after[1].epoch);
    assert_eq!(same[1].node_id, "n1");
}

async fn label(client: &Client, request: LabelNodeRequest) -> Result<NodeMessage, Status> {
    let answer = client.nodes().label_node(request).await?;
    Ok(answer.into_inner().node.unwrap())
}

/// What says of node n1 that it has that label.
fn with(key: &str, value: &str) -> LabelNodeRequest {
    LabelNodeRequest {
        node_id: "n1".to_owned(),
        set: [(key.to_owned(), value.to_owned())].into(),
        ..LabelNodeRequest::default()
    }
}

/// A role for nodes with fast disks.
fn picky() -> String {
    format!("{}node_labels = {{ disk = \"nvme\" }}\n", shop(1))
}

#[tokio::test]
async fn nodes_in_thought_have_the_labels_and_the_disk_that_are_said() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    client.apply(&picky()).await.unwrap();
    let more = |disk: &str, disk_bytes| SimulatePlacementRequest {
        add_nodes: 1,
        add_cpus: 8,
        add_memory_bytes: 8 << 30,
        add_disk_bytes: disk_bytes,
        add_labels: [("disk".to_owned(), disk.to_owned())].into(),
        ..SimulatePlacementRequest::default()
    };
    for (disk, bytes, found) in [
        ("hdd", 0, 0),
        ("nvme", 1, 0),
        ("nvme", 0, 1),
        ("nvme", 1 << 40, 1),
    ] {
        let then = simulate(&client, more(disk, bytes)).await.unwrap();
        assert_eq!(then.moves.len(), found, "{disk}, {bytes}");
        assert_eq!(then.misses.len(), 1 - found, "{disk}, {bytes}");
    }
    let unknown = simulate(&client, more("", 0)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    assert!(unknown.message().starts_with("add_labels: \"\" can be"));
}

#[tokio::test]
async fn a_label_from_an_operator_makes_room_and_outlives_the_nodes_own_and_a_restart() {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut says = register("n1", 0);
    says.labels.insert("disk".to_owned(), "hdd".to_owned());
    let mut node = Node::register(&client, says.clone()).await.unwrap();
    node.next_goal().await;
    node.status(vec![]).await;
    client.apply(&picky()).await.unwrap();
    let why = explain(&client, "shop-web-0").await.unwrap();
    assert_eq!(why.verdicts[0].refusals[0].reason, "Label");
    let remedy = "label node n1: `fabctl node label n1 disk=nvme`";
    assert_eq!(why.remedies[0], remedy);

    let request = LabelNodeRequest {
        fault_domain: Some("r7".to_owned()),
        request_id: "once".to_owned(),
        ..with("disk", "nvme")
    };
    let labelled = label(&client, request.clone()).await.unwrap();
    assert_eq!(labelled.labels["disk"], "nvme");
    assert_eq!(labelled.fault_domain, "r7");
    node.goal_with(&["shop-web-0"]).await;
    assert_eq!(label(&client, request).await.unwrap(), labelled);
    let reasons = client.reasons("n1").await;
    assert_eq!(reasons[2..], ["NodeLabelled"]);

    // What the node says again is no matter, before and after a restart.
    says.seen_incarnation = node.goal.incarnation;
    drop(node);
    let node = Node::register(&client, says.clone()).await.unwrap();
    assert_eq!(client.node("n1").await.labels["disk"], "nvme");
    drop(node);
    let (_controller, client) = controller.restart().await;
    let _node = Node::register(&client, says).await.unwrap();
    let kept = client.node("n1").await;
    assert_eq!(kept.labels["disk"], "nvme");
    assert_eq!(kept.operator_labels, kept.labels);
    let domains = (kept.fault_domain, kept.operator_fault_domain);
    assert_eq!(domains, ("r7".to_owned(), "r7".to_owned()));

    // Taken back, the node's own counts again; what is there stays.
    let back = LabelNodeRequest {
        node_id: "n1".to_owned(),
        remove: vec!["disk".to_owned()],
        fault_domain: Some(String::new()),
        ..LabelNodeRequest::default()
    };
    let node = label(&client, back.clone()).await.unwrap();
    assert_eq!((&*node.labels["disk"], &*node.fault_domain), ("hdd", "n1"));
    assert_eq!(client.list().await[0].node_id, "n1");
    let own = label(&client, back).await.unwrap_err();
    assert_eq!(own.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn labels_that_cannot_be_are_refused() {
    let (_controller, client) = Controller::start().await;
    let _node = Node::join(&client, "n1").await;
    let empty = label(&client, with("disk", "")).await.unwrap_err();
    assert_eq!(empty.code(), Code::InvalidArgument);
    let nobody = LabelNodeRequest {
        node_id: "n9".to_owned(),
        ..with("disk", "nvme")
    };
    let nobody = label(&client, nobody).await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound);
    assert!(client.node("n1").await.labels.is_empty());
}

/// A node with so many GPUs.
async fn with_gpus(client: &Client, name: &str, count: u64) -> Node {
    let mut says = register(name, 0);
    if let Some(inventory) = &mut says.inventory {
        inventory.resources.insert("gpu".to_owned(), count);
    }
    Node::register(client, says).await.unwrap()
}

#[tokio::test]
async fn an_operators_own_resources_are_never_promised_twice() {
    let (_controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let _nodes = [
        Node::join(&client, "n1").await.live(),
        with_gpus(&client, "n2", 2).await.live(),
    ];
    let gpus = shop(3).replace("memory", "resources = { gpu = 1 }\nmemory");
    client.apply(&gpus).await.unwrap();
    let placed = until(
        "two on the node that has some",
        async || client.list().await,
        |all| all.iter().filter(|one| one.node_id == "n2").count() == 2,
    )
    .await;
    assert_eq!(placed[0].resources["gpu"], 1);
    let homeless: Vec<_> = placed.iter().filter(|one| one.node_id.is_empty()).collect();
    assert_eq!(homeless.len(), 1, "{placed:#?}");
    let why = explain(&client, &homeless[0].instance_id).await.unwrap();
    let refusals: Vec<_> = why
        .verdicts
        .iter()
        .map(|one| (&*one.refusals[0].reason, &*one.refusals[0].message))
        .collect();
    assert_eq!(
        refusals,
        [
            ("NoResource", "it has 0 gpu in all, 1 are needed"),
            ("Resource", "0 gpu are free, 1 are needed"),
        ]
    );
    assert_eq!(why.remedies[0], "free 1 gpu on node n2");
    let node = client.node("n2").await;
    assert_eq!(node.resources_used["gpu"], 2);
    assert_eq!(node.inventory.unwrap().resources["gpu"], 2);

    let more = |gpus| SimulatePlacementRequest {
        add_nodes: 1,
        add_cpus: 8,
        add_memory_bytes: 8 << 30,
        add_resources: [("gpu".to_owned(), gpus)].into(),
        ..SimulatePlacementRequest::default()
    };
    let then = simulate(&client, more(1)).await.unwrap();
    assert_eq!(then.moves.len(), 1);
    assert_eq!(then.moves[0].to_node_id, "new-1");
    let none = simulate(&client, more(0)).await.unwrap_err();
    assert_eq!(
        none.message(),
        "add_resources: 0 of \"gpu\"; it must be 1 to 1000000"
    );

    let _another = with_gpus(&client, "n3", 1).await.live();
    until(
        "the last on a node that has come",
        async || client.list().await,
        |all| all.iter().any(|one| one.node_id == "n3"),
    )
    .await;
}

#[tokio::test]
async fn a_node_whose_resources_cannot_be_counted_is_refused() {
    let (_controller, client) = Controller::start().await;
    let mut none = with_gpus(&client, "n1", 0).await;
    let none = none.answer().await.unwrap_err();
    assert_eq!(none.code(), Code::InvalidArgument);
    assert!(none.message().contains("it must be 1 to 1000000"), "{none}");
}

/// A node with those processors, by the word of its host agent.
async fn with_processors(client: &Client, name: &str, word: &str) -> Node {
    let mut says = register(name, 0);
    if let Some(inventory) = &mut says.inventory {
        inventory.architecture = word.to_owned();
    }
    Node::register(client, says).await.unwrap()
}

/// An image for 64-bit Arm.
async fn upload_arm(client: &Client, name: &str) -> Vec<u8> {
    let bytes = vhd();
    let arm = client.upload_for("aarch64", BlobKind::Image, name, &bytes);
    assert_eq!(arm.await.unwrap().architecture, "aarch64");
    bytes
}

/// An image for each architecture, and a node: the first says that word, the other has
/// `aarch64`.
async fn of_both(client: &Client, first: &str) -> [AbortOnDropHandle<()>; 2] {
    client.upload_guest_os().await;
    upload_arm(client, "guest-os-arm").await;
    [
        with_processors(client, "n1", first).await.live(),
        with_processors(client, "n2", "aarch64").await.live(),
    ]
}

/// Why a node does not take an instance: the words, and what they say.
fn refusals(why: &ExplainPlacementResponse) -> Vec<(&str, &str)> {
    let all = why.verdicts.iter().flat_map(|one| &one.refusals);
    all.map(|one| (&*one.reason, &*one.message)).collect()
}

#[tokio::test]
async fn an_image_goes_where_the_processors_are_that_it_is_for() {
    let (controller, client) = Controller::start().await;
    // The host agent of the first is from before there was more than one architecture.
    let _nodes = of_both(&client, "").await;
    let east = pair("").replacen("guest-os", "guest-os-arm", 1);
    client.apply(&east).await.unwrap();
    let placed = client.list().await;
    assert_eq!([&*placed[0].node_id, &*placed[1].node_id], ["n2", "n1"]);
    let told = ["aarch64", "x86_64"].map(|needed| {
        let has = if needed == "aarch64" {
            "x86_64"
        } else {
            "aarch64"
        };
        format!("its processors are {has}, the image is for {needed}")
    });
    for (id, told) in ["dir-east-0", "dir-west-0"].iter().zip(&told) {
        let why = explain(&client, id).await.unwrap();
        assert_eq!(refusals(&why), [("Architecture", told.as_str())]);
    }
    let words = async |client: &Client| {
        let mut words = Vec::new();
        for name in ["n1", "n2"] {
            words.push(client.node(name).await.inventory.unwrap().architecture);
        }
        words
    };
    assert_eq!(words(&client).await, ["x86_64", "aarch64"]);

    // It is kept, and so are the instances where they are.
    let (_controller, client) = controller.restart().await;
    assert_eq!(words(&client).await, ["x86_64", "aarch64"]);
    let why = explain(&client, "dir-east-0").await.unwrap();
    assert_eq!(why.node_id, "n2");
    assert!(refusals(&why).contains(&("Architecture", told[0].as_str())));
}

#[tokio::test]
async fn an_image_that_no_node_has_the_processors_for_says_so_at_once_and_what_would_help() {
    let (_controller, client) = Controller::start().await;
    let image = upload_arm(&client, "guest-os").await;
    let mut node = Node::join(&client, "n1").await;
    client.apply(&shop(1)).await.unwrap();
    let homeless = client.list().await;
    let told = "no node can take it (1 vCPU and 128 MiB): 1 is of another architecture; to make \
                it fit, give it an image for x86_64, or add an aarch64 node with 1 vCPU and 128 \
                MiB free";
    let shown = (&*homeless[0].node_id, &*homeless[0].reason);
    assert_eq!(shown, ("", told));
    let why = explain(&client, "shop-web-0").await.unwrap();
    assert_eq!(why.unplaceable, told);
    let remedies = [
        "give it an image for x86_64",
        "add an aarch64 node with 1 vCPU and 128 MiB free",
    ];
    assert_eq!(why.remedies, remedies);

    let more = |architecture: &str| SimulatePlacementRequest {
        add_nodes: 1,
        add_cpus: 8,
        add_memory_bytes: 8 << 30,
        add_architecture: architecture.to_owned(),
        ..SimulatePlacementRequest::default()
    };
    for (architecture, found) in [("", 0), ("x86_64", 0), ("aarch64", 1)] {
        let then = simulate(&client, more(architecture)).await.unwrap();
        assert_eq!(then.moves.len(), found, "{architecture}");
        assert_eq!(then.misses.len(), 1 - found, "{architecture}");
    }
    let unknown = simulate(&client, more("sparc64")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    let rule = "add_architecture: \"sparc64\" is no architecture that guests can have; it must \
                be x86_64 or aarch64";
    assert_eq!(unknown.message(), rule);

    // It was said wrong of this file: said right, it holds when the service is applied.
    let again = client.upload_for("x86_64", BlobKind::Image, "guest-os", &image);
    assert_eq!(again.await.unwrap().architecture, "x86_64");
    let applied = client.apply(&shop(1)).await.unwrap();
    let detail = &applied.changes[0].detail;
    assert!(
        detail.starts_with("architecture: aarch64 → x86_64"),
        "{detail}"
    );
    node.goal_with(&["shop-web-0"]).await;
}

#[tokio::test]
async fn another_image_for_other_processors_moves_who_gets_it() {
    let (_controller, client) = Controller::start().await;
    let _nodes = of_both(&client, "x86_64").await;
    let file = format!("{}[update]\nbake = \"0s\"\n", shop(1));
    client.apply(&file).await.unwrap();
    client.wait_for_words(&[("shop-web-0", "Ready")]).await;
    assert_eq!(client.list().await[0].node_id, "n1");

    let arm = file.replace("guest-os", "guest-os-arm");
    let applied = client.apply(&arm).await.unwrap();
    assert_eq!(applied.steps[0].effect(), Effect::Replace);
    let why = &applied.steps[0].why;
    assert!(why.ends_with("; architecture: x86_64 → aarch64"), "{why}");
    until(
        "it to be ready where its image's processors are",
        async || client.list().await,
        |all| all.len() == 1 && all[0].node_id == "n2" && all[0].state == "Ready",
    )
    .await;
}

#[tokio::test]
async fn a_line_of_images_brings_nobody_to_other_processors() {
    let (_controller, client) = Controller::start().await;
    let bytes = vhd();
    let first = client.upload(BlobKind::Image, "guest-os/1.0", &bytes);
    first.await.unwrap();
    let _node = Node::join(&client, "n1").await.live();
    let line = shop(1).replace("guest-os", "guest-os/1");
    client.apply(&line).await.unwrap();
    upload_arm(&client, "guest-os/1.1").await;
    // Applied again, to another size of the role, it keeps its image, in thought as well.
    let more = line.replace("instances = 1", "instances = 2");
    let request = SimulatePlacementRequest {
        definition_toml: more.clone(),
        ..SimulatePlacementRequest::default()
    };
    let then = simulate(&client, request).await.unwrap();
    assert_eq!((then.moves.len(), then.staying), (1, 1), "{then:?}");
    let applied = client.apply(&more).await.unwrap();
    assert!(applied.steps.is_empty(), "{:#?}", applied.steps);
    let image = async |name: &str| {
        let name = name.to_owned();
        let request = GetServiceRequest { name };
        let answer = client.services().get_service(request).await.unwrap();
        let service = answer.into_inner().service.unwrap();
        service.roles[0].image.clone()
    };
    assert_eq!(image("shop").await, "guest-os/1.0");
    // Who has nothing yet gets the newest, and who names one gets that.
    client.apply(&line.replace("shop", "new")).await.unwrap();
    assert_eq!(image("new").await, "guest-os/1.1");
    client
        .apply(&more.replace("guest-os/1", "guest-os/1.1"))
        .await
        .unwrap();
    assert_eq!(image("shop").await, "guest-os/1.1");
}

#[tokio::test]
async fn a_node_with_processors_that_no_guest_can_have_is_refused() {
    let (_controller, client) = Controller::start().await;
    let mut odd = with_processors(&client, "n1", "riscv64").await;
    let odd = odd.answer().await.unwrap_err();
    assert_eq!(odd.code(), Code::InvalidArgument);
    let rule = "architecture: \"riscv64\" is no architecture that guests can have; it must be \
                x86_64 or aarch64";
    assert_eq!(odd.message(), rule);
}

/// What a node says when that is all that is in its cache.
fn with_cached(node: &Node, digest: &str) -> Report {
    Report::Status(NodeStatus {
        applied_incarnation: node.goal.incarnation,
        cached_digests: vec![digest.to_owned()],
        ..NodeStatus::default()
    })
}

/// Where the only instance of a service would go.
async fn would_go(client: &Client) -> String {
    let request = SimulatePlacementRequest {
        definition_toml: shop(1),
        ..SimulatePlacementRequest::default()
    };
    let then = simulate(client, request).await.unwrap();
    then.moves[0].to_node_id.clone()
}

#[tokio::test]
async fn an_image_in_a_nodes_cache_is_a_reason_to_go_there() {
    let (_controller, client) = Controller::start().await;
    let image = client.upload_guest_os().await;
    let _first = Node::join(&client, "n1").await;
    let second = Node::join(&client, "n2").await;
    let would_go = async || would_go(&client).await;
    assert_eq!(would_go().await, "n1", "the first of two that are alike");
    second.report(with_cached(&second, &image.digest)).await;
    until("the cache to count", would_go, |node| node == "n2").await;
    client.apply(&shop(1)).await.unwrap();
    assert_eq!(client.list().await[0].node_id, "n2");
    let why = explain(&client, "shop-web-0").await.unwrap();
    let behind = &why.verdicts[0].behind;
    assert!(behind.contains("image not there"), "{behind}");
}

#[tokio::test]
async fn a_template_on_a_node_is_a_reason_to_go_there() {
    let (_controller, client) = Controller::start().await;
    let image = client.upload_guest_os().await;
    let first = Node::join(&client, "n1").await;
    let second = Node::join(&client, "n2").await;
    first.report(with_cached(&first, &image.digest)).await;
    let status = NodeStatus {
        applied_incarnation: second.goal.incarnation,
        cached_digests: vec![image.digest.clone()],
        templates: vec![Template {
            image_digest: image.digest.clone(),
            vcpus: 1,
            memory_bytes: 128 << 20,
        }],
        ..NodeStatus::default()
    };
    second.report(Report::Status(status)).await;
    let would_go = async || would_go(&client).await;
    until("the template to count", would_go, |node| node == "n2").await;
    client.apply(&shop(1)).await.unwrap();
    let why = explain(&client, "shop-web-0").await.unwrap();
    let behind = &why.verdicts[0].behind;
    assert!(behind.contains("no template"), "{behind}");
}

#[tokio::test]
async fn what_is_in_a_nodes_cache_has_digests() {
    let (_controller, client) = Controller::start().await;
    let mut node = Node::join(&client, "n1").await;
    node.report(with_cached(&node, "sha256:x")).await;
    let refused = loop {
        if let Err(refused) = node.answer().await {
            break refused;
        }
    };
    assert_eq!(refused.code(), Code::InvalidArgument);
    let told = refused.message();
    assert!(told.starts_with("cached_digests: "), "{told}");
}
