//! The control socket: requests in pieces, whole, long and garbled; and what a machine that
//! may have been taken over says to its host agent: answers there, and its last words.

#![no_main]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use arbitrary::Arbitrary;
use event_manager::{EventManager, SubscriberOps};
use fabric_fuzz::json::Edit;
use fabric_fuzz::scratch::Scratch;
use fabric_vmm::control::client::understand;
use fabric_vmm::control::knock::{Knock, KnockError};
use fabric_vmm::control::protocol::{Answer, OLDEST, Request, VERSION, parse_request};
use fabric_vmm::control::server::{Answerer, ControlListener, ControlServer, Reply};
use fabric_vmm::exit::ExitReport;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// Requests and answers by turns.
const RECORDED: &str = include_str!("../../host-agent/vmm/src/control/recorded/2.jsonl");

#[derive(Arbitrary, Debug)]
struct Input {
    lines: Vec<Line>,
    /// Where what is written is cut.
    cuts: Vec<u8>,
    end: End,
}

#[derive(Arbitrary, Debug)]
enum Line {
    Right(u8),
    Edited(u8, Vec<Edit>),
    Bytes(Vec<u8>),
    Long(u16),
}

#[derive(Arbitrary, Debug)]
enum End {
    Read,
    Leave,
}

/// Answers without doing anything.
struct Nobody;

impl Answerer for Nobody {
    fn answer(&mut self, request: Request) -> Reply {
        if request != Request::PowerButton {
            return Answer::done().into();
        }
        // A guest that has heard it already.
        let (mut guest, ours) = UnixStream::pair().expect("two ends");
        ours.set_nonblocking(true)
            .expect("an end that does not wait");
        guest
            .write_all(b"OK 1\nok\n")
            .expect("a guest that answers");
        Reply::Later(Knock::new(ours, Instant::now()))
    }

    fn knocked(&mut self, heard: Result<(), KnockError>) -> Answer {
        assert!(heard.is_ok(), "{heard:?}");
        Answer::done()
    }
}

struct Server {
    manager: EventManager<ControlServer>,
    path: PathBuf,
    _scratch: Scratch,
}

thread_local! {
    static SERVER: RefCell<Server> = RefCell::new(Server::new());
}

fuzz_target!(|input: Input| {
    let mut sent = Vec::new();
    let mut lines = 0;
    for line in input.lines.iter().take(16) {
        let bytes = line.bytes();
        check_line(&bytes);
        check_said(&bytes);
        lines += bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
        sent.extend_from_slice(&bytes);
        sent.push(b'\n');
    }
    SERVER.with_borrow_mut(|server| server.converse(&sent, lines, &input));
});

/// A request that is taken is the same when it is written and read again.
fn check_line(bytes: &[u8]) {
    match parse_request(bytes) {
        Ok(request) => {
            let Ok(written) = serde_json::to_vec(&request) else {
                return;
            };
            assert_eq!(parse_request(&written), Ok(request));
        }
        Err(answer) => assert!(!answer.ok && answer.to_line().ends_with("}\n")),
    }
}

/// Whatever a machine says is understood, or refused; what was understood can be said again.
fn check_said(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(answer) = understand(Path::new("control.sock"), OLDEST, &text) {
        assert!((OLDEST..=VERSION).contains(&answer.version));
        assert!(answer.to_line().ends_with("}\n"));
    }
    if let Some(report) = ExitReport::from_output(&text) {
        assert!(ExitReport::from_output(&report.to_string()).is_some());
    }
}

/// A line of what was once asked and answered.
fn recorded(line: usize) -> Value {
    let said = RECORDED.lines().nth(line).expect("a line");
    serde_json::from_str(said).expect("what was said")
}

impl Line {
    fn bytes(&self) -> Vec<u8> {
        let right = |which: &u8| -> Value {
            match which % 13 {
                0 => json!({ "op": "status" }),
                1 => json!({ "op": "stats" }),
                2 => json!({ "op": "stop" }),
                3 => json!({ "op": "pause" }),
                4 => json!({ "op": "resume" }),
                5 => json!({ "op": "snapshot", "path": "/x" }),
                6 => json!({ "op": "power_button" }),
                7 => json!({ "version": VERSION, "ok": true }),
                8 => json!({ "version": OLDEST, "ok": false, "error": "no" }),
                9 => recorded(1),
                10 => recorded(3),
                11 => json!({ "reason": "killed", "detail": "", "uptime_ms": 1,
                              "timings": { "first_run_ms": 1.5 }, "exits": { "hlt": 1 } }),
                _ => json!({ "op": "snapshot" }),
            }
        };
        match self {
            Self::Right(which) => right(which).to_string().into_bytes(),
            Self::Edited(which, edits) => {
                let mut document = right(which);
                edits
                    .iter()
                    .take(2)
                    .for_each(|edit| edit.apply(&mut document));
                document.to_string().into_bytes()
            }
            Self::Bytes(bytes) => bytes.clone(),
            Self::Long(len) => vec![b' '; usize::from(*len)],
        }
    }
}

impl Server {
    fn new() -> Self {
        let scratch = Scratch::new();
        let path = scratch.path("control.sock");
        let server = ControlListener::bind(&path)
            .expect("a socket")
            .serve(Box::new(Nobody));
        let mut manager = EventManager::new().expect("an event loop");
        manager.add_subscriber(server);
        Self {
            manager,
            path,
            _scratch: scratch,
        }
    }

    fn turn(&mut self) {
        while self.manager.run_with_timeout(0).expect("the event loop") > 0 {}
    }

    fn converse(&mut self, sent: &[u8], lines: usize, input: &Input) {
        let mut stream = UnixStream::connect(&self.path).expect("a connection");
        stream
            .set_nonblocking(true)
            .expect("a stream that does not wait");
        let mut left = sent;
        for cut in &input.cuts {
            let (now, later) = left.split_at(left.len().min(usize::from(*cut)));
            let _ = stream.write(now);
            left = later;
            self.turn();
        }
        let _ = stream.write(left);
        self.turn();
        if matches!(input.end, End::Read) {
            let mut answers = Vec::new();
            let _ = stream.read_to_end(&mut answers);
            let answered = answers.iter().filter(|byte| **byte == b'\n').count();
            assert!(answered <= lines + 1, "{answered} answers to {lines} lines");
        }
        drop(stream);
        self.turn();
    }
}
