//! What a guest agent says, as the host agent takes it: frames, messages, session.

#![no_main]

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Arbitrary;
use fabric_fuzz::rarely::Rarely;
use fabric_fuzz::scratch::Scratch;
use fabric_proto::guest::v1 as wire;
use host_agent::clock::Clock;
use host_agent::guest::report::RoleReport;
use host_agent::guest::server::{GuestGoal, GuestLink, Heard, service};
use host_agent::instance::state::GuestSaid;
use host_agent::output::role_log::RoleLog;
use http_body_util::{BodyExt, Full};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tonic::codegen::Service;
use wire::session_request::Report;

/// Longest text that is passed on.
const TEXT_MAX: usize = 512;
/// What an operator's store keeps of one guest's reports is no more than was sent.
const MESSAGES_MAX: usize = 64;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Whether it says hello first, as it should.
    silent: Rarely<()>,
    hello: Hello,
    messages: Vec<Frame>,
    /// Bytes after the last message.
    rest: Rarely<Vec<u8>>,
}

#[derive(Arbitrary, Debug)]
struct Frame {
    said: Said,
    /// Changes in the message's bytes.
    garbled: Rarely<(u16, u8)>,
    length: Rarely<u32>,
    compressed: Rarely<u8>,
}

#[derive(Arbitrary, Debug)]
struct Hello {
    version: Rarely<u32>,
    boot_id: String,
    rest: String,
    uptime: Option<(i64, i32)>,
}

#[derive(Arbitrary, Debug)]
enum Said {
    Hello(Hello),
    Heartbeat(u64, Option<(i64, i32)>),
    Role(Role),
    Log(Vec<u8>, i32, Rarely<u64>),
    Goodbye(i32, bool),
    Nothing,
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Role {
    other: Rarely<String>,
    state: u8,
    odd_state: Rarely<i32>,
    reason: String,
    repeated: u8,
    since: Option<(i64, i32)>,
    numbers: [u32; 3],
    generation: u64,
    exit: Option<Exit>,
}

#[derive(Arbitrary, Debug)]
enum Exit {
    Code(u32),
    Signal(u32),
    Failed(String),
    Nothing,
}

/// What stays from one input to the next.
struct Node {
    runtime: Runtime,
    log: Arc<RoleLog>,
    _scratch: Scratch,
}

thread_local! {
    static NODE: RefCell<Node> = RefCell::new(Node::new());
}

fuzz_target!(|input: Input| {
    let body = input.body();
    NODE.with_borrow(|node| {
        let log = Arc::clone(&node.log);
        for heard in node.runtime.block_on(converse(body, log)) {
            check(&heard);
        }
    });
});

impl Node {
    fn new() -> Self {
        let scratch = Scratch::new();
        // Time passes when nothing else is to be done.
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        Self {
            runtime: runtime.expect("a runtime"),
            log: Arc::new(RoleLog::open(&scratch.path("role.log")).expect("a log")),
            _scratch: scratch,
        }
    }
}

/// Says all of it in one session; what the host agent has heard.
async fn converse(body: Vec<u8>, log: Arc<RoleLog>) -> Vec<Heard> {
    let goal = GuestGoal {
        boot: 1,
        incarnation: 1,
        resumes: 0,
        instance: Some("shop-web-0".parse().expect("a name")),
        heartbeat: Duration::from_secs(1),
        off: false,
        role: Some(Arc::new(wire::RoleSpec {
            name: "web".into(),
            ..wire::RoleSpec::default()
        })),
        withheld: false,
    };
    let (goals, goal) = watch::channel(Some(goal));
    let (sender, mut receiver) = mpsc::channel(MESSAGES_MAX);
    let link = GuestLink {
        goal,
        heard: sender,
        log,
        clock: Clock::system(),
    };
    let request = http::Request::post("/fabric.guest.v1.GuestService/Session")
        .header("content-type", "application/grpc")
        .body(Full::<bytes::Bytes>::from(body))
        .expect("a request");
    let mut service = service(link);
    let answer = service
        .call(request)
        .await
        .expect("a service always answers");
    drop(service);
    // The session ends with what it is told, and the answers with it.
    let ended = tokio::time::timeout(Duration::from_secs(600), answer.into_body().collect()).await;
    assert!(ended.is_ok(), "the session does not end");
    drop(goals);
    let mut heard = Vec::new();
    while let Some(said) = receiver.recv().await {
        heard.push(said);
    }
    heard
}

fn check(heard: &Heard) {
    assert_eq!(heard.boot, 1);
    match &heard.said {
        GuestSaid::Hello { boot_id } => assert!(boot_id.len() <= TEXT_MAX),
        GuestSaid::Role(report) => {
            assert!(report.role == "web" && report.reason.len() <= TEXT_MAX);
            assert!(!report.reason.contains('\n'));
            let again = RoleReport::from_wire(report.to_wire()).expect("a report is one");
            assert_eq!(&again, report);
            let kept = serde_json::to_string(report).expect("a report is JSON");
            let read: RoleReport = serde_json::from_str(&kept).expect("what was kept is read");
            assert_eq!(&read, report);
            if let Some(exit) = &report.last_exit {
                assert!(exit.to_string().len() < 2 * TEXT_MAX);
            }
        }
        GuestSaid::Heartbeat | GuestSaid::Goodbye { .. } | GuestSaid::Gone => {}
    }
}

impl Input {
    /// The body of a gRPC request: frames of five bytes and a message each.
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        if !self.silent.is_there() {
            let hello = Report::Hello(self.hello.message());
            frame(&mut body, &encoded(hello), None, None);
        }
        for message in self.messages.iter().take(MESSAGES_MAX - 2) {
            let mut bytes = message.said.bytes();
            if let Some((at, value)) = message.garbled.0
                && !bytes.is_empty()
            {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            frame(&mut body, &bytes, message.length.0, message.compressed.0);
        }
        body.extend(self.rest.0.iter().flatten());
        body
    }
}

fn frame(body: &mut Vec<u8>, message: &[u8], length: Option<u32>, compressed: Option<u8>) {
    body.push(compressed.unwrap_or(0));
    body.extend(length.unwrap_or(message.len() as u32).to_be_bytes());
    body.extend(message);
}

fn encoded(report: Report) -> Vec<u8> {
    wire::SessionRequest {
        report: Some(report),
    }
    .encode_to_vec()
}

fn duration(value: Option<(i64, i32)>) -> Option<prost_types::Duration> {
    value.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos })
}

impl Hello {
    fn message(&self) -> wire::Hello {
        wire::Hello {
            protocol_version: self.version.or(1),
            agent_version: self.rest.clone(),
            boot_id: self.boot_id.clone(),
            kernel_release: self.rest.clone(),
            uptime: duration(self.uptime),
            applied_incarnation: 1,
        }
    }
}

impl Said {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => encoded(Report::Hello(hello.message())),
            Self::Heartbeat(sequence, uptime) => encoded(Report::Heartbeat(wire::Heartbeat {
                sequence: *sequence,
                uptime: duration(*uptime),
                applied_incarnation: *sequence,
                memory_available_bytes: *sequence,
            })),
            Self::Role(role) => encoded(Report::RoleStatus(role.message())),
            Self::Log(data, stream, dropped) => encoded(Report::Log(wire::LogChunk {
                role: "web".into(),
                stream: *stream,
                data: data.clone().into(),
                time: None,
                dropped_bytes: dropped.or(0),
            })),
            Self::Goodbye(reason, asked_by_goal) => encoded(Report::Goodbye(wire::Goodbye {
                reason: *reason,
                asked_by_goal: *asked_by_goal,
            })),
            Self::Nothing => Vec::new(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

impl Role {
    fn message(&self) -> wire::RoleStatus {
        let [pid, restarts, consecutive_failures] = self.numbers;
        wire::RoleStatus {
            role: self.other.or("web".into()),
            state: self.odd_state.or(i32::from(self.state % 6)),
            reason: self.reason.repeat(usize::from(self.repeated)),
            since: self
                .since
                .map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos }),
            pid,
            restarts,
            last_exit: self.exit.as_ref().map(Exit::message),
            restart_generation: self.generation,
            consecutive_failures,
        }
    }
}

impl Exit {
    fn message(&self) -> wire::RoleExit {
        use wire::role_exit::How;
        let how = match self {
            Self::Code(code) => Some(How::ExitCode(*code)),
            Self::Signal(signal) => Some(How::Signal(*signal)),
            Self::Failed(why) => Some(How::SpawnError(why.clone())),
            Self::Nothing => None,
        };
        wire::RoleExit {
            how,
            by_agent: false,
        }
    }
}
