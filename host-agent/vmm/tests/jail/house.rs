//! A host with two machines, of which one is compromised.

use std::fmt;
use std::fs::{self, File};
use std::net::{SocketAddr as InternetAddress, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use fabric_vmm::config::JailConfig;
use fabric_vmm::jail::{
    self, Isolation, Limits, ThreadKind,
    launch::{Door, Launch},
};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::attempts::{ATTEMPTS, Attempt, Seen};

/// The one that a machine becomes here.
const USER: u32 = 600_001;
/// What its control group lets it have, in bytes.
pub const MEMORY: usize = 64 << 20;
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
    /// Where the controller does, beside a port.
    pub controller_socket: PathBuf,
    /// The port.
    pub controller_port: InternetAddress,
    /// Where datagrams are taken.
    pub datagrams: InternetAddress,
    /// The name of an abstract socket that somebody listens on.
    pub abstract_socket: Vec<u8>,
    /// A port of the loopback interface that somebody listens on.
    pub port: u16,
    /// The program that it is.
    pub program: PathBuf,
    /// Its directory.
    pub directory: PathBuf,
}

/// What is missing where attempts cannot be made as they are meant: only root can give users
/// away.
const NO_ROOT: &str = "without root there is no other user to become";

/// Whether it is tried: where it cannot be built, only to fail.
pub fn is_to_be_built() -> bool {
    geteuid().is_root() || is_required() || {
        eprintln!("skipped: {NO_ROOT}");
        false
    }
}

/// Whether this host is to have all that machines are isolated by.
fn is_required() -> bool {
    std::env::var_os("FABRIC_REQUIRE_ISOLATION").is_some_and(|value| value == "1")
}

/// The host.
pub struct House {
    folder: TempDir,
    facts: Facts,
    other: Child,
    group: Option<Group>,
    _listeners: Listeners,
}

/// All that could be reached on the host.
struct Listeners {
    _unix: [UnixListener; 3],
    _internet: [TcpListener; 2],
    _datagrams: UdpSocket,
}

/// A control group for one process, with a limit of memory. What a host agent makes.
struct Group {
    path: PathBuf,
    /// What says how often the kernel has killed for it.
    kills: &'static str,
}

impl Group {
    /// Makes one, where the host has such groups.
    fn make() -> Option<Group> {
        let versions = [
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.oom_control",
            ),
            ("/sys/fs/cgroup", "memory.max", "memory.events"),
        ];
        versions.into_iter().find_map(|(base, limit, kills)| {
            let path = Path::new(base).join(format!("fabric-jail-test-{}", std::process::id()));
            fs::create_dir(&path).ok()?;
            let group = Group { path, kills };
            fs::write(group.path.join(limit), MEMORY.to_string()).ok()?;
            // Where there is none, it cannot be had either.
            let _ = fs::write(group.path.join("memory.swap.max"), "0");
            Some(group)
        })
    }

    fn door(&self) -> Door {
        let tasks = self.path.join("tasks");
        if tasks.exists() {
            Door::Tasks(tasks)
        } else {
            Door::Directory(self.path.clone())
        }
    }

    fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.path.join(self.kills)).unwrap();
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, count) = lines.find(|(name, _)| *name == "oom_kill").unwrap();
        count.parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

impl House {
    /// Builds it.
    pub fn build() -> House {
        let root = geteuid().is_root();
        assert!(root, "FABRIC_REQUIRE_ISOLATION=1, but {NO_ROOT}");
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
        let controller = UnixListener::bind(at("controller.sock")).unwrap();
        fs::set_permissions(at("controller.sock"), fs::Permissions::from_mode(0o777)).unwrap();
        let abstract_one = UnixListener::bind_addr(&name).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let controller_port = TcpListener::bind("127.0.0.2:0").unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
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
            controller_socket: at("controller.sock"),
            controller_port: controller_port.local_addr().unwrap(),
            datagrams: datagrams.local_addr().unwrap(),
            port: port.local_addr().unwrap().port(),
            program,
            directory: at("shop-web-0/jail"),
        };
        House {
            folder,
            facts,
            other,
            group: Group::make(),
            _listeners: Listeners {
                _unix: [agent, controller, abstract_one],
                _internet: [port, controller_port],
                _datagrams: datagrams,
            },
        }
    }

    /// Has a compromised VMM try it, and looks at what became of that, from outside.
    pub fn shows_that_nothing_comes_of(&self, attempt: &Attempt, walls: Walls) {
        if attempt.succeeds_for_root {
            let (outside, said) = self.try_it(attempt, Walls::None);
            assert_eq!(outside, Outcome::Escaped, "it fails for anyone: {said}");
        }
        let expected = match (attempt.seen, walls) {
            (Seen::OutOfMemory, _) if self.group.is_none() => {
                let why = "this host has no control group for memory here";
                assert!(!is_required(), "FABRIC_REQUIRE_ISOLATION=1, but {why}");
                eprintln!("skipped: {why}");
                return;
            }
            (Seen::Killed, Walls::WithoutCallLists) => Seen::Refused,
            (seen, _) => seen,
        };
        let (outcome, said) = self.try_it(attempt, walls);
        assert_eq!(outcome, Outcome::Seen(expected), "{said}");
        // A process that goes on knows why it failed, by the kernel's word; one that was
        // killed has not come to say anything.
        let why = said.contains("(os error ");
        assert_eq!(why, expected == Seen::Refused, "{said}");
        let kills = self.group.as_ref().map_or(0, Group::kills);
        assert_eq!(kills, u64::from(expected == Seen::OutOfMemory));
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
                stdin: None,
                stdout: &file,
                stderr: &file,
                groups: &self.group.iter().map(Group::door).collect::<Vec<_>>(),
            });
            launched.expect("it starts")
        };
        let outcome = match waitpid(Pid::from_raw(pid as i32), None).unwrap() {
            WaitStatus::Exited(_, 0) => Outcome::Escaped,
            WaitStatus::Exited(_, STOPPED) => Outcome::Seen(Seen::Refused),
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => Outcome::Seen(Seen::Killed),
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => Outcome::Seen(Seen::OutOfMemory),
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
    Seen(Seen),
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
            directory: Some(DIRECTORY.into()),
            given: vec![Isolation::Cgroup],
            allow_missing: Vec::new(),
            ends_with: None,
        };
        let limits = Limits {
            descriptors: 64,
            file_bytes: 1 << 20,
            threads: 1,
        };
        let jail = jail::enter(&config).unwrap();
        jail.limit(&limits).unwrap();
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
