//! Hears of a connection's error where nobody reads or writes.
//!
//! A guest that is restored is told that its VMBus was reset (virtio 1.2, 5.10.6.7). Its
//! kernel takes note of that in each connection as an error, with nothing to read and no end:
//! who waits for the next message learns of it when he next writes, with the next heartbeat.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// The alarm of one connection.
#[derive(Debug)]
pub struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    /// Listens to the errors of a connection, and to nothing else of it.
    ///
    /// # Errors
    ///
    /// When there are too many descriptors.
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types that may close what they own: an OwnedFd does not"
    )]
    pub fn on(connection: &impl AsFd) -> io::Result<Self> {
        let same = connection.as_fd().try_clone_to_owned()?;
        // Something has to be asked for: no connection here has urgent data.
        AsyncFd::with_interest(same, Interest::PRIORITY).map(Self)
    }

    /// Waits until there is an error.
    pub async fn raised(&self) {
        // What cannot be listened to any more is of no use either.
        _ = self.0.ready(Interest::ERROR).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixStream,
    };

    use super::*;

    #[tokio::test]
    async fn it_is_raised_by_an_error() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let alarm = Alarm::on(&ours).unwrap();
        // What is closed with something unread in it is reset.
        ours.write_all(b"unread").await.unwrap();
        drop(theirs);
        alarm.raised().await;
    }

    #[tokio::test]
    async fn neither_a_message_nor_an_orderly_end_raises_it() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let alarm = Alarm::on(&ours).unwrap();
        theirs.write_all(b"message").await.unwrap();
        drop(theirs);
        let mut heard = Vec::new();
        ours.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"message");
        tokio::select! {
            biased;
            () = alarm.raised() => panic!("raised"),
            () = std::future::ready(()) => {}
        }
    }
}
