//! The real hypervisor: one `fabric-vmm` process per instance.
//!
//! A VMM runs in its instance's directory, in a session and a pid namespace of its
//! own, without any descriptor of ours, jails itself, and outlives us. It is watched
//! through a pidfd, whether we are its parent or only found it again. What it said goes
//! to files in the directory, so that its last words are there however it and we came to
//! die; but what the kernel ended it for, the kernel says.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fabric_proto::vmbus::{BOOTED_PORT, SESSION_PORT, TEMPLATE_PORT, TEMPLATE_VARIABLE};
use fabric_vmm::{
    config::{
        BootedConfig, ConsoleConfig, DiskConfig, DiskFormat, RepairMode, RingConfig,
        TemplateConfig, VmConfig, VsockConfig,
    },
    control::{self, Request},
    exit::{ExitReason, ExitReport},
    jail::launch::{Launch, launch, status_of},
    limits::{Limits, Rate, RateLimit},
};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;
use tokio_util::task::AbortOnDropHandle;

use super::cgroups::{Cgroups, Group, Share};
use super::jails::Jails;
use super::users::NoUser;
use super::{
    Hypervisor, LaunchError, OrderError, Origin, PackageDisk, Program, Vm, VmRecord, VmSpec, proc,
};
use crate::{
    clock,
    fail_point::{self, Step},
    files,
    instance::{
        directory::{
            CONFIGURATION, CONSOLE, CONTROL, InstanceDirectory, JAIL, VMBUS, VMM_ERR, VMM_OUT,
        },
        disks::{PACKAGE_CAPACITY, PACKAGE_SERIAL, chain},
        snapshots::SNAPSHOT,
        state::{Exit, ExitKind},
    },
    policy::shares::{BURST_SECONDS, Shares},
    template::BOOTED,
};

/// What every VMM is started with, and known by.
const ARGUMENTS: [&str; 3] = ["run", "--config", CONFIGURATION];
/// The variables that a VMM is given: which device to use instead of /dev/kvm; and in
/// tests, where to stand still.
const VARIABLES: &[&str] = if cfg!(feature = "fail-points") {
    &["FABRIC_KVM", fabric_fail_points::DIRECTORY]
} else {
    &["FABRIC_KVM"]
};
/// Serial of the disk that a guest boots from.
const OS_SERIAL: &str = "os";
/// Bytes of a guest's console that are kept.
const CONSOLE_BYTES: u64 = 256 * 1024;
/// A VMM's last line is looked for in so many bytes.
const LAST_WORDS: u64 = 256 * 1024;
/// What a VMM wrote on standard error is moved aside beyond this.
const LARGEST_LOG: u64 = 1024 * 1024;
/// How often that is looked at while it runs.
const LOOK_AT_OUTPUT: Duration = Duration::from_secs(10);
/// How long a VMM that is killed may take to be gone.
const LAST_BREATH: Duration = Duration::from_secs(10);
/// How long whoever is the parent of a VMM that has ended may take to collect it.
const COLLECTED: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const LOOK_WHETHER_COLLECTED: Duration = Duration::from_millis(5);
/// How long a VMM may take to answer when it is told to stop.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for other orders: a snapshot writes all of the guest's memory, and what is
/// ordered next waits for it, be it by the next process of the host agent.
const ORDER_PATIENCE: Duration = Duration::from_secs(600);

/// How every virtual machine of this node is started.
#[derive(Debug, Clone)]
pub struct ProcessHypervisor {
    /// The `fabric-vmm` program.
    pub vmm: PathBuf,
    /// The guests' kernel.
    pub kernel: PathBuf,
    /// Added to the guests' kernel command line.
    pub cmdline: String,
    /// Whether KVM needs repair, where that is known: it takes each VMM some milliseconds to
    /// find out.
    pub repair: RepairMode,
    /// How they are jailed.
    pub jails: Jails,
    /// Where their groups are, unless they have none.
    pub cgroups: Option<Cgroups>,
}

#[async_trait]
impl Hypervisor for ProcessHypervisor {
    async fn launch(
        &self,
        directory: &InstanceDirectory,
        spec: &VmSpec,
    ) -> Result<Arc<dyn Vm>, LaunchError> {
        self.configure(directory, spec)?;
        fail_point::reached(Step::Configured);
        let group = self.group(directory.path());
        if let Some(group) = &group {
            group.make(&Share::of(spec.vcpus, spec.memory_mib, spec.cpu_weight))?;
        }
        fail_point::reached(Step::GroupMade);
        let spawned = self
            .spawn(directory, user_of(spec), &ARGUMENTS, group.as_ref())
            .and_then(|pid| {
                fail_point::reached(Step::Spawned);
                Process::watch(pid, directory, group.clone(), true)
            });
        match spawned {
            Ok(vm) => Ok(Arc::new(vm)),
            Err(source) => {
                group.iter().for_each(Group::remove);
                Err(LaunchError::Spawn {
                    program: self.vmm.clone(),
                    source,
                })
            }
        }
    }

    async fn find(
        &self,
        directory: &InstanceDirectory,
        record: Option<&VmRecord>,
    ) -> io::Result<Option<Arc<dyn Vm>>> {
        for (pid, place) in proc::working_below(directory.path())? {
            if place != directory.path() || !is_vmm(pid) {
                continue;
            }
            match Process::watch(pid, directory, self.group(&place), false) {
                Ok(vm) => {
                    if record.is_some_and(|record| *record != vm.record) {
                        tracing::warn!(pid, "found a VMM that is not the recorded one");
                    }
                    return Ok(Some(Arc::new(vm)));
                }
                // It has ended in the meantime.
                Err(error) => tracing::debug!(pid, %error, "cannot watch a VMM"),
            }
        }
        Ok(None)
    }

    fn last_exit(&self, directory: &InstanceDirectory) -> Exit {
        spoken(directory.path())
            .unwrap_or_else(|| unspoken(ExitKind::Killed, "without a word, while nobody watched"))
    }

    async fn end_strays(&self, instances: &Path) -> usize {
        let Ok(instances) = fs::canonicalize(instances) else {
            return 0;
        };
        let Ok(found) = proc::working_below(&instances) else {
            return 0;
        };
        let strays = found.into_iter().filter(|(_, place)| !place.exists());
        self.end_all(strays).await
    }

    async fn end_all_in(&self, directory: &Path) -> usize {
        let found = fs::canonicalize(directory).and_then(|place| proc::working_below(&place));
        self.end_all(found.unwrap_or_default()).await
    }

    fn verify_snapshot(&self, snapshot: &Path) -> Result<(), String> {
        fabric_vmm::snapshot::verify(snapshot)
            .map(drop)
            .map_err(|error| chain(&error))
    }
}

/// Kills all VMMs that work in `directory` or below; returns how many.
pub fn kill_all_below(directory: &Path) -> usize {
    let found = fs::canonicalize(directory).and_then(|place| proc::working_below(&place));
    let found = found.unwrap_or_default().into_iter();
    found.filter_map(|(pid, place)| kill(pid, &place)).count()
}

/// Kills a VMM that works in `place`, if there is one.
fn kill(pid: u32, place: &Path) -> Option<OwnedFd> {
    let process = is_vmm(pid).then(|| open(pid)).flatten()?;
    // Whoever has this number now is still the one that was looked at.
    let same = proc::working_directory(pid).is_some_and(|now| now == place);
    (same && pidfd_send_signal(&process, Signal::KILL).is_ok()).then_some(process)
}

impl ProcessHypervisor {
    /// Ends VMMs by where they work, and removes their groups; how many.
    async fn end_all(&self, found: impl IntoIterator<Item = (u32, PathBuf)>) -> usize {
        let mut ended = 0;
        for (pid, place) in found {
            let Some(process) = kill(pid, &place) else {
                continue;
            };
            tracing::warn!(pid, place = %place.display(), "ended a VMM that nobody owns");
            ended += 1;
            // Until it has come to its end it is in its group.
            if let Ok(process) = observe(process) {
                let _ = tokio::time::timeout(LAST_BREATH, process.readable()).await;
            }
            self.group(&place).iter().for_each(Group::remove);
        }
        ended
    }

    fn configure(&self, directory: &InstanceDirectory, spec: &VmSpec) -> Result<(), LaunchError> {
        let path = directory.file(CONFIGURATION);
        let configuration = self.configuration(spec)?;
        let write = || {
            let text = serde_json::to_vec_pretty(&configuration)?;
            files::write_atomically(&path, &text)
        };
        write().map_err(|source| LaunchError::Configuration {
            path: path.clone(),
            source,
        })
    }

    fn configuration(&self, spec: &VmSpec) -> Result<VmConfig, NoUser> {
        let shares = Shares::of(spec.vcpus, spec.memory_mib);
        let os = DiskConfig {
            path: spec.os_disk.into(),
            format: DiskFormat::Vhd,
            serial: OS_SERIAL.to_owned(),
            readonly: false,
            parents: spec.os_parents.clone(),
            capacity_bytes: None,
            quota_bytes: Some(shares.disk_quota),
        };
        let package = spec.package.as_ref().map(|package| {
            let (path, format) = match package {
                PackageDisk::Image(path) => (path, DiskFormat::Vhd),
                PackageDisk::Placeholder(path) => (path, DiskFormat::Raw),
            };
            DiskConfig {
                path: path.clone(),
                format,
                serial: PACKAGE_SERIAL.to_owned(),
                readonly: true,
                parents: Vec::new(),
                // The same for every package, so that a guest cannot tell them apart
                // before it reads them.
                capacity_bytes: Some(PACKAGE_CAPACITY),
                quota_bytes: None,
            }
        });
        let disks: Vec<_> = std::iter::once(os).chain(package).collect();
        let (mut cmdline, mut template, mut restore) = (self.cmdline.clone(), None, None);
        match &spec.origin {
            Origin::Boot => {}
            Origin::BecomeTemplate { program } => {
                let program = program.as_ref().map_or("1", Program::as_str);
                cmdline = format!("{cmdline} {TEMPLATE_VARIABLE}={program}")
                    .trim_start()
                    .to_owned();
                template = Some(TemplateConfig {
                    port: SESSION_PORT,
                    after: None,
                    booted: Some(BootedConfig {
                        port: BOOTED_PORT,
                        path: Path::new(JAIL).join(BOOTED),
                    }),
                    path: Path::new(JAIL).join(SNAPSHOT),
                });
            }
            Origin::BecomeRoleTemplate { from } => {
                restore.clone_from(from);
                // The call after that one is not answered: a copy goes on from it.
                template = Some(TemplateConfig {
                    port: SESSION_PORT,
                    after: Some(TEMPLATE_PORT),
                    booted: None,
                    path: Path::new(JAIL).join(SNAPSHOT),
                });
            }
            Origin::Template(snapshot) | Origin::Booted(snapshot) | Origin::Snapshot(snapshot) => {
                restore = Some(snapshot.clone());
            }
        }
        let jail = self.jails.jail(user_of(spec), self.cgroups.is_some())?;
        Ok(VmConfig {
            name: spec.name.clone(),
            cmdline,
            template,
            restore,
            reset_to: spec.booted.clone(),
            memory_mib: spec.memory_mib.into(),
            vcpus: spec.vcpus,
            limits: limits(&shares, disks.len()),
            disks,
            vsock: Some(VsockConfig {
                cid: spec.cid,
                path: VMBUS.into(),
            }),
            console: ConsoleConfig::Ring(RingConfig {
                path: CONSOLE.into(),
                bytes: CONSOLE_BYTES,
            }),
            control: Some(CONTROL.into()),
            repair: self.repair,
            jail: Some(jail),
            ..VmConfig::new(&self.kernel)
        })
    }

    /// The group of the VMM that works in a directory, be that removed.
    fn group(&self, place: &Path) -> Option<Group> {
        let name = place.file_name()?.to_str()?;
        let name = name.strip_suffix(proc::REMOVED).unwrap_or(name);
        Some(self.cgroups.as_ref()?.group(name))
    }

    pub(super) fn spawn(
        &self,
        directory: &InstanceDirectory,
        user: u32,
        arguments: &[&str],
        group: Option<&Group>,
    ) -> io::Result<u32> {
        for socket in [VMBUS, CONTROL] {
            files::remove_if_there(&directory.file(socket))?;
        }
        // Its last words are its own, not those of the one before.
        files::remove_if_there(&directory.file(VMM_OUT))?;
        move_aside_if_large(&directory.file(VMM_ERR))?;
        let append = |name| {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(directory.file(name))
        };
        self.jails.give(&directory.file(JAIL), user)?;
        let given = VARIABLES.iter();
        let given = given.filter_map(|name| Some((*name, std::env::var_os(name)?)));
        launch(&Launch {
            program: &self.vmm,
            arguments,
            environment: &given.collect::<Vec<_>>(),
            directory: directory.path(),
            stdin: None,
            stdout: &append(VMM_OUT)?,
            stderr: &append(VMM_ERR)?,
            groups: &group.map(Group::doors).unwrap_or_default(),
        })
    }
}

/// What a machine with so many disks is held to.
fn limits(shares: &Shares, disks: usize) -> Limits {
    let rate = |per_second| {
        Some(Rate {
            per_second,
            burst: per_second * BURST_SECONDS,
        })
    };
    let disk = RateLimit {
        bytes: rate(shares.disk_bytes),
        operations: rate(shares.disk_operations),
    };
    let bus = RateLimit {
        bytes: rate(shares.bus_bytes),
        operations: rate(shares.bus_packets),
    };
    Limits {
        disks: vec![disk; disks],
        vsock_to_guest: bus,
        vsock_to_host: bus,
        console: rate(shares.console_bytes),
    }
}

/// Which of this node's users a machine is: each instance its own, and one is left
/// for the machines that become templates.
fn user_of(spec: &VmSpec) -> u32 {
    match spec.origin {
        Origin::BecomeTemplate { .. } | Origin::BecomeRoleTemplate { .. } => 0,
        Origin::Boot | Origin::Template(_) | Origin::Booted(_) | Origin::Snapshot(_) => spec.cid,
    }
}

/// A VMM process.
#[derive(Debug)]
pub(super) struct Process {
    record: VmRecord,
    group: Option<Group>,
    pidfd: AsyncFd<OwnedFd>,
    directory: PathBuf,
    control: PathBuf,
    /// Whether its status is ours to collect.
    child: bool,
    ended: Mutex<Option<Exit>>,
    _bounded: AbortOnDropHandle<()>,
}

impl Process {
    pub(super) fn watch(
        pid: u32,
        directory: &InstanceDirectory,
        group: Option<Group>,
        child: bool,
    ) -> io::Result<Self> {
        let gone = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                "the process is not there any longer",
            )
        };
        let pidfd = open(pid).ok_or_else(gone)?;
        // Read after the descriptor was opened: they are of the same process, or
        // there is none and the descriptor says so.
        let started = proc::start_time(pid).ok_or_else(gone)?;
        Ok(Self {
            record: VmRecord {
                pid,
                started,
                host_boot_id: clock::host_boot_id()?,
            },
            group,
            pidfd: observe(pidfd)?,
            directory: directory.path().to_owned(),
            control: directory.socket(CONTROL),
            child,
            ended: Mutex::default(),
            _bounded: AbortOnDropHandle::new(tokio::spawn(bound_output(
                directory.path().to_owned(),
            ))),
        })
    }

    /// How it ended. Its status is collected, so that no zombie stays.
    fn end(&self) -> Exit {
        let status = self.collect();
        let out_of_memory = self.group.as_ref().is_some_and(Group::ran_out_of_memory);
        let exit = tell(status, out_of_memory, spoken(&self.directory));
        fail_point::reached(Step::VmmEnded);
        self.group.iter().for_each(Group::remove);
        fail_point::reached(Step::GroupRemoved);
        exit
    }

    fn collect(&self) -> Status {
        let pidfd = self.pidfd.get_ref().as_fd();
        if !self.child {
            let Ok(Some(status)) = status_of(pidfd) else {
                return Status::Unknown;
            };
            let signal = status.signal().map(Status::Signal);
            let code = status.code().map(Status::Code);
            return signal.or(code).unwrap_or(Status::Unknown);
        }
        match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Status::Code(code),
                (_, Some(signal)) => Status::Signal(signal),
                _ => Status::Unknown,
            },
            Ok(None) => Status::Unknown,
            Err(error) => {
                tracing::error!(pid = self.record.pid, %error, "cannot collect a VMM's status");
                Status::Unknown
            }
        }
    }

    /// Waits until there is a status to tell: another's child has one once that has collected
    /// it, if the kernel tells it at all.
    async fn collected(&self) {
        let started = Instant::now();
        let waits = || matches!(status_of(self.pidfd.get_ref().as_fd()), Ok(None));
        while !self.child && started.elapsed() < COLLECTED && waits() {
            tokio::time::sleep(LOOK_WHETHER_COLLECTED).await;
        }
    }
}

/// How a process ended, as the kernel sees it.
#[derive(Debug, Clone, Copy)]
enum Status {
    Code(i32),
    Signal(i32),
    /// It is not our child, and the kernel does not tell.
    Unknown,
}

#[async_trait]
impl Vm for Process {
    fn record(&self) -> &VmRecord {
        &self.record
    }

    fn waited(&self) -> Duration {
        proc::longest_wait(self.record.pid)
    }

    async fn exited(&self) -> Exit {
        // A pidfd is readable once its process has ended.
        if let Err(error) = self.pidfd.readable().await {
            tracing::error!(pid = self.record.pid, %error, "cannot watch a VMM");
        }
        self.collected().await;
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.get_or_insert_with(|| self.end()).clone()
    }

    async fn order(&self, order: Request) -> Result<(), OrderError> {
        let control = self.control.clone();
        let ask = move || control::ask(&control, order, ORDER_PATIENCE);
        match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(answer)) if answer.ok => Ok(()),
            Ok(Ok(answer)) => {
                let why = answer.error.unwrap_or_default();
                Err(OrderError::Refused(crate::guest::report::cut(&why)))
            }
            Ok(Err(error)) => {
                // Was it cut off by its end, that is what there is to tell.
                let _ = tokio::time::timeout(LAST_BREATH, self.pidfd.readable()).await;
                Err(OrderError::Silent(Box::new(error)))
            }
            Err(error) => Err(OrderError::Silent(Box::new(error))),
        }
    }

    async fn order_stop(&self) {
        let control = self.control.clone();
        let order = move || control::ask(&control, Request::Stop, PATIENCE);
        let error = match tokio::task::spawn_blocking(order).await {
            Ok(Ok(answer)) => {
                tracing::debug!(pid = self.record.pid, ?answer, "ordered to stop");
                return;
            }
            Ok(Err(error)) => chain(&error),
            Err(error) => chain(&error),
        };
        tracing::debug!(
            pid = self.record.pid,
            error,
            "no control socket; sending SIGTERM"
        );
        if let Err(error) = pidfd_send_signal(self.pidfd.get_ref(), Signal::TERM) {
            tracing::debug!(pid = self.record.pid, %error, "cannot signal a VMM");
        }
    }

    fn kill(&self) {
        if let Err(error) = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            tracing::debug!(pid = self.record.pid, %error, "cannot kill a VMM");
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, for types whose descriptor can change; \
                               that of an OwnedFd cannot"
)]
fn observe(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(pidfd)
}

/// Holds a process: whoever has its number now is the one that is meant from here on.
pub(crate) fn open(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::NONBLOCK).ok()
}

/// Whether a process is a VMM that was started by [`ProcessHypervisor::spawn`].
/// Its program may have been replaced by a newer one since, so its file says nothing.
fn is_vmm(pid: u32) -> bool {
    let arguments = proc::arguments(pid);
    arguments.len() > ARGUMENTS.len() && arguments.ends_with(&ARGUMENTS.map(str::to_owned))
}

/// Keeps what a running VMM writes within bounds. Its files are open for
/// appending: cut, they are written on from their beginning.
async fn bound_output(directory: PathBuf) {
    loop {
        tokio::time::sleep(LOOK_AT_OUTPUT).await;
        for name in [VMM_OUT, VMM_ERR] {
            let path = directory.join(name);
            if fs::metadata(&path).is_ok_and(|facts| facts.len() > LARGEST_LOG)
                && let Err(error) = OpenOptions::new().write(true).truncate(true).open(&path)
            {
                tracing::warn!(path = %path.display(), %error, "cannot cut what a VMM wrote");
            }
        }
    }
}

fn move_aside_if_large(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(facts) if facts.len() > LARGEST_LOG => fs::rename(path, path.with_extension("err.1")),
        _ => Ok(()),
    }
}

/// What a VMM said of its end, if it did.
fn spoken(directory: &Path) -> Option<Exit> {
    let text = tail(&directory.join(VMM_OUT), LAST_WORDS).unwrap_or_default();
    ExitReport::from_output(&text).map(|report| judge(&report))
}

/// How one ended. What the kernel ended it for is the kernel's to say, for a process that has
/// been taken over says what it likes; of all else it says itself, if it could.
fn tell(status: Status, out_of_memory: bool, words: Option<Exit>) -> Exit {
    let cut_off = match status {
        Status::Code(_) => false,
        // By this one others end it, after its last words, too.
        Status::Signal(signal) if signal == Signal::KILL.as_raw() => out_of_memory,
        Status::Signal(_) => true,
        Status::Unknown => out_of_memory,
    };
    match words {
        Some(words) if !cut_off => words,
        Some(words) => {
            let Exit { kind, detail, .. } = silent_end(status, out_of_memory);
            let detail = format!("{detail}, after it had said that {}", words.kind);
            unspoken(kind, &detail)
        }
        None => silent_end(status, out_of_memory),
    }
}

/// How one ended that said nothing.
fn silent_end(status: Status, out_of_memory: bool) -> Exit {
    match status {
        _ if out_of_memory => unspoken(
            ExitKind::OutOfMemory,
            "it wanted more than its control group may have",
        ),
        Status::Signal(signal) if signal == Signal::SYS.as_raw() => unspoken(
            ExitKind::ForbiddenCall,
            "it is not on the list of the thread that made it",
        ),
        Status::Signal(signal) => unspoken(ExitKind::Killed, &format!("by signal {signal}")),
        Status::Code(code) => unspoken(ExitKind::Failed, &format!("status {code}, no reason")),
        Status::Unknown => unspoken(ExitKind::Killed, "without a word; nobody saw by what"),
    }
}

/// What there is to say of one that could say nothing.
fn unspoken(kind: ExitKind, detail: &str) -> Exit {
    let reason = match kind {
        ExitKind::Failed => ExitReason::InternalError,
        _ => ExitReason::Killed,
    };
    let report = ExitReport::new(reason, format!("{kind}: {detail}"));
    Exit {
        kind,
        detail: detail.to_owned(),
        json: report.to_string(),
    }
}

fn judge(report: &ExitReport) -> Exit {
    let panic = report.panic.as_ref().filter(|text| !text.is_empty());
    let kind = match report.reason {
        ExitReason::GuestPowerOff => ExitKind::GuestPowerOff,
        ExitReason::KernelPanic => ExitKind::KernelPanic,
        // A kernel that panics resets the machine.
        ExitReason::GuestReset if panic.is_some() => ExitKind::KernelPanic,
        ExitReason::GuestReset => ExitKind::GuestReset,
        ExitReason::Stopped => ExitKind::Stopped,
        ExitReason::TemplateMade => ExitKind::TemplateMade,
        ExitReason::TripleFault => ExitKind::TripleFault,
        ExitReason::ConfigError => ExitKind::Refused,
        ExitReason::Killed | ExitReason::InternalError => ExitKind::Failed,
    };
    let detail = panic.unwrap_or(&report.detail);
    Exit {
        kind,
        detail: crate::guest::report::cut(detail),
        json: report.to_string(),
    }
}

fn tail(path: &Path, most: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
