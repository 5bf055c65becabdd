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
        ..BeginUploadRequest::default()
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
        (
            BeginUploadRequest {
                architecture: "riscv64".to_owned(),
                ..good.clone()
            },
            "architecture: \"riscv64\" is no architecture that guests can have; it must be \
             x86_64 or aarch64",
        ),
        (
            BeginUploadRequest {
                kind: BlobKind::Package.into(),
                architecture: "aarch64".to_owned(),
                ..good.clone()
            },
            "architecture: aarch64 of a package",
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
async fn for_which_processors_a_file_is_holds_for_all_its_names_and_can_be_corrected() {
    let (controller, client) = Controller::start().await;
    let bytes = vhd();
    let image = BlobKind::Image;
    let said = async |client: &Client| {
        let request = ListBlobsRequest::default();
        let all = client.blobs().list_blobs(request).await.unwrap();
        let all = all.into_inner().blobs.into_iter();
        let said: Vec<_> = all.map(|one| (one.name, one.architecture)).collect();
        said
    };
    let of = |name: &str, word: &str| (name.to_owned(), word.to_owned());
    let first = client.upload(image, "a", &bytes).await.unwrap();
    assert_eq!(first.architecture, "x86_64");

    // Said late, it holds for the name that is there too.
    let late = client.upload_for("aarch64", image, "b", &bytes).await;
    assert_eq!(late.unwrap().architecture, "aarch64");
    let both = [of("a", "aarch64"), of("b", "aarch64")];
    assert_eq!(said(&client).await, both);
    assert_eq!(client.reasons("a").await, ["ImageUploaded"; 2]);
    let request = GetBlobRequest {
        name: "a".to_owned(),
        kind: image.into(),
    };
    let a = client.blobs().get_blob(request).await.unwrap().into_inner();
    assert_eq!(a.blob.unwrap().created, first.created);

    // Who says nothing changes nothing, and neither does who says the same again.
    let nothing = client.upload(image, "a", &bytes).await.unwrap();
    assert_eq!(nothing.architecture, "aarch64");
    let same = client.upload_for("aarch64", image, "b", &bytes).await;
    assert_eq!(same.unwrap().architecture, "aarch64");
    assert_eq!(
        client
            .upload(image, "c", &bytes)
            .await
            .unwrap()
            .architecture,
        "aarch64"
    );
    assert_eq!(client.reasons("a").await.len(), 2);
    // A package of the same file has none.
    client.upload(BlobKind::Package, "p", &bytes).await.unwrap();
    // Another file is another matter, also under a name of this one.
    let other = client.upload(image, "c", &vhd()).await.unwrap();
    assert_eq!(other.architecture, "x86_64");

    let (_controller, client) = controller.restart().await;
    let back = client.upload_for("x86_64", image, "b", &bytes).await;
    assert_eq!(back.unwrap().architecture, "x86_64");
    let all = [
        of("a", "x86_64"),
        of("b", "x86_64"),
        of("c", "x86_64"),
        of("p", ""),
    ];
    assert_eq!(said(&client).await, all);
}

#[tokio::test]
async fn what_was_said_when_an_upload_began_holds_when_it_ends_after_a_restart() {
    let (controller, client) = Controller::start().await;
    let bytes = vhd();
    let begin = async |client: &Client, architecture: &str| {
        let request = BeginUploadRequest {
            name: "arm".to_owned(),
            kind: BlobKind::Image.into(),
            digest: digest(&bytes).to_string(),
            size_bytes: bytes.len() as u64,
            architecture: architecture.to_owned(),
            ..BeginUploadRequest::default()
        };
        client.blobs().begin_upload(request).await.unwrap();
    };
    begin(&client, "x86_64").await;
    // What is said last holds, and who says nothing changes nothing.
    begin(&client, "aarch64").await;
    begin(&client, "").await;
    let (_controller, client) = controller.restart().await;
    let arrived = client.send(&digest(&bytes), 0, &bytes).await.unwrap();
    assert_eq!(arrived.architecture, "aarch64");
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
