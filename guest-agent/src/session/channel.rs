//! One HTTP/2 connection as the channel of a gRPC client.
//!
//! Tonic's own channel balances, buffers and reconnects; a guest agent has one
//! connection at a time and connects again by itself, and each page of code that
//! is touched costs a guest time.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    http::{Request, Response},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf},
    task::JoinHandle,
};
use tonic::body::Body;
use tower::Service;

/// Bytes that the host agent may send before they are read.
const WINDOW: u32 = 64 * 1024;

/// What is said in one go goes to the host in one packet, up to this size: each
/// packet costs the guest a system call, an interrupt and a turn of its driver.
const BUFFER: usize = 4096;
/// In one go is what the tasks say that run in so many turns of the connection's own. From a
/// call to its first message it is three.
const TURNS: u8 = 3;

/// A connection. Dropping it closes it.
pub struct Channel {
    sender: SendRequest<Body>,
    driver: JoinHandle<()>,
}

impl Channel {
    /// Speaks HTTP/2 on `io`.
    ///
    /// # Errors
    ///
    /// When the preface cannot be written.
    pub async fn open<I>(io: I) -> Result<Self, hyper::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_send_buf_size(WINDOW as usize)
            .handshake(TokioIo::new(Gathering::new(io)))
            .await?;
        // How it ended is told to whoever waits for a message.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, driver })
    }
}

/// Writes what is said in one go.
#[derive(Debug)]
struct Gathering<I> {
    io: BufWriter<I>,
    /// For how many turns what is there has waited.
    waited: u8,
}

impl<I: AsyncWrite> Gathering<I> {
    fn new(io: I) -> Self {
        Self {
            io: BufWriter::with_capacity(BUFFER, io),
            waited: 0,
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathering<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        read: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, read)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gathering<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.io.buffer().is_empty() && self.waited < TURNS {
            self.waited += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.waited = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn what_others_say_meanwhile_goes_along_and_nothing_stays_behind() {
        let (io, mut host) = duplex(BUFFER);
        let gathering = Gathering::new(io);
        let (mut reader, mut writer) = tokio::io::split(gathering);
        writer.write_all(b"one ").await.unwrap();
        let flushed = tokio::spawn(async move {
            writer.flush().await.unwrap();
            writer
        });
        let mut heard = [0; 16];
        let read = host.read(&mut heard).await.unwrap();
        assert_eq!(&heard[..read], b"one ");
        let mut writer = flushed.await.unwrap();

        let mut turns = 0;
        writer.write_all(b"two ").await.unwrap();
        std::future::poll_fn(|cx| {
            turns += 1;
            let flushed = Pin::new(&mut writer).poll_flush(cx);
            if flushed.is_pending() {
                let more = Pin::new(&mut writer).poll_write(cx, b"more ");
                assert!(matches!(more, Poll::Ready(Ok(5))));
            }
            flushed
        })
        .await
        .unwrap();
        assert_eq!(turns, TURNS + 1);
        let mut heard = [0; 32];
        let read = host.read(&mut heard).await.unwrap();
        assert_eq!(&heard[..read], b"two more more more ");

        host.write_all(b"yes").await.unwrap();
        let mut heard = [0; 3];
        reader.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"yes");
    }
}
