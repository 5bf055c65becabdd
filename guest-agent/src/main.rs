//! The guest agent: process 1 of a guest. It runs the guest's roles, probes them,
//! and reports their health to the host agent over the VMBus.
//!
//! ```text
//! main ── agent ─┬─ session   the conversation with the host agent
//!                ├─ role      one role as it is run; its policy is pure
//!                ├─ init      what a guest needs of its first process
//!                ├─ button    the guest's power button
//!                ├─ fault     faults on request
//!                └─ door      the port at which either waits
//! ```
//!
//! One process, one thread, static: on a KVM that interprets guest kernel code, a
//! system call costs 0.3 ms, a page fault 1.6 ms and a fork 300 ms. See
//! `guest-agent --help` for running it outside a guest.

#![forbid(unsafe_code)]

mod agent;
mod button;
mod cli;
mod console;
mod door;
mod fault;
mod init;
mod model;
mod role;
mod session;

use std::{
    env, io,
    path::PathBuf,
    process::{self, ExitCode},
    time::Instant,
};

use dlmalloc::GlobalDlmalloc;
use fabric_proto::vmbus::TEMPLATE_VARIABLE;

use crate::{
    agent::Options,
    init::{disk::Stage, power},
    model::Down,
};

/// It keeps the pages that it has: to get and to give back some costs a guest several system
/// calls' time.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    let start = Instant::now();
    if process::id() == 1 {
        return run_as_init(start);
    }
    match cli::parse(lexopt::Parser::from_env()) {
        Ok(cli::Command::Help) => print!("{}", cli::HELP),
        Ok(cli::Command::Version) => println!("guest-agent {}", env!("CARGO_PKG_VERSION")),
        Ok(cli::Command::Run(address, layout)) => {
            // Orphans come here, as they come to process 1.
            let adopting = nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from);
            let done = adopting
                .and_then(|()| env::set_current_dir("/"))
                .and_then(|()| {
                    run(Options {
                        address,
                        layout,
                        start,
                        template: None,
                    })
                });
            if let Err(error) = done {
                console::say(format_args!("{error}"));
                return ExitCode::FAILURE;
            }
        }
        Err(error) => {
            eprintln!("guest-agent: {error}\nTry 'guest-agent --help'.");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Process 1 must not return: the kernel panics for it, and the host starts the
/// guest anew. That is what is wanted where nothing else helps.
///
/// In a guest that will become a template it is executed anew from memory, and maybe once more
/// from the disk, and does then what is left to do (see [`init::disk`]).
fn run_as_init(start: Instant) -> ExitCode {
    let template = env::var_os(TEMPLATE_VARIABLE).map(PathBuf::from);
    let stage = template.as_ref().map(|_| Stage::of_this_process());
    if matches!(stage, None | Some(Stage::Booted)) {
        console::say(format_args!("{}", env!("CARGO_PKG_VERSION")));
        init::first();
    }
    let is_template = stage.map_or(Ok(false), Stage::go_on);
    let (address, layout) = cli::init();
    let down = is_template.map_err(io::Error::other).and_then(|is| {
        let template = template.filter(|_| is);
        run(Options {
            address,
            layout,
            start,
            template,
        })
    });
    let down = down.unwrap_or_else(|error| {
        console::say(format_args!("{error}; rebooting"));
        Down::Reboot
    });
    let error = power::go_down(down);
    console::say(format_args!("cannot go down: {error}"));
    ExitCode::FAILURE
}

fn run(options: Options) -> io::Result<Down> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    // As a task of its own: waking the outermost future costs a system call.
    runtime.block_on(async { tokio::spawn(agent::run(options)).await? })
}
