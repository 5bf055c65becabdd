//! What it is told to do.

use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::fs::{FileExt, OpenOptionsExt as _},
    time::Duration,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    libc::O_DIRECT,
};
use vsock::{VMADDR_CID_HOST, VsockListener, VsockStream};

/// What passes at a time.
const CHUNK: usize = 64 << 10;
/// What it says and writes, where nobody says what.
static BYTES: [u8; CHUNK] = [0x5a; CHUNK];
/// When a connection takes nothing for so long, nobody reads at its other end.
const STUCK: Duration = Duration::from_secs(2);
/// On whose borders what goes past the kernel's cache has to lie.
const PAGE: usize = 4096;
/// The vsock device's driver.
const DRIVER: &str = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What becomes of the caller.
pub enum Answer {
    /// It has its answer.
    Done,
    /// It is kept.
    Keep,
}

/// What is kept from one command to the next.
pub struct Peer {
    listener: VsockListener,
    kept: Vec<VsockStream>,
    chunk: Vec<u8>,
}

impl Peer {
    /// It has nothing yet.
    pub fn new(listener: VsockListener) -> Peer {
        Peer {
            listener,
            kept: Vec::new(),
            chunk: vec![0; CHUNK],
        }
    }

    /// Keeps a connection, until the guest ends.
    pub fn keep(&mut self, stream: VsockStream) {
        self.kept.push(stream);
    }

    /// Does what a line says.
    pub fn answer(&mut self, line: &str, caller: &mut VsockStream) -> Result<Answer> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["echo"] => self.echo(caller)?,
            ["sink"] => {
                let taken = self.sink(caller)?;
                writeln!(caller, "{taken}")?;
            }
            ["source", bytes] => source(caller, bytes.parse()?)?,
            ["keep"] => return Ok(Answer::Keep),
            ["call", port, count] => {
                call(port.parse()?, count.parse()?)?;
                writeln!(caller, "ok")?;
            }
            ["flood", port] => {
                let taken = self.flood(port.parse()?)?;
                writeln!(caller, "{taken}")?;
            }
            ["listen", count] => {
                self.listen(count.parse()?)?;
                writeln!(caller, "ok")?;
            }
            ["write", disk, offset, bytes] => {
                write(disk, offset.parse()?, bytes.parse()?)?;
                writeln!(caller, "ok")?;
            }
            ["read", disk, offset, bytes] => {
                read(disk, offset.parse()?, bytes.parse()?)?;
                writeln!(caller, "ok")?;
            }
            ["discard", disk, offset, bytes] => {
                discard(disk, offset.parse()?, bytes.parse()?)?;
                writeln!(caller, "ok")?;
            }
            ["print", bytes] => {
                print(bytes.parse()?)?;
                writeln!(caller, "ok")?;
            }
            ["reset"] => {
                reset()?;
                println!("bus-peer: the device was reset");
            }
            _ => return Err(format!("what is {line:?}?").into()),
        }
        Ok(Answer::Done)
    }

    fn echo(&mut self, caller: &mut VsockStream) -> io::Result<()> {
        loop {
            match caller.read(&mut self.chunk)? {
                0 => return Ok(()),
                count => caller.write_all(&self.chunk[..count])?,
            }
        }
    }

    fn sink(&mut self, caller: &mut VsockStream) -> io::Result<u64> {
        let mut taken = 0;
        loop {
            match caller.read(&mut self.chunk)? {
                0 => return Ok(taken),
                count => taken += count as u64,
            }
        }
    }

    fn flood(&mut self, port: u32) -> io::Result<u64> {
        let mut stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)?;
        stream.set_write_timeout(Some(STUCK))?;
        let mut taken = 0;
        loop {
            match stream.write(&BYTES) {
                Ok(count) => taken += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.kept.push(stream);
        Ok(taken)
    }

    /// Has so many callers at once, whom it tells their numbers.
    fn listen(&mut self, count: u32) -> Result<()> {
        let mut callers = Vec::new();
        for number in 0..count {
            let (mut caller, _) = self.listener.accept()?;
            caller.write_all(&number.to_le_bytes())?;
            callers.push(caller);
        }
        hear_numbers(&mut callers)
    }
}

/// Has so many connections to the host at once. Each says its number and hears it
/// again, every other one after it has said that it will say no more.
fn call(port: u32, count: u32) -> Result<()> {
    let mut streams = Vec::new();
    for number in 0..count {
        let mut stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)?;
        stream.write_all(&number.to_le_bytes())?;
        if number % 2 == 1 {
            stream.shutdown(Shutdown::Write)?;
        }
        streams.push(stream);
    }
    hear_numbers(&mut streams)
}

fn hear_numbers(streams: &mut [VsockStream]) -> Result<()> {
    for (number, stream) in (0_u32..).zip(streams) {
        let mut heard = [0; 4];
        stream.read_exact(&mut heard)?;
        if heard != number.to_le_bytes() {
            return Err(format!("connection {number} heard {heard:?}").into());
        }
    }
    Ok(())
}

fn source(caller: &mut VsockStream, mut bytes: usize) -> io::Result<()> {
    while bytes > 0 {
        let count = bytes.min(CHUNK);
        caller.write_all(&BYTES[..count])?;
        bytes -= count;
    }
    Ok(())
}

fn print(bytes: usize) -> io::Result<()> {
    let line = [&[b'z'; 63][..], b"\n"].concat();
    let mut console = io::stdout().lock();
    (0..bytes.div_ceil(line.len())).try_for_each(|_| console.write_all(&line))
}

fn write(disk: &str, offset: u64, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(disk)?;
    over_chunks(offset, bytes, |at, count| {
        file.write_all_at(&BYTES[..count], at)
    })?;
    file.sync_all()
}

fn read(disk: &str, offset: u64, bytes: u64) -> io::Result<()> {
    let file = File::options()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(disk)?;
    let mut room = vec![0; CHUNK + PAGE];
    let start = room.as_ptr().align_offset(PAGE);
    over_chunks(offset, bytes, |at, count| {
        file.read_exact_at(&mut room[start..start + count], at)
    })
}

fn discard(disk: &str, offset: i64, bytes: i64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(disk)?;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, hole, offset, bytes)?)
}

fn over_chunks(
    offset: u64,
    bytes: u64,
    mut act: impl FnMut(u64, usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        let count = (bytes - done).min(CHUNK as u64);
        act(offset + done, count as usize)?;
        done += count;
    }
    Ok(())
}

fn reset() -> io::Result<()> {
    let devices =
        fs::read_dir(DRIVER)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let device = devices
        .into_iter()
        .find(|name| name.starts_with("virtio"))
        .ok_or_else(|| io::Error::other("there is no vsock device"))?;
    for action in ["unbind", "bind"] {
        fs::write(format!("{DRIVER}/{action}"), &device)?;
    }
    Ok(())
}
