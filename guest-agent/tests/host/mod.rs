//! A host agent for one guest agent, which runs as a plain process: gives it
//! goals, hears its reports. Everything is in a directory of its own and ends with
//! the test.

use std::{
    collections::VecDeque,
    path::PathBuf,
    pin::Pin,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use fabric_proto::guest::v1::{
    ExecProbe, Goal, GuestPower, Hello, LogStream, Probe, RoleKind, RoleSpec, RoleState,
    RoleStatus, SessionRequest, SessionResponse,
    guest_service_server::{GuestService, GuestServiceServer},
    probe,
    session_request::Report,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{UnixListenerStream, WatchStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Longest wait for anything; far beyond what is expected, even of a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A guest agent and the host agent that it talks to.
pub struct Host {
    directory: TempDir,
    goal: watch::Sender<Goal>,
    reports: mpsc::UnboundedReceiver<Report>,
    /// Reports that nobody has asked for yet.
    passed: VecDeque<Report>,
    sender: mpsc::UnboundedSender<Report>,
    /// A runtime of its own: ended, its connections are cut as a dead process's are.
    server: Option<Runtime>,
    agent: Child,
}

impl Host {
    /// A guest agent in session.
    pub async fn with_guest(goal: Goal) -> (Self, Hello) {
        let directory = tempfile::tempdir().unwrap();
        let (sender, reports) = mpsc::unbounded_channel();
        let agent = Command::new(env!("CARGO_BIN_EXE_guest-agent"))
            .arg("--connect")
            .arg(format!("unix:{}", directory.path().join("s").display()))
            .arg("--state-dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let goal = watch::Sender::new(goal);
        let passed = VecDeque::new();
        let mut host = Self {
            directory,
            goal,
            reports,
            passed,
            sender,
            server: None,
            agent,
        };
        host.serve();
        let hello = host.hello().await;
        (host, hello)
    }

    /// Serves, after [`Self::vanish`] again.
    pub fn serve(&mut self) {
        let service = Service {
            goal: self.goal.subscribe(),
            reports: self.sender.clone(),
        };
        let path = self.path("s");
        let server = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        server.spawn(async move {
            Server::builder()
                .add_service(GuestServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(UnixListener::bind(path).unwrap()))
                .await
                .unwrap();
        });
        self.server = Some(server);
    }

    /// The host agent dies: its socket and its connections are gone.
    pub fn vanish(&mut self) {
        self.server.take().unwrap().shutdown_background();
        std::fs::remove_file(self.path("s")).unwrap();
    }

    /// Gives a goal.
    pub fn set_goal(&self, goal: Goal) {
        self.goal.send_replace(goal);
    }

    /// Changes the goal and counts its incarnation up.
    pub fn change_goal(&self, change: impl FnOnce(&mut Goal)) {
        self.goal.send_modify(|goal| {
            change(goal);
            goal.incarnation += 1;
        });
    }

    /// A path in the directory of this guest.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Forgets all reports so far.
    pub fn forget(&mut self) {
        self.passed.clear();
        while self.reports.try_recv().is_ok() {}
    }

    /// Waits for the first report that `wanted` takes; others wait for their turn.
    pub async fn report<T>(&mut self, wanted: impl Fn(&Report) -> Option<T>) -> T {
        if let Some(at) = self
            .passed
            .iter()
            .position(|report| wanted(report).is_some())
        {
            return self.passed.remove(at).as_ref().and_then(wanted).unwrap();
        }
        let next = async {
            loop {
                let report = self.reports.recv().await.unwrap();
                match wanted(&report) {
                    Some(found) => return found,
                    None => self.passed.push_back(report),
                }
            }
        };
        timeout(PATIENCE, next)
            .await
            .expect("the report that is waited for does not come")
    }

    /// Waits for a hello.
    pub async fn hello(&mut self) -> Hello {
        self.report(|report| match report {
            Report::Hello(hello) => Some(hello.clone()),
            _ => None,
        })
        .await
    }

    /// Waits for the next status of a role.
    pub async fn status(&mut self, role: &str) -> RoleStatus {
        self.report(|report| match report {
            Report::RoleStatus(status) if status.role == role => Some(status.clone()),
            _ => None,
        })
        .await
    }

    /// Waits until a role is in this state.
    pub async fn until(&mut self, role: &str, state: RoleState) -> RoleStatus {
        loop {
            let status = self.status(role).await;
            if status.state() == state {
                return status;
            }
        }
    }

    /// The next `count` states of a role, each as often as it is reported.
    pub async fn states(&mut self, role: &str, count: usize) -> Vec<RoleState> {
        let mut states = vec![];
        for _ in 0..count {
            states.push(self.status(role).await.state());
        }
        states
    }

    /// Waits until what a role wrote to this stream contains `text`; returns all of
    /// it from now on, and how many bytes were lost.
    pub async fn output(&mut self, stream: LogStream, text: &str) -> (String, u64) {
        let (mut output, mut dropped) = (String::new(), 0);
        while !output.contains(text) {
            let chunk = self
                .report(|report| match report {
                    Report::Log(chunk) if chunk.stream() == stream => Some(chunk.clone()),
                    _ => None,
                })
                .await;
            assert!(
                chunk.data.len() <= 16 * 1024,
                "{} bytes in a chunk",
                chunk.data.len()
            );
            output.push_str(std::str::from_utf8(&chunk.data).unwrap());
            dropped += chunk.dropped_bytes;
        }
        (output, dropped)
    }

    /// Sends a signal to the guest agent.
    pub fn signal_agent(&self, signal: Signal) {
        send(self.agent.id(), signal);
    }

    /// Process id of the guest agent.
    pub fn agent_pid(&self) -> u32 {
        self.agent.id()
    }

    /// Waits until the guest agent has ended by itself.
    pub async fn agent_exit(&mut self) -> ExitStatus {
        timeout(PATIENCE, async {
            loop {
                if let Some(status) = self.agent.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the guest agent does not end")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its roles are its children; each is a session of its own.
        for child in children(self.agent.id()) {
            _ = kill(Pid::from_raw(-child), Signal::SIGKILL);
        }
        _ = self.agent.kill();
        _ = self.agent.wait();
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

/// Sends a signal to a process.
pub fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

/// Waits until `done`.
pub async fn eventually(what: &str, done: impl Fn() -> bool) {
    timeout(PATIENCE, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("never: {what}"));
}

/// Children of a process.
pub fn children(pid: u32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    list.unwrap_or_default()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Whether a process is there; one that has ended and was not waited for is.
pub fn exists(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

/// A goal with these roles.
pub fn goal(roles: impl IntoIterator<Item = RoleSpec>) -> Goal {
    Goal {
        incarnation: 1,
        instance_id: "shop-web-0".into(),
        heartbeat_period: millis(100),
        power: GuestPower::Run.into(),
        roles: roles.into_iter().collect(),
        ..Default::default()
    }
}

/// A role that runs a shell script.
pub fn script(name: &str, script: &str) -> RoleSpec {
    RoleSpec {
        name: name.into(),
        kind: RoleKind::Worker.into(),
        command: shell(script),
        uid: 1000,
        startup_grace: millis(10_000),
        stop_grace: millis(10_000),
        restart_policy: Some(fabric_proto::guest::v1::RestartPolicy {
            backoff_initial: millis(20),
            backoff_max: millis(60_000),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A probe that runs a shell script.
pub fn exec(script: &str) -> Probe {
    check(probe::Check::Exec(ExecProbe {
        command: shell(script),
    }))
}

/// A probe that is made often.
pub fn check(check: probe::Check) -> Probe {
    Probe {
        check: Some(check),
        period: millis(50),
        timeout: millis(5_000),
        failure_threshold: 2,
        success_threshold: 1,
    }
}

/// A duration of so many milliseconds.
pub fn millis(millis: i64) -> Option<prost_types::Duration> {
    let nanos = i32::try_from(millis % 1000 * 1_000_000).unwrap();
    Some(prost_types::Duration {
        seconds: millis / 1000,
        nanos,
    })
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).into()
}

struct Service {
    goal: watch::Receiver<Goal>,
    reports: mpsc::UnboundedSender<Report>,
}

#[tonic::async_trait]
impl GuestService for Service {
    type SessionStream =
        Pin<Box<dyn Stream<Item = Result<SessionResponse, Status>> + Send + 'static>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut requests = request.into_inner();
        let reports = self.reports.clone();
        let heard = async move {
            while let Ok(Some(request)) = requests.message().await {
                let Some(report) = request.report else {
                    continue;
                };
                if reports.send(report).is_err() {
                    break;
                }
            }
        };
        // The session ends with what is heard: an element at the end closes it.
        let goals = WatchStream::new(self.goal.clone())
            .map(|goal| Some(Ok(SessionResponse { goal: Some(goal) })));
        let (over, ended) = mpsc::channel(1);
        tokio::spawn(async move {
            heard.await;
            _ = over.send(None).await;
        });
        let ended = tokio_stream::wrappers::ReceiverStream::new(ended);
        let answers = goals.merge(ended).map_while(|answer| answer);
        Ok(Response::new(Box::pin(answers)))
    }
}
