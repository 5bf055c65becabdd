//! What a guest needs of its first process, beside running roles.
//!
//! | module | for |
//! |---|---|
//! | [`mounts`] | the kernel's file systems |
//! | [`disk`] | leaving the disk and coming back to it, where a template is made |
//! | [`net`] | the loopback |
//! | [`identity`] | who this guest is, and in which order that is made |
//! | [`entropy`], [`clock`] | random bytes and time from the host |
//! | [`reaper`] | children, orphans and signals |
//! | [`power`] | going down |
//!
//! Nothing but [`first`] comes before the hello; the rest is done while the host
//! agent reads that. Only in a guest that will become a template all of it comes
//! before the first call, so that what is made from the template has it. Before all of it,
//! such a guest leaves its disk for a moment. No step is worth dying for but the way back to
//! the disk: what fails is said on the console, and what depends on it says so again.
//!
//! ```text
//!  any guest    first ─▶ hello ─▶ rest
//!  a template's first ─▶ disk (BOOTED_PORT) ─▶ rest ─▶ prepare_copies ─▶ hello
//! ```

pub mod clock;
pub mod disk;
pub mod entropy;
pub mod identity;
pub mod mounts;
pub mod net;
pub mod power;
pub mod reaper;

use std::{
    fs::{self, File},
    hint::black_box,
    io::{self, Read as _},
    path::Path,
};

use fabric_proto::vmbus::FAULTS_ARGUMENT;

use nix::sys::mman::{MlockAllFlags, mlockall, munlockall};

use self::identity::ThisGuest;
use crate::{console, role::files::Layout};

/// No more of a program than this is had in memory.
const LARGEST_PROGRAM: u64 = 16 << 20;

/// What a copy will allocate until its role is ready, in pieces that are no mappings of their
/// own.
const HEAP_PIECES: usize = 8;
const HEAP_PIECE: usize = 32 << 10;

/// What must be there before a hello can be said.
pub fn first() {
    report("mount /proc", mounts::proc());
    // Roles run as unprivileged users, and no set-user-id program may change that.
    // Every child inherits it; the guest agent itself needs no such program.
    report(
        "set no_new_privs",
        nix::sys::prctl::set_no_new_privs().map_err(Into::into),
    );
}

/// The rest.
pub fn rest() {
    mounts::rest();
    report("bring up the loopback", net::loopback_up());
    // Ctrl-Alt-Del is asked of init, not done by the kernel.
    report("take over Ctrl-Alt-Del", power::take_over_reset_key());
}

/// Has in memory what every copy of this guest would otherwise have to fetch or make by
/// itself: the program that it runs, the files of its identity, which disks there are, the
/// parent of its roles' settings, what the kernel makes for its first connection, and every
/// page of the guest agent.
pub fn prepare_copies(program: &Path, guest: &mut ThisGuest, layout: &mut Layout) {
    if program.is_absolute() {
        report("read the role's program", have_in_memory(program));
    }
    make_room_for_identity(guest);
    report("look for disks", layout.look_for_disks());
    report("try the loopback", net::try_loopback());
    report("make the roles' folder", fs::create_dir_all(&layout.run));
    touch_all_pages();
}

/// Has the files that make an identity open.
pub fn make_room_for_identity(guest: &mut ThisGuest) {
    report("make room for an identity", guest.make_room());
}

/// Has every page of the guest agent in memory, and some for what it will allocate.
pub fn touch_all_pages() {
    // Freed, they stay with the allocator.
    drop(black_box(vec![vec![0_u8; HEAP_PIECE]; HEAP_PIECES]));
    let touch = || -> io::Result<()> {
        mlockall(MlockAllFlags::MCL_CURRENT)?;
        Ok(munlockall()?)
    };
    report("touch the guest agent's pages", touch());
}

/// Hides the boot id from a role whose guest becomes a template: the kernel makes it
/// when it is first read, and all copies would have it.
pub fn hide_boot_id(guest: &mut ThisGuest) {
    report("hide the boot id", guest.hide_boot_id());
}

/// Reads a program, so that who executes it need not wait for the disk.
///
/// # Errors
///
/// When it cannot be read.
pub fn have_in_memory(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?.take(LARGEST_PROGRAM);
    io::copy(&mut file, &mut io::sink()).map(drop)
}

/// Whether the kernel command line allows faults to be injected.
pub fn faults_allowed() -> bool {
    fs::read_to_string("/proc/cmdline").is_ok_and(|line| {
        line.split_ascii_whitespace()
            .any(|word| word == FAULTS_ARGUMENT)
    })
}

fn report(what: &str, done: std::io::Result<()>) {
    if let Err(error) = done {
        console::say(format_args!("cannot {what}: {error}"));
    }
}
