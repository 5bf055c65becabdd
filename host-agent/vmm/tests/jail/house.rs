//! A host with two machines, of which one is compromised.

use std::fmt;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use fabric_vmm::config::JailConfig;
use fabric_vmm::jail::{self, Isolation, Limits, ThreadKind, launch::Launch};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::attempts::{ATTEMPTS, Attempt};

/// The one that a machine becomes here.
const USER: u32 = 600_001;
/// Its directory, by its working directory.
const DIRECTORY: &str = "jail";

/// What of the jail is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Walls {
    /// All.
    All,
    /// All but the lists of system calls.
    WithoutCallLists,
    /// Nothing.
    None,
}

impl fmt::Display for Walls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Walls::All => "at_all",
            Walls::WithoutCallLists => "even_if_it_may_make_any_call",
            Walls::None => "without_a_jail",
        })
    }
}

/// What the compromised one knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// A file of the host.
    pub secret: PathBuf,
    /// The disk of another guest.
    pub other_disk: PathBuf,
    /// Its VMM.
    pub other_vmm: i32,
    /// Where the host agent listens.
    pub agent_socket: PathBuf,
    /// The name of an abstract socket that somebody listens on.
    pub abstract_socket: Vec<u8>,
    /// A port of the loopback interface that somebody listens on.
    pub port: u16,
    /// The program that it is.
    pub program: PathBuf,
    /// Its directory.
    pub directory: PathBuf,
}

/// Whether attempts can be made as they are meant; only root can give users away.
pub fn can_be_built() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("skipped: without root there is no other user to become");
    }
    root
}

/// The host.
pub struct House {
    folder: TempDir,
    facts: Facts,
    other: Child,
    _listeners: (UnixListener, UnixListener, TcpListener),
}

impl House {
    /// Builds it.
    pub fn build() -> House {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for directory in ["shop-web-0", "shop-web-0/jail", "shop-web-1"] {
            fs::create_dir(at(directory)).unwrap();
        }
        lchown(at("shop-web-0/jail"), Some(USER), Some(USER)).unwrap();
        fs::write(at("secret"), "of the host").unwrap();
        fs::write(at("shop-web-1/os.vhd"), "of another guest").unwrap();
        // What is to keep it out is the jail, not a mode that somebody forgot.
        for path in ["", "secret", "shop-web-1", "shop-web-1/os.vhd"] {
            fs::set_permissions(at(path), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let program = at("compromised");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let agent = UnixListener::bind(at("host-agent.sock")).unwrap();
        fs::set_permissions(at("host-agent.sock"), fs::Permissions::from_mode(0o777)).unwrap();
        let abstract_socket = format!("fabric-jail-test-{}", std::process::id()).into_bytes();
        let name = SocketAddr::from_abstract_name(&abstract_socket).unwrap();
        let listeners = (
            agent,
            UnixListener::bind_addr(&name).unwrap(),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        let other = Command::new("/bin/sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let facts = Facts {
            secret: at("secret"),
            other_disk: at("shop-web-1/os.vhd"),
            other_vmm: other.id() as i32,
            agent_socket: at("host-agent.sock"),
            abstract_socket,
            port: listeners.2.local_addr().unwrap().port(),
            program,
            directory: at("shop-web-0/jail"),
        };
        House {
            folder,
            facts,
            other,
            _listeners: listeners,
        }
    }

    /// Has a compromised VMM try it, and looks at what became of that.
    pub fn shows_that_nothing_comes_of(&self, attempt: &Attempt, walls: Walls) {
        if attempt.succeeds_for_root {
            let (outside, said) = self.try_it(attempt, Walls::None);
            assert_eq!(outside, Outcome::Escaped, "it fails for anyone: {said}");
        }
        let (outcome, said) = self.try_it(attempt, walls);
        match walls {
            // Killed for the call, and whoever started it sees that.
            Walls::All if outcome == Outcome::Killed => {}
            _ => assert_eq!(outcome, Outcome::Stopped, "{said}"),
        }
    }

    fn try_it(&self, attempt: &Attempt, walls: Walls) -> (Outcome, String) {
        let output = self.folder.path().join("output");
        let file = File::create(&output).unwrap();
        let facts = serde_json::to_string(&self.facts).unwrap();
        let wall = serde_json::to_string(&walls).unwrap();
        let arguments = ["compromised", attempt.name, &wall, &facts];
        let directory = &self.folder.path().join("shop-web-0");
        let program = &self.facts.program;
        let pid = if walls == Walls::None {
            let mut command = Command::new(program);
            command.args(arguments).current_dir(directory);
            command.stdout(file.try_clone().unwrap()).stderr(file);
            command.spawn().expect("it starts").id()
        } else {
            let launched = jail::launch::launch(&Launch {
                program,
                arguments: &arguments,
                environment: &[],
                directory,
                stdout: &file,
                stderr: &file,
                groups: &[],
            });
            launched.expect("it starts")
        };
        let outcome = match waitpid(Pid::from_raw(pid as i32), None).unwrap() {
            WaitStatus::Exited(_, 0) => Outcome::Escaped,
            WaitStatus::Exited(_, STOPPED) => Outcome::Stopped,
            WaitStatus::Signaled(_, nix::sys::signal::SIGSYS, _) => Outcome::Killed,
            other => Outcome::Other(format!("{other:?}")),
        };
        (outcome, fs::read_to_string(&output).unwrap())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Escaped,
    Stopped,
    Killed,
    Other(String),
}

/// How an attempt ends that failed.
const STOPPED: i32 = 10;

/// What the compromised VMM does: jails itself, and then tries.
pub fn compromised(arguments: &[String]) -> ExitCode {
    let [name, walls, facts] = arguments else {
        panic!("compromised NAME WALLS FACTS");
    };
    let attempt = ATTEMPTS.iter().find(|one| one.name == name).unwrap();
    let walls: Walls = serde_json::from_str(walls).unwrap();
    let facts: Facts = serde_json::from_str(facts).unwrap();
    if walls != Walls::None {
        let config = JailConfig {
            uid: USER,
            gid: USER,
            directory: Path::new(DIRECTORY).to_owned(),
            given: vec![Isolation::Cgroup],
            allow_missing: Vec::new(),
        };
        let limits = Limits {
            descriptors: 64,
            file_bytes: 1 << 20,
            threads: 1,
        };
        let jail = jail::enter(&config, &limits).unwrap();
        if walls == Walls::All {
            jail.calls.confine(ThreadKind::EventLoop).unwrap();
        }
    }
    match (attempt.run)(&facts) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::from(STOPPED as u8)
        }
    }
}
