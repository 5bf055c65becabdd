//! What a guest notices of a neighbour at full tilt: its latency at the 99th percentile,
//! alone and beside one that does nothing but write to its disk, talk to its host, or
//! print on its console.
//!
//! Both are held to the least that a size gives (`host-agent/src/policy/shares.rs`), as
//! instances are; they are in no control groups, so a neighbour has as many processors
//! as it can take.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    peer::{DISK_BYTES, Guest},
    telling,
};
use crate::{
    build::{Images, Prepare},
    demo::service::Size,
    machine::Machine,
    preflight,
    progress::Work,
    project::Project,
    table::table,
};

/// How many bytes are sent there and back. A guest's kernel fills up its receive queue by
/// half of it at a time, with one packet of 129 (Linux, `virtio_vsock_rx_fill`); where KVM
/// interprets that takes 40 ms, eight times the other answers, and of 300 answers two or three
/// have it: with these, the 99th percentile was either by chance.
const BYTES: usize = 1000;
/// How many pages are read. Each takes some packets, and so one of 32 has that in it.
const PAGES: usize = 300;
/// How long a neighbour is at it before: what it may do at once is used up then.
const WARM_UP: Duration = Duration::from_secs(5);
/// What a guest reads from its disk.
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// What was measured, in microseconds at the 99th percentile.
#[derive(Debug, Serialize)]
struct Neighbours {
    alone: Latency,
    beside_disk: Beside,
    beside_vsock_to_host: Beside,
    beside_vsock_to_guest: Beside,
    beside_console: Beside,
}

/// How long a guest takes to answer.
#[derive(Debug, Clone, Copy, Serialize)]
struct Latency {
    /// A byte.
    bus_p99_us: f64,
    /// To read a page from its disk and say so.
    disk_p99_us: f64,
}

/// The same beside another, and that as a multiple of what it is alone.
#[derive(Debug, Serialize)]
struct Beside {
    #[serde(flatten)]
    latency: Latency,
    bus_ratio: f64,
    disk_ratio: f64,
}

/// What a neighbour does all the time.
#[derive(Debug, Clone, Copy)]
enum Tilt {
    Disk,
    VsockToHost,
    VsockToGuest,
    Console,
}

impl fmt::Display for Tilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::VsockToHost => "vsock to host",
            Self::VsockToGuest => "vsock to guest",
            Self::Console => "console",
        })
    }
}

impl Neighbours {
    /// As rows of a table: what, and how much.
    fn rows(&self) -> Vec<[String; 2]> {
        let Latency {
            bus_p99_us,
            disk_p99_us,
        } = self.alone;
        let mut rows = vec![
            ["bus p99 alone".to_owned(), format!("{bus_p99_us:.0} us")],
            ["disk p99 alone".to_owned(), format!("{disk_p99_us:.0} us")],
        ];
        let beside = [
            (Tilt::Disk, &self.beside_disk),
            (Tilt::VsockToHost, &self.beside_vsock_to_host),
            (Tilt::VsockToGuest, &self.beside_vsock_to_guest),
            (Tilt::Console, &self.beside_console),
        ];
        for (tilt, beside) in beside {
            let Latency {
                bus_p99_us,
                disk_p99_us,
            } = beside.latency;
            let figures = [
                ("bus", bus_p99_us, beside.bus_ratio),
                ("disk", disk_p99_us, beside.disk_ratio),
            ];
            rows.extend(figures.map(|(what, p99, ratio)| {
                let what = format!("{what} p99 beside {tilt} at full tilt");
                [what, format!("{p99:.0} us, {ratio:.2} times")]
            }));
        }
        rows
    }
}

/// The last line on standard output.
#[derive(Debug, Serialize)]
struct Figures {
    bench: &'static str,
    machine: Machine,
    #[serde(flatten)]
    neighbours: Neighbours,
}

/// Runs the benchmark.
pub fn run(project: &Project, size: &Size, prepare: &Prepare) -> Result<()> {
    preflight::before_building(project)?;
    let images = prepare.run(project)?;
    let machine = Machine::look(preflight::with_programs(project)?);
    let neighbours = measure(project, &images, size)?;
    println!("\n{}", table(["figure", "value"], neighbours.rows(), true));
    let figures = Figures {
        bench: "neighbours",
        machine,
        neighbours,
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// Measures.
fn measure(project: &Project, images: &Images, size: &Size) -> Result<Neighbours> {
    let mut work = Work::begin("Measuring what a guest notices of its neighbour");
    let guest = start(project, images, size)?;
    let neighbour = start(project, images, size)?;
    work.now("alone");
    let alone = latency(&guest)?;
    let mut beside = |tilt: Tilt| -> Result<Beside> {
        work.now(format!("beside one at full tilt on its {tilt}"));
        let latency = latency_beside(&guest, &neighbour, tilt)?;
        Ok(Beside {
            latency,
            bus_ratio: latency.bus_p99_us / alone.bus_p99_us,
            disk_ratio: latency.disk_p99_us / alone.disk_p99_us,
        })
    };
    let neighbours = Neighbours {
        alone,
        beside_disk: beside(Tilt::Disk)?,
        beside_vsock_to_host: beside(Tilt::VsockToHost)?,
        beside_vsock_to_guest: beside(Tilt::VsockToGuest)?,
        beside_console: beside(Tilt::Console)?,
    };
    guest.end()?;
    neighbour.end()?;
    work.done("done");
    Ok(neighbours)
}

fn latency_beside(guest: &Guest, neighbour: &Guest, tilt: Tilt) -> Result<Latency> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let busy = scope.spawn(|| keep_busy(neighbour, tilt, &stop));
        thread::sleep(WARM_UP);
        let latency = latency(guest);
        stop.store(true, Ordering::Relaxed);
        let busy = busy.join();
        busy.unwrap_or_else(|_| bail!("the neighbour's thread has panicked"))?;
        latency
    })
}

fn start(project: &Project, images: &Images, size: &Size) -> Result<Guest> {
    let guest = Guest::start(project, images, size)?;
    telling::tell(
        &guest.control(),
        &json!({"op": "limit", "limits": limits()}),
    )?;
    Ok(guest)
}

/// What the smallest size has.
fn limits() -> Value {
    let rate = |per_second: u64| json!({"per_second": per_second, "burst": 4 * per_second});
    let stream = |operations| json!({"bytes": rate(32 * MIB), "operations": rate(operations)});
    json!({
        "disks": [stream(500)], "vsock_to_host": stream(5000), "vsock_to_guest": stream(5000),
        "console": rate(64 << 10),
    })
}

fn latency(guest: &Guest) -> Result<Latency> {
    let mut echo = guest.tell("echo")?;
    let bus_p99_us = p99(BYTES, |_| {
        echo.write_all(b"?").context("asking")?;
        echo.read_exact(&mut [0]).context("hearing")
    })?;
    drop(echo);
    let disk_p99_us = p99(PAGES, |number| {
        let offset = number as u64 * PAGE % DISK_BYTES;
        guest.ask(&format!("read /dev/vda {offset} {PAGE}"))
    })?;
    Ok(Latency {
        bus_p99_us,
        disk_p99_us,
    })
}

/// The time at the 99th percentile, in microseconds.
fn p99(answers: usize, mut act: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(answers);
    for number in 0..answers {
        let begun = Instant::now();
        act(number)?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[answers * 99 / 100].round())
}

/// Keeps a guest at something, until it is to stop.
fn keep_busy(guest: &Guest, tilt: Tilt, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        match tilt {
            Tilt::Disk => guest.ask(&format!("write /dev/vda 0 {MIB}"))?,
            Tilt::Console => guest.ask(&format!("print {}", 4 << 10))?,
            Tilt::VsockToHost => {
                let mut stream = guest.tell(&format!("source {MIB}"))?;
                io::copy(&mut stream, &mut io::sink()).context("taking")?;
            }
            Tilt::VsockToGuest => {
                let mut stream = guest.tell("sink")?;
                io::copy(&mut io::repeat(0).take(MIB), &mut stream).context("giving")?;
                stream.shutdown(Shutdown::Write).context("ending")?;
                io::copy(&mut stream, &mut io::sink()).context("hearing how much it took")?;
            }
        }
    }
    Ok(())
}
