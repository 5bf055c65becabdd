//! Makes one check. When to make it, and what its results amount to, is decided
//! in `gauge` and `policy`.

use std::{io, time::Duration};

use rustix::process::Pid;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};

use super::{
    policy::Ending,
    process::{self, SpawnError},
};

/// Most bytes of an answer's head.
const LONGEST_HEAD: usize = 8 * 1024;
/// Most header fields in it.
const MOST_HEADERS: usize = 64;

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It took too long.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The port takes no connection.
    #[error("port {0}")]
    Connect(u16, #[source] io::Error),
    /// The connection broke before the answer was whole.
    #[error("port {0}: the connection broke")]
    Broke(u16, #[source] io::Error),
    /// What came is not HTTP.
    #[error("port {0}: the answer is not HTTP")]
    NotHttp(u16, #[source] httparse::Error),
    /// The answer's head does not end.
    #[error("port {0}: the answer's head is longer than {LONGEST_HEAD} bytes or incomplete")]
    Head(u16),
    /// The answer says no.
    #[error("port {0}: status {1}")]
    Status(u16, u16),
    /// The program said no.
    #[error("{0}")]
    Program(Ending),
    /// The program cannot be started.
    #[error(transparent)]
    Start(SpawnError),
    /// The program's end went unnoticed: the guest agent is going down.
    #[error("given up")]
    GivenUp,
}

/// Connects to a TCP port of the loopback; the connection is still to be closed.
///
/// # Errors
///
/// When it cannot, or not within `limit`.
pub async fn tcp(port: u16, limit: Duration) -> Result<TcpStream, Failure> {
    timeout(limit, connect(port))
        .await
        .map_err(|_| Failure::Timeout(limit))?
}

/// Makes an HTTP/1.1 GET request to the loopback; the connection is still to be closed.
///
/// # Errors
///
/// When the answer is not a status of 200 to 399, or does not come within `limit`.
pub async fn http(port: u16, path: &str, limit: Duration) -> Result<TcpStream, Failure> {
    timeout(limit, get(port, path))
        .await
        .map_err(|_| Failure::Timeout(limit))?
}

/// Waits for a program that was started for a check, and ends it and all that came
/// of it when it takes too long.
///
/// # Errors
///
/// When it ends otherwise than with status 0.
pub async fn exec(
    pid: Pid,
    ended: oneshot::Receiver<Ending>,
    limit: Duration,
) -> Result<(), Failure> {
    match timeout(limit, ended).await {
        Ok(Ok(Ending::Code(0))) => Ok(()),
        Ok(Ok(ending)) => Err(Failure::Program(ending)),
        Ok(Err(_)) => Err(Failure::GivenUp),
        Err(_) => {
            process::kill(pid);
            Err(Failure::Timeout(limit))
        }
    }
}

async fn connect(port: u16) -> Result<TcpStream, Failure> {
    TcpStream::connect(("127.0.0.1", port))
        .await
        .map_err(|error| Failure::Connect(port, error))
}

async fn get(port: u16, path: &str) -> Result<TcpStream, Failure> {
    let broke = |error| Failure::Broke(port, error);
    let mut stream = connect(port).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: fabric-probe\r\n\
         Accept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(broke)?;
    let mut head = Vec::with_capacity(512);
    loop {
        let read = stream.read_buf(&mut head).await.map_err(broke)?;
        if let Some(status) = status(&head).map_err(|error| Failure::NotHttp(port, error))? {
            return match status {
                200..=399 => Ok(stream),
                status => Err(Failure::Status(port, status)),
            };
        }
        if read == 0 || head.len() >= LONGEST_HEAD {
            return Err(Failure::Head(port));
        }
    }
}

/// The status of an answer, once its head is whole.
fn status(head: &[u8]) -> Result<Option<u16>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    Ok(if response.parse(head)?.is_complete() {
        response.code
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Answers one request with `answer`, then closes.
    async fn server(answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /health HTTP/1.1\r\n"));
            stream.write_all(answer).await.unwrap();
        });
        port
    }

    async fn answered(answer: &'static [u8]) -> Result<(), Failure> {
        http(server(answer).await, "/health", LIMIT).await.map(drop)
    }

    #[tokio::test]
    async fn an_http_check_goes_by_the_status() {
        answered(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        answered(b"HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n")
            .await
            .unwrap();
        let refused = answered(b"HTTP/1.1 503 Busy\r\n\r\n").await;
        assert!(
            matches!(refused, Err(Failure::Status(_, 503))),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn an_answer_that_is_not_http_or_not_whole_fails() {
        let garbage = answered(b"220 smtp ready\r\n\r\n").await;
        assert!(matches!(garbage, Err(Failure::NotHttp(..))), "{garbage:?}");
        let cut = answered(b"HTTP/1.1 200 OK\r\nX: ").await;
        assert!(matches!(cut, Err(Failure::Head(_))), "{cut:?}");
        static ENDLESS: [u8; 2 * LONGEST_HEAD] = {
            let mut answer = [b'a'; 2 * LONGEST_HEAD];
            let start = b"HTTP/1.1 200 OK\r\nX: ";
            let mut at = 0;
            while at < start.len() {
                answer[at] = start[at];
                at += 1;
            }
            answer
        };
        let endless = answered(&ENDLESS).await;
        assert!(matches!(endless, Err(Failure::Head(_))), "{endless:?}");
    }

    #[tokio::test]
    async fn a_port_that_nobody_serves_fails_at_once_and_a_mute_one_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tcp(port, LIMIT).await.unwrap();
        let mute = http(port, "/health", Duration::from_millis(20)).await;
        assert!(matches!(mute, Err(Failure::Timeout(_))), "{mute:?}");
        drop(listener);
        let closed = tcp(port, LIMIT).await;
        assert!(matches!(closed, Err(Failure::Connect(..))), "{closed:?}");
    }
}
