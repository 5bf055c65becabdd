//! Faults on request, for tests and demonstrations: only where the kernel command
//! line says `fabric.faults=1`.
//!
//! One line a connection on vsock port 1025, answered `ok` before it is done, or
//! with what is wrong with it:
//!
//! | line | what happens |
//! |---|---|
//! | `kill-role NAME` | the role's processes get SIGKILL |
//! | `hang-role NAME` | the role's processes get SIGSTOP |
//! | `hang-agent` | the guest agent does nothing any more |
//! | `exit-agent` | the guest agent exits, and the kernel panics for it |
//! | `panic` | the kernel panics |
//! | `reboot`, `power-off` | the guest goes down in order |

use std::{fs, io, process, str::FromStr, thread, time::Duration};

use fabric_proto::{
    id::{InvalidId, RoleName},
    vmbus::FAULT_PORT,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc::Sender,
    time::timeout,
};

use crate::{console, door::Door};

/// Longest line taken.
const LONGEST: usize = 128;
/// Longest wait for the line, and for the asker to take the answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// End the role's processes.
    KillRole(RoleName),
    /// Stop the role's processes.
    HangRole(RoleName),
    /// Do nothing any more.
    HangAgent,
    /// Exit.
    ExitAgent,
    /// Panic the kernel.
    Panic,
    /// Reboot in order.
    Reboot,
    /// Power off in order.
    PowerOff,
}

/// A line that asks for no fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownFault {
    /// The word is none of those.
    #[error(
        "expected kill-role NAME, hang-role NAME, hang-agent, exit-agent, panic, reboot or power-off"
    )]
    Word,
    /// The name is not one.
    #[error(transparent)]
    Role(#[from] InvalidId),
}

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(line: &str) -> Result<Self, UnknownFault> {
        Ok(match line.split_once(' ').unwrap_or((line, "")) {
            ("kill-role", name) => Self::KillRole(name.parse()?),
            ("hang-role", name) => Self::HangRole(name.parse()?),
            ("hang-agent", "") => Self::HangAgent,
            ("exit-agent", "") => Self::ExitAgent,
            ("panic", "") => Self::Panic,
            ("reboot", "") => Self::Reboot,
            ("power-off", "") => Self::PowerOff,
            _ => return Err(UnknownFault::Word),
        })
    }
}

/// Takes faults from the host and passes them on, for ever.
pub async fn listen(faults: Sender<Fault>) {
    let Some(door) = Door::open(FAULT_PORT, "faults") else {
        return;
    };
    loop {
        // One at a time: nobody has a right to several.
        let (stream, _) = door.next().await;
        _ = serve(stream, &faults).await;
    }
}

async fn serve<S>(mut stream: S, faults: &Sender<Fault>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let line = timeout(PATIENCE, read_line(&mut stream)).await??;
    let fault = match line.parse::<Fault>() {
        Ok(fault) => fault,
        Err(error) => {
            return stream
                .write_all(format!("error: {error}\n").as_bytes())
                .await;
        }
    };
    stream.write_all(b"ok\n").await?;
    stream.shutdown().await?;
    // Once the asker has closed, the answer has got through.
    _ = timeout(PATIENCE, stream.read(&mut [0])).await;
    faults.send(fault).await.map_err(io::Error::other)
}

async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::with_capacity(LONGEST);
    let mut limited = stream.take(LONGEST as u64);
    while !line.ends_with(b"\n") && limited.read_buf(&mut line).await? > 0 {}
    let line = String::from_utf8(line).map_err(io::Error::other)?;
    Ok(line.trim_end().to_owned())
}

/// Does to the guest agent or the kernel what cannot be undone.
pub fn inflict(fault: &Fault) {
    match fault {
        Fault::HangAgent => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        Fault::Panic => {
            // Without SysRq, init's end does it.
            if let Err(error) = fs::write("/proc/sysrq-trigger", "c") {
                console::say(format_args!("cannot write /proc/sysrq-trigger: {error}"));
            }
            process::exit(1)
        }
        Fault::ExitAgent => process::exit(1),
        Fault::KillRole(_) | Fault::HangRole(_) | Fault::Reboot | Fault::PowerOff => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::duplex, sync::mpsc};

    use super::*;

    #[test]
    fn each_fault_is_one_line_and_nothing_else_is_taken() {
        let web = || "web".parse::<RoleName>().unwrap();
        assert_eq!("kill-role web".parse(), Ok(Fault::KillRole(web())));
        assert_eq!("hang-role web".parse(), Ok(Fault::HangRole(web())));
        assert_eq!("power-off".parse(), Ok(Fault::PowerOff));
        for line in ["", "kill", "panic now", "PANIC"] {
            assert_eq!(line.parse::<Fault>(), Err(UnknownFault::Word), "{line:?}");
        }
        assert!(matches!(
            "kill-role ../x".parse::<Fault>(),
            Err(UnknownFault::Role(_))
        ));
    }

    #[tokio::test]
    async fn a_fault_is_answered_before_it_is_done() {
        let (sender, mut faults) = mpsc::channel(1);
        let (mut asker, stream) = duplex(256);
        let served = tokio::spawn(async move { serve(stream, &sender).await });
        asker.write_all(b"kill-role web\n").await.unwrap();
        let mut answer = [0; 3];
        asker.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ok\n");
        drop(asker);
        assert_eq!(
            faults.recv().await,
            Some(Fault::KillRole("web".parse().unwrap()))
        );
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_line_that_does_not_end_is_not_read_for_ever() {
        let (sender, _faults) = mpsc::channel(1);
        let (mut asker, stream) = duplex(4096);
        asker.write_all(&[b'x'; 4096]).await.unwrap();
        let served = tokio::spawn(async move { serve(stream, &sender).await });
        let mut answer = String::new();
        asker.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("error: expected kill-role"), "{answer}");
        served.await.unwrap().unwrap();
    }
}
