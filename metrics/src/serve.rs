//! `GET /metrics`, plain HTTP, without any authentication: on loopback or a unix socket
//! only.
//!
//! Read-only, and bounded: so many connections, so many bytes of a request, so much time
//! for each. What is asked for at once is looked at one after another.

use std::{
    convert::Infallible,
    fmt, fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Mutex, Semaphore},
    task::JoinSet,
    time,
};

/// Most connections at once; others wait.
const CONNECTIONS: usize = 8;
/// Longest head of a request, in bytes.
const HEAD: usize = 8 * 1024;
/// How long a connection may take, from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to leave a listener alone that cannot take a connection.
const AGAIN: Duration = Duration::from_millis(100);
/// What the answer is.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP port of loopback.
    Loopback(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// An address at which metrics are not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// It is no address.
    #[error("{0:?} is no address to listen at; give 127.0.0.1:PORT, [::1]:PORT or unix:PATH")]
    Unknown(String),
    /// Others could reach it.
    #[error(
        "{0} can be reached from other machines, and whoever asks for metrics is not asked who \
         they are; give 127.0.0.1:PORT, [::1]:PORT or unix:PATH"
    )]
    Open(SocketAddr),
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let unknown = |_| InvalidAddress::Unknown(text.to_owned());
        let address: SocketAddr = text.parse().map_err(unknown)?;
        if address.ip().is_loopback() {
            Ok(Self::Loopback(address))
        } else {
            Err(InvalidAddress::Open(address))
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => write!(f, "http://{address}/metrics"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Nobody can listen there.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {address}")]
pub struct ListenError {
    address: Address,
    #[source]
    source: io::Error,
}

/// An open listener. A unix socket's file goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// The socket's file.
        _file: RemoveOnDrop,
    },
}

#[derive(Debug)]
struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Who has connected.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Listener {
    /// Listens at the address. Only our own user can open the unix socket.
    ///
    /// # Errors
    ///
    /// Someone else does, or nobody can.
    pub async fn bind(address: &Address) -> Result<Self, ListenError> {
        let failed = |source| ListenError {
            address: address.clone(),
            source,
        };
        match address {
            Address::Loopback(wanted) => {
                let socket = TcpListener::bind(wanted).await.map_err(failed)?;
                let bound = socket.local_addr().map_err(failed)?;
                Ok(Self {
                    address: Address::Loopback(bound),
                    socket: Socket::Tcp(socket),
                })
            }
            Address::Unix(path) => {
                remove_stale(path).map_err(failed)?;
                let socket = UnixListener::bind(path).map_err(failed)?;
                let file = RemoveOnDrop(path.clone());
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
                Ok(Self {
                    address: address.clone(),
                    socket: Socket::Unix {
                        listener: socket,
                        _file: file,
                    },
                })
            }
        }
    }

    /// Where it listens; the port is the one that it was given.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match &self.socket {
            Socket::Tcp(listener) => Box::new(listener.accept().await?.0),
            Socket::Unix { listener, .. } => Box::new(listener.accept().await?.0),
        })
    }

    /// Answers with what `look` says, until this is dropped.
    pub async fn serve<F>(self, look: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        tracing::info!("metrics are at {}", self.address);
        // Looking is work: it is done for one at a time.
        let look = Arc::new(Mutex::new(look));
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut open = JoinSet::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            while open.try_join_next().is_some() {}
            let stream = match self.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::debug!(%error, "cannot take a connection for metrics");
                    time::sleep(AGAIN).await;
                    continue;
                }
            };
            let look = Arc::clone(&look);
            open.spawn(async move {
                let answered = service_fn(move |request| {
                    let look = Arc::clone(&look);
                    async move { Ok::<_, Infallible>(answer(&request, &look).await) }
                });
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .max_buf_size(HEAD)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), answered);
                // Who breaks off has what they wanted.
                let _ = time::timeout(PATIENCE, served).await;
                drop(place);
            });
        }
    }
}

async fn answer<F>(
    request: &Request<Incoming>,
    look: &Mutex<impl Fn() -> F>,
) -> Response<Full<Bytes>>
where
    F: Future<Output = Result<String, String>>,
{
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is /metrics\n".to_owned());
    }
    if request.method() != Method::GET {
        let text = "metrics can only be read: GET /metrics\n".to_owned();
        return plain(StatusCode::METHOD_NOT_ALLOWED, text);
    }
    let look = look.lock().await;
    match look().await {
        Ok(text) => {
            let mut response = plain(StatusCode::OK, text);
            let kind = header::HeaderValue::from_static(OPEN_METRICS);
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, why + "\n"),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

/// Removes a socket that nobody listens at any more; any other file is left alone.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|facts| facts.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refused) {
        return fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpStream, UnixStream},
    };

    use super::*;

    #[test]
    fn only_loopback_and_unix_sockets_can_be_listened_at() {
        for wrong in ["0.0.0.0:1", "10.0.0.1:9", "[::]:1", "9090", "unix:", "/x"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong} was taken");
        }
        for right in ["127.0.0.1:9090", "[::1]:0", "unix:/x/y"] {
            assert!(right.parse::<Address>().is_ok(), "{right} was not taken");
        }
    }

    async fn start(address: &str) -> (Address, tokio::task::JoinHandle<()>) {
        let listener = Listener::bind(&address.parse().unwrap()).await.unwrap();
        let address = listener.address().clone();
        let serving = tokio::spawn(listener.serve(|| async { Ok("a 1\n# EOF\n".to_owned()) }));
        (address, serving)
    }

    async fn say(mut stream: impl Stream, text: &str) -> String {
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        String::from_utf8(said).unwrap()
    }

    async fn ask(address: &Address, text: &str) -> String {
        match address {
            Address::Loopback(at) => say(TcpStream::connect(at).await.unwrap(), text).await,
            Address::Unix(path) => say(UnixStream::connect(path).await.unwrap(), text).await,
        }
    }

    #[tokio::test]
    async fn metrics_are_read_and_nothing_else_is_there() {
        let (address, _serving) = start("127.0.0.1:0").await;
        let said = ask(&address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        assert!(
            said.contains(OPEN_METRICS) && said.ends_with("# EOF\n"),
            "{said}"
        );
        let said = ask(&address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 404"), "{said}");
        let said = ask(&address, "POST /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 405"), "{said}");
    }

    #[tokio::test]
    async fn a_unix_socket_is_for_its_owner_and_goes_with_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.sock");
        let (address, serving) = start(&format!("unix:{}", path.display())).await;
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let said = ask(&address, "GET /metrics HTTP/1.0\r\n\r\n").await;
        assert!(said.contains("200 OK"), "{said}");
        serving.abort();
        let _ = serving.await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_long_request_is_refused() {
        let (address, _serving) = start("127.0.0.1:0").await;
        let long = "x".repeat(2 * HEAD);
        let said = ask(
            &address,
            &format!("GET /metrics HTTP/1.1\r\nx: {long}\r\n\r\n"),
        )
        .await;
        assert!(!said.contains("200 OK"), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_keeps_nobody_out() {
        let (address, _serving) = start("127.0.0.1:0").await;
        let Address::Loopback(at) = address else {
            panic!("not a port");
        };
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            silent.push(TcpStream::connect(at).await.unwrap());
        }
        let said = ask(&Address::Loopback(at), "GET /metrics HTTP/1.0\r\n\r\n").await;
        assert!(said.contains("200 OK"), "{said}");
    }
}
