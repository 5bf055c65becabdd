//! Where the controller listens: TCP ports, where only mTLS 1.3 is spoken, and unix
//! sockets, where file permission is the rule.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::net::{TcpListener, UnixListener};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnixListenerStream};
use tonic::transport::server::{Connected, UdsConnectInfo};

use crate::trust::gate::{Gate, Secured, TlsPeer};

/// Longest path of a unix socket that Linux takes, in bytes (`sun_path`, with
/// its closing NUL).
const LONGEST_PATH: usize = 107;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// An address that nobody can or may listen at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// It is no address.
    #[error("{0:?} is no address to listen at; give IP:PORT, [IPV6]:PORT or unix:PATH")]
    Unknown(String),
    /// No socket can have such a path.
    #[error("unix:{} is longer than the {LONGEST_PATH} bytes that a socket's path can have", .0.display())]
    TooLong(PathBuf),
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return match path.as_os_str().len() {
                0 => Err(InvalidAddress::Unknown(text.to_owned())),
                1..=LONGEST_PATH => Ok(Self::Unix(path)),
                _ => Err(InvalidAddress::TooLong(path)),
            };
        }
        let loopback = text
            .strip_prefix("localhost:")
            .map(|port| format!("127.0.0.1:{port}"));
        let address = loopback.as_deref().unwrap_or(text);
        let address = address
            .parse()
            .map_err(|_| InvalidAddress::Unknown(text.to_owned()))?;
        Ok(Self::Tcp(address))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Someone listens there already, or nobody can.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    /// Where.
    address: Address,
    /// Why.
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
    Unix(UnixListener, RemoveOnDrop),
}

/// Removes a socket's file.
#[derive(Debug)]
struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens at the address.
    ///
    /// # Errors
    ///
    /// Someone else does, or nobody can.
    pub async fn bind(address: Address) -> Result<Self, ListenError> {
        let failed = |source| ListenError {
            address: address.clone(),
            source,
        };
        match &address {
            Address::Tcp(wanted) => {
                let socket = TcpListener::bind(wanted).await.map_err(failed)?;
                let bound = socket.local_addr().map_err(failed)?;
                Ok(Self {
                    address: Address::Tcp(bound),
                    socket: Socket::Tcp(socket),
                })
            }
            Address::Unix(path) => {
                remove_stale(path).map_err(failed)?;
                let socket = UnixListener::bind(path).map_err(failed)?;
                let guard = RemoveOnDrop(path.clone());
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
                Ok(Self {
                    address,
                    socket: Socket::Unix(socket, guard),
                })
            }
        }
    }

    /// Where it listens; the port is the one it was given.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// The connections that come, as a gate lets them in.
    #[must_use]
    pub fn connections(self, gate: &Arc<Gate>) -> Connections {
        match self.socket {
            Socket::Tcp(socket) => {
                let accepted = Arc::clone(gate).connections(socket);
                Connections {
                    stream: Box::pin(
                        accepted.map(|secured| Ok(Connection::Tls(Box::new(secured)))),
                    ),
                    _guard: None,
                }
            }
            Socket::Unix(socket, guard) => Connections {
                stream: Box::pin(
                    UnixListenerStream::new(socket).map(|accepted| accepted.map(Connection::Unix)),
                ),
                _guard: Some(guard),
            },
        }
    }
}

/// A socket file that nobody listens at was left by someone who was killed.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket =
        fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// The connections that come to a listener.
pub struct Connections {
    stream: Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>,
    _guard: Option<RemoveOnDrop>,
}

impl Stream for Connections {
    type Item = io::Result<Connection>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Connection>>> {
        self.stream.as_mut().poll_next(context)
    }
}

/// A connection of either kind.
pub enum Connection {
    /// Over TCP, by TLS.
    Tls(Box<Secured>),
    /// Over a unix socket.
    Unix(tokio::net::UnixStream),
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Over TCP, by TLS.
    Tls(Arc<TlsPeer>),
    /// Over a unix socket.
    Unix(UdsConnectInfo),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match self {
            Self::Tls(stream) => Peer::Tls(Arc::clone(stream.peer())),
            Self::Unix(stream) => Peer::Unix(stream.connect_info()),
        }
    }
}

/// Passes every call on to whichever it is.
macro_rules! either {
    ($connection:expr, $stream:ident => $call:expr) => {
        match $connection.get_mut() {
            Connection::Tls($stream) => $call,
            Connection::Unix($stream) => $call,
        }
    };
}

impl tokio::io::AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl tokio::io::AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_unix_sockets_are_served() {
        for (text, shown) in [
            ("127.0.0.1:7070", "127.0.0.1:7070"),
            ("localhost:7070", "127.0.0.1:7070"),
            ("0.0.0.0:7070", "0.0.0.0:7070"),
            ("[::1]:0", "[::1]:0"),
            ("unix:/run/fabric.sock", "unix:/run/fabric.sock"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "7070",
            "unix:",
            "example.com:1",
            "127.0.0.1",
            "http://127.0.0.1:1",
        ] {
            assert!(
                matches!(text.parse::<Address>(), Err(InvalidAddress::Unknown(_))),
                "{text}"
            );
        }
        assert!(matches!(
            format!("unix:/{}", "a".repeat(200)).parse::<Address>(),
            Err(InvalidAddress::TooLong(_))
        ));
    }

    #[tokio::test]
    async fn a_socket_left_by_the_dead_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = Listener::bind(Address::Unix(path.clone())).await.unwrap();
        assert!(Listener::bind(Address::Unix(path.clone())).await.is_err());
        drop(first);
        assert!(!path.exists());
    }
}
