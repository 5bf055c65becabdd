//! The VMBus: a stream each way and round trips between the host and a guest, beside
//! a unix socket between two threads of the host, over which nobody can be faster.
//!
//! The guest is one VMM without a fabric, in which one program takes, gives or
//! echoes; so what is measured is the device and the guest's kernel, and no proxy.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{median, peer::Guest};
use crate::{build::Images, demo::service::Size, progress::Work, project::Project};

/// How long a stream lasts.
const STREAM: Duration = Duration::from_secs(3);
/// How many round trips are timed.
const ROUND_TRIPS: usize = 300;
/// What is written at a time.
const CHUNK: usize = 64 << 10;

/// What was measured.
#[derive(Debug)]
pub struct Bus {
    /// From host to guest.
    pub h2g_mib_per_s: f64,
    /// From guest to host.
    pub g2h_mib_per_s: f64,
    /// There and back, one byte, asked by the host.
    pub rtt_us: f64,
    /// The same between two threads of the host.
    pub unix_mib_per_s: f64,
    /// There and back between them.
    pub unix_rtt_us: f64,
}

/// Measures.
pub fn measure(project: &Project, images: &Images, size: &Size) -> Result<Bus> {
    let mut work = Work::begin("Measuring the VMBus");
    let (mut ours, theirs) = UnixStream::pair().context("making a pair of sockets")?;
    let echo = thread::spawn(move || echo(theirs));
    let unix_rtt_us = round_trips(&mut ours)?;
    drop(ours);
    join(echo)?;
    let (ours, theirs) = UnixStream::pair().context("making a pair of sockets")?;
    let sink = thread::spawn(move || sink(theirs));
    let unix_mib_per_s = give(ours)?;
    join(sink)?;

    work.now("starting a guest");
    let guest = Guest::start(project, images, size)?;
    work.now("round trips");
    let rtt_us = round_trips(&mut guest.tell("echo")?)?;
    work.now("host to guest");
    let h2g_mib_per_s = give(guest.tell("sink")?)?;
    work.now("guest to host");
    let g2h_mib_per_s = take(guest.tell(&format!("source {}", u32::MAX))?)?;
    guest.end()?;
    work.done("done");
    Ok(Bus {
        h2g_mib_per_s,
        g2h_mib_per_s,
        rtt_us,
        unix_mib_per_s,
        unix_rtt_us,
    })
}

/// One byte there and back, so many times; the median, in microseconds.
fn round_trips(stream: &mut UnixStream) -> Result<f64> {
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        stream.write_all(b"?").context("asking")?;
        stream.read_exact(&mut [0]).context("hearing")?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(times))
}

/// Gives for a while, and has the other end say how much it took; in MiB a second.
fn give(mut stream: UnixStream) -> Result<f64> {
    let chunk = vec![0; CHUNK];
    let begun = Instant::now();
    let mut given = 0_u64;
    while begun.elapsed() < STREAM {
        stream.write_all(&chunk).context("giving")?;
        given += CHUNK as u64;
    }
    stream.shutdown(Shutdown::Write).context("ending")?;
    let mut taken = String::new();
    BufReader::new(&stream).read_line(&mut taken)?;
    let time = begun.elapsed();
    ensure!(
        taken.trim() == given.to_string(),
        "{given} bytes were given, and {taken:?} taken"
    );
    Ok(rate(given, time))
}

/// Takes for a while; in MiB a second.
fn take(mut stream: UnixStream) -> Result<f64> {
    let mut chunk = vec![0; CHUNK];
    let begun = Instant::now();
    let mut taken = 0_u64;
    while begun.elapsed() < STREAM {
        match stream.read(&mut chunk) {
            Ok(0) => bail!("the guest has ended its stream after {taken} bytes"),
            Ok(count) => taken += count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("taking"),
        }
    }
    Ok(rate(taken, begun.elapsed()))
}

fn rate(bytes: u64, time: Duration) -> f64 {
    let rate = bytes as f64 / f64::from(1 << 20) / time.as_secs_f64();
    (rate * 10.0).round() / 10.0
}

/// What the guest's program does, in a thread.
fn echo(mut stream: UnixStream) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            count => stream.write_all(&chunk[..count])?,
        }
    }
}

/// The same of the other command.
fn sink(mut stream: UnixStream) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut taken = 0;
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(writeln!(stream, "{taken}")?),
            count => taken += count as u64,
        }
    }
}

fn join(thread: thread::JoinHandle<Result<()>>) -> Result<()> {
    thread
        .join()
        .unwrap_or_else(|_| bail!("the thread at the other end has panicked"))
}
