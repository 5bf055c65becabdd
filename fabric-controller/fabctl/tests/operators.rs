//! What operators ask a real controller when something is wrong: `why`, `doctor`,
//! `support-bundle`, `watch`; and what they ask before they change something: `service
//! plan`, `diff` and `history`, `explain`, `simulate`. The node is played here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use fabric_controller::{controller::Config, serve::Serve};
use fabric_proto::{
    guest::v1::{RoleState, RoleStatus},
    node::v1::{
        InstanceStatus, Inventory, NodeEvent, NodeStatus, Register, SessionRequest, VmState,
        node_service_client::NodeServiceClient, session_request::Report, session_response::Message,
    },
    v1::{CreateTokenRequest, trust_service_client::TrustServiceClient},
};
use fabric_trust::{
    context::{Context, Contexts},
    dial::Dial,
};
use flate2::read::GzDecoder;
use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::tcgetattr,
    },
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::transport::Channel;

/// How long anything may take that should happen at once.
const SOON: Duration = Duration::from_secs(20);
/// In the settings, the environment and the arguments of the service.
const SECRETS: [&str; 3] = ["hunter2-in-settings", "hunter2-in-env", "--pass=hunter2"];

/// A controller in this process, until it is dropped.
struct Fabric {
    data: TempDir,
    stop: CancellationToken,
    _running: AbortOnDropHandle<()>,
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Fabric {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let address = format!("unix:{}", data.path().join("s").display());
        let addresses = vec![address.parse().unwrap()];
        let directory = data.path().join("d");
        let server = Serve::prepare(&directory, addresses, Config::default());
        let server = server.await.unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        Self {
            data,
            stop,
            _running: AbortOnDropHandle::new(tokio::spawn(async move {
                running.await.unwrap().unwrap();
            })),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }

    async fn channel(&self) -> Channel {
        let server = format!("unix:{}", self.path("s").display());
        let context = Context {
            server: server.parse().unwrap(),
            ca: String::new(),
            certificate: String::new(),
            key: String::new(),
        };
        Dial::new(&context).unwrap().connect().await.unwrap()
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_fabctl"));
        let server = format!("unix:{}", self.path("s").display());
        command.arg("--server").arg(server).args(arguments);
        command.current_dir(self.data.path()).kill_on_drop(true);
        command
    }

    async fn fabctl(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output();
        timeout(SOON, output).await.unwrap().unwrap()
    }

    /// What it prints when all is well.
    async fn printed(&self, arguments: &[&str]) -> String {
        let output = self.fabctl(arguments).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, as JSON.
    async fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--output", "json"]].concat();
        serde_json::from_str(&self.printed(&arguments).await).unwrap()
    }

    /// The same, once it says that.
    async fn printed_with(&self, arguments: &[&str], words: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let printed = self.printed(arguments).await;
            if printed.contains(words) {
                return printed;
            }
            assert!(Instant::now() < deadline, "no {words:?} in {printed}");
        }
    }

    async fn upload_guest_os(&self) {
        let image = self.path("guest-os.vhd");
        vhd::create_fixed(&image, &vhd::CreateOptions::new(64 * 1024)).unwrap();
        self.printed(&["image", "upload", image.to_str().unwrap()])
            .await;
    }

    /// A file of a service whose role has so many instances in two upgrade domains, and
    /// whatever is added; its name.
    fn file(&self, name: &str, instances: u32, command: &str, more: &str) -> String {
        let file = self.path(name);
        let role = |name: &str, instances: u32| {
            format!(
                "[[role]]\nname = \"{name}\"\nkind = \"web\"\nsize = \"tiny\"\n\
                 image = \"guest-os\"\ninstances = {instances}\ncommand = [\"{command}\"]\n"
            )
        };
        let more = match more {
            "" => String::new(),
            name => role(name, 1),
        };
        let text = format!(
            "name = \"shop\"\n[sizes.tiny]\nvcpus = 1\nmemory = \"128MiB\"\n\
             [update]\nupgrade_domains = 2\n{}{more}",
            role("web", instances)
        );
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// A service with secrets in its file.
    async fn apply_shop(&self) {
        self.upload_guest_os().await;
        let [setting, environment, argument] = SECRETS;
        let file = self.path("shop.toml");
        let text = format!(
            "name = \"shop\"\n[sizes.tiny]\nvcpus = 1\nmemory = \"128MiB\"\n[[role]]\n\
             name = \"web\"\nkind = \"web\"\nsize = \"tiny\"\nimage = \"guest-os\"\n\
             command = [\"/bin/true\", \"{argument}\"]\n[role.settings]\n\
             password = \"{setting}\"\n[role.environment]\nAPI_KEY = \"{environment}\"\n"
        );
        fs::write(&file, text).unwrap();
        self.printed(&["service", "apply", "-f", file.to_str().unwrap()])
            .await;
    }
}

/// A node that does what the test says.
struct Node {
    reports: mpsc::Sender<SessionRequest>,
    answers: tonic::Streaming<fabric_proto::node::v1::SessionResponse>,
    sequence: u64,
}

impl Node {
    async fn join(fabric: &Fabric) -> Self {
        let (reports, receiver) = mpsc::channel(64);
        let register = Register {
            node_id: "n1".to_owned(),
            protocol_version: 1,
            agent_version: "0.0.1".to_owned(),
            inventory: Some(Inventory {
                cpus: 4,
                memory_bytes: 2 << 30,
                disk_bytes: 100 << 30,
                kvm_kind: "hardware".to_owned(),
                ..Inventory::default()
            }),
            seen_incarnation: 0,
            labels: BTreeMap::new().into_iter().collect(),
        };
        let node = |report| SessionRequest {
            report: Some(report),
        };
        reports
            .send(node(Report::Register(register)))
            .await
            .unwrap();
        let mut client = NodeServiceClient::new(fabric.channel().await);
        let answers = client.session(ReceiverStream::new(receiver)).await.unwrap();
        Self {
            reports,
            answers: answers.into_inner(),
            sequence: 0,
        }
    }

    async fn say(&self, report: Report) {
        let request = SessionRequest {
            report: Some(report),
        };
        self.reports.send(request).await.unwrap();
    }

    /// Reports how its one instance is, once it is told to have one.
    async fn has(&mut self, state: VmState) {
        self.has_each(&[("shop-web-0", state)]).await;
    }

    /// Reports how its instances are, once it is told to have them.
    async fn has_each(&mut self, wished: &[(&str, VmState)]) {
        let goal = loop {
            let answer = timeout(SOON, self.answers.message()).await.unwrap();
            let Some(Message::Goal(goal)) = answer.unwrap().unwrap().message else {
                continue;
            };
            if goal.instances.len() == wished.len() {
                break goal;
            }
        };
        let status = |(id, state): &(&str, VmState)| InstanceStatus {
            instance_id: (*id).to_owned(),
            epoch: goal
                .instances
                .iter()
                .find(|one| one.instance_id == *id)
                .unwrap()
                .epoch,
            vm_state: (*state).into(),
            vm_reason: format!("it wrote {}", SECRETS[0]),
            role: (*state == VmState::Running).then(|| RoleStatus {
                role: "web".to_owned(),
                state: RoleState::Ready.into(),
                ..RoleStatus::default()
            }),
            ..InstanceStatus::default()
        };
        self.say(Report::Status(NodeStatus {
            applied_incarnation: goal.incarnation,
            instances: wished.iter().map(status).collect(),
            disk_free_bytes: 1 << 20,
            ..NodeStatus::default()
        }))
        .await;
    }

    async fn tell(&mut self, seconds: i64, reason: &str, cause: &str) {
        self.sequence += 1;
        let event = NodeEvent {
            sequence: self.sequence,
            time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            instance_id: "shop-web-0".to_owned(),
            reason: reason.to_owned(),
            message: format!("about {reason}"),
            warning: reason == "VmmExited",
            cause: cause.to_owned(),
        };
        self.say(Report::Event(event)).await;
    }

    /// Waits until all that was told is stored.
    async fn stored(&mut self) {
        loop {
            let answer = timeout(SOON, self.answers.message()).await.unwrap();
            if let Some(Message::AcknowledgedEvent(sequence)) = answer.unwrap().unwrap().message
                && sequence >= self.sequence
            {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn why_tells_the_story_from_failure_to_recovery_in_order() {
    let fabric = Fabric::start().await;
    let output = fabric.fabctl(&["why", "shop-web-0"]).await;
    assert_eq!(output.status.code(), Some(3), "there is no such instance");

    let mut node = Node::join(&fabric).await;
    fabric.apply_shop().await;
    node.has(VmState::Running).await;
    let told = fabric.printed(&["why", "shop-web-0"]).await;
    assert!(told.contains("Nothing has failed"), "{told}");

    let now = 4_000_000_000;
    node.tell(now, "VmmExited", "").await;
    node.tell(now + 1, "VmRestarting", "VmmExited").await;
    node.tell(now + 4, "VmmStarted", "VmRestarting").await;
    node.tell(now + 9, "RoleReady", "VmmStarted").await;
    node.stored().await;
    let told = fabric.printed(&["why", "shop-web-0"]).await;
    let place = |reason: &str| told.find(&format!("about {reason}")).unwrap();
    assert!(place("VmmExited") < place("VmRestarting") && place("VmmStarted") < place("RoleReady"));
    assert!(told.contains("+3.000 s"), "{told}");
    assert!(
        told.contains("It was Ready again 9.000 s after the first sign of trouble."),
        "{told}"
    );

    let json = fabric
        .printed(&["why", "shop-web-0", "--all", "--output", "json"])
        .await;
    let json: Value = serde_json::from_str(&json).unwrap();
    let events = json["failures"][0]["events"].as_array().unwrap();
    let reasons: Vec<_> = events.iter().map(|event| &event["reason"]).collect();
    assert_eq!(
        reasons,
        ["VmmExited", "VmRestarting", "VmmStarted", "RoleReady"]
    );
    assert_eq!(events[0]["cause_cursor"], Value::Null);
    for (at, event) in events.iter().enumerate().skip(1) {
        assert_eq!(event["cause_cursor"], events[at - 1]["cursor"], "{event}");
    }
    assert_eq!(json["failures"][0]["ending"], "recovered");
    assert_eq!(json["instance"]["state"], "Ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_what_is_wrong_and_says_what_to_do() {
    let fabric = Fabric::start().await;
    let output = fabric.fabctl(&["doctor"]).await;
    assert_eq!(output.status.code(), Some(5));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("host-agent join"), "{told}");

    fabric.apply_shop().await;
    let output = fabric.fabctl(&["doctor", "--output", "json"]).await;
    assert_eq!(output.status.code(), Some(5));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |told: &Value, subject: &str| {
        let findings = told["findings"].as_array().unwrap().clone();
        let mut own = findings.into_iter().filter(|one| one["subject"] == subject);
        own.find(|one| !one["remedy"].as_str().unwrap().is_empty())
            .unwrap_or_else(|| panic!("nothing of {subject} in {told:#}"))
    };
    let homeless = of(&told, "instance shop-web-0");
    assert!(
        homeless["what"]
            .as_str()
            .unwrap()
            .starts_with("no node can take it")
    );

    let mut node = Node::join(&fabric).await;
    node.has(VmState::Failed).await;
    fabric.printed(&["node", "cordon", "n1"]).await;
    let mut told = Value::Null;
    for _ in 0..100 {
        let output = fabric.fabctl(&["doctor", "--output", "json"]).await;
        told = serde_json::from_slice(&output.stdout).unwrap();
        if told.to_string().contains("is Failed") {
            break;
        }
    }
    let findings = told["findings"].to_string();
    for found in [
        "is cordoned",
        "1.0 MiB of 100.0 GiB left",
        "version 0.0.1",
        "is Failed",
    ] {
        assert!(findings.contains(found), "{found} is not in {told:#}");
    }
    assert_eq!(told["findings"][0]["severity"], "problem");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_so_when_there_is_nobody_to_ask() {
    let dir = tempfile::tempdir().unwrap();
    let server = format!("unix:{}", dir.path().join("s").display());
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_fabctl"))
        .args(["--server", &server, "doctor"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("cannot reach the controller"), "{told}");
    assert!(told.contains("do: "), "{told}");
}

/// The files of a bundle, by name.
fn unpacked(path: &Path) -> BTreeMap<String, String> {
    let file = fs::File::open(path).unwrap();
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let entries = archive.entries().unwrap();
    let files = entries.map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), text)
    });
    files.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_support_bundle_has_everything_but_secrets() {
    let fabric = Fabric::start().await;
    fabric.apply_shop().await;
    let mut node = Node::join(&fabric).await;
    node.has(VmState::Running).await;
    node.tell(1, "VmmExited", "").await;
    node.stored().await;
    let mut trust = TrustServiceClient::new(fabric.channel().await);
    let request = CreateTokenRequest {
        ttl: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        ..CreateTokenRequest::default()
    };
    let token = trust
        .create_token(request)
        .await
        .unwrap()
        .into_inner()
        .token;
    // As a role may have it by mistake.
    let file = fabric.path("shop.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        format!("# {token}\n{text}\n").replace("hunter2-in-env", "other-secret"),
    )
    .unwrap();
    fabric
        .printed(&["service", "apply", "-f", file.to_str().unwrap()])
        .await;

    let said = fabric.printed(&["support-bundle", "b.tar.gz"]).await;
    assert!(said.starts_with("wrote b.tar.gz"), "{said}");
    assert!(!said.contains("could not be had"), "{said}");
    let files = unpacked(&fabric.path("b.tar.gz"));
    for name in [
        "README.txt",
        "about.json",
        "controller.json",
        "nodes.json",
        "services.json",
        "updates.json",
        "instances.json",
        "placement.json",
        "images.json",
        "packages.json",
        "history.json",
        "events.json",
        "audit.json",
        "doctor.json",
        "missing.json",
    ] {
        assert!(
            files.contains_key(name),
            "{name} is not in {:?}",
            files.keys()
        );
    }
    let admin = Contexts::read(&fabric.path("d/admin.toml")).unwrap();
    let key = &admin.contexts[&admin.current].key;
    for (name, text) in &files {
        for secret in
            SECRETS
                .iter()
                .chain(&["other-secret", token.as_str(), key.as_str(), "PRIVATE"])
        {
            assert!(!text.contains(secret), "{secret} is in {name}:\n{text}");
        }
    }
    // What is left is of use.
    assert!(files["instances.json"].contains("it wrote (left out)"));
    assert!(files["services.json"].contains("password = \\\"(left out)\\\""));
    assert!(files["history.json"].contains("API_KEY"));
    assert!(files["events.json"].contains("about VmmExited"));
    assert!(files["audit.json"].contains("ApplyService"));
    assert!(files["nodes.json"].contains("\"n1\""));

    let again = fabric.fabctl(&["support-bundle", "b.tar.gz"]).await;
    assert_eq!(again.status.code(), Some(1), "it was overwritten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_lists_what_could_not_be_had() {
    let dir = tempfile::tempdir().unwrap();
    let server = format!("unix:{}", dir.path().join("s").display());
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_fabctl"))
        .args([
            "--server",
            &server,
            "--output",
            "json",
            "support-bundle",
            "b.tar.gz",
        ])
        .current_dir(dir.path())
        .output()
        .await
        .unwrap();
    assert!(output.status.success());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["missing"].as_array().unwrap().len(), 1, "{told}");
    let files = unpacked(&dir.path().join("b.tar.gz"));
    assert!(files["missing.json"].contains("cannot reach the controller"));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_prints_lines_where_there_is_no_terminal() {
    let fabric = Fabric::start().await;
    fabric.apply_shop().await;
    let mut watch = fabric.command(&["watch"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut wait_for = async |what: &str| loop {
        let line = timeout(SOON, lines.next_line()).await.expect(what);
        let line = line.unwrap().expect(what);
        assert!(!line.contains('\u{1b}'), "{line:?} is for terminals");
        if line.contains(what) {
            return;
        }
    };
    wait_for("shop-web-0 Pending").await;
    let mut node = Node::join(&fabric).await;
    node.has(VmState::Running).await;
    wait_for("shop-web-0 Ready").await;
    node.tell(1, "VmmExited", "").await;
    wait_for("about VmmExited").await;
    watch.kill().await.unwrap();
}

/// Has `watch` show everything on a terminal, until `end` has ended it; the terminal must
/// be as it was before.
async fn watched_until(fabric: &Fabric, end: impl FnOnce(&fs::File, u32)) {
    let size = Winsize {
        ws_row: 30,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(&size, None).unwrap();
    let before = tcgetattr(&pty.slave).unwrap();
    let end_of_it = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut command = fabric.command(&["watch"]);
    command.env("TERM", "xterm-256color");
    command.stdin(end_of_it()).stdout(end_of_it());
    let mut watch = command.spawn().unwrap();
    drop(command);
    let master = fs::File::from(pty.master);
    let mut reader = master.try_clone().unwrap();
    let (pieces, mut received) = mpsc::channel(64);
    // Ends when nobody has the terminal any more.
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut piece) {
            let text = String::from_utf8_lossy(&piece[..length]).into_owned();
            if pieces.blocking_send(text).is_err() {
                return;
            }
        }
    });
    let mut written = String::new();
    // It comes piece by piece: what is known of the instance may come after the events.
    let all = ["q quit", "Nodes by fault domain", "shop-web-0", "Pending"];
    while !all.iter().all(|one| written.contains(one)) {
        written += &timeout(SOON, received.recv()).await.unwrap().unwrap();
    }
    end(&master, watch.id().unwrap());
    let status = timeout(SOON, watch.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
    drop(pty.slave);
    while let Some(piece) = timeout(SOON, received.recv()).await.unwrap() {
        written += &piece;
    }
    let count = |sign: &str| written.matches(sign).count();
    assert_eq!(count("\u{1b}[?1049h"), 1, "another screen is taken");
    assert_eq!(count("\u{1b}[?1049l"), 1, "and is given back");
    assert!(written.rfind("\u{1b}[?25h") > written.rfind("\u{1b}[?25l"));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_gives_the_terminal_back_whatever_ends_it() {
    let fabric = Fabric::start().await;
    fabric.apply_shop().await;
    let key =
        |key: &'static [u8]| move |mut terminal: &fs::File, _| terminal.write_all(key).unwrap();
    watched_until(&fabric, key(b"q")).await;
    // As Ctrl-C comes from a terminal in this mode.
    watched_until(&fabric, key(b"\x03")).await;
    let process = |pid: u32| Pid::from_raw(pid.try_into().unwrap());
    watched_until(&fabric, |_, pid| {
        kill(process(pid), Signal::SIGTERM).unwrap();
    })
    .await;
    watched_until(&fabric, |_, pid| {
        kill(process(pid), Signal::SIGHUP).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_labelled_in_one_line_and_says_who_says_what() {
    let fabric = Fabric::start().await;
    let _node = Node::join(&fabric).await;
    fabric.printed_with(&["node", "list"], "connected").await;
    let labelled = ["node", "label", "n1", "disk=nvme", "--fault-domain", "r7"];
    let shown = fabric.printed(&labelled).await;
    let lines: Vec<Vec<_>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(lines.contains(&vec!["disk", "nvme", "operator"]), "{shown}");
    let domain = vec!["(fault", "domain)", "r7", "operator"];
    assert!(lines.contains(&domain), "{shown}");
    let shown = fabric
        .printed(&["node", "show", "n1", "--output", "json"])
        .await;
    let node: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(node["operator_labels"]["disk"], "nvme");
    assert_eq!(node["operator_fault_domain"], "r7");
    let back = ["node", "label", "n1", "disk-", "--no-fault-domain"];
    let shown = fabric.printed(&back).await;
    assert!(!shown.contains("disk"), "{shown}");
    let twice = fabric
        .fabctl(&["node", "label", "n1", "disk=nvme", "disk=hdd"])
        .await;
    assert_eq!(twice.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_to_whom_what_happens_in_what_order_and_why() {
    let fabric = Fabric::start().await;
    fabric.upload_guest_os().await;
    let first = fabric.file("first.toml", 4, "/v1", "");
    let next = fabric.file("next.toml", 5, "/v2", "worker");
    let other = fabric.file("other.toml", 5, "/v3", "worker");
    fabric.printed(&["service", "apply", "-f", &first]).await;
    let mut node = Node::join(&fabric).await;
    node.has_each(&[
        ("shop-web-0", VmState::Running),
        ("shop-web-1", VmState::Backoff),
        ("shop-web-2", VmState::Running),
        ("shop-web-3", VmState::Running),
    ])
    .await;
    fabric
        .printed_with(&["instance", "list"], "Recovering")
        .await;

    let command = "command: [\"/v1\"] → [\"/v2\"]";
    let role =
        format!("~ role web: instances: 4 → 5; {command}; its instances start their role anew");
    let changes = [
        role.as_str(),
        "+ instance shop-web-4: instances 4 → 5",
        "+ role worker: size tiny, image guest-os",
        "+ instance shop-worker-0: new role",
    ];
    let diff = fabric.printed(&["service", "diff", "-f", &next]).await;
    assert_eq!(diff.lines().collect::<Vec<_>>(), changes);

    let plan = fabric.printed(&["service", "plan", "-f", &next]).await;
    let lines: Vec<_> = plan.lines().collect();
    assert_eq!(lines[..4], changes);
    let anew = format!("role started anew, because {command}");
    // The second domain is the first: something is down there.
    let begin = format!(
        "  1. upgrade domain 1: shop-web-1, shop-web-3: {anew}; before others, for instance \
         shop-web-1 is down already (Recovering"
    );
    assert!(lines[5].starts_with(&begin), "{plan}");
    let second = format!("  2. upgrade domain 0: shop-web-0, shop-web-2: {anew}");
    assert_eq!(lines[6], second, "{plan}");
    assert_eq!(
        lines[7..],
        ["this is what would change; nothing was done"],
        "{plan}"
    );

    let json = fabric.json(&["service", "plan", "-f", &next]).await;
    assert_eq!(json["dry_run"], true);
    assert_eq!(json["under_way"], "");
    assert_eq!(json["changes"][1]["detail"], "instances 4 → 5");
    let step = &json["steps"][0];
    assert_eq!(step["upgrade_domain"], 1);
    assert_eq!(
        step["instance_ids"],
        serde_json::json!(["shop-web-1", "shop-web-3"])
    );
    assert_eq!(step["why"], command);
    let when = step["when"].as_str().unwrap();
    assert!(when.starts_with("before others"), "{json:#}");
    assert_eq!(json["steps"][1]["when"], "");
    let diff = fabric.json(&["service", "diff", "-f", &next]).await;
    assert_eq!(diff["changes"], json["changes"]);

    // With an update under way, a plan is of what is left, or of what takes its place.
    fabric.printed(&["service", "apply", "-f", &next]).await;
    fabric.printed(&["update", "pause", "shop"]).await;
    let left = fabric.printed(&["service", "plan", "-f", &next]).await;
    assert!(left.starts_with("nothing changes\nan update is paused"));
    assert!(left.contains("the steps are what is left of it"), "{left}");
    assert!(left.contains(&second[4..]), "{left}");
    let json = fabric.json(&["service", "plan", "-f", &other]).await;
    let under_way = json["under_way"].as_str().unwrap();
    assert!(
        under_way.ends_with("it ends, and another one takes its place"),
        "{json:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn history_has_the_revisions_newest_first() {
    let fabric = Fabric::start().await;
    fabric.upload_guest_os().await;
    for command in ["/v1", "/v2"] {
        let file = fabric.file("shop.toml", 1, command, "");
        fabric.printed(&["service", "apply", "-f", &file]).await;
    }
    let told = fabric.printed(&["service", "history", "shop"]).await;
    let lines: Vec<_> = told.lines().collect();
    assert!(lines[0].starts_with("REVISION"), "{told}");
    assert!(lines[1].starts_with('2') && lines[2].starts_with('1'));
    assert!(lines[1].contains("production") && lines[1].ends_with("applied"));

    let json = fabric.json(&["service", "history", "shop"]).await;
    let numbers: Vec<_> = json.as_array().unwrap().iter().collect();
    assert_eq!(numbers.len(), 2);
    assert_eq!(
        (&json[0]["number"], &json[1]["number"]),
        (&2.into(), &1.into())
    );
    assert_eq!(json[0]["slot"], "production");
    let text = json[1]["definition_toml"].as_str().unwrap();
    assert!(text.contains("/v1"), "{json:#}");
    let output = fabric.fabctl(&["service", "history", "nothing"]).await;
    assert_eq!(output.status.code(), Some(3), "there is no such service");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_why_an_instance_is_where_it_is_or_nowhere() {
    let fabric = Fabric::start().await;
    fabric.upload_guest_os().await;
    let file = fabric.file("shop.toml", 1, "/v1", "");
    fabric.printed(&["service", "apply", "-f", &file]).await;
    let told = fabric.printed(&["explain", "shop-web-0"]).await;
    assert!(told.starts_with("shop-web-0 has no node: "), "{told}");
    assert!(told.contains("start a host agent"), "{told}");
    let json = fabric.json(&["explain", "shop-web-0"]).await;
    assert_eq!(json["node_id"], "");
    assert_ne!(json["unplaceable"], "");

    let mut node = Node::join(&fabric).await;
    node.has(VmState::Running).await;
    let is_there = "shop-web-0 is on node n1, and would be placed there again";
    let told = fabric
        .printed_with(&["explain", "shop-web-0"], is_there)
        .await;
    assert!(told.contains("best: "), "{told}");
    let json = fabric.json(&["explain", "shop-web-0"]).await;
    assert_eq!(
        (&json["node_id"], &json["chosen_node_id"]),
        (&"n1".into(), &"n1".into())
    );
    assert_eq!(json["verdicts"][0]["fits"], true);
    assert_eq!(json["unplaceable"], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn simulate_says_who_would_go_where_and_does_nothing() {
    let fabric = Fabric::start().await;
    fabric.upload_guest_os().await;
    let file = fabric.file("shop.toml", 1, "/v1", "");
    fabric.printed(&["service", "apply", "-f", &file]).await;
    let mut node = Node::join(&fabric).await;
    node.has(VmState::Running).await;
    fabric.printed_with(&["instance", "list"], "Ready").await;

    let told = fabric.printed(&["simulate", "--kill-node", "n1"]).await;
    assert!(
        told.starts_with("0 would be placed, 1 would find no node, 0 would stay where they are"),
        "{told}"
    );
    assert!(told.ends_with("nothing was done\n"), "{told}");
    let json = fabric.json(&["simulate", "--kill-node", "n1"]).await;
    let miss = &json["misses"][0];
    assert_eq!(miss["instance_id"], "shop-web-0");
    assert_eq!(miss["from_node_id"], "n1");

    let with_another = [
        "simulate",
        "--kill-node",
        "n1",
        "--add-nodes",
        "1",
        "--shape",
        "4x8GiB",
    ];
    let told = fabric.printed(&with_another).await;
    assert!(told.starts_with("1 would be placed, 0 would find no node"));
    let json = fabric.json(&with_another).await;
    assert_eq!(json["moves"][0]["instance_id"], "shop-web-0");
    assert_ne!(json["moves"][0]["to_node_id"], "n1");
    assert_eq!(json["misses"], serde_json::json!([]));
    let like_it = [
        "--disk",
        "2TiB",
        "--label",
        "disk=nvme",
        "--resource",
        "gpu=4",
    ];
    let told = fabric
        .printed(&[&with_another[..], &like_it].concat())
        .await;
    assert!(told.starts_with("1 would be placed, 0 would find no node"));
    let arm = [&with_another[..], &["--architecture", "aarch64"]].concat();
    let told = fabric.printed(&arm).await;
    assert!(told.contains("give it an image for aarch64"), "{told}");
    let list = fabric.json(&["instance", "list"]).await;
    assert_eq!(list[0]["node_id"], "n1", "{list:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_nodes_say_for_which_processors_they_are() {
    let fabric = Fabric::start().await;
    fabric.upload_guest_os().await;
    let arm = ["image", "upload", "arm", "guest-os.vhd", "--architecture"];
    let odd = fabric.fabctl(&[&arm[..], &["riscv64"]].concat()).await;
    let said = String::from_utf8_lossy(&odd.stderr).into_owned();
    assert_eq!(odd.status.code(), Some(2), "{said}");
    assert!(
        said.contains("[possible values: x86_64, aarch64]"),
        "{said}"
    );
    assert_eq!(
        fabric.json(&["image", "show", "guest-os"]).await["architecture"],
        "x86_64"
    );

    let told = fabric.printed(&[&arm[..], &["aarch64"]].concat()).await;
    assert!(told.starts_with("image arm is there: sha256:"), "{told}");
    assert!(told.ends_with(", for aarch64\n"), "{told}");
    let list = fabric.printed(&["image", "list"]).await;
    assert!(
        list.lines().next().unwrap().contains("ARCHITECTURE"),
        "{list}"
    );
    // It is the same file.
    let rows: Vec<_> = list.lines().skip(1).collect();
    assert_eq!(rows.len(), 2, "{list}");
    assert!(rows.iter().all(|row| row.contains("aarch64")), "{list}");
    let shown = fabric.printed(&["image", "show", "arm"]).await;
    let mut rows = shown.lines().map(|line| line.split_whitespace());
    let is_said = rows.any(|row| row.eq(["architecture:", "aarch64"]));
    assert!(is_said, "{shown}");
    fabric.printed(&["package", "upload", "guest-os.vhd"]).await;
    let packages = fabric.printed(&["package", "list"]).await;
    assert!(!packages.contains("ARCHITECTURE"), "{packages}");

    let _node = Node::join(&fabric).await;
    fabric.printed_with(&["node", "list"], "connected").await;
    let node = fabric.json(&["node", "show", "n1"]).await;
    assert_eq!(node["inventory"]["architecture"], "x86_64");
}
