//! What somebody would try who runs code in a VMM.

use std::fs::{self, File};
use std::io::{self, Error};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::path::Path;
use std::process::Command;

use nix::sys::{ptrace, signal};
use nix::unistd::Pid;

use crate::house::Facts;

/// One way to try to leave.
pub struct Attempt {
    /// What it is, after "cannot".
    pub name: &'static str,
    /// Tries; returns why it failed.
    pub run: fn(&Facts) -> io::Result<()>,
    /// Where it does not succeed without a jail: not for everyone on every host.
    pub succeeds_for_root: bool,
    /// What is seen of it from outside, with the whole jail around.
    pub seen: Seen,
}

/// What is seen of an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The call killed the process, as whoever started it is told (`forbidden_call`).
    Killed,
    /// The kernel's answer to the call, which the process goes on with.
    Refused,
    /// The kernel killed the process for its control group's limit, and counted that
    /// there (`out_of_memory`).
    OutOfMemory,
}

/// An attempt by a call that is on no list of the event loop's.
const fn forbidden(name: &'static str, run: fn(&Facts) -> io::Result<()>) -> Attempt {
    Attempt {
        name,
        run,
        succeeds_for_root: true,
        seen: Seen::Killed,
    }
}

/// An attempt by calls that are listed, for what is there.
const fn in_vain(name: &'static str, run: fn(&Facts) -> io::Result<()>) -> Attempt {
    Attempt {
        seen: Seen::Refused,
        ..forbidden(name, run)
    }
}

/// More than the machine of these tests may have, and little for a host.
pub const GREED: usize = 4 * crate::house::MEMORY;
const PAGE: usize = 4096;

/// All of them.
pub const ATTEMPTS: [Attempt; 22] = [
    in_vain("open_a_file_of_the_host", |facts| read(&facts.secret)),
    in_vain("climb_out_of_its_directory", |facts| {
        let up = "../".repeat(64);
        let secret = facts.secret.strip_prefix("/").unwrap();
        read(&Path::new(&up).join(secret))
    }),
    in_vain("see_what_is_in_the_root", |_| fs::read_dir("/").map(drop)),
    in_vain("read_the_disk_of_another_guest", |facts| {
        read(&facts.other_disk)
    }),
    in_vain("reach_the_socket_of_the_host_agent", |facts| {
        UnixStream::connect(&facts.agent_socket).map(drop)
    }),
    in_vain("reach_an_abstract_socket_of_the_host", |facts| {
        let name = UnixAddr::from_abstract_name(&facts.abstract_socket)?;
        UnixStream::connect_addr(&name).map(drop)
    }),
    in_vain("reach_the_socket_of_the_controller", |facts| {
        UnixStream::connect(&facts.controller_socket).map(drop)
    }),
    forbidden("connect_to_the_port_of_the_controller", |facts| {
        TcpStream::connect(facts.controller_port).map(drop)
    }),
    forbidden("send_a_datagram_out", |facts| {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        socket.send_to(b"out", facts.datagrams).map(drop)
    }),
    forbidden("connect_to_a_port_of_the_host", |facts| {
        let address = SocketAddr::from(([127, 0, 0, 1], facts.port));
        TcpStream::connect(address).map(drop)
    }),
    forbidden("signal_another_vmm", |facts| {
        Ok(signal::kill(Pid::from_raw(facts.other_vmm), None)?)
    }),
    forbidden("trace_another_vmm", |facts| {
        let other = Pid::from_raw(facts.other_vmm);
        ptrace::seize(other, ptrace::Options::empty())?;
        Ok(ptrace::detach(other, None).or_else(|error| match error {
            // It was not stopped.
            nix::Error::ESRCH => Ok(()),
            error => Err(error),
        })?)
    }),
    in_vain("see_another_vmm", |facts| {
        fs::read_dir(format!("/proc/{}", facts.other_vmm)).map(drop)
    }),
    forbidden("fork", |_| {
        // SAFETY: the child does nothing but end.
        let child = unsafe { libc::fork() };
        match child {
            // SAFETY: nothing of the parent's is to be run at its end.
            0 => unsafe { libc::_exit(0) },
            ..0 => Err(Error::last_os_error()),
            _ => Ok(()),
        }
    }),
    forbidden("run_a_program", |_| {
        use std::os::unix::process::CommandExt as _;
        // Becomes it, if that can be done; which ends with 0.
        Err(Command::new("/bin/true").exec())
    }),
    in_vain("write_to_its_own_program", |facts| {
        // A program that runs cannot be written, but its file can be replaced.
        let moved = facts.program.with_extension("moved");
        fs::rename(&facts.program, &moved)?;
        fs::rename(&moved, &facts.program)
    }),
    Attempt {
        // Of a program that runs, the kernel says so to anyone.
        succeeds_for_root: false,
        ..in_vain("write_into_its_own_program", |facts| {
            File::options().write(true).open(&facts.program).map(drop)
        })
    },
    Attempt {
        seen: Seen::OutOfMemory,
        ..in_vain("have_more_memory_than_its_group", |_| {
            let mut hoard = vec![0_u8; GREED];
            for page in hoard.chunks_mut(PAGE) {
                page[0] = 1;
            }
            std::hint::black_box(&hoard);
            Ok(())
        })
    },
    forbidden("mount_a_file_system", |facts| {
        nix::mount::mount(
            Some("none"),
            facts.directory.as_path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )?;
        Ok(nix::mount::umount(facts.directory.as_path())?)
    }),
    forbidden("enter_another_user_namespace", |_| {
        Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?)
    }),
    Attempt {
        name: "load_a_kernel_module",
        run: |_| {
            // SAFETY: an image of no bytes, and no parameters.
            let answer =
                unsafe { libc::syscall(libc::SYS_init_module, c"".as_ptr(), 0, c"".as_ptr()) };
            match (answer, Error::last_os_error()) {
                (0.., _) => Ok(()),
                // The kernel looked at it, so that a module would have been taken.
                (_, error) if error.raw_os_error() == Some(libc::ENOEXEC) => Ok(()),
                (_, error) => Err(error),
            }
        },
        succeeds_for_root: false,
        seen: Seen::Killed,
    },
    in_vain("open_kvm_again", |_| File::open("/dev/kvm").map(drop)),
];

fn read(path: &Path) -> io::Result<()> {
    fs::read(path).map(drop)
}
