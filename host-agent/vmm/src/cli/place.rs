//! Gives a machine that somebody starts by hand what a host agent gives to its own: a
//! directory, a user, and a process that is the first of its pid namespace.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use clap::Args;
use fabric_vmm::config::{ConfigError, ConsoleConfig, JailConfig, VmConfig, folder_of};
use fabric_vmm::jail::Isolation;
use fabric_vmm::jail::launch::{Launch, launch};
use fabric_vmm::kvm::DEVICE_VARIABLE;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid};
use thiserror::Error;

use super::terminal::RawTerminal;

/// Where the numbers of users begin of which each such machine is one: this, and the number of
/// the process that started it.
const USERS: u32 = 0x6000_0000;

/// Where a machine is, and who, that is started by hand.
#[derive(Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "Jail")]
pub struct Place {
    /// The one directory that the machine still sees when its guest runs: vsock sockets are
    /// in it, and snapshots that its control socket is asked for. By default that of --vsock,
    /// or none.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// The user and group that the machine becomes if this is run as root: the directory, and
    /// the sockets to which the guest connects, have to be open to it. By default one that
    /// nobody else is.
    #[arg(long, value_name = "ID")]
    user: Option<u32>,
    /// Run although the host does not give this part of the jail: uid, user, pid, mount,
    /// network, ipc, uts, landlock or seccomp; repeatable.
    #[arg(long, value_name = "NAME")]
    allow_missing_isolation: Vec<Isolation>,
}

/// How the machine's process ended.
#[derive(Debug)]
pub enum End {
    /// With this status, when it had said why.
    Told(u8),
    /// By a signal, which left it no time to say anything.
    Killed(Signal),
}

/// Why a machine cannot be started.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The jail is no jail.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host lacks something.
    #[error("cannot {action} for the machine")]
    Step {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn step<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> PlaceError {
    move |source| PlaceError::Step {
        action,
        source: source.into(),
    }
}

impl Place {
    /// Whether a machine can be there whose description has this jail.
    ///
    /// # Errors
    ///
    /// When it says where it is itself.
    pub fn check(&self, config: &VmConfig) -> Result<(), ConfigError> {
        if config.jail.is_none() || *self == Place::default() {
            return Ok(());
        }
        Err(ConfigError::Value {
            field: "jail".to_owned(),
            value: "there".to_owned(),
            rule: "--directory, --user and --allow-missing-isolation are for machines that \
                   have none"
                .to_owned(),
        })
    }

    /// Runs the machine in a process of its own, and waits for its end. Signals that would end
    /// this process end the machine.
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub fn keep(&self, config: &VmConfig) -> Result<End, PlaceError> {
        let config = VmConfig {
            jail: Some(self.jail(config)),
            ..config.clone()
        };
        config.check()?;
        let awaited = awaited();
        awaited.thread_block().map_err(step("hold back signals"))?;
        let terminal = match config.console {
            ConsoleConfig::Stdio => RawTerminal::enter(),
            ConsoleConfig::Ring(_) | ConsoleConfig::None => Ok(None),
        };
        let terminal = terminal.map_err(step("put the terminal into raw mode"))?;
        let description = describe(&config).map_err(step("write the description"))?;
        let machine = start(&config, &description).map_err(step("start a process"))?;
        let end = wait(machine, &awaited).map_err(step("wait"));
        drop(terminal);
        for socket in sockets(&config) {
            remove_if_dead(socket);
        }
        end
    }

    fn jail(&self, config: &VmConfig) -> JailConfig {
        let (uid, gid) = match self.user {
            _ if !geteuid().is_root() => (geteuid().as_raw(), getegid().as_raw()),
            Some(user) => (user, user),
            None => (USERS + std::process::id(), USERS + std::process::id()),
        };
        let vsock = config.vsock.as_ref();
        let of_vsock = vsock.map(|vsock| folder_of(&vsock.path).to_owned());
        // Its group is that of this process, and whoever started it has chosen that.
        let mut allow_missing = vec![Isolation::Cgroup];
        allow_missing.extend(&self.allow_missing_isolation);
        JailConfig {
            uid,
            gid,
            directory: self.directory.clone().or(of_vsock),
            given: Vec::new(),
            allow_missing,
            ends_with: Some(std::process::id()),
        }
    }
}

/// What ends the machine, and what says that it has ended.
fn awaited() -> SigSet {
    [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ]
    .into_iter()
    .collect()
}

/// A file in no directory, which is there as long as it is open.
fn describe(config: &VmConfig) -> io::Result<File> {
    let mut description = File::from(memfd_create(c"vm.json", MFdFlags::MFD_CLOEXEC)?);
    description.write_all(&serde_json::to_vec(config)?)?;
    Ok(description)
}

fn start(config: &VmConfig, description: &File) -> io::Result<Pid> {
    let (own, number) = (std::process::id(), description.as_raw_fd());
    let description = format!("/proc/{own}/fd/{number}");
    let open = |stream: &dyn AsFd| stream.as_fd().try_clone_to_owned().map(File::from);
    let stdin = match config.console {
        ConsoleConfig::Stdio => Some(open(&io::stdin())?),
        ConsoleConfig::Ring(_) | ConsoleConfig::None => None,
    };
    let device = std::env::var_os(DEVICE_VARIABLE).map(|value| (DEVICE_VARIABLE, value));
    let machine = launch(&Launch {
        program: &std::env::current_exe()?,
        arguments: &["run", "--config", &description],
        environment: device.as_slice(),
        directory: &std::env::current_dir()?,
        stdin: stdin.as_ref(),
        stdout: &open(&io::stdout())?,
        stderr: &open(&io::stderr())?,
        groups: &[],
    })?;
    Ok(Pid::from_raw(machine.cast_signed()))
}

fn wait(machine: Pid, awaited: &SigSet) -> nix::Result<End> {
    loop {
        if awaited.wait()? != Signal::SIGCHLD {
            // If it has ended, that is what comes next.
            let _ = kill(machine, Signal::SIGTERM);
            continue;
        }
        match waitpid(machine, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, code) => {
                return Ok(End::Told(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            WaitStatus::Signaled(_, signal, _) => return Ok(End::Killed(signal)),
            _ => {}
        }
    }
}

/// The sockets that a machine makes.
fn sockets(config: &VmConfig) -> impl Iterator<Item = &Path> {
    let vsock = config.vsock.iter().map(|vsock| vsock.path.as_path());
    vsock.chain(config.control.as_deref())
}

/// Removes a socket that nobody listens to: one that a machine left, which does not see it from
/// its jail.
fn remove_if_dead(socket: &Path) {
    let refused = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
    if UnixStream::connect(socket).is_err_and(refused) {
        // It stays, and the next machine replaces it.
        let _ = fs::remove_file(socket);
    }
}
