//! Images and packages: whole, broken off, wrong.

use fabric_proto::v1::{
    BeginUploadRequest, BlobKind, DeleteBlobRequest, GetBlobRequest, ListBlobsRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::framework::*;

#[tokio::test]
async fn a_file_that_was_uploaded_is_there_under_its_name() {
    let (_controller, client) = Controller::start().await;
    let bytes = vhd();
    let blob = client
        .upload(BlobKind::Image, "guest-os/1.0", &bytes)
        .await
        .unwrap();
    assert_eq!(blob.digest, digest(&bytes).as_str());
    assert_eq!(
        (blob.vhd_type.as_str(), blob.virtual_bytes),
        ("fixed", 64 * 1024)
    );
    let get = async |name: &str, kind: BlobKind| {
        let request = GetBlobRequest {
            name: name.to_owned(),
            kind: kind.into(),
        };
        client
            .blobs()
            .get_blob(request)
            .await
            .map(|answer| answer.into_inner().blob.unwrap())
    };
    assert_eq!(get("guest-os/1.0", BlobKind::Image).await.unwrap(), blob);
    assert_eq!(get(&blob.digest, BlobKind::Image).await.unwrap(), blob);
    assert_eq!(
        get("guest-os/1.0", BlobKind::Package)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    assert_eq!(client.reasons("guest-os/1.0").await, ["ImageUploaded"]);

    let begun = client
        .begin(BlobKind::Package, "same", &bytes)
        .await
        .unwrap();
    assert_eq!(begun.offset, bytes.len() as u64);
    assert_eq!(begun.blob.unwrap().name, "same");
    let list = client
        .blobs()
        .list_blobs(ListBlobsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.blobs.len(), 2);
}

#[tokio::test]
async fn an_upload_that_broke_off_goes_on_where_it_was() {
    let (controller, client) = Controller::start().await;
    let bytes = vhd();
    assert_eq!(
        client
            .begin(BlobKind::Image, "guest-os", &bytes)
            .await
            .unwrap()
            .offset,
        0
    );
    // The connection breaks while more is expected.
    let (pieces, sent) = mpsc::channel(64);
    for piece in pieces_of(&bytes, 0, 30_000) {
        pieces.send(piece).await.unwrap();
    }
    let upload = tokio::spawn({
        let mut blobs = client.blobs();
        async move { blobs.upload(ReceiverStream::new(sent)).await }
    });
    let arrived = async || {
        client
            .begin(BlobKind::Image, "guest-os", &bytes)
            .await
            .unwrap()
            .offset
    };
    until("the first part", arrived, |offset| *offset == 30_000).await;
    upload.abort();
    drop(pieces);

    // The controller is restarted as well.
    let (_controller, client) = controller.restart().await;
    let begun = client
        .begin(BlobKind::Image, "guest-os", &bytes)
        .await
        .unwrap();
    assert_eq!(begun.offset, 30_000);
    let blob = client
        .send(&digest(&bytes), 30_000, &bytes[30_000..])
        .await
        .unwrap();
    assert_eq!(blob.name, "guest-os");
}

fn pieces_of(bytes: &[u8], from: usize, to: usize) -> Vec<fabric_proto::v1::UploadRequest> {
    pieces(&digest(bytes), from, &bytes[from..to])
}

#[tokio::test]
async fn a_stream_that_ends_early_says_where_to_go_on() {
    let (_controller, client) = Controller::start().await;
    let bytes = vhd();
    client
        .begin(BlobKind::Image, "guest-os", &bytes)
        .await
        .unwrap();
    let status = client
        .send(&digest(&bytes), 0, &bytes[..20_000])
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(
        status.message().contains("ended after 20000 of"),
        "{}",
        status.message()
    );
    let status = client
        .send(&digest(&bytes), 40_000, &bytes[40_000..])
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().contains("only 20000 bytes have arrived"),
        "{}",
        status.message()
    );
    // Going back is allowed: what was there is sent again.
    client
        .send(&digest(&bytes), 10_000, &bytes[10_000..])
        .await
        .unwrap();
}

#[tokio::test]
async fn bytes_of_another_digest_are_refused_and_thrown_away() {
    let (controller, client) = Controller::start().await;
    let bytes = vhd();
    client
        .begin(BlobKind::Image, "guest-os", &bytes)
        .await
        .unwrap();
    let mut wrong = bytes.clone();
    wrong[1234] ^= 1;
    let status = client.send(&digest(&bytes), 0, &wrong).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status
            .message()
            .contains("the bytes that arrived are sha256:"),
        "{}",
        status.message()
    );
    assert_eq!(files(&controller), (0, 0));
    client
        .upload(BlobKind::Image, "guest-os", &bytes)
        .await
        .unwrap();
    assert_eq!(files(&controller), (1, 0));
}

/// Files under `blobs` and under `uploads`.
fn files(controller: &Controller) -> (usize, usize) {
    let count = |name: &str| {
        std::fs::read_dir(controller.data.path().join("d").join(name))
            .unwrap()
            .count()
    };
    (count("blobs"), count("uploads"))
}

#[tokio::test]
async fn a_file_that_is_no_sound_vhd_is_refused() {
    let (controller, client) = Controller::start().await;
    let mut damaged = vhd();
    let footer = damaged.len() - 512;
    damaged[footer + 20] ^= 0xff;
    let mut cut = vhd();
    cut.truncate(40_000);
    for bytes in [vec![7; 5000], damaged, cut] {
        let status = client
            .upload(BlobKind::Image, "guest-os", &bytes)
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{}", status.message());
        assert!(
            status
                .message()
                .contains("not a VHD that a guest can be given"),
            "{}",
            status.message()
        );
        assert!(
            !status.message().contains("uploads/"),
            "{}",
            status.message()
        );
    }
    assert_eq!(files(&controller), (0, 0));
    assert!(client.all_events().await.is_empty());
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_field() {
    let (_controller, client) = Controller::start().await;
    let good = BeginUploadRequest {
        name: "a".to_owned(),
        kind: BlobKind::Image.into(),
        digest: digest(b"a").to_string(),
        size_bytes: 5000,
        request_id: String::new(),
    };
    for (request, field) in [
        (
            BeginUploadRequest {
                name: "../a".to_owned(),
                ..good.clone()
            },
            "name: ",
        ),
        (
            BeginUploadRequest {
                kind: 0,
                ..good.clone()
            },
            "kind: ",
        ),
        (
            BeginUploadRequest {
                kind: 77,
                ..good.clone()
            },
            "kind: 77",
        ),
        (
            BeginUploadRequest {
                digest: "sha256:x".to_owned(),
                ..good.clone()
            },
            "digest: ",
        ),
        (
            BeginUploadRequest {
                size_bytes: 0,
                ..good.clone()
            },
            "size_bytes 0",
        ),
        (
            BeginUploadRequest {
                size_bytes: u64::MAX,
                ..good.clone()
            },
            "size_bytes 18446744073709551615",
        ),
    ] {
        let status = client.blobs().begin_upload(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{}", status.message());
    }
    let huge = BeginUploadRequest {
        size_bytes: 2000 << 30,
        ..good
    };
    let status = client.blobs().begin_upload(huge).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::ResourceExhausted,
        "{}",
        status.message()
    );
    let status = client.send(&digest(b"a"), 0, b"a").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_image_in_use_stays_and_one_that_is_not_goes_with_its_file() {
    let (controller, client) = Controller::start().await;
    client.upload_guest_os().await;
    client.apply(&shop(1)).await.unwrap();
    let delete = async || {
        let request = DeleteBlobRequest {
            name: "guest-os".to_owned(),
            kind: BlobKind::Image.into(),
            request_id: String::new(),
        };
        client.blobs().delete_blob(request).await
    };
    let status = delete().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().contains("image guest-os is used by shop"),
        "{}",
        status.message()
    );
    let request = fabric_proto::v1::DeleteServiceRequest {
        name: "shop".to_owned(),
        request_id: String::new(),
        ..fabric_proto::v1::DeleteServiceRequest::default()
    };
    client.services().delete_service(request).await.unwrap();
    delete().await.unwrap();
    assert_eq!(files(&controller), (0, 0));
    assert_eq!(delete().await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_name_can_be_given_to_another_file_while_the_old_one_is_used() {
    let (controller, client) = Controller::start().await;
    let old = client.upload_guest_os().await;
    client.apply(&shop(1)).await.unwrap();
    let new = client.upload_guest_os().await;
    assert_ne!(old.digest, new.digest);
    assert_eq!(files(&controller), (2, 0));
    let mut node = Node::join(&client, "n1").await;
    node.goal_with(&["shop-web-0"]).await;
    assert_eq!(node.goal.instances[0].image_digest, old.digest);
}
