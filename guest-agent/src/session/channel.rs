//! One HTTP/2 connection as the channel of a gRPC client.
//!
//! Tonic's own channel balances, buffers and reconnects; a guest agent has one
//! connection at a time and connects again by itself, and each page of code that
//! is touched costs a guest time.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    http::{Request, Response},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufWriter},
    task::JoinHandle,
};
use tonic::body::Body;
use tower::Service;

/// Bytes that the host agent may send before they are read.
const WINDOW: u32 = 64 * 1024;

/// What is said in one go goes to the host in one packet, up to this size: each
/// packet costs the guest a system call, an interrupt and a turn of its driver.
const BUFFER: usize = 4096;

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
            .handshake(TokioIo::new(BufWriter::with_capacity(BUFFER, io)))
            .await?;
        // How it ended is told to whoever waits for a message.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, driver })
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
