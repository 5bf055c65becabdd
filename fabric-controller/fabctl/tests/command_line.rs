//! The program against a controller that is played here: what it sends, shows
//! and ends with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    path::{Path, PathBuf},
    process::Output,
    sync::{Arc, Mutex},
};

use fabric_proto::v1::{
    BeginUploadRequest, BeginUploadResponse, Blob, BlobKind, DeleteBlobRequest, DeleteBlobResponse,
    GetBlobRequest, GetBlobResponse, ListBlobsRequest, ListBlobsResponse, UploadRequest,
    UploadResponse,
    blob_service_server::{BlobService, BlobServiceServer},
};
use tempfile::TempDir;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// A controller that has room for one file, and whose connection breaks once.
#[derive(Clone, Default)]
struct Played {
    arrived: Arc<Mutex<Vec<u8>>>,
    begun: Arc<Mutex<Vec<BeginUploadRequest>>>,
    /// The first upload breaks after so many bytes.
    breaks_at: Option<usize>,
}

#[tonic::async_trait]
impl BlobService for Played {
    async fn begin_upload(
        &self,
        request: Request<BeginUploadRequest>,
    ) -> Result<Response<BeginUploadResponse>, Status> {
        self.begun.lock().unwrap().push(request.into_inner());
        let offset = self.arrived.lock().unwrap().len() as u64;
        Ok(Response::new(BeginUploadResponse { offset, blob: None }))
    }

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        let mut pieces = request.into_inner();
        let first_time = self.begun.lock().unwrap().len() == 1;
        while let Some(piece) = pieces.message().await? {
            let mut arrived = self.arrived.lock().unwrap();
            assert_eq!(
                piece.offset,
                arrived.len() as u64,
                "a piece is out of order"
            );
            arrived.extend_from_slice(&piece.data);
            if first_time && self.breaks_at.is_some_and(|at| arrived.len() >= at) {
                return Err(Status::unavailable("the connection broke"));
            }
        }
        let begun = self.begun.lock().unwrap();
        let begun = begun.last().unwrap();
        let blob = Blob {
            name: begun.name.clone(),
            kind: begun.kind,
            digest: begun.digest.clone(),
            size_bytes: begun.size_bytes,
            ..Blob::default()
        };
        Ok(Response::new(UploadResponse { blob: Some(blob) }))
    }

    async fn list_blobs(
        &self,
        _request: Request<ListBlobsRequest>,
    ) -> Result<Response<ListBlobsResponse>, Status> {
        Ok(Response::new(ListBlobsResponse { blobs: Vec::new() }))
    }

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<GetBlobResponse>, Status> {
        let name = request.into_inner().name;
        Err(Status::not_found(format!("there is no image {name:?}")))
    }

    async fn delete_blob(
        &self,
        _request: Request<DeleteBlobRequest>,
    ) -> Result<Response<DeleteBlobResponse>, Status> {
        Err(Status::failed_precondition("image a is used by shop"))
    }
}

/// Serves it at a socket in a new directory.
fn serve(played: Played) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let server = Server::builder().add_service(BlobServiceServer::new(played));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    (dir, socket)
}

async fn fabctl(socket: &Path, arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_fabctl"))
        .arg("--server")
        .arg(format!("unix:{}", socket.display()))
        .args(arguments)
        .output()
        .await
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn an_upload_that_breaks_goes_on_by_itself() {
    let played = Played {
        breaks_at: Some(400_000),
        ..Played::default()
    };
    let (dir, socket) = serve(played.clone());
    let bytes: Vec<u8> = (0..1_000_000_u32)
        .map(|index| index.to_le_bytes()[index as usize % 3])
        .collect();
    let file = dir.path().join("guest-os.vhd");
    std::fs::write(&file, &bytes).unwrap();
    let output = fabctl(
        &socket,
        &[
            "--output",
            "json",
            "image",
            "upload",
            file.to_str().unwrap(),
        ],
    )
    .await;
    assert!(output.status.success(), "{}", said(&output));
    assert!(*played.arrived.lock().unwrap() == bytes);
    let begun = played.begun.lock().unwrap();
    assert_eq!(begun.len(), 2);
    assert_eq!(
        (begun[0].name.as_str(), begun[0].kind()),
        ("guest-os", BlobKind::Image)
    );
    assert_eq!(begun[0].digest, begun[1].digest);
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["name"], "guest-os");
    assert_eq!(shown["size_bytes"], 1_000_000);
}

#[tokio::test]
async fn what_is_not_there_or_refused_ends_with_three() {
    let (_dir, socket) = serve(Played::default());
    let output = fabctl(&socket, &["image", "show", "a"]).await;
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(said(&output), "error: there is no image \"a\"\n");
    let output = fabctl(&socket, &["image", "delete", "a"]).await;
    assert_eq!(output.status.code(), Some(3));
}

#[tokio::test]
async fn an_empty_list_says_what_to_do_and_is_an_empty_array() {
    let (_dir, socket) = serve(Played::default());
    let output = fabctl(&socket, &["package", "list"]).await;
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("fabctl package upload")
    );
    let output = fabctl(&socket, &["package", "list", "--output", "json"]).await;
    assert_eq!(output.stdout, b"[]\n");
}

#[tokio::test]
async fn a_controller_that_is_not_there_is_named_with_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let output = fabctl(&dir.path().join("nobody"), &["node", "list"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(
        said.contains("cannot reach the controller at unix:"),
        "{said}"
    );
    assert!(
        said.contains("fabric-controller serve --data-dir DIR --listen unix:"),
        "{said}"
    );
    assert!(!said.contains("transport error"), "{said}");
}

#[tokio::test]
async fn wrong_use_ends_with_two() {
    let nowhere = Path::new("/nonexistent");
    for arguments in [
        &["node", "lost"][..],
        &["service", "apply"],
        &["--server", "ftp://x", "node", "list"],
    ] {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_fabctl"))
            .args(arguments)
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let output = fabctl(nowhere, &["completions", "bash"]).await;
    assert!(output.status.success());
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let (_dir, socket) = serve(Played::default());
    for arguments in [
        &["service", "apply", "-f", "/nonexistent.toml"][..],
        &["image", "upload", "/nonexistent.toml"],
    ] {
        let output = fabctl(&socket, arguments).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).starts_with("error: cannot read /nonexistent.toml\n  cause: "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_are_imported_shown_and_used() {
    let (dir, socket) = serve(Played::default());
    let config = dir.path().join("config.toml");
    let context = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_fabctl"));
        command
            .env("FABCTL_CONFIG", &config)
            .env_remove("FABRIC_SERVER");
        command.args(arguments).output().unwrap()
    };
    // Without any, it is said where one comes from.
    let output = context(&["image", "list"]);
    assert_eq!(output.status.code(), Some(1));
    let none = said(&output);
    assert!(none.contains("fabctl context import FILE"), "{none}");

    let given = dir.path().join("lab.toml");
    let text = format!(
        "current = 'lab'\n[contexts.lab]\nserver = 'unix:{}'\n",
        socket.display()
    );
    std::fs::write(&given, text).unwrap();
    let given = given.to_str().unwrap();
    assert!(context(&["context", "import", given]).status.success());
    let again = context(&["context", "import", given, "--name", "other"]);
    assert!(again.status.success());
    let listed = String::from_utf8(context(&["context", "list"]).stdout).unwrap();
    let marked: Vec<_> = listed
        .lines()
        .filter(|line| line.starts_with('*'))
        .collect();
    assert!(marked.len() == 1 && marked[0].contains("other"), "{listed}");
    assert!(context(&["context", "use", "lab"]).status.success());
    assert!(context(&["image", "list"]).status.success());
    assert!(
        context(&["--context", "other", "image", "list"])
            .status
            .success()
    );
    let output = context(&["--context", "nobody", "image", "list"]);
    assert!(said(&output).contains("there is no context \"nobody\""));
}

#[tokio::test]
async fn plaintext_is_not_spoken() {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_fabctl"))
        .args(["--server", "http://127.0.0.1:1", "image", "list"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("without TLS"), "{}", said(&output));
}
