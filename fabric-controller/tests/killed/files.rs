//! What is in files beside the store: uploads, what is deleted, and a new data directory.

use std::{fs, path::Path, process::Command};

use fabric_controller::fail_point::Step;
use fabric_proto::v1::{BlobKind, DeleteBlobRequest, ListCertificatesRequest};
use fabric_trust::context::Contexts;

use crate::{
    framework::*,
    program::*,
    said::said,
    stage::{INSTANCES, Stage, arm, assert_sound, settled, start, tcp},
    steps, then,
};

/// Names of the files in a directory.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Runs a command that ends at a step, and then again.
pub fn twice(step: Step, dir: &Path, arguments: &[&str], between: impl FnOnce()) {
    let armed = arm(step, dir);
    let run = || {
        Command::new(PROGRAM)
            .args(arguments)
            .env("FABRIC_FAIL_POINTS", dir.join(ARMED))
            .current_dir(dir)
            .output()
            .unwrap()
    };
    let killed = run();
    assert!(!killed.status.success(), "nobody came to {step:?}");
    assert!(!armed.exists(), "nobody came to {step:?}: {killed:?}");
    between();
    let again = run();
    assert!(again.status.success(), "{step:?}: {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_where_it_was_when_the_controller_was_killed() {
    let stage = Stage::set().await;
    let file = &stage.arriving;
    for step in steps("upload") {
        let copy = stage.copy().await;
        let before = said(copy.path());
        let armed = copy.arm(step);
        let answer = copy.client.send(&digest(file), 0, file).await;
        assert!(answer.is_err(), "answered at {step:?}");
        let copy = copy.again().await;
        assert!(!armed.exists(), "nobody came to {step:?}");
        assert_eq!(said(copy.path()), before, "{step:?}");

        let begun = copy.client.begin(BlobKind::Image, "arriving", file).await;
        let arrived = usize::try_from(begun.unwrap().offset).unwrap();
        assert!(arrived > 0, "{step:?}: what was written is there");
        let blob = copy.client.upload(BlobKind::Image, "arriving", file).await;
        assert_eq!(blob.unwrap().digest, digest(file).to_string());
        let left = names(&copy.path().join("d/uploads"));
        assert!(left.is_empty(), "{step:?}: {left:?}");
        assert_sound(&copy.path().join("d"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_upload_is_thrown_away_whole() {
    let stage = Stage::set().await;
    let mut wrong = stage.arriving.clone();
    wrong[100] ^= 1;
    for step in steps("discard") {
        let copy = stage.copy().await;
        let armed = copy.arm(step);
        let whole = digest(&stage.arriving);
        assert!(copy.client.send(&whole, 0, &wrong).await.is_err());
        let copy = copy.again().await;
        assert!(!armed.exists(), "nobody came to {step:?}");
        let begun = copy
            .client
            .begin(BlobKind::Image, "arriving", &stage.arriving);
        assert_eq!(begun.await.unwrap().offset, 0, "{step:?}");
        let blob = copy
            .client
            .upload(BlobKind::Image, "arriving", &stage.arriving);
        assert_eq!(blob.await.unwrap().digest, whole.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_goes_with_its_file() {
    let stage = Stage::set().await;
    for step in steps("delete") {
        let copy = stage.copy().await;
        let armed = copy.arm(step);
        let request = || DeleteBlobRequest {
            name: "spare".to_owned(),
            kind: BlobKind::Image.into(),
            request_id: "gone".to_owned(),
        };
        let answer = copy.client.blobs().delete_blob(request()).await;
        assert!(answer.is_err(), "answered at {step:?}");
        let copy = copy.again().await;
        assert!(!armed.exists(), "nobody came to {step:?}");
        copy.client.blobs().delete_blob(request()).await.unwrap();
        let files = names(&copy.path().join("d/blobs"));
        assert_eq!(files.len(), 1, "{step:?}: {files:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_store_has_all_of_its_tables_or_none() {
    for step in steps("open") {
        let dir = tempfile::tempdir().unwrap();
        let armed = arm(step, dir.path());
        let mut program = Program::launch(&[], dir.path(), &[]);
        assert!(!program.ended().await.success());
        assert!(!armed.exists(), "nobody came to {step:?}");
        let (_program, client) = start(dir.path()).await;
        client.upload_guest_os().await;
        settled(dir.path()).await;
        assert_sound(&dir.path().join("d"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_from_before_is_as_it_was_until_it_is_of_this_version() {
    let stage = Stage::set().await;
    for step in steps("migrate") {
        let dir = stage.files();
        let store = dir.path().join("d/store.db");
        then::make(&store);
        let before = said(dir.path());
        let armed = arm(step, dir.path());
        let mut program = Program::launch(&[], dir.path(), &[]);
        assert!(!program.ended().await.success());
        assert!(!armed.exists(), "nobody came to {step:?}");
        assert_eq!(then::format(&store), 1, "{step:?}");
        assert_eq!(said(dir.path()), before, "{step:?}");
        assert_sound(&dir.path().join("d"));

        let (_program, client) = start(dir.path()).await;
        assert_eq!(client.list().await.len(), INSTANCES, "{step:?}");
        assert_eq!(then::format(&store), 3, "{step:?}");
        settled(dir.path()).await;
        assert_sound(&dir.path().join("d"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_set_up_whole_whenever_that_was_cut_off() {
    for step in steps("init") {
        let dir = tempfile::tempdir().unwrap();
        let init = ["init", "--data-dir", "d", "--no-context"];
        twice(step, dir.path(), &init, || {});
        fs::remove_dir(dir.path().join(ARMED)).unwrap();

        // Its administrator is one whom the controller knows, and the only one.
        let (program, client) = start(dir.path()).await;
        let mut contexts = Contexts::read(&dir.path().join("d/admin.toml")).unwrap();
        let mut admin = contexts.contexts.remove("fabric").unwrap();
        admin.server = tcp(&program).await.to_string().parse().unwrap();
        Client::over_tls(&admin).await.unwrap().list().await;
        let mut trust = client.trust();
        let all = trust.list_certificates(ListCertificatesRequest {});
        let all = all.await.unwrap().into_inner().certificates;
        assert_eq!(all.len(), 1, "{step:?}: {all:?}");
    }
}
