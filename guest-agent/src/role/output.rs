//! What a role writes, read as it comes and passed to the outbox, which bounds
//! it. The role is never kept waiting for the host.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use rustix::{
    io::ioctl_fionbio,
    pipe::{PipeFlags, pipe_with},
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver, sync::oneshot, time::sleep};

use crate::session::{
    logs::{LONGEST_PIECE, Stream},
    outbox::Outbox,
};

/// Shortest time between two reads: a role that writes byte by byte does not take
/// the guest's time for it. The pipe holds 64 KiB meanwhile.
const REST: Duration = Duration::from_millis(5);

/// The reading ends of one run of a role. Dropped, what is left in the pipes is
/// read, and then nothing more: not even from a process that got away.
#[derive(Debug)]
pub struct Capture {
    _until: [oneshot::Sender<()>; 2],
}

/// Makes pipes for standard output and error; returns the ends to give to the
/// role. `spoke` is called whenever something has been read.
///
/// # Errors
///
/// When the system has no pipe left.
pub fn capture(
    outbox: &Outbox,
    role: &Arc<str>,
    spoke: impl Fn() + Clone + Send + 'static,
) -> io::Result<(Capture, [OwnedFd; 2])> {
    let (stdout_until, stdout) = pipe(outbox, role, Stream::Stdout, spoke.clone())?;
    let (stderr_until, stderr) = pipe(outbox, role, Stream::Stderr, spoke)?;
    Ok((
        Capture {
            _until: [stdout_until, stderr_until],
        },
        [stdout, stderr],
    ))
}

fn pipe(
    outbox: &Outbox,
    role: &Arc<str>,
    stream: Stream,
    spoke: impl Fn() + Send + 'static,
) -> io::Result<(oneshot::Sender<()>, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    // What is a pipe, and open to be read, need not be asked whether it is.
    ioctl_fionbio(&ours, true)?;
    let receiver = Receiver::from_owned_fd_unchecked(ours)?;
    let (until, over) = oneshot::channel();
    let (outbox, role) = (outbox.clone(), role.clone());
    let pass = move |data: &[u8]| {
        outbox.log(&role, stream, data, SystemTime::now());
        spoke();
    };
    tokio::spawn(read(receiver, over, pass));
    Ok((until, theirs))
}

async fn read(mut pipe: Receiver, mut over: oneshot::Receiver<()>, pass: impl Fn(&[u8])) {
    let mut buffer = BytesMut::with_capacity(LONGEST_PIECE);
    loop {
        tokio::select! {
            biased;
            _ = &mut over => return drain(&pipe, &mut buffer, pass),
            read = pipe.read_buf(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => pass(&buffer),
            }
        }
        buffer.clear();
        tokio::select! {
            _ = &mut over => return drain(&pipe, &mut buffer, pass),
            () = sleep(REST) => {}
        }
    }
}

/// Reads what is there already, at most what a pipe holds.
fn drain(pipe: &Receiver, buffer: &mut BytesMut, pass: impl Fn(&[u8])) {
    for _ in 0..8 {
        buffer.clear();
        match pipe.try_read_buf(buffer) {
            Ok(0) | Err(_) => return,
            Ok(_) => pass(buffer),
        }
    }
}
