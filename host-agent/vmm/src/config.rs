//! What a virtual machine is made of: the one struct that flags, the JSON file
//! and the host agent all fill in.
//!
//! [`VmConfig::check`] judges what can be judged without touching the host. It
//! says nothing about whether files exist or can be opened; the machine finds
//! that out when it opens them, once.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vhd::SECTOR_SIZE;

use crate::jail::Isolation;
use crate::limits::{LimitError, Limits};

/// The fewest MiB of memory a guest can have: a kernel and a little room.
pub const MEMORY_MIN_MIB: u64 = 32;
/// The most MiB of memory a guest can have: 1 TiB.
pub const MEMORY_MAX_MIB: u64 = 1024 * 1024;
/// The most virtual CPUs a guest can have.
pub const VCPUS_MAX: u8 = 8;
/// The most disks: with the vsock device, what the interrupt lines suffice for.
pub const DISKS_MAX: usize = 16;
/// The most images in a differencing chain, the disk itself among them.
pub const CHAIN_MAX: usize = 8;
/// The longest virtio-blk serial, in bytes (virtio 1.2, 5.2.6.1).
pub const SERIAL_MAX: usize = 20;
/// The longest addition to the kernel command line, in bytes.
pub const CMDLINE_MAX: usize = 1024;
/// The smallest console ring, in bytes.
pub const RING_MIN: u64 = 4096;
/// The largest console ring, in bytes.
pub const RING_MAX: u64 = 64 * 1024 * 1024;
/// The console ring's size where nothing is said, in bytes.
pub const RING_DEFAULT: u64 = 256 * 1024;
/// The longest path of a unix socket, in bytes (`sun_path` less its NUL).
const SOCKET_PATH_MAX: usize = 107;
/// What the vsock device appends to its path: `_` and a port number.
const PORT_SUFFIX_MAX: usize = "_4294967295".len();

/// One virtual machine. Relative paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// A name for reports; it has no effect on the machine.
    #[serde(default = "default_name")]
    pub name: String,
    /// The kernel: an ELF `vmlinux` or a bzImage. Not needed with [`restore`].
    ///
    /// [`restore`]: VmConfig::restore
    #[serde(default, skip_serializing_if = "is_empty")]
    pub kernel: PathBuf,
    /// The directory of a snapshot, from which the machine goes on instead of
    /// booting a kernel. Memory, virtual CPUs and disks must be as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<PathBuf>,
    /// The directory of a snapshot to which the machine goes back when it is reset, instead
    /// of booting its kernel: of a guest that has booted and holds nothing of its disks.
    /// Memory, virtual CPUs and disks must be as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_to: Option<PathBuf>,
    /// Makes a template of the machine, and ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateConfig>,
    /// An initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// What to append to the kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// The device that holds the root file system.
    #[serde(default = "default_root")]
    pub root: String,
    /// The guest's memory in MiB.
    #[serde(default = "default_memory")]
    pub memory_mib: u64,
    /// The number of virtual CPUs.
    #[serde(default = "default_vcpus")]
    pub vcpus: u8,
    /// The disks, in the order in which the guest names them (`vda`, `vdb`, ...).
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// The channel to the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Where the serial console goes.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// The unix socket on which the machine is asked and told things.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// Whether to repair a KVM that interprets guest kernels.
    #[serde(default)]
    pub repair: RepairMode,
    /// What the devices are held to. It can be changed while the machine runs.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// What the process gives up before the guest runs. Where nothing is said, it is what
    /// `fabric-vmm run` finds for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail: Option<JailConfig>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The image file.
    pub path: PathBuf,
    /// Its format. Never guessed: a guest can write anything into its own disk.
    #[serde(default)]
    pub format: DiskFormat,
    /// What the guest sees as the disk's serial, by which it finds it.
    #[serde(default)]
    pub serial: String,
    /// Whether the guest's writes are refused.
    #[serde(default)]
    pub readonly: bool,
    /// The images that a differencing disk stands on, nearest first, base last.
    #[serde(default)]
    pub parents: Vec<PathBuf>,
    /// The size in bytes that the guest sees, at least the image's: what lies
    /// beyond the image reads as zero. Read-only disks alone can have one. Guests
    /// that are made from one snapshot can then have different images there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// How large the file of a writable VHD may become, in bytes. A guest that has
    /// used it up gets I/O errors where it writes for the first time; what it has
    /// written stays, and can be written again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// A virtual hard disk: fixed, dynamic or differencing.
    #[default]
    Vhd,
    /// The bytes of the disk, as they are.
    Raw,
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context identifier, 3 or more.
    pub cid: u32,
    /// The unix socket for connections to the guest. The guest's connections to
    /// host port `N` go to the socket of this path with `_N` appended.
    pub path: PathBuf,
}

/// When a machine has become a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateConfig {
    /// The host's vsock port: the template is made when the guest first calls it,
    /// before it gets an answer. Who is made from the template gets the answer.
    pub port: u32,
    /// Another port of the host's: only once the guest has called that one is its next call
    /// to `port` the one that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u32>,
    /// A snapshot of the guest on its way there, after which it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<BootedConfig>,
    /// The directory for the snapshot. It must not exist, and appears when it is
    /// complete.
    pub path: PathBuf,
}

/// When a snapshot is taken of a machine that becomes a template: one that has booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootedConfig {
    /// The host's vsock port: the snapshot is taken when the guest first calls it, and the
    /// call is then let through. A guest that does not call is without one.
    pub port: u32,
    /// The directory for the snapshot. It must not exist, and appears when it is complete.
    pub path: PathBuf,
}

/// The jail: see [`jail`](crate::jail).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// The user that the process becomes; no other process is to have it.
    pub uid: u32,
    /// The group that it becomes.
    pub gid: u32,
    /// The one directory that it still sees, under the same path as before: with
    /// the sockets of `vsock.path`, for snapshots, and owned by that user. Without one it
    /// sees nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// What whoever starts the process has seen to already: `cgroup`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<Isolation>,
    /// What may be missing if the host cannot give it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_missing: Vec<Isolation>,
    /// The process that started it, as the host numbers it, if it is to end with that one.
    /// Those of host agents go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_with: Option<u32>,
}

/// Where the serial console goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleConfig {
    /// Standard input and output.
    #[default]
    Stdio,
    /// A file of bounded size that keeps the end of what was written.
    Ring(RingConfig),
    /// Nowhere.
    None,
}

/// The console ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingConfig {
    /// The file. Created, or begun anew.
    pub path: PathBuf,
    /// How many bytes of output it keeps.
    #[serde(default = "default_ring_bytes")]
    pub bytes: u64,
}

/// Whether to repair a KVM that interprets guest kernel code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepairMode {
    /// Find out by trying, before the guest starts.
    #[default]
    Auto,
    /// Repair without asking.
    On,
    /// Never repair.
    Off,
}

/// A value in the configuration that breaks a rule.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the machine's configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not JSON of the expected shape.
    #[error("{path} is not a machine configuration")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// A limit breaks a rule.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A field's value breaks a rule.
    #[error("`{field}` is {value}: {rule}")]
    Value {
        /// The field's name, as in the JSON file.
        field: String,
        /// The value found.
        value: String,
        /// What it has to be.
        rule: String,
    },
}

impl ConfigError {
    fn value(
        field: impl Into<String>,
        value: impl ToString,
        rule: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            field: field.into(),
            value: value.to_string(),
            rule: rule.into(),
        }
    }
}

impl VmConfig {
    /// A machine of default size with this kernel and nothing else.
    pub fn new(kernel: impl Into<PathBuf>) -> VmConfig {
        VmConfig {
            name: default_name(),
            kernel: kernel.into(),
            restore: None,
            reset_to: None,
            template: None,
            initrd: None,
            cmdline: String::new(),
            root: default_root(),
            memory_mib: default_memory(),
            vcpus: default_vcpus(),
            disks: Vec::new(),
            vsock: None,
            console: ConsoleConfig::default(),
            control: None,
            repair: RepairMode::default(),
            limits: Limits::default(),
            jail: None,
        }
    }

    /// Reads and checks a configuration file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is not of this shape, or breaks a rule.
    pub fn from_file(path: &Path) -> Result<VmConfig, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config: VmConfig =
            serde_json::from_str(&text).map_err(|source| ConfigError::Parse {
                path: path.to_owned(),
                source,
            })?;
        config.check()?;
        Ok(config)
    }

    /// Checks every value against its rule.
    ///
    /// # Errors
    ///
    /// Names the first field that breaks one.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_printable("name", &self.name, 1, 128)?;
        self.check_origin()?;
        check_printable("root", &self.root, 0, 256)?;
        check_printable("cmdline", &self.cmdline, 0, CMDLINE_MAX)?;
        if !(MEMORY_MIN_MIB..=MEMORY_MAX_MIB).contains(&self.memory_mib) {
            let rule = format!("must be from {MEMORY_MIN_MIB} to {MEMORY_MAX_MIB}");
            return Err(ConfigError::value("memory_mib", self.memory_mib, rule));
        }
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            let rule = format!("must be from 1 to {VCPUS_MAX}");
            return Err(ConfigError::value("vcpus", self.vcpus, rule));
        }
        if self.disks.len() > DISKS_MAX {
            let rule = format!("there can be at most {DISKS_MAX}");
            return Err(ConfigError::value(
                "disks",
                format!("{} long", self.disks.len()),
                rule,
            ));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            disk.check(index)?;
        }
        if let Some(vsock) = &self.vsock {
            vsock.check()?;
        }
        if let Some(path) = &self.control {
            check_socket_path("control", path, SOCKET_PATH_MAX)?;
        }
        self.check_jail()?;
        self.limits.check(self.disks.len())?;
        self.console.check()
    }
}

impl VmConfig {
    /// Whether all that the machine needs while it runs is in the jail.
    fn check_jail(&self) -> Result<(), ConfigError> {
        let Some(jail) = &self.jail else {
            return Ok(());
        };
        for (field, id) in [("jail.uid", jail.uid), ("jail.gid", jail.gid)] {
            if id == 0 || id == u32::MAX {
                return Err(ConfigError::value(field, id, "must be unprivileged"));
            }
        }
        if jail.directory.as_deref() == Some(Path::new("/")) {
            let rule = "must not be all that there is";
            return Err(ConfigError::value("jail.directory", "/", rule));
        }
        let vsock = self.vsock.iter().map(|vsock| ("vsock.path", &vsock.path));
        let template = self.template.iter();
        let booted = template.clone().filter_map(|made| made.booted.as_ref());
        let made = template.map(|made| ("template.path", &made.path));
        let made = made.chain(booted.map(|booted| ("template.booted.path", &booted.path)));
        let seen = |path: &Path| Some(folder_of(path)) == jail.directory.as_deref();
        match vsock.chain(made).find(|(_, path)| !seen(path)) {
            Some((field, path)) => {
                let directory = jail.directory.as_deref().unwrap_or(Path::new("none"));
                let rule = format!("must be in `jail.directory`, {}", directory.display());
                Err(ConfigError::value(field, path.display(), rule))
            }
            None => Ok(()),
        }
    }

    /// Whether there is something to start from, and a way to a template.
    fn check_origin(&self) -> Result<(), ConfigError> {
        if self.kernel.as_os_str().is_empty() && self.restore.is_none() {
            let rule = "a machine needs a `kernel`, or a snapshot to `restore`";
            return Err(ConfigError::value("kernel", "missing", rule));
        }
        match &self.template {
            Some(_) if self.vsock.is_none() => {
                let rule = "a template needs a `vsock`, on which the guest calls";
                Err(ConfigError::value("template", "there", rule))
            }
            Some(template) if template.after == Some(template.port) => {
                let rule = "must be another port than `template.port`";
                Err(ConfigError::value("template.after", template.port, rule))
            }
            _ => Ok(()),
        }
    }
}

impl DiskConfig {
    fn check(&self, index: usize) -> Result<(), ConfigError> {
        let field = |name: &str| format!("disks[{index}].{name}");
        check_printable(&field("serial"), &self.serial, 0, SERIAL_MAX)?;
        if self.parents.len() >= CHAIN_MAX {
            let rule = format!("a chain is at most {CHAIN_MAX} images long, the disk among them");
            let value = format!("{} long", self.parents.len());
            return Err(ConfigError::value(field("parents"), value, rule));
        }
        if let Some(bytes) = self.capacity_bytes
            && !(self.readonly && bytes.is_multiple_of(SECTOR_SIZE) && bytes > 0)
        {
            let rule = format!(
                "must be a multiple of {SECTOR_SIZE} above 0, and only read-only disks can have it"
            );
            return Err(ConfigError::value(field("capacity_bytes"), bytes, rule));
        }
        if let Some(bytes) = self.quota_bytes
            && (self.readonly || self.format == DiskFormat::Raw)
        {
            let rule = "only writable VHDs can have one: others do not grow";
            return Err(ConfigError::value(field("quota_bytes"), bytes, rule));
        }
        if self.format == DiskFormat::Raw && !self.parents.is_empty() {
            let value = format!("{} long", self.parents.len());
            return Err(ConfigError::value(
                field("parents"),
                value,
                "a raw disk has no parents",
            ));
        }
        Ok(())
    }
}

impl VsockConfig {
    fn check(&self) -> Result<(), ConfigError> {
        if !(3..u32::MAX).contains(&self.cid) {
            let rule = "must be 3 or more, and not the wildcard: 0 to 2 are taken";
            return Err(ConfigError::value("vsock.cid", self.cid, rule));
        }
        check_socket_path("vsock.path", &self.path, SOCKET_PATH_MAX - PORT_SUFFIX_MAX)
    }
}

impl ConsoleConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let ConsoleConfig::Ring(ring) = self else {
            return Ok(());
        };
        if (RING_MIN..=RING_MAX).contains(&ring.bytes) {
            return Ok(());
        }
        let rule = format!("must be from {RING_MIN} to {RING_MAX}");
        Err(ConfigError::value("console.ring.bytes", ring.bytes, rule))
    }
}

/// The directory of a file, as one that can be entered.
pub fn folder_of(path: &Path) -> &Path {
    let named = path.parent().filter(|folder| !is_empty(folder));
    named.unwrap_or(Path::new("."))
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

fn check_printable(field: &str, text: &str, min: usize, max: usize) -> Result<(), ConfigError> {
    if !(min..=max).contains(&text.len()) {
        let rule = format!("must be from {min} to {max} bytes long");
        return Err(ConfigError::value(
            field,
            format!("{} bytes long", text.len()),
            rule,
        ));
    }
    match text.chars().find(|c| !c.is_ascii() || c.is_ascii_control()) {
        None => Ok(()),
        Some(c) => {
            let value = format!("{text:?}, with {c:?} in it");
            Err(ConfigError::value(field, value, "must be printable ASCII"))
        }
    }
}

fn check_socket_path(field: &str, path: &Path, max: usize) -> Result<(), ConfigError> {
    let length = path.as_os_str().len();
    if (1..=max).contains(&length) {
        return Ok(());
    }
    let value = format!("{} ({length} bytes)", path.display());
    let rule = format!("a unix socket's path here must be from 1 to {max} bytes long");
    Err(ConfigError::value(field, value, rule))
}

fn default_name() -> String {
    "vm".to_owned()
}

fn default_root() -> String {
    "/dev/vda".to_owned()
}

fn default_memory() -> u64 {
    128
}

fn default_vcpus() -> u8 {
    1
}

fn default_ring_bytes() -> u64 {
    RING_DEFAULT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::RateLimit;

    fn parse(text: &str) -> Result<VmConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    fn complaint(change: impl FnOnce(&mut VmConfig)) -> String {
        let mut config = VmConfig::new("/boot/vmlinux");
        change(&mut config);
        config.check().expect_err("breaks a rule").to_string()
    }

    fn disk() -> DiskConfig {
        DiskConfig {
            path: "d.vhd".into(),
            format: DiskFormat::Vhd,
            serial: String::new(),
            readonly: false,
            parents: Vec::new(),
            capacity_bytes: None,
            quota_bytes: None,
        }
    }

    #[test]
    fn reads_what_the_host_agent_writes() {
        let config = parse(
            r#"{"name":"shop-web-0","kernel":"/abs/vmlinux","cmdline":"fabric.faults=1",
                "memory_mib":128,"vcpus":1,
                "disks":[
                  {"path":"os.vhd","format":"vhd","serial":"os","readonly":false,"parents":["/abs/base.vhd"]},
                  {"path":"/abs/pkg.vhd","format":"vhd","serial":"package","readonly":true,"parents":[]}],
                "vsock":{"cid":3,"path":"vsock.sock"},
                "console":{"ring":{"path":"console.ring","bytes":262144}},
                "control":"control.sock","repair":"auto"}"#,
        )
        .unwrap();
        config.check().unwrap();
        assert_eq!(config.disks[0].parents, [PathBuf::from("/abs/base.vhd")]);
        assert!(matches!(&config.console, ConsoleConfig::Ring(ring) if ring.bytes == 262_144));

        let written = serde_json::to_string(&config).unwrap();
        assert_eq!(parse(&written).unwrap(), config);
    }

    #[test]
    fn a_kernel_is_all_that_must_be_said() {
        let config = parse(r#"{"kernel":"vmlinux","console":"none"}"#).unwrap();
        config.check().unwrap();
        assert_eq!((config.memory_mib, config.vcpus), (128, 1));
        assert_eq!(config.console, ConsoleConfig::None);
    }

    #[test]
    fn a_machine_is_booted_or_restored_and_a_template_is_booted() {
        let restored = parse(r#"{"restore":"snapshot"}"#).unwrap();
        restored.check().unwrap();
        let text = complaint(|c| c.kernel = PathBuf::new());
        assert!(text.starts_with("`kernel` is missing"), "{text}");
        let template = TemplateConfig {
            port: 1024,
            after: None,
            booted: None,
            path: "t".into(),
        };
        let text = complaint(|c| c.template = Some(template.clone()));
        assert!(text.contains("needs a `vsock`"), "{text}");
        let text = complaint(|c| {
            c.vsock = Some(VsockConfig {
                cid: 3,
                path: "v".into(),
            });
            c.template = Some(TemplateConfig {
                after: Some(1024),
                ..template
            });
        });
        assert!(text.starts_with("`template.after` is 1024"), "{text}");
        let text = complaint(|c| {
            c.disks = vec![DiskConfig {
                capacity_bytes: Some(1 << 30),
                ..disk()
            }];
        });
        assert!(text.starts_with("`disks[0].capacity_bytes` is"), "{text}");
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = parse(r#"{"kernel":"vmlinux","memroy_mib":64}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("memroy_mib"), "{error}");
        let error = parse(r#"{"kernel":"k","disks":[{"path":"d","size":1}]}"#).unwrap_err();
        assert!(error.to_string().contains("size"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_refused_by_field_value_and_rule() {
        let text = complaint(|c| c.memory_mib = 8);
        assert_eq!(text, "`memory_mib` is 8: must be from 32 to 1048576");
        let text = complaint(|c| c.vcpus = 9);
        assert_eq!(text, "`vcpus` is 9: must be from 1 to 8");
        let text = complaint(|c| {
            c.vsock = Some(VsockConfig {
                cid: 2,
                path: "v".into(),
            });
        });
        assert!(text.starts_with("`vsock.cid` is 2:"), "{text}");
        let text = complaint(|c| c.disks = vec![disk(); 17]);
        assert!(text.contains("at most 16"), "{text}");
        let text = complaint(|c| {
            c.disks = vec![DiskConfig {
                serial: "x".repeat(21),
                ..disk()
            }];
        });
        assert!(
            text.starts_with("`disks[0].serial` is 21 bytes long"),
            "{text}"
        );
        let text = complaint(|c| {
            c.disks = vec![DiskConfig {
                parents: vec!["p".into(); 8],
                ..disk()
            }];
        });
        assert!(text.starts_with("`disks[0].parents` is 8 long"), "{text}");
        let text = complaint(|c| {
            c.disks = vec![DiskConfig {
                readonly: true,
                quota_bytes: Some(1 << 30),
                ..disk()
            }];
        });
        assert!(text.starts_with("`disks[0].quota_bytes` is"), "{text}");
        let text = complaint(|c| {
            c.jail = Some(JailConfig {
                uid: 600_000,
                gid: 600_000,
                directory: Some("/".into()),
                given: Vec::new(),
                allow_missing: Vec::new(),
                ends_with: None,
            });
        });
        assert!(text.starts_with("`jail.directory` is /"), "{text}");
        let text = complaint(|c| c.limits.disks = vec![RateLimit::default()]);
        assert_eq!(text, "`limits.disks` is 1 long: the machine has 0");
        let text = complaint(|c| c.cmdline = "a\nb".into());
        assert!(text.contains("printable ASCII"), "{text}");
        let text = complaint(|c| c.control = Some("x".repeat(108).into()));
        assert!(text.starts_with("`control` is"), "{text}");
        let text = complaint(|c| {
            c.console = ConsoleConfig::Ring(RingConfig {
                path: "r".into(),
                bytes: 1,
            });
        });
        assert!(text.starts_with("`console.ring.bytes` is 1"), "{text}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = VmConfig::from_file(Path::new("/nonexistent/vm.json")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/vm.json"));
    }
}
