//! The real program on a disk that is full, or cannot be written, or not any longer.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use fabric_controller::{maintenance, records, store::sqlite::file};
use tempfile::TempDir;
use tonic::Code;

use crate::{framework::*, program::*};

/// A process that mounts something at the data directory, for itself alone, and becomes
/// the program.
fn mounting(dir: &Path, mount: &str) -> Vec<String> {
    let data_dir = dir.join("d").display().to_string();
    let script = format!("{} && exec \"$@\"", mount.replace("DIR", &data_dir));
    let words = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-ec",
        &script,
        "sh",
    ];
    words.map(str::to_owned).to_vec()
}

async fn start(dir: &Path, before: &[String]) -> (Program, Client) {
    let before: Vec<_> = before.iter().map(String::as_str).collect();
    Program::start_as(&before, dir, &[]).await
}

/// The data directory as the program sees it.
fn seen_by(program: &Program, dir: &Path) -> PathBuf {
    let data_dir = dir.join("d");
    let inside = data_dir.strip_prefix("/").unwrap();
    Path::new("/proc")
        .join(program.pid().to_string())
        .join("root")
        .join(inside)
}

/// Takes all the room that is left, with a file.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 4096] {
        let full = loop {
            if let Err(error) = file.write_all(&vec![1; size]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
    }
}

/// What the next one would find if it were killed now, which is sound.
fn as_if_killed(data_dir: &Path) -> TempDir {
    let left = tempfile::tempdir().unwrap();
    let copy = |name: &Path| fs::copy(data_dir.join(name), left.path().join(name)).unwrap();
    copy(Path::new("store.db"));
    copy(Path::new("store.db-wal"));
    fs::create_dir(left.path().join("blobs")).unwrap();
    for blob in fs::read_dir(data_dir.join("blobs")).unwrap() {
        copy(&Path::new("blobs").join(blob.unwrap().file_name()));
    }
    let found = maintenance::check(left.path(), true).unwrap();
    assert_eq!(found.problems, Vec::<String>::new());
    left
}

/// How far the service is.
fn generation(data_dir: &TempDir) -> u64 {
    let (entries, _) = file::entries(&data_dir.path().join("store.db")).unwrap();
    let key = format!("{}shop", records::SERVICES);
    let service = entries.iter().find(|entry| entry.key == key).unwrap();
    let service: serde_json::Value = serde_json::from_slice(&service.value).unwrap();
    service["generation"].as_u64().unwrap()
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let on_a_full_disk = ["sh", "-ec", "exec \"$@\" 2>/dev/full", "sh"];
    let (_program, client) = Program::start_as(&on_a_full_disk, dir.path(), &[]).await;
    client.upload_guest_os().await;
    client.apply(&shop(1)).await.unwrap();
    client.wait_for_words(&[("shop-web-0", "Pending")]).await;
}

#[tokio::test]
async fn on_a_full_disk_nothing_is_changed_and_nothing_that_was_is_lost() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    fs::create_dir(dir.join("d")).unwrap();
    let small = mounting(dir, "mount -t tmpfs -o size=24m tmpfs DIR");
    let (program, client) = start(dir, &small).await;
    let data_dir = seen_by(&program, dir);
    client.upload_guest_os().await;
    client.apply(&shop(0)).await.unwrap();
    let filler = data_dir.join("filler");
    fill(&filler);

    let mut done = 1;
    let version = |number: u64| shop(0).replace("/bin/true", &format!("/v{number}"));
    let refused = loop {
        let next = done + 1;
        let id = format!("version-{next}");
        match client.apply_with_id(&version(next), &id).await {
            Ok(_) => done = next,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("free some"), "{refused}");
    let upload = client
        .begin(fabric_proto::v1::BlobKind::Image, "more", &vhd())
        .await;
    let upload = upload.unwrap_err();
    assert_eq!(upload.code(), Code::ResourceExhausted, "{upload}");
    // What is there can be seen.
    assert_eq!(client.list().await, []);
    assert_eq!(generation(&as_if_killed(&data_dir)), done);

    fs::remove_file(&filler).unwrap();
    let next = done + 1;
    let id = format!("version-{next}");
    client.apply_with_id(&version(next), &id).await.unwrap();
    assert_eq!(generation(&as_if_killed(&data_dir)), next);
}

/// Lets no file of a process grow beyond that.
fn limit(program: &Program, size: &str) {
    let set = Command::new("prlimit")
        .arg(format!("--pid={}", program.pid()))
        .arg(format!("--fsize={size}:"))
        .status()
        .unwrap();
    assert!(set.success(), "{set}");
}

#[tokio::test]
async fn while_the_disk_refuses_writes_it_says_so_and_then_it_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    // Whoever does not mind the signal is told by the write: as on a disk that fails, or
    // has become read-only while it was written.
    let unminded = ["sh", "-ec", "trap '' XFSZ && exec \"$@\"", "sh"];
    let (program, client) = start(dir, &unminded.map(str::to_owned)).await;
    client.upload_guest_os().await;
    let mut node = Node::join(&client, "n1").await;
    let version = |number: u64| shop(1).replace("/bin/true", &format!("/v{number}"));
    let log = dir.join("d/store.db-wal");
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    // The program may go on writing to its own log, which is far smaller.
    let mut done = 0;
    while size(&log) < 1 << 19 {
        done += 1;
        client.apply(&version(done)).await.unwrap();
    }
    node.goal_with(&["shop-web-0"]).await;
    let seen = node.goal.incarnation;
    assert!(size(&dir.join("log")) < 1 << 18);

    limit(&program, &size(&log).to_string());
    let next = done + 1;
    let id = format!("version-{next}");
    let refused = client.apply_with_id(&version(next), &id).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let store = dir.join("d/store.db").display().to_string();
    for word in [store.as_str(), "may not be written", "disk I/O error"] {
        assert!(refused.message().contains(word), "no {word:?}: {refused}");
    }
    // What is there can be seen, and a node that comes anew has its goal.
    assert_eq!(client.list().await.len(), 1);
    drop(node);
    let mut node = Node::register(&client, register("n1", seen)).await.unwrap();
    node.goal_with(&["shop-web-0"]).await;
    assert_eq!(generation(&as_if_killed(&dir.join("d"))), done);

    limit(&program, "unlimited");
    client.apply_with_id(&version(next), &id).await.unwrap();
    assert_eq!(generation(&as_if_killed(&dir.join("d"))), next);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named_and_left_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (mut program, client) = Program::start(dir).await;
    client.upload_guest_os().await;
    client.apply(&shop(0)).await.unwrap();
    program.kill();

    let read_only = mounting(dir, "mount --bind DIR DIR && mount -o remount,bind,ro DIR");
    let before: Vec<_> = read_only.iter().map(String::as_str).collect();
    let mut program = Program::launch(&before, dir, &[]);
    assert!(!program.ended().await.success());
    let said = program.log();
    let named = dir.join("d").display().to_string();
    assert!(
        said.contains(&named) && said.contains("Read-only"),
        "{said}"
    );

    let (_program, client) = Program::start(dir).await;
    client.apply(&shop(1)).await.unwrap();
    assert_eq!(generation(&as_if_killed(&dir.join("d"))), 2);
}
