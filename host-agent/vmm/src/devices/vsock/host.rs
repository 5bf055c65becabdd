//! The unix sockets of the host side: listening, being called, calling.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use thiserror::Error;

/// The longest line that whoever calls may write: `CONNECT 4294967295` and a
/// little generosity.
const LINE_MAX: usize = 32;
/// The longest path: what fits into a socket address with `_4294967295` and the
/// final NUL.
pub const PATH_MAX: usize = 108 - 11 - 1;

/// Why the socket that the host calls at cannot be made.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The path does not fit into a socket address.
    #[error(
        "vsock path {} is {} bytes long: at most {PATH_MAX} fit; use a path relative to the \
         working directory", .path.display(), .path.as_os_str().len()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Somebody listens there.
    #[error("vsock path {} is in use by another process", .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is a file that is no socket; it is not touched.
    #[error("vsock path {} exists and is not a socket; remove it or name another", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The host refused.
    #[error("cannot listen at vsock path {}", .path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
}

/// The socket at which the host calls the guest. Its file goes when it goes.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that a successor's is left alone.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`, in the place of a socket that nobody listens at.
    ///
    /// # Errors
    ///
    /// [`ListenError`], which says what to do.
    pub fn bind(path: &Path) -> Result<Listener, ListenError> {
        let path = path.to_owned();
        if path.as_os_str().as_bytes().len() > PATH_MAX {
            return Err(ListenError::PathTooLong { path });
        }
        remove_stale(&path)?;
        match listen(&path) {
            Ok((socket, identity)) => Ok(Listener {
                socket,
                path,
                identity,
            }),
            Err(source) => Err(ListenError::Bind { path, source }),
        }
    }

    /// The next caller, if there is one.
    ///
    /// # Errors
    ///
    /// If the host gives no descriptor.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn listen(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let socket = UnixListener::bind(path)?;
    socket.set_nonblocking(true)?;
    Ok((socket, identity(path)?))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let path = path.to_owned();
    let Ok(metadata) = std::fs::symlink_metadata(&path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket { path });
    }
    if UnixStream::connect(&path).is_ok() {
        return Err(ListenError::InUse { path });
    }
    std::fs::remove_file(&path).map_err(|source| ListenError::Bind { path, source })
}

/// Calls whoever listens for connections to `port`, without waiting.
///
/// # Errors
///
/// If nobody listens there, or too many callers wait already.
pub fn call(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut target = path.as_os_str().to_owned();
    target.push(format!("_{port}"));
    let address = UnixAddr::new(Path::new(&target))?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(descriptor.as_raw_fd(), &address)?;
    Ok(UnixStream::from(descriptor))
}

/// Has the kernel hold at most about twice so many bytes that the other end of
/// `stream` has not read: its accounting counts its own overhead.
///
/// # Errors
///
/// If the host refuses.
pub fn bound_unread(stream: &UnixStream, bytes: usize) -> io::Result<()> {
    Ok(setsockopt(stream, sockopt::SndBuf, &bytes)?)
}

/// A caller that has not yet said which port it wants.
#[derive(Debug)]
pub struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
    /// When the host loses patience.
    pub until: Instant,
}

/// How far a caller has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// The line is not complete.
    Waiting,
    /// It wants this port of the guest.
    Port(u32),
    /// It went away or wrote something else.
    Failed,
}

impl Caller {
    /// A caller with nothing said.
    pub fn new(stream: UnixStream, until: Instant) -> Caller {
        Caller {
            stream,
            line: Vec::new(),
            until,
        }
    }

    /// The caller's socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Gives up the caller for its socket.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Reads on, byte by byte: what follows the line belongs to the guest.
    pub fn advance(&mut self) -> Progress {
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => return Progress::Failed,
                Ok(_) if byte[0] == b'\n' => return parse_line(&self.line),
                Ok(_) if self.line.len() == LINE_MAX => return Progress::Failed,
                Ok(_) => self.line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Progress::Failed,
            }
        }
    }
}

fn parse_line(line: &[u8]) -> Progress {
    let port = std::str::from_utf8(line).ok().and_then(|text| {
        let (word, port) = text.trim_end().split_once(' ')?;
        word.eq_ignore_ascii_case("connect")
            .then(|| port.trim().parse().ok())?
    });
    port.map_or(Progress::Failed, Progress::Port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_line_names_a_port() {
        assert_eq!(parse_line(b"CONNECT 1024"), Progress::Port(1024));
        assert_eq!(
            parse_line(b"connect 4294967295\r"),
            Progress::Port(u32::MAX)
        );
        for bad in [
            "",
            "CONNECT",
            "CONNECT ",
            "CONNECT x",
            "CONNECT -1",
            "CONNECT 4294967296",
            "HELLO 1",
        ] {
            assert_eq!(parse_line(bad.as_bytes()), Progress::Failed, "{bad:?}");
        }
        assert_eq!(parse_line(&[0xff, b' ', b'1']), Progress::Failed);
    }

    #[test]
    fn a_caller_may_write_in_pieces_and_keeps_what_follows_the_line() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut caller = Caller::new(theirs, Instant::now());
        ours.write_all(b"CONN").unwrap();
        assert_eq!(caller.advance(), Progress::Waiting);
        ours.write_all(b"ECT 7\nhello").unwrap();
        assert_eq!(caller.advance(), Progress::Port(7));
        drop(ours);
        let mut rest = String::new();
        caller.into_stream().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello");
    }

    #[test]
    fn a_caller_that_never_ends_its_line_is_refused() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        ours.write_all(&[b'x'; 100]).unwrap();
        assert_eq!(
            Caller::new(theirs, Instant::now()).advance(),
            Progress::Failed
        );
    }

    #[test]
    fn a_stale_socket_is_replaced_and_the_file_goes_with_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        // What a killed process leaves behind: the file without the listener.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::InUse { .. })
        ));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn a_successors_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let old = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _successor = Listener::bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_cannot_carry_a_port_is_refused_by_its_length() {
        let path = PathBuf::from("x".repeat(PATH_MAX + 1));
        let error = Listener::bind(&path).unwrap_err();
        assert!(error.to_string().contains("at most 96"), "{error}");
    }
}
