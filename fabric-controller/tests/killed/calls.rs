//! Every call that changes something, killed at every step of its transaction.

use std::time::Duration;

use fabric_controller::{
    fail_point::Step,
    trust::{ca::Ca, table::TABLE},
};
use fabric_proto::v1::{
    ApplyServiceRequest, BeginUploadRequest, BlobKind, ControlUpdateRequest, CordonNodeRequest,
    CreateTokenRequest, DeleteBlobRequest, DeleteServiceRequest, DeleteSnapshotRequest,
    DrainNodeRequest, JoinNodeRequest, LabelNodeRequest, PauseInstanceRequest, RemoveNodeRequest,
    RenewCertificateRequest, RestartInstanceRequest, RestoreInstanceRequest, ResumeInstanceRequest,
    RevokeCertificateRequest, RollbackServiceRequest, SnapshotInstanceRequest,
    StartInstanceRequest, StopInstanceRequest, SwapSlotsRequest, UncordonNodeRequest, UpdateAction,
};
use fabric_trust::{identity::Role, key::NewKey};
use futures_util::{StreamExt as _, stream};
use tonic::{Code, Status};

use crate::{
    framework::*,
    said::{changes_audited, said, says},
    stage::{Copy, Stage, certificate, service, settled, surely_settled, tcp},
    steps,
};

/// Calls that are tried at a time.
const AT_ONCE: usize = 6;
/// The id of the call, the first time and again.
const ID: &str = "the-call";

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_done_once_or_not_at_all_whenever_the_controller_is_killed() {
    let stage = &Stage::set().await;
    let calls = TABLE.iter().filter(|rule| rule.changes);
    let all = stream::iter(calls).map(|rule| async move {
        let call = &Call::new(rule.call, stage);
        let done = &undisturbed(stage, call).await;
        for step in steps("call") {
            killed_at(step, stage, call, done).await;
        }
    });
    all.buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// What the store says when nobody is killed.
async fn undisturbed(stage: &Stage, call: &Call<'_>) -> Vec<String> {
    let copy = stage.copy().await;
    let before = said(copy.path());
    call.make(&copy, false).await.unwrap();
    surely_settled(copy.path()).await;
    let after = said(copy.path());
    assert_ne!(before, after, "{} has changed nothing", call.name);
    after
}

async fn killed_at(step: Step, stage: &Stage, call: &Call<'_>, done: &[String]) {
    let Call { name, .. } = call;
    let copy = stage.copy().await;
    let before = said(copy.path());
    let changes = changes_audited(copy.path());
    let armed = copy.arm(step);
    let answer = call.make(&copy, false).await;
    assert!(answer.is_err(), "{name} was answered at {step:?}");
    let copy = copy.again().await;
    assert!(!armed.exists(), "{name} has not come to {step:?}");

    let committed = matches!(step, Step::Committed | Step::Answering);
    // The first transaction of a session is the audit log's, of having been opened.
    let opened = *name == SESSION && said(copy.path()) == before;
    let should = if committed && !opened { done } else { &before };
    let what = format!("{name}, killed at {step:?}");
    says(copy.path(), should, &what).await;

    let answer = call.make(&copy, true).await;
    if committed && *name == "fabric.v1.TrustService/CreateToken" {
        // A secret that nobody was told is kept nowhere.
        assert_eq!(answer.unwrap_err().code(), Code::FailedPrecondition);
    } else {
        answer.unwrap_or_else(|error| panic!("{name}, killed at {step:?}, again: {error}"));
    }
    says(copy.path(), done, &format!("{what}, made again")).await;
    // Nothing is done twice, a little later.
    settled(copy.path()).await;
    says(copy.path(), done, &format!("{what}, a while after")).await;
    let changes = changes_audited(copy.path()) - changes;
    let once = match *name {
        // That one was opened is no change of its caller's.
        SESSION => 0,
        // It is a question, too, and has no kept answer.
        "fabric.v1.BlobService/BeginUpload" if committed => 2,
        _ => 1,
    };
    assert_eq!(
        changes, once,
        "{name}, killed at {step:?}, in the audit log"
    );
}

const SESSION: &str = "fabric.node.v1.NodeService/Session";

/// One call, the same each time.
struct Call<'a> {
    name: &'static str,
    stage: &'a Stage,
    /// A request for a certificate.
    csr: Vec<u8>,
    /// A file that nobody has.
    file: Vec<u8>,
}

impl<'a> Call<'a> {
    fn new(name: &'static str, stage: &'a Stage) -> Self {
        Self {
            name,
            stage,
            csr: NewKey::generate().unwrap().request,
            file: vhd(),
        }
    }

    /// Makes it, for the first time or again.
    async fn make(&self, copy: &Copy, again: bool) -> Result<(), Status> {
        let Copy { client, .. } = copy;
        let request_id = ID.to_owned();
        let text = |text: &str| text.to_owned();
        let (service_name, method) = self.name.rsplit_once('/').unwrap();
        match (service_name, method) {
            ("fabric.v1.NodeService", "CordonNode") => {
                let node_id = text("n2");
                let request = CordonNodeRequest {
                    node_id,
                    request_id,
                };
                client.nodes().cordon_node(request).await.map(drop)
            }
            ("fabric.v1.NodeService", "UncordonNode") => {
                let node_id = text("n3");
                let request = UncordonNodeRequest {
                    node_id,
                    request_id,
                };
                client.nodes().uncordon_node(request).await.map(drop)
            }
            ("fabric.v1.NodeService", "DrainNode") => {
                let node_id = text("n2");
                let request = DrainNodeRequest {
                    node_id,
                    request_id,
                };
                client.nodes().drain_node(request).await.map(drop)
            }
            ("fabric.v1.NodeService", "LabelNode") => {
                let request = LabelNodeRequest {
                    node_id: text("n2"),
                    set: [(text("disk"), text("nvme"))].into(),
                    fault_domain: Some(text("r1")),
                    request_id,
                    ..LabelNodeRequest::default()
                };
                client.nodes().label_node(request).await.map(drop)
            }
            ("fabric.v1.NodeService", "RemoveNode") => {
                let node_id = text("n2");
                let request = RemoveNodeRequest {
                    node_id,
                    request_id,
                };
                client.nodes().remove_node(request).await.map(drop)
            }
            ("fabric.v1.BlobService", "BeginUpload") => {
                let request = BeginUploadRequest {
                    name: text("new"),
                    kind: BlobKind::Image.into(),
                    digest: digest(&self.file).to_string(),
                    size_bytes: self.file.len() as u64,
                    request_id,
                    architecture: text("aarch64"),
                };
                client.blobs().begin_upload(request).await.map(drop)
            }
            ("fabric.v1.BlobService", "Upload") => {
                let file = &self.stage.arriving;
                if again {
                    // Where to go on is asked first.
                    client
                        .upload(BlobKind::Image, "arriving", file)
                        .await
                        .map(drop)
                } else {
                    client.send(&digest(file), 0, file).await.map(drop)
                }
            }
            ("fabric.v1.BlobService", "DeleteBlob") => {
                let (name, kind) = (text("spare"), BlobKind::Image.into());
                let request = DeleteBlobRequest {
                    name,
                    kind,
                    request_id,
                };
                client.blobs().delete_blob(request).await.map(drop)
            }
            ("fabric.v1.ServiceService", "ApplyService") => {
                let request = ApplyServiceRequest {
                    definition_toml: service("new", 2, "/v1"),
                    file_name: text("service.toml"),
                    request_id,
                    ..ApplyServiceRequest::default()
                };
                client.services().apply_service(request).await.map(drop)
            }
            ("fabric.v1.ServiceService", "DeleteService") => {
                let request = DeleteServiceRequest {
                    name: text("old"),
                    request_id,
                    ..DeleteServiceRequest::default()
                };
                client.services().delete_service(request).await.map(drop)
            }
            ("fabric.v1.ServiceService", "SwapSlots") => {
                let name = text("old");
                let request = SwapSlotsRequest { name, request_id };
                client.services().swap_slots(request).await.map(drop)
            }
            ("fabric.v1.ServiceService", "RollbackService") => {
                let request = RollbackServiceRequest {
                    name: text("old"),
                    request_id,
                    ..RollbackServiceRequest::default()
                };
                client.services().rollback_service(request).await.map(drop)
            }
            ("fabric.v1.ServiceService", "ControlUpdate") => {
                let request = ControlUpdateRequest {
                    name: text("walk"),
                    action: UpdateAction::Pause.into(),
                    request_id,
                    ..ControlUpdateRequest::default()
                };
                client.services().control_update(request).await.map(drop)
            }
            ("fabric.v1.InstanceService", "RestartInstance") => {
                let request = RestartInstanceRequest {
                    instance_id: text("shop-web-0"),
                    scope: fabric_proto::node::v1::RestartScope::Role.into(),
                    request_id,
                };
                client.instances().restart_instance(request).await.map(drop)
            }
            ("fabric.v1.InstanceService", "PauseInstance") => {
                let instance_id = text("shop-web-0");
                let request = PauseInstanceRequest {
                    instance_id,
                    request_id,
                };
                client.instances().pause_instance(request).await.map(drop)
            }
            ("fabric.v1.InstanceService", "ResumeInstance") => {
                let instance_id = text("still-web-0");
                let request = ResumeInstanceRequest {
                    instance_id,
                    request_id,
                };
                client.instances().resume_instance(request).await.map(drop)
            }
            ("fabric.v1.InstanceService", "StopInstance") => {
                let instance_id = text("shop-web-0");
                let request = StopInstanceRequest {
                    instance_id,
                    request_id,
                    grace: Some(prost_types::Duration {
                        seconds: 3,
                        nanos: 0,
                    }),
                };
                client.instances().stop_instance(request).await.map(drop)
            }
            ("fabric.v1.InstanceService", "StartInstance") => {
                let instance_id = text("down-web-0");
                let request = StartInstanceRequest {
                    instance_id,
                    request_id,
                };
                client.instances().start_instance(request).await.map(drop)
            }
            ("fabric.v1.InstanceService", "SnapshotInstance") => {
                let request = SnapshotInstanceRequest {
                    instance_id: text("shop-web-0"),
                    snapshot: text("late"),
                    request_id,
                };
                client
                    .instances()
                    .snapshot_instance(request)
                    .await
                    .map(drop)
            }
            ("fabric.v1.InstanceService", "RestoreInstance") => {
                let request = RestoreInstanceRequest {
                    instance_id: text("snap-web-0"),
                    snapshot: text("early"),
                    request_id,
                };
                client.instances().restore_instance(request).await.map(drop)
            }
            ("fabric.v1.InstanceService", "DeleteSnapshot") => {
                let request = DeleteSnapshotRequest {
                    instance_id: text("snap-web-0"),
                    snapshot: text("early"),
                    request_id,
                };
                client.instances().delete_snapshot(request).await.map(drop)
            }
            ("fabric.v1.TrustService", "CreateToken") => {
                let request = CreateTokenRequest {
                    node_id: text("n5"),
                    ttl: Some(prost_types::Duration {
                        seconds: 60,
                        nanos: 0,
                    }),
                    request_id,
                };
                client.trust().create_token(request).await.map(drop)
            }
            ("fabric.v1.TrustService", "JoinNode") => {
                let request = JoinNodeRequest {
                    token: self.stage.token.clone(),
                    csr: self.csr.clone().into(),
                    request_id,
                    ..JoinNodeRequest::default()
                };
                client.trust().join_node(request).await.map(drop)
            }
            ("fabric.v1.TrustService", "RenewCertificate") => {
                let request = RenewCertificateRequest {
                    csr: self.csr.clone().into(),
                    request_id,
                };
                let node = node_by_tls(copy).await;
                node.trust().renew_certificate(request).await.map(drop)
            }
            ("fabric.v1.TrustService", "CreateCertificate") => {
                let mut request = certificate("carol", ID);
                request.csr = self.csr.clone().into();
                client.trust().create_certificate(request).await.map(drop)
            }
            ("fabric.v1.TrustService", "RevokeCertificate") => {
                let request = RevokeCertificateRequest {
                    name: text("bob"),
                    request_id,
                    ..RevokeCertificateRequest::default()
                };
                client.trust().revoke_certificate(request).await.map(drop)
            }
            ("fabric.node.v1.NodeService", "Session") => {
                let node = Node::register(client, register("n9", 0)).await;
                node?.answer().await.map(drop)
            }
            _ => panic!(
                "{} has no case here: say how it is made, and made again",
                self.name
            ),
        }
    }
}

/// A client that is node n1.
async fn node_by_tls(copy: &Copy) -> Client {
    let (ca, _) = Ca::open(&copy.path().join("d/trust")).unwrap();
    let hour = Duration::from_secs(3600);
    let context = context(&ca, tcp(&copy.program).await, Role::Node, "n1", hour);
    Client::over_tls(&context).await.unwrap()
}
