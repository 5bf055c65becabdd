//! The real program, as a process of its own.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time;

use crate::framework::*;

/// The program that is under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_fabric-controller");

/// Where the steps are armed at which it is to end, in the directory.
pub const ARMED: &str = "armed";

/// A controller of that directory; killed when it is dropped.
pub struct Program {
    child: Child,
    dir: PathBuf,
}

impl Program {
    /// Starts it and connects.
    pub async fn start(dir: &Path) -> (Self, Client) {
        Self::start_as(&[], dir, &[]).await
    }

    /// The same with more arguments, and with something before the program.
    pub async fn start_as(before: &[&str], dir: &Path, arguments: &[&str]) -> (Self, Client) {
        let mut program = Self::launch(before, dir, arguments);
        let deadline = time::Instant::now() + SOON;
        loop {
            if let Ok(client) = Client::connect(&socket(dir)).await {
                return (program, client);
            }
            let ended = program.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", program.log());
            assert!(time::Instant::now() < deadline, "it does not listen");
            time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts it.
    pub fn launch(before: &[&str], dir: &Path, arguments: &[&str]) -> Self {
        let log = File::create(dir.join("log")).unwrap();
        let words = before.iter().map(OsStr::new).chain([PROGRAM.as_ref()]);
        let words: Vec<_> = words.collect();
        let child = Command::new(words[0])
            .args(&words[1..])
            .arg("serve")
            .arg("--data-dir")
            .arg(dir.join("d"))
            .arg("--listen")
            .arg(format!("unix:{}", socket(dir).display()))
            .args(arguments)
            .env("RUST_LOG", "info")
            .env("FABRIC_FAIL_POINTS", dir.join(ARMED))
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            child,
            dir: dir.to_owned(),
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, with SIGTERM.
    pub fn ask_to_end(&self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// How it has ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = time::Instant::now() + SOON;
        loop {
            if let Some(status) = self.has_ended() {
                return status;
            }
            assert!(
                time::Instant::now() < deadline,
                "it goes on: {}",
                self.log()
            );
            time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn socket(dir: &Path) -> PathBuf {
    dir.join("s")
}
