//! The parts of the jail that a host may lack, by name.

use serde::{Deserialize, Serialize};

/// A part of the jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A uid and gid of its own.
    Uid,
    /// A user namespace.
    User,
    /// A pid namespace.
    Pid,
    /// A mount namespace, and in it a root with one directory.
    Mount,
    /// A network namespace without any network.
    Network,
    /// An IPC namespace.
    Ipc,
    /// A UTS namespace.
    Uts,
    /// Landlock: files and sockets by rule, whatever the rest lets through.
    Landlock,
    /// Lists of the system calls that each thread may make.
    Seccomp,
    /// A control group, with limits of processors, memory and threads. Whoever
    /// starts the process makes it.
    Cgroup,
}

impl Isolation {
    /// Every part.
    pub const ALL: [Isolation; 10] = [
        Isolation::Uid,
        Isolation::User,
        Isolation::Pid,
        Isolation::Mount,
        Isolation::Network,
        Isolation::Ipc,
        Isolation::Uts,
        Isolation::Landlock,
        Isolation::Seccomp,
        Isolation::Cgroup,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Isolation::Uid => "uid",
            Isolation::User => "user",
            Isolation::Pid => "pid",
            Isolation::Mount => "mount",
            Isolation::Network => "network",
            Isolation::Ipc => "ipc",
            Isolation::Uts => "uts",
            Isolation::Landlock => "landlock",
            Isolation::Seccomp => "seccomp",
            Isolation::Cgroup => "cgroup",
        }
    }

    /// What to do where it is missing.
    pub fn remedy(self) -> &'static str {
        match self {
            Isolation::Uid => "run the host agent as root",
            Isolation::User => {
                "allow user namespaces (sysctl user.max_user_namespaces, and where it exists \
                 kernel.unprivileged_userns_clone)"
            }
            Isolation::Pid
            | Isolation::Mount
            | Isolation::Network
            | Isolation::Ipc
            | Isolation::Uts => {
                "run the host agent as root, or allow unprivileged user namespaces, and use a \
                 kernel with this kind of namespace"
            }
            Isolation::Landlock => {
                "use Linux 5.13 or newer with Landlock among its security modules (lsm=landlock,...)"
            }
            Isolation::Seccomp => "use a kernel with seccomp filters (CONFIG_SECCOMP_FILTER)",
            Isolation::Cgroup => {
                "start the host agent in a control group in which it may make others (as root, or \
                 by systemd with Delegate=yes), with cpu, memory and pids, or name one by --cgroup"
            }
        }
    }
}

/// What a host isolates machines by: what `fabric-vmm jail` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trial {
    /// What is in force.
    pub isolation: Vec<Isolation>,
    /// What is not.
    pub missing: Vec<Missing>,
}

/// A part of the jail that a host does not give.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Missing {
    /// What.
    pub name: Isolation,
    /// Why not.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

impl Missing {
    /// What is missing, and why.
    pub fn new(name: Isolation, why: String) -> Missing {
        Missing {
            name,
            why,
            remedy: name.remedy().to_owned(),
        }
    }
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Isolation, String> {
        let known = Isolation::ALL
            .into_iter()
            .find(|known| known.name() == text);
        known.ok_or_else(|| {
            format!(
                "must be one of {}",
                Isolation::ALL.map(Isolation::name).join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_one_name_everywhere() {
        for isolation in Isolation::ALL {
            assert_eq!(isolation.name().parse(), Ok(isolation));
            let json = serde_json::to_string(&isolation).unwrap();
            assert_eq!(json, format!("{:?}", isolation.name()));
        }
        let error = "root".parse::<Isolation>().unwrap_err();
        assert!(error.contains("uid, user, pid"), "{error}");
    }
}
