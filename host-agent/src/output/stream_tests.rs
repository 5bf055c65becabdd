use fabric_vmm::console::RingWriter;

use super::*;

/// Collects what a stream sends.
async fn collect(request: wire::OutputRequest, view: View) -> (String, Vec<u8>, String) {
    let (sender, mut receiver) = mpsc::channel(4);
    let producing = tokio::spawn(async move { produce(&request, &view, &sender).await });
    let (mut name, mut data, mut error) = (String::new(), Vec::new(), String::new());
    while let Some(piece) = receiver.recv().await {
        name.push_str(&piece.stream_id);
        data.extend_from_slice(&piece.data);
        error.push_str(&piece.error);
    }
    producing.await.unwrap();
    (name, data, error)
}

fn request(kind: wire::OutputKind, tail_bytes: u64) -> wire::OutputRequest {
    wire::OutputRequest {
        stream_id: "stream-1".to_owned(),
        instance_id: "shop-web-0".to_owned(),
        kind: kind.into(),
        tail_bytes,
        follow: false,
    }
}

fn one_instance(data: &std::path::Path) -> (View, Shown) {
    let directory = Arc::new(InstanceDirectory::open(data.join("shop-web-0")).unwrap());
    let log = Arc::new(RoleLog::open(&directory.file("role.log")).unwrap());
    let shown = Shown { log, directory };
    let all = BTreeMap::from([("shop-web-0".parse().unwrap(), shown.clone())]);
    let view = View {
        applied: tokio::sync::watch::channel(0).1,
        heartbeat: tokio::sync::watch::channel(Duration::from_secs(1)).1,
        outputs: tokio::sync::watch::channel(Vec::new()).1,
        shown: tokio::sync::watch::channel(all).1,
    };
    (view, shown)
}

#[tokio::test]
async fn the_end_of_a_log_is_sent_under_the_streams_name() {
    let data = tempfile::tempdir().unwrap();
    let (view, shown) = one_instance(data.path());
    shown.log.append(b"one two three").unwrap();
    let sent = collect(request(wire::OutputKind::Log, 5), view).await;
    assert_eq!(
        sent,
        ("stream-1".to_owned(), b"three".to_vec(), String::new())
    );
}

#[tokio::test]
async fn the_end_of_a_console_is_sent() {
    let data = tempfile::tempdir().unwrap();
    let (view, shown) = one_instance(data.path());
    let mut ring = RingWriter::create(&shown.directory.file(CONSOLE), 4096).unwrap();
    ring.write(b"Linux version 6.1").unwrap();
    let sent = collect(request(wire::OutputKind::Console, 3), view).await;
    assert_eq!(
        sent,
        ("stream-1".to_owned(), b"6.1".to_vec(), String::new())
    );
}

#[test]
fn who_follows_a_console_sees_a_restart_from_its_beginning() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("console.ring");
    let mut seen = Seen { total: 0, at: None };
    RingWriter::create(&path, 4096)
        .unwrap()
        .write(b"first boot")
        .unwrap();
    assert_eq!(
        seen.next(&RingReader::open(&path).unwrap(), 4).unwrap(),
        b"boot"
    );
    RingWriter::create(&path, 4096)
        .unwrap()
        .write(b"second")
        .unwrap();
    assert_eq!(
        seen.next(&RingReader::open(&path).unwrap(), 4).unwrap(),
        b"second"
    );
}

#[tokio::test]
async fn what_is_not_here_is_said() {
    let data = tempfile::tempdir().unwrap();
    let (view, _) = one_instance(data.path());
    let mut elsewhere = request(wire::OutputKind::Log, 5);
    elsewhere.instance_id = "shop-web-1".to_owned();
    let (name, _, error) = collect(elsewhere, view.clone()).await;
    assert_eq!(name, "stream-1");
    assert_eq!(error, "no instance \"shop-web-1\" on this node");
    let (_, _, error) = collect(request(wire::OutputKind::Console, 5), view).await;
    assert!(
        error.starts_with("its console: cannot open console ring"),
        "{error}"
    );
}
