//! The guest's power button: vsock port 1027, at which the VMM knocks.
//!
//! A lean kernel knows neither ACPI nor input devices. Who knocks is told `ok`, and the
//! guest powers off in order, as when a goal says so: its roles are stopped first. The
//! button is for when no goal can say so, because there is no session.

use std::{io, time::Duration};

use fabric_proto::vmbus::{HOST_CID, POWER_BUTTON_PORT};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc::Sender,
    time::timeout,
};

use crate::{console, door::Door};

/// Longest wait for whoever knocked to take the answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// It was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressed;

/// Waits at the button, for ever.
pub async fn listen(pressed: Sender<Pressed>) {
    let Some(door) = Door::open(POWER_BUTTON_PORT, "its power button") else {
        return;
    };
    loop {
        // One at a time, and none but the host: a process in here that connects to this
        // port has nothing to press.
        let (stream, from) = door.next().await;
        if from.cid() == HOST_CID {
            answer(stream, &pressed).await;
        }
    }
}

/// Says that it was heard, and passes it on whether or not that gets through.
async fn answer<S>(mut stream: S, pressed: &Sender<Pressed>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let told = async {
        stream.write_all(b"ok\n").await?;
        stream.shutdown().await?;
        // Once whoever knocked has closed, the answer has got through.
        stream.read(&mut [0]).await
    };
    let told = timeout(PATIENCE, told).await.map_err(io::Error::from);
    if let Err(error) | Ok(Err(error)) = told {
        console::say(format_args!("power button: {error}"));
    }
    // A second press while the first waits says nothing new.
    _ = pressed.try_send(Pressed);
}

#[cfg(test)]
mod tests {
    use tokio::{io::duplex, sync::mpsc};

    use super::*;

    #[tokio::test]
    async fn a_knock_is_answered_before_the_guest_goes_and_counts_once() {
        let (sender, mut presses) = mpsc::channel(1);
        for _ in 0..2 {
            let (mut host, stream) = duplex(64);
            let answering = answer(stream, &sender);
            let hearing = async {
                let mut heard = String::new();
                host.read_to_string(&mut heard).await.unwrap();
                drop(host);
                heard
            };
            let ((), heard) = tokio::join!(answering, hearing);
            assert_eq!(heard, "ok\n");
        }
        assert_eq!(presses.recv().await, Some(Pressed));
        assert!(presses.try_recv().is_err());
    }

    #[tokio::test]
    async fn who_knocks_and_does_not_listen_is_not_waited_for() {
        let (sender, mut presses) = mpsc::channel(1);
        let (_host, stream) = duplex(1);
        answer(stream, &sender).await;
        assert_eq!(presses.recv().await, Some(Pressed));
    }
}
