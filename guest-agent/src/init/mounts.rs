//! The kernel's file systems, where programs look for them.

use std::{fs, io, path::Path};

use fabric_proto::vmbus::ROLES;
use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
};

use super::report;

struct Mount {
    source: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static str,
}

const NOSUID: MountFlags = MountFlags::NOSUID;
const NODEV: MountFlags = MountFlags::NODEV;
const NOEXEC: MountFlags = MountFlags::NOEXEC;
/// Neither devices nor programs of any kind.
const DATA: MountFlags = NOSUID.union(NODEV).union(NOEXEC);

const PROC: Mount = Mount {
    source: "proc",
    target: "/proc",
    flags: DATA,
    options: "",
};

/// Holds one program, for a while. A tmpfs takes a sixth longer to give its pages back.
const FOR_A_PROGRAM: Mount = Mount {
    source: "ramfs",
    target: "/run",
    flags: NOSUID.union(NODEV),
    options: "mode=755",
};

/// In this order: some lie in others. The kernel may have mounted `/dev` already.
const REST: [Mount; 7] = [
    Mount {
        source: "sysfs",
        target: "/sys",
        flags: DATA,
        options: "",
    },
    Mount {
        source: "devtmpfs",
        target: "/dev",
        flags: NOSUID.union(NOEXEC),
        options: "mode=755",
    },
    Mount {
        source: "devpts",
        target: "/dev/pts",
        flags: NOSUID.union(NOEXEC),
        options: "mode=620,ptmxmode=666",
    },
    Mount {
        source: "tmpfs",
        target: "/dev/shm",
        flags: DATA,
        options: "mode=1777",
    },
    Mount {
        source: "tmpfs",
        target: "/run",
        flags: NOSUID.union(NODEV),
        options: "mode=755",
    },
    Mount {
        source: "tmpfs",
        target: "/tmp",
        flags: NOSUID.union(NODEV),
        options: "mode=1777",
    },
    // Holds the roles' directories, at which packages are mounted: to make one on the
    // disk costs a guest more than this.
    Mount {
        source: "tmpfs",
        target: ROLES,
        flags: NOSUID.union(NODEV),
        options: "mode=755",
    },
];

/// Mounts `/proc`.
pub fn proc() -> io::Result<()> {
    PROC.mount()
}

/// Mounts memory at `/run`, to execute a program from. It has no limit.
pub fn for_a_program() -> io::Result<()> {
    FOR_A_PROGRAM.mount()
}

/// Mounts the rest; says what cannot be.
pub fn rest() {
    for file_system in &REST {
        report(
            &format!("mount {}", file_system.target),
            file_system.mount(),
        );
    }
}

impl Mount {
    fn mount(&self) -> io::Result<()> {
        let options = (!self.options.is_empty()).then(|| std::ffi::CString::new(self.options));
        let options = options.transpose()?;
        let mut done = mount(
            self.source,
            self.target,
            self.source,
            self.flags,
            options.as_deref(),
        );
        if done == Err(Errno::NOENT) && !Path::new(self.target).exists() {
            fs::create_dir_all(self.target)?;
            done = mount(
                self.source,
                self.target,
                self.source,
                self.flags,
                options.as_deref(),
            );
        }
        match done {
            // It is mounted already.
            Err(Errno::BUSY) => Ok(()),
            done => done.map_err(Into::into),
        }
    }
}
