//! What a guest needs of its first process, beside running roles.
//!
//! | module | for |
//! |---|---|
//! | [`mounts`] | the kernel's file systems |
//! | [`net`] | the loopback |
//! | [`entropy`], [`clock`] | random bytes and time from the host |
//! | [`reaper`] | children, orphans and signals |
//! | [`power`] | going down |
//!
//! Only `/proc` is needed to say hello; the rest is done while the host agent
//! reads that. No step is worth dying for: what fails is said on the console, and
//! what depends on it says so again.

pub mod clock;
pub mod entropy;
pub mod mounts;
pub mod net;
pub mod power;
pub mod reaper;

use std::fs;

use fabric_proto::vmbus::FAULTS_ARGUMENT;

use crate::{console, model::Goal};

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

/// Takes over what the goal says of the guest itself.
pub fn apply(goal: &Goal, hostname: &mut String) {
    report("mix in entropy", entropy::mix_in(&goal.entropy));
    if let Some(time) = goal.wall_clock {
        report("set the clock", clock::follow(time));
    }
    if let Some(name) = &goal.hostname
        && name != hostname
    {
        report(
            "set the host name",
            rustix::system::sethostname(name.as_bytes()).map_err(Into::into),
        );
        hostname.clone_from(name);
    }
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
