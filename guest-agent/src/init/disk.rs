//! Leaves the disk and comes back to it: between the two is the moment that machines which
//! are reset go on from. Nothing of the disk may be mounted or cached there, for theirs is
//! another one.
//!
//! ```text
//!  stage     Booted               Away                                  Back
//!  program   /sbin/guest-agent ─▶ its copy in memory ─────────────────▶ /sbin/guest-agent
//!  /         disk                 memory                       disk     disk
//!  /run      memory               -                            memory   memory, until unmounted
//!  /disk     -                    disk, unmounted, call, disk  -
//!                                                 ╵
//!                                            the snapshot
//! ```
//!
//! A program's pages belong to the file system that it is on: only one that was executed
//! from memory can unmount the disk. What is done after the call is paid for by every reset,
//! and what can be is done before it. So the copy in memory goes on by itself if what is on
//! the disk now is the file that it was made of: to execute that takes longer than all else.

use std::{
    convert::Infallible,
    env,
    ffi::{CStr, CString, OsStr},
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::MetadataExt as _,
        },
    },
    path::Path,
};

use fabric_proto::vmbus::{BOOTED_PORT, HOST_CID};
use nix::{
    sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket},
    unistd::execve,
};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, mount_move, unmount},
    process::pivot_root,
};

use super::{LARGEST_PROGRAM, mounts, report};
use crate::console;

/// Where the disk is while memory is the root.
const DISK: &str = "/disk";
/// Where memory is while the disk is the root.
const MEMORY: &str = "/run";
/// The program that this is.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Its copy in memory, as it is called before memory is the root and then.
const COPY_TO: &str = "/run/guest-agent";
const COPY: &CStr = c"/guest-agent";

/// From the disk to memory.
const LEAVING: Turn = Turn {
    root: MEMORY,
    former: "/run/disk",
    along: [("/disk/dev", "/dev"), ("/disk/proc", "/proc")],
};
/// And back.
const RETURNING: Turn = Turn {
    root: DISK,
    former: "/disk/run",
    along: [("/run/dev", "/dev"), ("/run/proc", "/proc")],
};

/// The root device, where the command line names none.
const DEVICE: &str = "/dev/vda";
/// The first program, where the command line names none.
const PROGRAM: &str = "/sbin/guest-agent";
/// What a disk is tried as when it is no longer what it was.
const KINDS: [&str; 3] = ["ext4", "ext3", "ext2"];

/// The only argument of a program that goes on in another stage than the first. It is gone
/// with that program, where roles would inherit a variable.
const AWAY: &CStr = c"stage=away";
const BACK: &CStr = c"stage=back";
const BACK_ALONE: &CStr = c"stage=back-alone";

/// How far it is on its way from the disk and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The kernel started this program, from the disk that it mounted.
    Booted,
    /// This program is in memory.
    Away,
    /// This program is on the disk again.
    Back {
        /// Whether this guest still is to become a template.
        template: bool,
    },
}

/// What could not be done, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {error}")]
pub struct Failed {
    what: &'static str,
    error: io::Error,
}

impl Stage {
    /// The stage in which this program was executed.
    pub fn of_this_process() -> Self {
        let argument = env::args_os().nth(1).unwrap_or_default();
        match argument.as_bytes() {
            word if word == AWAY.to_bytes() => Self::Away,
            word if word == BACK.to_bytes() => Self::Back { template: true },
            word if word == BACK_ALONE.to_bytes() => Self::Back { template: false },
            _ => Self::Booted,
        }
    }

    /// Does what is left of the way, where there is one in the next stage's program; says
    /// whether this guest still is to become a template.
    ///
    /// # Errors
    ///
    /// When there is no disk to run anything from.
    pub fn go_on(self) -> Result<bool, Failed> {
        match self {
            Self::Booted => match leave() {
                Ok(never) => match never {},
                Err(failed) => {
                    console::say(format_args!("stays on the disk: {failed}"));
                    Ok(true)
                }
            },
            Self::Away => come_back(),
            Self::Back { template } => {
                // With it, the memory that the copy is in.
                report("unmount /run", unmounted(MEMORY));
                Ok(template)
            }
        }
    }
}

/// Leaves the disk. Returns only when it did not, with everything as it was.
fn leave() -> Result<Infallible, Failed> {
    // Without these there is no way back.
    Root::read("/")?;
    let copy = Program::new(COPY.to_owned());
    mounts::for_a_program().map_err(failed("mount /run"))?;
    let left = copy_program()
        .and_then(|()| LEAVING.take())
        .and_then(|()| copy.exec(AWAY));
    // Of this, what undoes something that was not done only fails.
    _ = RETURNING.take();
    report("unmount /run", unmounted(MEMORY));
    left
}

fn copy_program() -> Result<(), Failed> {
    let copied = || {
        let length = fs::metadata(THIS_PROGRAM)?.len();
        if length > LARGEST_PROGRAM {
            return Err(io::Error::other(format!("it is {length} bytes long")));
        }
        for directory in [LEAVING.former, "/run/dev", "/run/proc"] {
            fs::create_dir(directory)?;
        }
        fs::copy(THIS_PROGRAM, COPY_TO).map(drop)
    };
    copied().map_err(failed("copy the guest agent to /run"))
}

/// Unmounts the disk, calls the host, and comes back to the disk; says whether this guest
/// still is to become a template.
fn come_back() -> Result<bool, Failed> {
    let root = Root::read(DISK)?;
    let before = root.file_of_program();
    let template = match unmounted(DISK) {
        Ok(()) => {
            let answered = call();
            root.mount()?;
            answered
        }
        // A snapshot would be of no use, for it would hold some of this disk.
        Err(error) => {
            console::say(format_args!(
                "does not call its host: cannot unmount the disk: {error}"
            ));
            true
        }
    };
    let same = before.is_some() && root.file_of_program() == before;
    RETURNING.take()?;
    if same {
        // Held by this program alone from now on.
        let detached = unmount(MEMORY, UnmountFlags::DETACH);
        report("unmount /run", detached.map_err(Into::into));
        return Ok(template);
    }
    match root
        .program
        .exec(if template { BACK } else { BACK_ALONE })? {}
}

/// Unmounts what is there for real: the kernel forgets a disk that nobody holds.
fn unmounted(path: &str) -> io::Result<()> {
    Ok(unmount(path, UnmountFlags::empty())?)
}

/// Calls the host; whether it answers. The kernel waits two seconds for that at the longest
/// (`VSOCK_DEFAULT_CONNECT_TIMEOUT`).
fn call() -> bool {
    let flags = SockFlag::SOCK_CLOEXEC;
    let address = VsockAddr::new(HOST_CID, BOOTED_PORT);
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None);
    socket.is_ok_and(|socket| connect(socket.as_raw_fd(), &address).is_ok())
}

/// A change of the root directory.
struct Turn {
    /// Where what becomes the root is mounted.
    root: &'static str,
    /// The directory in it for the former root.
    former: &'static str,
    /// The mounts on the former root that come along: from where then, and to where.
    along: [(&'static str, &'static str); 2],
}

impl Turn {
    /// Takes it. Where a process's directory is the root, it becomes the new one
    /// (`pivot_root(2)`). If one mount cannot come along the other does: so is a turn undone
    /// that was taken in part.
    fn take(&self) -> Result<(), Failed> {
        pivot_root(self.root, self.former).map_err(failed("change the root"))?;
        let [dev, proc] = self.along.map(|(from, to)| mount_move(from, to));
        dev.map_err(failed("take /dev along"))?;
        proc.map_err(failed("take /proc along"))
    }
}

/// The root file system, as the kernel was told to mount it.
#[derive(Debug, PartialEq, Eq)]
struct Root {
    device: String,
    /// What it was mounted as, if that is known: the driver of one kind also mounts others,
    /// and then does with them what it does with its own.
    kind: Option<String>,
    flags: MountFlags,
    options: Option<CString>,
    program: Program,
}

impl Root {
    /// What it is of the file system that is mounted at `path`.
    fn read(path: &str) -> Result<Self, Failed> {
        let read = || {
            let line = fs::read_to_string("/proc/cmdline")?;
            let mounts = fs::read_to_string("/proc/self/mounts")?;
            Self::parse(&line, kind_at(&mounts, path))
        };
        read().map_err(failed("tell which disk this is"))
    }

    /// Of words that say the same, the last counts, as it does with the kernel.
    fn parse(line: &str, kind: Option<&str>) -> io::Result<Self> {
        let (mut device, mut program, mut options) = (DEVICE, PROGRAM, None);
        // As the kernel does it: that one kind is not the right one is no news.
        let mut flags = MountFlags::SILENT;
        // What follows is for the first program.
        for word in line.split_ascii_whitespace().take_while(|&it| it != "--") {
            match word.split_once('=') {
                Some(("root", value)) => device = value,
                Some(("init", value)) => program = value,
                Some(("rootflags", value)) => options = Some(value),
                None if word == "ro" => flags |= MountFlags::RDONLY,
                None if word == "rw" => flags -= MountFlags::RDONLY,
                _ => {}
            }
        }
        // The kernel also takes names that nobody else does.
        if !Path::new(device).starts_with("/dev") {
            return Err(io::Error::other(format!("root={device} is no device")));
        }
        Ok(Self {
            device: device.to_owned(),
            kind: kind.map(str::to_owned),
            flags,
            options: options.map(CString::new).transpose()?,
            program: Program::new(CString::new(program)?),
        })
    }

    /// Which file its program is, and in which state, while it is mounted at [`DISK`].
    fn file_of_program(&self) -> Option<(u64, u64, [i64; 4])> {
        let program = Path::new(OsStr::from_bytes(self.program.path.to_bytes()));
        let path = Path::new(DISK).join(program.strip_prefix("/").ok()?);
        let file = fs::symlink_metadata(path)
            .ok()
            .filter(fs::Metadata::is_file)?;
        let times = [
            file.mtime(),
            file.mtime_nsec(),
            file.ctime(),
            file.ctime_nsec(),
        ];
        Some((file.ino(), file.size(), times))
    }

    /// Mounts it at [`DISK`].
    fn mount(&self) -> Result<(), Failed> {
        let mounted = |kind| {
            mount(
                &*self.device,
                DISK,
                kind,
                self.flags,
                self.options.as_deref(),
            )
        };
        let before = self.kind.as_deref().unwrap_or(KINDS[0]);
        mounted(before)
            .or_else(|error| {
                let others = KINDS.into_iter().filter(|&kind| kind != before);
                others
                    .map(mounted)
                    .find(Result::is_ok)
                    .unwrap_or(Err(error))
            })
            .map_err(failed("mount the disk"))
    }
}

/// The kind of the file system at `path`, of `/proc/self/mounts` (proc_pid_mounts(5)). If some
/// hide others, of the last.
fn kind_at<'a>(mounts: &'a str, path: &str) -> Option<&'a str> {
    let kind = |line: &'a str| {
        let mut fields = line.split(' ').skip(1);
        (fields.next()? == path).then(|| fields.next())?
    };
    mounts.lines().filter_map(kind).next_back()
}

/// A program to execute, and all that takes.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    path: CString,
    environment: Vec<CString>,
}

impl Program {
    /// It has this one's environment, which says that this guest becomes a template.
    fn new(path: CString) -> Self {
        let variable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            let bytes = [name.into_vec(), value.into_vec()].join(&b'=');
            // None has a NUL: that is what ends it.
            CString::new(bytes).ok()
        };
        Self {
            path,
            environment: env::vars_os().filter_map(variable).collect(),
        }
    }

    /// Goes on in this program. Returns only when there is none.
    fn exec(&self, stage: &CStr) -> Result<Infallible, Failed> {
        execve(&self.path, &[&*self.path, stage], &self.environment)
            .map_err(failed("execute the guest agent"))
    }
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Failed {
    move |error| Failed {
        what,
        error: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(line: &str) -> Root {
        Root::parse(line, None).unwrap()
    }

    #[test]
    fn a_command_line_says_what_is_mounted_and_run_and_the_last_word_counts() {
        let said =
            root("quiet root=/dev/vda rw init=/sbin/guest-agent virtio_mmio.device=4K@0x1:5");
        assert_eq!(said, root(""), "it is what is taken for granted");
        assert_eq!(said.device, "/dev/vda");
        assert_eq!(said.program.path.as_c_str(), c"/sbin/guest-agent");
        assert_eq!((said.flags, said.options), (MountFlags::SILENT, None));

        let said = root("root=/dev/vda rw init=/a root=/dev/vdb ro init=/b rootflags=data=journal");
        assert_eq!(said.device, "/dev/vdb");
        assert_eq!(said.program.path.as_c_str(), c"/b");
        assert_eq!(said.flags, MountFlags::SILENT | MountFlags::RDONLY);
        assert_eq!(said.options.as_deref(), Some(c"data=journal"));
        assert_eq!(root("ro rw").flags, MountFlags::SILENT);
    }

    #[test]
    fn what_only_looks_like_it_and_what_is_for_the_first_program_is_passed_over() {
        let said = root("root rootwait xroot=/dev/vdb init ro=1 root=/dev/vda1 -- root=/dev/c ro");
        assert_eq!(said, root("root=/dev/vda1"));
    }

    #[test]
    fn a_name_that_only_the_kernel_knows_is_no_device() {
        for line in ["root=PARTUUID=0-1", "root=", "root=fe00", "root=/devices/a"] {
            let error = Root::parse(line, None).unwrap_err();
            assert_eq!(error.to_string(), format!("{line} is no device"));
        }
    }

    #[test]
    fn the_kind_is_that_of_what_is_seen_at_a_path() {
        let mounts = "/dev/root / ext3 rw,relatime 0 0\n\
            devtmpfs /dev devtmpfs rw 0 0\n\
            tmpfs /run tmpfs rw 0 0\n\
            other /run ext2 rw 0 0\n\
            /dev/root /run/disk ext4 ro 0 0\n";
        assert_eq!(kind_at(mounts, "/"), Some("ext3"));
        assert_eq!(kind_at(mounts, "/run"), Some("ext2"));
        assert_eq!(kind_at(mounts, "/disk"), None);
    }

    #[test]
    fn a_program_has_the_environment_of_this_one() {
        let program = Program::new(c"/a".to_owned());
        let path = format!("PATH={}", env::var("PATH").unwrap());
        assert!(program.environment.contains(&CString::new(path).unwrap()));
    }

    #[test]
    fn what_no_stage_is_named_for_was_booted() {
        assert_eq!(Stage::of_this_process(), Stage::Booted);
    }
}
