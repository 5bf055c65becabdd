//! A spread that is mended when a node joins, a little at a time.

use fabric_controller::{
    model::{instance::InstanceRecord, time::WallTime},
    records::{self, Kept},
    store::{Store as _, Txn, sqlite::SqliteStore},
};
use fabric_proto::node::v1::VmState;

use crate::framework::*;

const ROLES: [&str; 2] = ["job", "web"];

/// Two roles of four instances.
fn two_roles() -> String {
    let web = shop(4);
    let (_, role) = web.split_once("[[role]]").unwrap();
    let job = role.replace("\"web\"", "\"worker\"");
    let job = job.replacen("\"worker\"", "\"job\"", 1);
    format!("{web}[[role]]{job}")
}

fn all() -> Vec<String> {
    let of = |role: &str| [0, 1, 2, 3].map(|number| format!("shop-{role}-{number}"));
    ROLES.iter().flat_map(|role| of(role)).collect()
}

/// Has all instances be what and where they are for long.
async fn settle(store: &std::path::Path) {
    let store = SqliteStore::open(store).unwrap();
    let instances = records::list(&store, records::INSTANCES).await.unwrap();
    let instances: Vec<Kept<InstanceRecord>> = instances;
    let mut txn = Txn::new();
    for kept in instances {
        let record = InstanceRecord {
            changed: WallTime::EPOCH,
            updated: WallTime::EPOCH,
            ..kept.value
        };
        let key = records::instance(&record.id);
        txn = txn.put(key, records::encode(&record).unwrap());
    }
    store.txn(txn).await.unwrap();
}

impl Client {
    /// The instances that were told to move, in order, once the controller has nothing left
    /// to do.
    async fn moved(&self) -> Vec<String> {
        // It is what it was: the answer comes after a look at everything.
        self.apply(&two_roles()).await.unwrap();
        let all = self.all_events().await.into_iter();
        let moving = all.filter(|event| event.reason == "InstanceMoving");
        moving.map(|event| event.subject).collect()
    }
}

/// How many of each role are among them.
fn by_role<'a>(ids: impl IntoIterator<Item = &'a str> + Clone) -> [usize; 2] {
    ROLES.map(|role| {
        let of_role = |id: &&str| id.starts_with(&format!("shop-{role}-"));
        ids.clone().into_iter().filter(of_role).count()
    })
}

fn ids(node: &Node) -> Vec<&str> {
    let instances = node.goal.instances.iter();
    instances.map(|one| one.instance_id.as_str()).collect()
}

#[tokio::test]
async fn a_node_that_joins_is_given_its_part_one_of_a_role_at_a_time() {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    let mut full = Node::join(&client, "n1").await;
    client.apply(&two_roles()).await.unwrap();
    let all = all();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    full.goal_with(&all).await;
    full.all_ready().await;
    let words: Vec<_> = all.iter().map(|id| (*id, "Ready")).collect();
    client.wait_for_words(&words).await;

    let data = controller.stop().await;
    settle(&data.path().join("d/store.db")).await;
    let (_controller, client) = Controller::start_in(data).await;
    let known = register("n1", full.goal.incarnation);
    let mut full = Node::register(&client, known).await.unwrap();
    full.next_goal().await;
    let _full = full.live();
    client.wait_for_words(&words).await;
    assert_eq!(client.moved().await, [""; 0], "there is nowhere to go");

    let mut new = Node::join(&client, "n2").await;
    for share in [1, 2] {
        while new.goal.instances.len() < 2 * share {
            new.next_goal().await;
        }
        assert_eq!(by_role(ids(&new)), [share; 2], "{:?}", ids(&new));
        // While one of a role is yet to be well again, no other leaves.
        let starting: Vec<_> = ids(&new)
            .into_iter()
            .map(|id| (id, VmState::Booting))
            .collect();
        new.all_ready_but(&starting).await;
        let moved = client.moved().await;
        let moved: Vec<_> = moved.iter().map(String::as_str).collect();
        assert_eq!(by_role(moved.iter().copied()), [share; 2], "{moved:?}");
        new.all_ready().await;
    }
    // Half of them are here and half are there: that is all.
    client.wait_for_words(&words).await;
    assert_eq!(client.moved().await.len(), 4);
    let places = client.places().await;
    for half in places.chunks(4) {
        let here = half.iter().filter(|node| *node == "n1").count();
        assert_eq!(here, 2, "{places:?}");
    }
    let events = client.all_events().await.into_iter();
    let mut why = events.filter(|event| event.reason == "InstanceMoving");
    let first = why.next().unwrap().message;
    assert!(first.starts_with("fault domain n1 has 4 of"), "{first}");
}
