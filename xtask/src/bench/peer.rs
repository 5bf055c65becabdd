//! A guest without a fabric, in which one program does what it is told over the VMBus.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build::Images, demo::service::Size, interrupt, process, process::Process, project::Project,
};

/// How long the guest may take until it listens, and for what it is told.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at whether it does.
const LOOK: Duration = Duration::from_millis(50);
/// Where the guest's program listens.
const PORT: u32 = 1000;
/// What its disk has room for.
pub const DISK_BYTES: u64 = 64 << 20;
/// Its VMM's control socket.
const CONTROL: &str = "control.sock";

/// A guest that is nothing but the other end.
pub struct Guest {
    vmm: Process,
    dir: tempfile::TempDir,
}

impl Guest {
    /// Starts one, and waits until it listens.
    pub fn start(project: &Project, images: &Images, size: &Size) -> Result<Guest> {
        let dir = tempfile::Builder::new().prefix("fabric-bench-").tempdir()?;
        let mut command = process::command(project.bin("fabric-vmm"), ["run", "--kernel"]);
        command.arg(&images.kernel);
        command.arg("--initrd").arg(&images.bus_peer);
        command.args(["--memory", &size.memory, "--vcpus", &size.vcpus.to_string()]);
        command.args(["--vsock-cid", "3", "--vsock"]);
        command.arg(socket(dir.path()));
        let at = |name: &str| dir.path().join(name).display().to_string();
        command.args(["--console", &format!("ring:{}", at("console.ring"))]);
        command.args(["--control", &at(CONTROL)]);
        let disk = File::create(at("disk")).context("making a disk")?;
        disk.set_len(DISK_BYTES).context("making a disk")?;
        command.args(["--disk", &format!("{},serial=d,format=raw", at("disk"))]);
        let vmm = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let mut guest = Guest { vmm, dir };
        guest.until_it_listens()?;
        Ok(guest)
    }

    /// Its VMM's control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.path().join(CONTROL)
    }

    /// Has the guest's program do something, and waits until it has.
    pub fn ask(&self, command: &str) -> Result<()> {
        let mut answer = String::new();
        BufReader::new(self.tell(command)?).read_line(&mut answer)?;
        ensure!(
            answer.trim() == "ok",
            "the guest answers {answer:?} to {command:?}"
        );
        Ok(())
    }

    fn until_it_listens(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            interrupt::check()?;
            if let Some(status) = self.vmm.wait_within(LOOK)? {
                bail!("fabric-vmm has ended before its guest listened: {status}");
            }
            if self.tell("echo").is_ok() {
                return Ok(());
            }
        }
        bail!("the guest does not listen within {} s", PATIENCE.as_secs())
    }

    /// A connection to the guest's program, which does what it is told on it.
    pub fn tell(&self, command: &str) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(socket(self.dir.path()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        writeln!(stream, "CONNECT {PORT}")?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            answer.extend(byte);
        }
        ensure!(answer.starts_with(b"OK "), "the guest does not listen");
        writeln!(stream, "{command}")?;
        Ok(stream)
    }

    /// Ends it.
    pub fn end(mut self) -> Result<()> {
        self.vmm.stop().context("ending the VMM").map(drop)
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("vsock.sock")
}
