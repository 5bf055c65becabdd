//! The other end of the VMBus, and of the disks, for tests and measurements: the one
//! program of a guest that has nothing else, started by its kernel from an initial
//! RAM disk.
//!
//! Whoever connects to [`PORT`] says in one line what it is to do:
//!
//! | line | what it does |
//! |---|---|
//! | `echo` | says everything again, to the end |
//! | `sink` | takes everything, and says how many bytes that were when it has ended |
//! | `source BYTES` | says so many bytes, and ends |
//! | `keep` | keeps the connection and does nothing with it |
//! | `call PORT COUNT` | has so many connections to a port of the host at once |
//! | `flood PORT` | connects to a port of the host where nobody reads, and says how many bytes that takes; keeps the connection |
//! | `listen COUNT` | has so many callers at once |
//! | `write DISK OFFSET BYTES` | writes to a disk, and says whether it was written |
//! | `read DISK OFFSET BYTES` | reads from a disk past the kernel's cache |
//! | `discard DISK OFFSET BYTES` | makes zeros of what is there on a disk, without writing them |
//! | `print BYTES` | prints so many bytes on the console |
//! | `reset` | has the driver give up the vsock device and take it again |
//!
//! One thread and one caller at a time, for where KVM interprets guest kernels every
//! system call is dear. What goes wrong is said to the caller, and on the console.

#![forbid(unsafe_code)]

mod commands;

use std::{
    error::Error,
    fs,
    io::{Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

use nix::mount::{MsFlags, mount};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

use crate::commands::{Answer, Peer};

/// Where it listens.
const PORT: u32 = 1000;
/// The longest line.
const LINE_MAX: usize = 128;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("bus-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    for (kind, at) in [("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(at)?;
        let none = None::<&Path>;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), none)?;
    }
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT)?;
    println!("bus-peer: listening on port {PORT}");
    let mut peer = Peer::new(listener.try_clone()?);
    loop {
        let (mut caller, _) = listener.accept()?;
        let answered = match line(&mut caller) {
            Ok(line) => peer.answer(&line, &mut caller),
            Err(error) => Err(error),
        };
        match answered {
            Ok(Answer::Done) => {}
            Ok(Answer::Keep) => peer.keep(caller),
            Err(error) => {
                println!("bus-peer: {error}");
                // Who has gone does not want to know.
                let _ = writeln!(caller, "error: {error}");
            }
        }
    }
}

/// The first line, byte by byte: what follows belongs to the command.
fn line(caller: &mut VsockStream) -> Result<String, Box<dyn Error>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LINE_MAX {
        caller.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(String::from_utf8(line)?);
        }
        line.extend(byte);
    }
    Err("a line that does not end".into())
}
