//! A virtual machine without a fabric, whose guest is the other end of the VMBus and of
//! a disk: `bus-peer`, which does what it is told.

use std::{
    fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::{
        fs::chown,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{BOOT, Place, Program, eventually};

/// Where `bus-peer` listens.
const PORT: u32 = 1000;
/// The directory that the machine still sees in its jail.
const JAIL: &str = "jail";
/// Its channel to its guest.
const CHANNEL: &str = "jail/v";
/// The first of the users that such machines are: beyond those that host agents choose from.
const FIRST_USER: u32 = 0x7100_0000;
/// How long a step of a conversation may take.
const PATIENCE: Duration = Duration::from_secs(120);

static MACHINES: AtomicU32 = AtomicU32::new(0);

/// The machine.
#[derive(Debug)]
pub struct Peer {
    vmm: Program,
    dir: TempDir,
    /// What it is in its jail, if it is not us.
    user: Option<u32>,
}

impl Peer {
    /// Starts one, and waits until its guest listens. `prepare` is given the machine's
    /// directory, and says what its configuration has beside the usual.
    ///
    /// # Errors
    ///
    /// It does not come to that.
    pub async fn start(prepare: impl FnOnce(&Path) -> Result<Value>) -> Result<Peer> {
        let place = Place::find()?;
        ensure!(
            place.bus_peer.exists(),
            "{} is missing: run `cargo xtask test`",
            place.bus_peer.display()
        );
        let dir = tempfile::Builder::new().prefix("fabric-test-").tempdir()?;
        let more = prepare(dir.path())?;
        let at = |name: &str| dir.path().join(name);
        let mut config = json!({
            "kernel": place.kernel, "initrd": place.bus_peer,
            "vsock": {"cid": 3, "path": at(CHANNEL)}, "control": at("control.sock"),
            "console": {"ring": {"path": at("console")}},
        });
        let jail = at(JAIL);
        fs::create_dir(&jail)?;
        let is_root = nix::unistd::geteuid().is_root();
        let user = is_root.then(|| FIRST_USER + MACHINES.fetch_add(1, Ordering::Relaxed));
        chown(&jail, user, user)?;
        for (name, value) in more.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        fs::write(at("vm.json"), config.to_string())?;
        let who = match user {
            Some(user) => ["--user".into(), user.to_string()],
            // Without root there is no other to become.
            None => ["--allow-missing-isolation".into(), "uid".into()],
        };
        let mut command = vec![
            place.program("fabric-vmm").display().to_string(),
            "run".into(),
            "--config".into(),
            at("vm.json").display().to_string(),
            "--directory".into(),
            jail.display().to_string(),
        ];
        command.extend(who);
        let vmm = Program::start(command, &at("vmm.log"))?;
        let peer = Peer { vmm, dir, user };
        peer.until_it_answers(BOOT).await?;
        Ok(peer)
    }

    /// A path in the machine's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The VMM's process.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn pid(&self) -> Result<u32> {
        let keeper = self.vmm.pid().context("the VMM runs")?;
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
        let pid = children.trim().parse();
        pid.with_context(|| format!("{keeper} keeps {children:?}"))
    }

    /// Waits until the guest answers.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn until_it_answers(&self, deadline: Duration) -> Result<()> {
        eventually(deadline, "the guest to answer", || async {
            let answer = self.tell("echo").and_then(|mut stream| {
                let mut heard = [0; 4];
                stream.write_all(b"here")?;
                stream.read_exact(&mut heard)?;
                Ok(heard)
            });
            match answer {
                Ok(heard) if heard == *b"here" => Ok(()),
                answer => Err(format!("{answer:?}, {}", self.vmm.log())),
            }
        })
        .await
    }

    /// Has the guest listened to at a port of the host.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn listen(&self, port: u32) -> Result<UnixListener> {
        let path = self.path(&format!("{CHANNEL}_{port}"));
        let listener = UnixListener::bind(&path)?;
        chown(path, self.user, self.user)?;
        Ok(listener)
    }

    /// A connection to a port of the guest.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub fn connect(&self) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(self.path(CHANNEL))?;
        patient(&stream)?;
        writeln!(stream, "CONNECT {PORT}")?;
        let answer = line(&mut stream)?;
        ensure!(answer.starts_with("OK "), "{answer:?}");
        Ok(stream)
    }

    /// A connection on which the guest does what it is told.
    ///
    /// # Errors
    ///
    /// It cannot be told.
    pub fn tell(&self, command: &str) -> Result<UnixStream> {
        let mut stream = self.connect()?;
        writeln!(stream, "{command}")?;
        Ok(stream)
    }

    /// What the guest answers when it has done it.
    ///
    /// # Errors
    ///
    /// It cannot be told, or does not answer.
    pub fn ask(&self, command: &str) -> Result<String> {
        line(&mut self.tell(command)?)
    }

    /// What the VMM answers on its control socket.
    ///
    /// # Errors
    ///
    /// It does not, or refuses.
    pub fn control(&self, request: &Value) -> Result<Value> {
        control(&self.path("control.sock"), request)
    }

    /// What the VMM has counted.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn stats(&self) -> Result<Value> {
        Ok(self.control(&json!({"op": "stats"}))?["stats"].take())
    }
}

/// What a VMM answers on its control socket.
///
/// # Errors
///
/// It does not, or refuses.
pub fn control(socket: &Path, request: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    patient(&stream)?;
    writeln!(stream, "{request}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer: Value = serde_json::from_str(&line)?;
    ensure!(answer["ok"] == true, "{request} is answered by {answer}");
    Ok(answer)
}

/// Writes until nothing more is taken; how many bytes were.
///
/// # Errors
///
/// The other end is gone.
pub fn fill(stream: &mut UnixStream) -> Result<u64> {
    stream.set_nonblocking(true)?;
    let mut taken = 0;
    loop {
        match stream.write(&[0x77; 4096]) {
            Ok(count) => taken += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    stream.set_nonblocking(false)?;
    Ok(taken)
}

/// The next line, byte by byte: what follows is not taken.
///
/// # Errors
///
/// The stream ends before the line does.
pub fn line(stream: &mut UnixStream) -> Result<String> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("waiting for a line")?;
        if byte == *b"\n" {
            return Ok(String::from_utf8(line)?);
        }
        line.extend(byte);
    }
}

/// Gives a stream so much time for each step.
///
/// # Errors
///
/// The system refuses.
pub fn patient(stream: &UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream.set_write_timeout(Some(PATIENCE))?)
}
