//! What a template is made of, and the name that follows from it. Pure.

use std::fmt;

use fabric_proto::id::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Kind;

/// Counts up when templates of before cannot be used any longer, though nothing
/// else that they are made of has changed.
const FORMAT: u32 = 1;

/// Everything that a template depends on. What differs in any of it is another
/// template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Of templates, as it was when this was written.
    pub format: u32,
    /// Digest of the VMM's program.
    pub vmm: String,
    /// Digest of the guest's kernel.
    pub kernel: String,
    /// Digest of the image.
    pub image: String,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u8,
    /// What is added to the kernel command line.
    pub cmdline: String,
    /// Whether there is a disk with a package.
    pub package: bool,
    /// The program that has been read into memory.
    pub program: String,
    /// Digest of the role that runs in it, and of its package; empty where none does.
    #[serde(default)]
    pub role: String,
    /// How KVM runs guests here.
    pub kvm_kind: String,
    /// This machine's processor, as [`processor`] tells it.
    pub processor: String,
    /// This machine's kernel, whose KVM the state comes from.
    pub host_kernel: String,
}

impl Default for Inputs {
    fn default() -> Self {
        Self {
            format: FORMAT,
            vmm: String::new(),
            kernel: String::new(),
            image: String::new(),
            memory_mib: 0,
            vcpus: 0,
            cmdline: String::new(),
            package: false,
            program: String::new(),
            role: String::new(),
            kvm_kind: String::new(),
            processor: String::new(),
            host_kernel: String::new(),
        }
    }
}

/// A template's name: the digest of its [`Inputs`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Inputs {
    /// The name of the template that is made of this.
    #[must_use]
    pub fn key(&self) -> Key {
        let mut sum = Sha256::new();
        // Each with its name and length, so that no two sets of inputs read the same.
        for (name, value) in self.fields() {
            sum.update(format!("{name} {}\n", value.len()));
            sum.update(value);
        }
        Key(Digest::of_sha256(&sum.finalize().into()).hex().to_owned())
    }

    /// What tells it from others to who does not know the rest.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind {
            image: self.image.clone(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
        }
    }

    /// Whether it is made of what a node has now, which `now` is.
    #[must_use]
    pub fn is_of_host(&self, now: &Self) -> bool {
        let as_now = Self {
            image: self.image.clone(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            package: self.package,
            program: self.program.clone(),
            role: self.role.clone(),
            ..now.clone()
        };
        *self == as_now
    }

    fn fields(&self) -> [(&'static str, String); 13] {
        // By name, so that a field cannot be forgotten.
        let Self {
            format,
            vmm,
            kernel,
            image,
            memory_mib,
            vcpus,
            cmdline,
            package,
            program,
            role,
            kvm_kind,
            processor,
            host_kernel,
        } = self;
        [
            ("format", format.to_string()),
            ("vmm", vmm.clone()),
            ("kernel", kernel.clone()),
            ("image", image.clone()),
            ("memory_mib", memory_mib.to_string()),
            ("vcpus", vcpus.to_string()),
            ("cmdline", cmdline.clone()),
            ("package", package.to_string()),
            ("program", program.clone()),
            ("role", role.clone()),
            ("kvm_kind", kvm_kind.clone()),
            ("processor", processor.clone()),
            ("host_kernel", host_kernel.clone()),
        ]
    }
}

impl Key {
    /// As it names a directory.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Enough of it for people.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }

    /// The key that a directory is named by; nothing if it is named otherwise.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let digest: Digest = format!("sha256:{name}").parse().ok()?;
        Some(Self(digest.hex().to_owned()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// What tells one kind of processor from another in `/proc/cpuinfo`
/// (proc_cpuinfo(5)): a guest has made up its mind by these.
#[must_use]
pub fn processor(cpuinfo: &str) -> String {
    const FIELDS: [&str; 6] = [
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "stepping",
        "flags",
    ];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let told = first.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        FIELDS.contains(&name.trim()).then(|| value.trim())
    });
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_differs_makes_another_template() {
        let same = Inputs::default();
        let change = |change: fn(&mut Inputs)| {
            let mut other = same.clone();
            change(&mut other);
            other.key()
        };
        let keys = [
            same.key(),
            change(|inputs| inputs.format += 1),
            change(|inputs| inputs.vmm.push('x')),
            change(|inputs| inputs.kernel.push('x')),
            change(|inputs| inputs.image.push('x')),
            change(|inputs| inputs.memory_mib += 1),
            change(|inputs| inputs.vcpus += 1),
            change(|inputs| inputs.cmdline.push('x')),
            change(|inputs| inputs.package = true),
            change(|inputs| inputs.program.push('x')),
            change(|inputs| inputs.role.push('x')),
            change(|inputs| inputs.kvm_kind.push('x')),
            change(|inputs| inputs.processor.push('x')),
            change(|inputs| inputs.host_kernel.push('x')),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{index} is no news");
            assert_eq!(Key::from_name(key.as_str()).as_ref(), Some(key));
        }
        assert_eq!(same.key(), Inputs::default().key());
    }

    #[test]
    fn a_directory_that_no_template_has_is_not_taken_for_one() {
        for name in ["", "lock", "making-abc", &"A".repeat(64), &"a".repeat(63)] {
            assert_eq!(Key::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_processor_is_what_a_guest_can_tell_of_it_and_not_how_fast_it_runs_now() {
        let told = |mhz: &str, flags: &str| {
            processor(&format!(
                "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n\
                 model name\t: Xeon\nstepping\t: 8\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n\n\
                 processor\t: 1\nvendor_id\t: Other\n"
            ))
        };
        assert_eq!(
            told("1", "fpu sse"),
            "GenuineIntel, 6, 143, Xeon, 8, fpu sse"
        );
        assert_eq!(told("1", "fpu"), told("2", "fpu"));
        assert_ne!(told("1", "fpu"), told("1", "fpu sse"));
    }
}
