//! The goal as the guest agent works with it: checked once, where it enters.
//!
//! The wire types stay in `session`; everything else knows only these. A role
//! that cannot be run as written is kept with the reason ([`Wanted::Refused`]),
//! so that it is reported rather than lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use fabric_proto::{guest::v1 as wire, id::RoleName};

/// Most roles that one guest runs.
const MOST_ROLES: usize = 64;
/// Longest host name that Linux takes.
const LONGEST_HOSTNAME: usize = 64;
/// Length of a machine id (machine-id(5)).
const MACHINE_ID_DIGITS: usize = 32;
/// Most bytes of entropy taken from one goal.
const MOST_ENTROPY: usize = 512;
/// Longest serial of a virtio-blk device (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID).
const LONGEST_SERIAL: usize = 20;

/// What stands in for a duration that is absent or not positive, and the bounds
/// that a given one is held to.
struct Bounds {
    default: Duration,
    least: Duration,
    most: Duration,
}

const HEARTBEAT: Bounds = bounds(2_000, 100, 60_000);
const PERIOD: Bounds = bounds(10_000, 50, 86_400_000);
const TIMEOUT: Bounds = bounds(1_000, 10, 3_600_000);
const GRACE: Bounds = bounds(0, 0, 86_400_000);
const STOP_GRACE: Bounds = bounds(5_000, 0, 3_600_000);
const BACKOFF_INITIAL: Bounds = bounds(200, 10, 3_600_000);
const BACKOFF_MAX: Bounds = bounds(30_000, 10, 86_400_000);

const fn bounds(default: u64, least: u64, most: u64) -> Bounds {
    Bounds {
        default: Duration::from_millis(default),
        least: Duration::from_millis(least),
        most: Duration::from_millis(most),
    }
}

/// The whole state that this guest should be in.
#[derive(Debug, Clone)]
pub struct Goal {
    /// Number of this goal; counts up.
    pub incarnation: u64,
    /// The instance that this guest is.
    pub instance_id: String,
    /// Host name to take; `None` when there is none or it is not one.
    pub hostname: Option<String>,
    /// Machine id to take; `None` when there is none or it is not one.
    pub machine_id: Option<String>,
    /// The host's clock when this was sent.
    pub wall_clock: Option<SystemTime>,
    /// How often to send a heartbeat.
    pub heartbeat_period: Duration,
    /// What the guest as a whole should do.
    pub power: Power,
    /// Whether this guest is nobody, and becomes a template when its roles are as far as
    /// they go there.
    pub becomes_template: bool,
    /// Roles to run, by name.
    pub roles: BTreeMap<RoleName, Wanted>,
    /// Random bytes for the kernel's pool.
    pub entropy: Bytes,
    /// What was wrong with the goal as a whole, for people.
    pub remarks: Vec<String>,
}

/// What the guest as a whole should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Run the roles.
    Run,
    /// Stop the roles, then go down.
    Down(Down),
}

/// A way for the guest to go down on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// Power off.
    PowerOff,
    /// Reboot.
    Reboot,
}

/// A role that the goal names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// To be run so.
    Run(Box<RoleSpec>),
    /// Not to be run as written; why.
    Refused(InvalidRole),
}

/// Why a role cannot be run as written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRole {
    /// Roles never run as root.
    #[error("uid 0 is refused: a role runs as an unprivileged user, 1 to 65533")]
    Root,
    /// An id that Linux gives a meaning of its own.
    #[error("uid {0} is refused: a role runs as an unprivileged user, 1 to 65533")]
    Uid(u32),
    /// Only a VM role may be without a program.
    #[error("command is empty: only a role of kind vm may be without one")]
    NoCommand,
    /// A text that cannot be handed to a process.
    #[error("{0} has a NUL byte or, in a variable's name, an '='")]
    Text(&'static str),
    /// A serial that no disk can have.
    #[error("package_disk_serial {0:?} is refused: 1 to 20 printable ASCII characters")]
    Serial(String),
    /// The guest is not fit to run any.
    #[error("its guest must not run it: {0}")]
    Guest(String),
    /// A probe without a check.
    #[error("{0} probe: names no check")]
    NoCheck(ProbeKind),
    /// A port that is none.
    #[error("{0} probe: port {1} is refused: 1 to 65535")]
    Port(ProbeKind, u32),
    /// A path that cannot stand in a request line.
    #[error("{0} probe: path {1:?} is refused: a leading '/', then printable ASCII without spaces")]
    Path(ProbeKind, String),
    /// A probe's program that is missing.
    #[error("{0} probe: command is empty")]
    ProbeCommand(ProbeKind),
}

/// Which of a role's two probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// Is it alive?
    Liveness,
    /// Can it serve?
    Readiness,
}

impl std::fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        })
    }
}

/// One role to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleSpec {
    /// How it is started. A change of this restarts the role.
    pub launch: LaunchSpec,
    /// A change of this restarts the role once.
    pub generation: u64,
    /// Is it alive?
    pub liveness: Option<ProbeSpec>,
    /// Can it serve?
    pub readiness: Option<ProbeSpec>,
    /// How long after its start failures of its probes do not count.
    pub startup_grace: Duration,
    /// What to do when its process ends.
    pub restart: RestartPolicy,
    /// How long it has between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// How far it goes, if it is to be copied then.
    pub halt: Option<Halt>,
    /// Whether its process is told of changed settings, rather than started anew.
    pub deliver_settings: bool,
}

/// How far a role goes in a guest that becomes a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// What it needs is in place, and it is not started.
    Prepared,
    /// It is ready, and frozen.
    Ready,
}

/// The programs that are run around a warm start; nothing is run for an empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Before the role is frozen.
    pub before_snapshot: Vec<CString>,
    /// When it goes on in a copy.
    pub after_start: Vec<CString>,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before the role is frozen.
    BeforeSnapshot,
    /// When it goes on in a copy.
    AfterStart,
}

impl Hooks {
    /// The program of a hook.
    pub fn of(&self, hook: Hook) -> &[CString] {
        match hook {
            Hook::BeforeSnapshot => &self.before_snapshot,
            Hook::AfterStart => &self.after_start,
        }
    }
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BeforeSnapshot => "before_snapshot",
            Self::AfterStart => "after_start",
        })
    }
}

/// How a role's process is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchSpec {
    /// Program and arguments; empty for a VM role that is the machine itself.
    pub command: Vec<CString>,
    /// Environment beside what the guest agent sets.
    pub environment: BTreeMap<String, String>,
    /// Settings, written as a file.
    pub settings: BTreeMap<String, String>,
    /// User and group id.
    pub uid: u32,
    /// Serial of the disk with the package.
    pub package: Option<String>,
    /// What is run around a warm start.
    pub hooks: Hooks,
}

impl LaunchSpec {
    /// Whether a process that was started so is what `other` asks for, once it has
    /// been given the settings of that.
    pub fn is_process_of(&self, other: &Self) -> bool {
        let settings = other.settings.clone();
        *other
            == Self {
                settings,
                ..self.clone()
            }
    }
}

/// When and how fast a role is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// When.
    pub mode: RestartMode,
    /// Wait before the first restart.
    pub backoff_initial: Duration,
    /// Longest wait. A role that stays ready for this long starts afresh.
    pub backoff_max: Duration,
}

/// When a role is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartMode {
    /// Whenever it ends.
    Always,
    /// When it fails.
    OnFailure,
    /// Never.
    Never,
}

/// A check to make again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSpec {
    /// What is checked.
    pub check: Check,
    /// From the start of one check to the start of the next.
    pub period: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// Failures in a row that make the probe fail.
    pub failure_threshold: u32,
    /// Successes in a row that make it succeed again.
    pub success_threshold: u32,
}

/// What a probe checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// A program ends with status 0.
    Exec(Vec<CString>),
    /// A TCP port of the loopback takes a connection.
    Tcp(u16),
    /// An HTTP request is answered with 200 to 399.
    Http {
        /// Port of the loopback.
        port: u16,
        /// Path with a leading slash.
        path: String,
    },
}

impl Goal {
    /// Whether a role's own program is to run.
    pub fn runs_roles(&self) -> bool {
        self.roles.values().any(|wanted| match wanted {
            Wanted::Run(spec) => spec.halt != Some(Halt::Prepared),
            Wanted::Refused(_) => false,
        })
    }

    /// Has no role run, for that reason.
    pub fn refuse_roles(&mut self, why: &str) {
        for wanted in self.roles.values_mut() {
            *wanted = Wanted::Refused(InvalidRole::Guest(why.to_owned()));
        }
    }
}

impl From<wire::Goal> for Goal {
    fn from(goal: wire::Goal) -> Self {
        let mut remarks = Vec::new();
        let power = match goal.power() {
            wire::GuestPower::Off => Power::Down(Down::PowerOff),
            wire::GuestPower::Reboot => Power::Down(Down::Reboot),
            wire::GuestPower::Run | wire::GuestPower::Unspecified => Power::Run,
        };
        let hostname = hostname(goal.hostname, &mut remarks);
        let machine_id = machine_id(goal.machine_id, &mut remarks);
        Self {
            incarnation: goal.incarnation,
            instance_id: goal.instance_id.replace('\0', ""),
            hostname,
            machine_id,
            wall_clock: goal
                .wall_clock
                .and_then(|time| SystemTime::try_from(time).ok()),
            heartbeat_period: HEARTBEAT.hold(goal.heartbeat_period),
            power,
            becomes_template: goal.becomes_template,
            roles: roles(goal.roles, goal.becomes_template, &mut remarks),
            entropy: goal.entropy.slice(..goal.entropy.len().min(MOST_ENTROPY)),
            remarks,
        }
    }
}

fn hostname(name: String, remarks: &mut Vec<String>) -> Option<String> {
    let valid = name.len() <= LONGEST_HOSTNAME
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    if name.is_empty() {
        None
    } else if valid {
        Some(name)
    } else {
        let rule = "1 to 64 letters, digits, '-' and '.'";
        remarks.push(format!("hostname {name:.64?} is refused: {rule}"));
        None
    }
}

/// As machine-id(5) has them.
fn machine_id(id: String, remarks: &mut Vec<String>) -> Option<String> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if id.is_empty() {
        None
    } else if id.len() == MACHINE_ID_DIGITS && id.bytes().all(is_digit) {
        Some(id)
    } else {
        let rule = "32 lower-case hexadecimal digits";
        remarks.push(format!("machine_id {id:.64?} is refused: {rule}"));
        None
    }
}

fn roles(
    specs: Vec<wire::RoleSpec>,
    becomes_template: bool,
    remarks: &mut Vec<String>,
) -> BTreeMap<RoleName, Wanted> {
    let mut names = BTreeSet::new();
    let mut roles = BTreeMap::new();
    for spec in specs {
        let name = match RoleName::try_from(spec.name.clone()) {
            Ok(name) => name,
            Err(error) => {
                remarks.push(error.to_string());
                continue;
            }
        };
        if !names.insert(name.clone()) {
            remarks.push(format!("role {name} is named twice: the first counts"));
        } else if roles.len() == MOST_ROLES {
            remarks.push(format!(
                "role {name} is left out: a guest runs at most {MOST_ROLES}"
            ));
        } else {
            let halt = becomes_template.then_some(match spec.warm_start {
                Some(_) => Halt::Ready,
                None => Halt::Prepared,
            });
            let wanted = RoleSpec::try_from(spec)
                .map(|spec| RoleSpec { halt, ..spec })
                .map_or_else(Wanted::Refused, |spec| Wanted::Run(Box::new(spec)));
            roles.insert(name, wanted);
        }
    }
    roles
}

impl TryFrom<wire::RoleSpec> for RoleSpec {
    type Error = InvalidRole;

    fn try_from(spec: wire::RoleSpec) -> Result<Self, InvalidRole> {
        if spec.command.is_empty() && spec.kind() != wire::RoleKind::Vm {
            return Err(InvalidRole::NoCommand);
        }
        Ok(Self {
            generation: spec.restart_generation,
            liveness: probe(spec.liveness, ProbeKind::Liveness)?,
            readiness: probe(spec.readiness, ProbeKind::Readiness)?,
            startup_grace: GRACE.hold(spec.startup_grace),
            restart: restart(spec.restart_policy.unwrap_or_default()),
            stop_grace: STOP_GRACE.hold(spec.stop_grace),
            halt: None,
            deliver_settings: spec.deliver_settings,
            launch: LaunchSpec {
                hooks: hooks(spec.warm_start.unwrap_or_default())?,
                command: words(spec.command).ok_or(InvalidRole::Text("command"))?,
                environment: environment(spec.environment)?,
                settings: spec.settings,
                uid: unprivileged(spec.uid)?,
                package: package(spec.package_disk_serial)?,
            },
        })
    }
}

fn hooks(warm: wire::WarmStart) -> Result<Hooks, InvalidRole> {
    Ok(Hooks {
        before_snapshot: words(warm.before_snapshot).ok_or(InvalidRole::Text("before_snapshot"))?,
        after_start: words(warm.after_start).ok_or(InvalidRole::Text("after_start"))?,
    })
}

fn unprivileged(uid: u32) -> Result<u32, InvalidRole> {
    match uid {
        0 => Err(InvalidRole::Root),
        1..=65_533 => Ok(uid),
        _ => Err(InvalidRole::Uid(uid)),
    }
}

fn words(words: Vec<String>) -> Option<Vec<CString>> {
    words
        .into_iter()
        .map(|word| CString::new(word).ok())
        .collect()
}

fn environment(
    variables: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, InvalidRole> {
    let valid = |(name, value): (&String, &String)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
    };
    if variables.iter().all(valid) {
        Ok(variables)
    } else {
        Err(InvalidRole::Text("environment"))
    }
}

fn package(serial: String) -> Result<Option<String>, InvalidRole> {
    if serial.is_empty() {
        Ok(None)
    } else if serial.len() <= LONGEST_SERIAL && serial.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(Some(serial))
    } else {
        Err(InvalidRole::Serial(serial.chars().take(64).collect()))
    }
}

fn restart(policy: wire::RestartPolicy) -> RestartPolicy {
    let backoff_initial = BACKOFF_INITIAL.hold(policy.backoff_initial);
    RestartPolicy {
        mode: match policy.mode() {
            wire::RestartMode::OnFailure => RestartMode::OnFailure,
            wire::RestartMode::Never => RestartMode::Never,
            wire::RestartMode::Always | wire::RestartMode::Unspecified => RestartMode::Always,
        },
        backoff_initial,
        backoff_max: BACKOFF_MAX.hold(policy.backoff_max).max(backoff_initial),
    }
}

fn probe(probe: Option<wire::Probe>, kind: ProbeKind) -> Result<Option<ProbeSpec>, InvalidRole> {
    let Some(probe) = probe else { return Ok(None) };
    let check = match probe.check.ok_or(InvalidRole::NoCheck(kind))? {
        wire::probe::Check::Exec(exec) if exec.command.is_empty() => {
            return Err(InvalidRole::ProbeCommand(kind));
        }
        wire::probe::Check::Exec(exec) => {
            Check::Exec(words(exec.command).ok_or(InvalidRole::Text("a probe's command"))?)
        }
        wire::probe::Check::Tcp(tcp) => Check::Tcp(port(tcp.port, kind)?),
        wire::probe::Check::Http(http) => Check::Http {
            port: port(http.port, kind)?,
            path: path(http.path, kind)?,
        },
    };
    Ok(Some(ProbeSpec {
        check,
        period: PERIOD.hold(probe.period),
        timeout: TIMEOUT.hold(probe.timeout),
        failure_threshold: probe.failure_threshold.max(1),
        success_threshold: probe.success_threshold.max(1),
    }))
}

fn port(port: u32, kind: ProbeKind) -> Result<u16, InvalidRole> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(InvalidRole::Port(kind, port)),
    }
}

fn path(path: String, kind: ProbeKind) -> Result<String, InvalidRole> {
    if path.starts_with('/') && path.len() <= 4096 && path.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(path)
    } else {
        Err(InvalidRole::Path(kind, path.chars().take(64).collect()))
    }
}

impl Bounds {
    fn hold(&self, duration: Option<prost_types::Duration>) -> Duration {
        match duration.map(Duration::try_from) {
            Some(Ok(given)) => given.clamp(self.least, self.most),
            // Negative, or too large to be one.
            Some(Err(_)) => self.least,
            None => self.default,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> wire::RoleSpec {
        wire::RoleSpec {
            name: "web".into(),
            command: vec!["server".into()],
            uid: 1000,
            ..Default::default()
        }
    }

    fn refusal(spec: wire::RoleSpec) -> String {
        RoleSpec::try_from(spec).unwrap_err().to_string()
    }

    #[test]
    fn a_role_never_runs_as_root() {
        assert!(refusal(wire::RoleSpec { uid: 0, ..spec() }).starts_with("uid 0 is refused"));
        assert!(
            refusal(wire::RoleSpec {
                uid: u32::MAX,
                ..spec()
            })
            .contains("4294967295")
        );
    }

    #[test]
    fn only_a_vm_role_may_be_without_a_command() {
        let bare = wire::RoleSpec {
            command: vec![],
            ..spec()
        };
        assert!(refusal(bare.clone()).starts_with("command is empty"));
        let vm = wire::RoleSpec {
            kind: wire::RoleKind::Vm.into(),
            ..bare
        };
        assert!(RoleSpec::try_from(vm).unwrap().launch.command.is_empty());
    }

    #[test]
    fn a_probe_that_cannot_be_made_is_refused_by_name() {
        let http = |port, path: &str| wire::RoleSpec {
            readiness: Some(wire::Probe {
                check: Some(wire::probe::Check::Http(wire::HttpProbe {
                    port,
                    path: path.into(),
                })),
                ..Default::default()
            }),
            ..spec()
        };
        assert!(refusal(http(70_000, "/")).starts_with("readiness probe: port 70000"));
        for path in ["", "x", "/a b", "/\r\nHost: elsewhere", "/\u{e9}"] {
            assert!(
                refusal(http(80, path)).starts_with("readiness probe: path"),
                "{path:?}"
            );
        }
        assert!(RoleSpec::try_from(http(80, "/health?deep=1")).is_ok());
    }

    #[test]
    fn an_environment_that_would_not_survive_exec_is_refused() {
        for (name, value) in [("", "x"), ("A=B", "x"), ("A", "x\0y"), ("A\0", "x")] {
            let environment = [(name.to_owned(), value.to_owned())].into();
            let refused = refusal(wire::RoleSpec {
                environment,
                ..spec()
            });
            assert!(refused.starts_with("environment"), "{name:?}={value:?}");
        }
    }

    #[test]
    fn durations_that_are_absent_or_absurd_become_usable() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let spec = RoleSpec::try_from(wire::RoleSpec {
            stop_grace: seconds(i64::MAX),
            startup_grace: seconds(-5),
            restart_policy: Some(wire::RestartPolicy {
                backoff_initial: seconds(60),
                backoff_max: seconds(1),
                ..Default::default()
            }),
            ..spec()
        })
        .unwrap();
        assert_eq!(spec.stop_grace, STOP_GRACE.most);
        assert_eq!(spec.startup_grace, Duration::ZERO);
        assert_eq!(spec.restart.backoff_max, spec.restart.backoff_initial);
    }

    #[test]
    fn a_goal_keeps_what_is_good_and_says_what_is_not() {
        let goal = Goal::from(wire::Goal {
            hostname: "a b".into(),
            entropy: vec![7; 4096].into(),
            roles: vec![
                spec(),
                wire::RoleSpec { uid: 7, ..spec() },
                wire::RoleSpec {
                    name: "../etc".into(),
                    ..spec()
                },
                wire::RoleSpec {
                    name: "root".into(),
                    uid: 0,
                    ..spec()
                },
            ],
            ..Default::default()
        });
        assert_eq!(goal.hostname, None);
        assert_eq!(goal.entropy.len(), MOST_ENTROPY);
        assert_eq!(goal.roles.len(), 2);
        assert_eq!(goal.remarks.len(), 3, "{:?}", goal.remarks);
        let Wanted::Run(web) = &goal.roles[&"web".parse().unwrap()] else {
            panic!()
        };
        assert_eq!(web.launch.uid, 1000, "the first of two counts");
        assert_eq!(
            goal.roles[&"root".parse().unwrap()],
            Wanted::Refused(InvalidRole::Root),
            "a role that cannot run is reported, not lost"
        );
    }
}
