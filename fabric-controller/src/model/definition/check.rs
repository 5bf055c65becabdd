//! The rules of the service file, for everything but probes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Range, RangeInclusive},
    str::FromStr,
    time::Duration,
};

use fabric_proto::id::{BlobName, Digest, ServiceName};
use toml::Spanned;

use super::{
    DefinitionError, Endpoint, Protocol, RestartMode, RestartPolicy, Role, RoleDefinition,
    RoleKind, ServiceDefinition, WarmStart, probe, problem::Problems, raw, rollout,
};
use crate::model::{
    deployment::Colour,
    instance,
    keep::STOP_GRACE,
    label,
    own::{self, OwnResources},
    size::{self, CPU_WEIGHT, MEMORY, MIB, Size, VCPUS},
};

/// Most roles of a service.
const ROLES: usize = 32;
/// Most variables or settings of a role.
const ENTRIES: usize = 256;
/// Most bytes in a command, an environment or settings, all together: what a
/// Linux process is sure to be given.
const TEXT: usize = 96 * 1024;
/// Graces.
const GRACE: RangeInclusive<Duration> = STOP_GRACE;
/// Waits between restarts.
const BACKOFF: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
/// Ports.
const PORTS: RangeInclusive<u16> = 1..=u16::MAX;
/// User ids; 0 is root, and the highest means "no change" to Linux.
const USERS: RangeInclusive<u32> = 1..=u32::MAX - 1;

/// A part of the file under check: what errors call it, and where they go.
pub(super) struct Part<'a, 'p> {
    /// Such as `role "web": `; empty at the top.
    pub(super) at: String,
    /// Where they go.
    pub(super) problems: &'p mut Problems<'a>,
}

impl<'a> Part<'a, '_> {
    /// A part of this part.
    pub(super) fn inside(&mut self, name: &str) -> Part<'a, '_> {
        Part {
            at: format!("{}{name}: ", self.at),
            problems: self.problems,
        }
    }

    /// Something is wrong with the value there.
    pub(super) fn wrong(&mut self, span: &Range<usize>, what: &str) {
        self.problems.add(span, format!("{}{what}", self.at));
    }

    /// The value as an identifier.
    pub(super) fn name<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        key: &str,
        value: &Spanned<String>,
    ) -> Option<T> {
        match value.get_ref().parse() {
            Ok(name) => Some(name),
            Err(error) => {
                self.wrong(&value.span(), &format!("{key}: {error}"));
                None
            }
        }
    }

    /// The value as one of these words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &str,
        value: &Spanned<String>,
        words: &[(&str, T)],
    ) -> Option<T> {
        let found = words.iter().find(|(word, _)| word == value.get_ref());
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            let what = format!(
                "{key} {:?} is not known; it is one of {}",
                value.get_ref(),
                known.join(", ")
            );
            self.wrong(&value.span(), &what);
        }
        found.map(|(_, value)| *value)
    }

    /// The value as a number in a range.
    pub(super) fn number<T>(
        &mut self,
        key: &str,
        value: &Spanned<i64>,
        range: &RangeInclusive<T>,
    ) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display + Copy,
    {
        let number = T::try_from(*value.get_ref())
            .ok()
            .filter(|number| range.contains(number));
        if number.is_none() {
            let (low, high) = (range.start(), range.end());
            self.wrong(
                &value.span(),
                &format!(
                    "{key} {} is out of range; it must be {low} to {high}",
                    value.get_ref()
                ),
            );
        }
        number
    }

    /// The value as a duration in a range.
    pub(super) fn duration(
        &mut self,
        key: &str,
        value: Option<&Spanned<String>>,
        range: &RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(value) = value else { return default };
        let text = value.get_ref();
        match humantime::parse_duration(text) {
            Ok(duration) if range.contains(&duration) => duration,
            Ok(_) => {
                let (low, high) = (range.start(), range.end());
                let (low, high) = (
                    humantime::format_duration(*low),
                    humantime::format_duration(*high),
                );
                self.wrong(
                    &value.span(),
                    &format!("{key} {text:?} is out of range; it must be {low} to {high}"),
                );
                default
            }
            Err(_) => {
                self.wrong(
                    &value.span(),
                    &format!("{key} {text:?} is not a duration, such as \"500ms\" or \"10s\""),
                );
                default
            }
        }
    }

    /// A port.
    pub(super) fn port(&mut self, key: &str, value: &Spanned<i64>) -> Option<u16> {
        self.number(key, value, &PORTS)
    }

    /// A program and its arguments.
    pub(super) fn command(&mut self, key: &str, value: &Spanned<Vec<String>>) -> Vec<String> {
        let words = value.get_ref();
        if words.first().is_none_or(String::is_empty) {
            self.wrong(
                &value.span(),
                &format!("{key} names no program; its first word is one"),
            );
        }
        if words.iter().any(|word| word.contains('\0')) {
            self.wrong(
                &value.span(),
                &format!("{key} has a NUL byte, which no argument can have"),
            );
        }
        if words.iter().map(String::len).sum::<usize>() > TEXT {
            self.wrong(&value.span(), &format!("{key} is longer than {TEXT} bytes"));
        }
        words.clone()
    }
}

/// Checks the whole file.
pub(super) fn service(
    raw: raw::Service,
    mut problems: Problems<'_>,
) -> Result<ServiceDefinition, DefinitionError> {
    let mut top = Part {
        at: String::new(),
        problems: &mut problems,
    };
    let name: Option<ServiceName> = top.name("name", &raw.name);
    let sizes = own_sizes(&raw.sizes, &mut top);
    let (policy, domains) = rollout::update(&raw.update, &mut top.inside("update"));
    if raw.role.is_empty() {
        top.wrong(
            &raw.name.span(),
            "there is no role; a service has at least one [[role]]",
        );
    }
    if raw.role.len() > ROLES {
        top.wrong(
            &raw.name.span(),
            &format!("there are more than {ROLES} roles"),
        );
    }
    let mut ports = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut roles = Vec::new();
    for role in &raw.role {
        let mut part = top.inside(&format!("role {:?}", role.name.get_ref()));
        if !names.insert(role.name.get_ref().clone()) {
            part.wrong(&role.name.span(), "there is another role of that name");
        }
        let checked = self::role(role, &sizes, domains, &mut ports, &mut part);
        if let (Some(name), Some(checked)) = (&name, &checked) {
            longest_id(name, checked, role, &mut part);
        }
        roles.extend(checked);
    }
    match name {
        Some(name) if problems.is_empty() => Ok(ServiceDefinition {
            name,
            roles,
            policy,
        }),
        _ => Err(problems.into_error()),
    }
}

/// The ids of the role's instances must be ids.
fn longest_id(
    service: &ServiceName,
    role: &RoleDefinition,
    raw: &raw::Role,
    part: &mut Part<'_, '_>,
) {
    let last = role.instances.saturating_sub(1);
    if instance::instance_id(service, &role.role.name, Colour::Plain, last).is_err() {
        let id = format!("{service}-{}-{last}", role.role.name);
        part.wrong(
            &raw.name.span(),
            &format!("instance id {id:?} would be longer than 63; take shorter names"),
        );
    }
}

/// A size with all that it takes.
#[derive(Debug, Clone)]
struct Shape {
    size: Size,
    resources: OwnResources,
}

fn own_sizes(
    raw: &BTreeMap<Spanned<String>, raw::Size>,
    top: &mut Part<'_, '_>,
) -> BTreeMap<String, Option<Shape>> {
    let mut sizes = BTreeMap::new();
    for (name, size) in raw {
        let mut part = top.inside(&format!("size {:?}", name.get_ref()));
        if size::azure(name.get_ref()).is_some() {
            part.wrong(
                &name.span(),
                "this is one of Azure's sizes; take another name",
            );
        }
        let vcpus = part.number("vcpus", &size.vcpus, &VCPUS);
        let memory = memory(&size.memory, &mut part);
        let weight = size.cpu_weight.as_ref();
        let cpu_weight = weight.map(|weight| part.number("cpu_weight", weight, &CPU_WEIGHT));
        let resources = resources(&size.resources, &mut part);
        let size = vcpus.zip(memory).map(|(vcpus, memory_bytes)| Shape {
            size: Size {
                vcpus,
                memory_bytes,
                cpu_weight: cpu_weight.flatten().unwrap_or_default(),
            },
            resources,
        });
        // A size with a problem is known all the same: one mistake, one message.
        sizes.insert(name.get_ref().clone(), size);
    }
    sizes
}

/// What a size takes of an operator's own resources.
fn resources(
    raw: &BTreeMap<Spanned<String>, Spanned<i64>>,
    part: &mut Part<'_, '_>,
) -> OwnResources {
    let mut all = Vec::new();
    for (kind, count) in raw {
        let text = kind.get_ref();
        if !label::is_valid(text) {
            let what = format!("resources: {text:?} is no name; names {}", label::RULE);
            part.wrong(&kind.span(), &what);
        }
        let count = part.number(&format!("resources: {text:?}"), count, &own::COUNTS);
        all.extend(count.map(|count| (text.clone(), count)));
    }
    if let Some((first, _)) = raw.first_key_value()
        && raw.len() > own::MOST_KINDS
    {
        let what = format!("resources: there are more than {}", own::MOST_KINDS);
        part.wrong(&first.span(), &what);
    }
    all.into_iter().collect()
}

fn memory(value: &Spanned<String>, part: &mut Part<'_, '_>) -> Option<u64> {
    let text = value.get_ref();
    let Ok(bytes) = text.parse::<bytesize::ByteSize>() else {
        let what = format!("memory {text:?} is not a size, such as \"128MiB\" or \"2GiB\"");
        part.wrong(&value.span(), &what);
        return None;
    };
    let bytes = bytes.as_u64();
    if !MEMORY.contains(&bytes) || !bytes.is_multiple_of(MIB) {
        let (low, high) = (MEMORY.start() / MIB, MEMORY.end() / MIB / 1024);
        let what = format!(
            "memory {text:?} is not allowed; it must be {low}MiB to {high}GiB, in whole MiB"
        );
        part.wrong(&value.span(), &what);
        return None;
    }
    Some(bytes)
}

fn role(
    raw: &raw::Role,
    sizes: &BTreeMap<String, Option<Shape>>,
    domains: rollout::Domains,
    ports: &mut BTreeSet<u16>,
    part: &mut Part<'_, '_>,
) -> Option<RoleDefinition> {
    let name = part.name("name", &raw.name);
    let kind = part.word(
        "kind",
        &raw.kind,
        &[
            ("web", RoleKind::Web),
            ("worker", RoleKind::Worker),
            ("vm", RoleKind::Vm),
        ],
    );
    let shape = size_of(&raw.size, sizes, part);
    let instances = raw.instances.as_ref().map_or(Some(1), |value| {
        part.number("instances", value, &(0..=instance::MOST_INSTANCES))
    });
    blob("image", &raw.image, part);
    if let Some(package) = &raw.package {
        blob("package", package, part);
    }
    let command = command(raw, kind, part);
    let environment = entries("environment", &raw.environment, part);
    let settings = entries("settings", &raw.settings, part);
    check_variables(&raw.environment, part);
    let grace = |seconds| Duration::from_secs(seconds);
    let startup_grace = part.duration(
        "startup_grace",
        raw.startup_grace.as_ref(),
        &GRACE,
        grace(10),
    );
    let stop_grace = part.duration("stop_grace", raw.stop_grace.as_ref(), &GRACE, grace(5));
    let user = raw
        .user
        .as_ref()
        .map_or(Some(1000), |value| part.number("user", value, &USERS));
    let endpoints = endpoints(&raw.endpoint, ports, part);
    let liveness = probe::check(raw.liveness.as_ref(), &mut part.inside("liveness"));
    let readiness = probe::check(raw.readiness.as_ref(), &mut part.inside("readiness"));
    let restart = restart(raw.restart.as_ref(), &mut part.inside("restart"));
    let warm_start = warm_start(raw, kind, part);
    let rollout = rollout::role(raw, kind, domains, part);
    let Shape { size, resources } = shape?;
    Some(RoleDefinition {
        role: Role {
            name: name?,
            kind: kind?,
            command,
            environment,
            settings,
            deliver_settings: rollout.deliver_settings,
            user: user?,
            liveness,
            readiness,
            startup_grace,
            stop_grace,
            restart,
            warm_start,
        },
        size_name: raw.size.get_ref().clone(),
        size,
        resources,
        instances: instances?,
        image: raw.image.get_ref().clone(),
        package: raw
            .package
            .as_ref()
            .map(|package| package.get_ref().clone()),
        endpoints,
        upgrade_domains: rollout.upgrade_domains,
        fault_domains: rollout.fault_domains,
        spread: rollout.spread,
        nodes: rollout.nodes,
        availability_set: rollout.availability_set,
        os_updates: rollout.os_updates,
    })
}

fn warm_start(
    raw: &raw::Role,
    kind: Option<RoleKind>,
    part: &mut Part<'_, '_>,
) -> Option<WarmStart> {
    let wanted = raw.warm_start.as_ref().filter(|wanted| *wanted.get_ref());
    let mut hook = |key: &str, value: &Option<Spanned<Vec<String>>>| {
        let Some(value) = value else {
            return Vec::new();
        };
        if wanted.is_none() {
            let what = format!("{key} is run for a warm start only; add warm_start = true");
            part.wrong(&value.span(), &what);
        }
        part.command(key, value)
    };
    let hooks = WarmStart {
        before_snapshot: hook("before_snapshot", &raw.before_snapshot),
        after_start: hook("after_start", &raw.after_start),
    };
    let wanted = wanted?;
    if kind == Some(RoleKind::Vm) {
        let what = "warm_start is for web and worker roles: a vm role is its machine's boot";
        part.wrong(&wanted.span(), what);
    }
    Some(hooks)
}

fn size_of(
    value: &Spanned<String>,
    own: &BTreeMap<String, Option<Shape>>,
    part: &mut Part<'_, '_>,
) -> Option<Shape> {
    let name = value.get_ref();
    if let Some(size) = own.get(name) {
        return size.clone();
    }
    let found = size::azure(name).map(|size| Shape {
        size,
        resources: OwnResources::default(),
    });
    if found.is_none() {
        let azures = size::AZURE.iter().map(|(name, _)| *name);
        let known: Vec<_> = azures.chain(own.keys().map(String::as_str)).collect();
        part.wrong(
            &value.span(),
            &format!(
                "size {name:?} is not known; sizes are {}, or your own under [sizes.NAME]",
                known.join(", ")
            ),
        );
    }
    found
}

fn blob(key: &str, value: &Spanned<String>, part: &mut Part<'_, '_>) {
    let text = value.get_ref();
    if text.starts_with("sha256:") {
        part.name::<Digest>(key, value);
    } else {
        part.name::<BlobName>(key, value);
    }
}

fn command(raw: &raw::Role, kind: Option<RoleKind>, part: &mut Part<'_, '_>) -> Vec<String> {
    match &raw.command {
        Some(command) => part.command("command", command),
        None => {
            if kind.is_some_and(|kind| kind != RoleKind::Vm) {
                part.wrong(
                    &raw.name.span(),
                    "command is missing; only a role of kind \"vm\" can be without one",
                );
            }
            Vec::new()
        }
    }
}

fn entries(
    key: &str,
    raw: &BTreeMap<Spanned<String>, Spanned<String>>,
    part: &mut Part<'_, '_>,
) -> BTreeMap<String, String> {
    let entries: BTreeMap<String, String> = raw
        .iter()
        .map(|(name, value)| (name.get_ref().clone(), value.get_ref().clone()))
        .collect();
    let bytes: usize = entries
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    if let Some((first, _)) = raw.first_key_value()
        && (entries.len() > ENTRIES || bytes > TEXT)
    {
        part.wrong(
            &first.span(),
            &format!("{key} is too big; it has at most {ENTRIES} entries and {TEXT} bytes"),
        );
    }
    entries
}

/// Names of variables are what a shell takes; those of the fabric are its own.
fn check_variables(raw: &BTreeMap<Spanned<String>, Spanned<String>>, part: &mut Part<'_, '_>) {
    for (name, value) in raw {
        let text = name.get_ref();
        let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
        if !text.bytes().next().is_some_and(letter)
            || !text
                .bytes()
                .all(|byte| letter(byte) || byte.is_ascii_digit())
        {
            part.wrong(
                &name.span(),
                &format!(
                    "environment: {text:?} is not a variable's name: A-Z, a-z, 0-9 and '_', \
                     no digit first"
                ),
            );
        }
        if text.starts_with("FABRIC_") {
            part.wrong(
                &name.span(),
                &format!("environment: {text:?} is the fabric's own; FABRIC_ names are set by it"),
            );
        }
        if value.get_ref().contains('\0') {
            part.wrong(
                &value.span(),
                &format!("environment: {text} has a NUL byte"),
            );
        }
    }
}

fn endpoints(
    raw: &[raw::Endpoint],
    ports: &mut BTreeSet<u16>,
    part: &mut Part<'_, '_>,
) -> Vec<Endpoint> {
    let mut names = BTreeSet::new();
    let mut endpoints = Vec::new();
    for endpoint in raw {
        let name = endpoint.name.get_ref();
        let mut part = part.inside(&format!("endpoint {name:?}"));
        // Endpoints are named as roles are.
        let valid = part.name::<fabric_proto::id::RoleName>("name", &endpoint.name);
        if !names.insert(name.clone()) {
            part.wrong(
                &endpoint.name.span(),
                "there is another endpoint of that name",
            );
        }
        let protocol = part.word(
            "protocol",
            &endpoint.protocol,
            &[("http", Protocol::Http), ("tcp", Protocol::Tcp)],
        );
        let port = part.port("port", &endpoint.port);
        if port.is_some_and(|port| !ports.insert(port)) {
            let what = format!(
                "port {} is taken by another endpoint",
                endpoint.port.get_ref()
            );
            part.wrong(&endpoint.port.span(), &what);
        }
        let target = endpoint.target_port.as_ref().unwrap_or(&endpoint.port);
        let target_port = part.port("target_port", target);
        if let (Some(_), Some(protocol), Some(port), Some(target_port)) =
            (valid, protocol, port, target_port)
        {
            endpoints.push(Endpoint {
                name: name.clone(),
                protocol,
                port,
                target_port,
            });
        }
    }
    endpoints
}

fn restart(raw: Option<&raw::Restart>, part: &mut Part<'_, '_>) -> RestartPolicy {
    let default = RestartPolicy::default();
    let Some(raw) = raw else { return default };
    let mode = raw.policy.as_ref().and_then(|policy| {
        part.word(
            "policy",
            policy,
            &[
                ("always", RestartMode::Always),
                ("on-failure", RestartMode::OnFailure),
                ("never", RestartMode::Never),
            ],
        )
    });
    let initial = raw.backoff_initial.as_ref();
    let most = raw.backoff_max.as_ref();
    let backoff_initial = part.duration(
        "backoff_initial",
        initial,
        &BACKOFF,
        default.backoff_initial,
    );
    let backoff_max = part.duration("backoff_max", most, &BACKOFF, default.backoff_max);
    if backoff_max < backoff_initial
        && let Some(value) = most.or(initial)
    {
        part.wrong(
            &value.span(),
            &format!(
                "backoff_max {} is less than backoff_initial {}",
                humantime::format_duration(backoff_max),
                humantime::format_duration(backoff_initial)
            ),
        );
    }
    RestartPolicy {
        mode: mode.unwrap_or(default.mode),
        backoff_initial,
        backoff_max,
    }
}
