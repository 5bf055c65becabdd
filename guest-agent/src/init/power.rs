//! Going down: ends every process, leaves the disks as they should be found, and
//! tells the kernel.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use fabric_proto::vmbus::ROLES;
use rustix::{
    fs::sync,
    mount::{MountFlags, UnmountFlags, mount_remount, unmount},
    process::{Signal, WaitOptions, kill_process_group, wait},
    system::{RebootCommand, reboot},
};

use crate::{console, model::Down};

/// Longest wait for processes to end.
const LONGEST: Duration = Duration::from_secs(2);

/// The kernel asks init on Ctrl-Alt-Del, rather than rebooting by itself.
pub fn take_over_reset_key() -> io::Result<()> {
    Ok(reboot(RebootCommand::CadOff)?)
}

/// Goes down. Returns only when the kernel refuses, with why; outside a guest,
/// always and at once.
pub fn go_down(down: Down) -> io::Error {
    if let Err(error) = only_as_init() {
        return error;
    }
    end_everyone();
    sync();
    unmount_packages();
    let root = mount_remount("/", MountFlags::RDONLY, c"");
    if let Err(error) = root {
        console::say(format_args!("cannot remount / read-only: {error}"));
    }
    now(down)
}

/// Goes down at once, with nothing put in order.
pub fn now(down: Down) -> io::Error {
    if let Err(error) = only_as_init() {
        return error;
    }
    let command = match down {
        Down::PowerOff => RebootCommand::PowerOff,
        Down::Reboot => RebootCommand::Restart,
    };
    match reboot(command) {
        Ok(()) => io::Error::other("the kernel did not go down"),
        Err(error) => error.into(),
    }
}

/// What follows ends everything on the machine.
fn only_as_init() -> io::Result<()> {
    if std::process::id() == 1 {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "only process 1 goes down",
        ))
    }
}

/// Ends all other processes. The roles have been stopped; these are what they left
/// behind.
fn end_everyone() {
    let Some(everyone) = rustix::process::Pid::from_raw(1) else {
        return;
    };
    let deadline = Instant::now() + LONGEST;
    // Process group 1, negated, is "all that I may" (kill(2)).
    _ = kill_process_group(everyone, Signal::KILL);
    // Ends with "no child" once all are buried.
    while let Ok(buried) = wait(WaitOptions::NOHANG) {
        if buried.is_none() {
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn unmount_packages() {
    for entry in fs::read_dir(ROLES).into_iter().flatten().flatten() {
        // Most of them are mounts; the others say so.
        _ = unmount(entry.path(), UnmountFlags::empty());
    }
}
