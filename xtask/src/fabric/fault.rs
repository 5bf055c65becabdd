//! The fault port of a guest, through its vsock's unix socket.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// vsock port on which a guest agent takes faults, if its host agent was started
/// with `--fault-injection`.
const PORT: u32 = 1025;

/// How long the guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Injects a fault into the guest of an instance, such as `kill-role web`.
pub fn inject(instance_dir: &Path, fault: &str) -> Result<()> {
    let socket = instance_dir.join("jail/vsock.sock");
    talk(&socket, fault).with_context(|| format!("injecting {fault:?} by {}", socket.display()))
}

fn talk(socket: &Path, fault: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut answer = String::new();
    writeln!(stream, "CONNECT {PORT}")?;
    answers
        .read_line(&mut answer)
        .context("connecting to the guest's fault port")?;
    ensure!(
        answer.starts_with("OK "),
        "the guest's fault port is closed: {:?}",
        answer.trim()
    );
    writeln!(stream, "{fault}")?;
    answer.clear();
    // A guest that obeys at once may not come to answer.
    if answers.read_line(&mut answer).is_ok() && !answer.is_empty() {
        ensure!(
            answer.trim() == "ok",
            "the guest refuses: {:?}",
            answer.trim()
        );
    }
    Ok(())
}
