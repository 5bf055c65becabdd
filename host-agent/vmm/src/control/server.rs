//! Answers the control socket, in the machine's event loop.
//!
//! A caller is not trusted with time or memory: few connections at once, short
//! lines, and whoever does not take their answer is disconnected.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use thiserror::Error;

use super::protocol::{Answer, REQUEST_MAX, Request, parse_request};

/// How many callers may be connected; the longest connected one makes room.
const CONNECTIONS_MAX: usize = 8;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Somebody answers there already.
    #[error("control socket {path} is in use by another machine")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("cannot make control socket {path}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Who knows the answers.
pub trait Answerer: Send {
    /// Carries out a request.
    fn answer(&mut self, request: Request) -> Answer;
}

/// The control socket, to which nobody listens yet. Its file is removed when
/// this is dropped.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
}

/// The control socket.
pub struct ControlServer {
    socket: ControlListener,
    connections: VecDeque<Connection>,
    answerer: Box<dyn Answerer>,
}

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
}

impl std::fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlServer")
            .field("path", &self.socket.path)
            .finish_non_exhaustive()
    }
}

impl ControlListener {
    /// Makes the socket. One that a dead machine left there is replaced.
    ///
    /// # Errors
    ///
    /// When a living machine has it or it cannot be made.
    pub fn bind(path: &Path) -> Result<ControlListener, ServerError> {
        let fail = |source| ServerError::Bind {
            path: path.to_owned(),
            source,
        };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    return Err(ServerError::InUse {
                        path: path.to_owned(),
                    });
                }
                std::fs::remove_file(path).map_err(fail)?;
                UnixListener::bind(path).map_err(fail)?
            }
            other => other.map_err(fail)?,
        };
        listener.set_nonblocking(true).map_err(fail)?;
        let path = path.to_owned();
        Ok(ControlListener { listener, path })
    }

    /// Listens, for who knows the answers.
    pub fn serve(self, answerer: Box<dyn Answerer>) -> ControlServer {
        ControlServer {
            socket: self,
            connections: VecDeque::new(),
            answerer,
        }
    }
}

impl ControlServer {
    fn accept(&mut self, ops: &mut EventOps) {
        let Ok((stream, _)) = self.socket.listener.accept() else {
            return;
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.connections.len() == CONNECTIONS_MAX {
            self.disconnect(0, ops);
        }
        if ops.add(Events::new(&stream, EventSet::IN)).is_ok() {
            self.connections.push_back(Connection {
                stream,
                received: Vec::new(),
            });
        }
    }

    fn disconnect(&mut self, index: usize, ops: &mut EventOps) {
        if let Some(connection) = self.connections.remove(index) {
            let _ = ops.remove(Events::empty(&connection.stream));
        }
    }

    fn serve(&mut self, fd: RawFd, ops: &mut EventOps) {
        let Some(index) = self
            .connections
            .iter()
            .position(|c| c.stream.as_raw_fd() == fd)
        else {
            return;
        };
        let keep = self.connections[index].receive()
            && self.connections[index].answer_all(&mut *self.answerer);
        if !keep {
            self.disconnect(index, ops);
        }
    }
}

impl Connection {
    /// Takes what has arrived; false when the caller has gone.
    fn receive(&mut self) -> bool {
        let mut bytes = [0; 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.received.extend_from_slice(&bytes[..count]);
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// Answers each whole line; false when the caller is to be disconnected.
    fn answer_all(&mut self, answerer: &mut dyn Answerer) -> bool {
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let answer =
                parse_request(&line).map_or_else(|a| a, |request| answerer.answer(request));
            if self.stream.write_all(answer.to_line().as_bytes()).is_err() {
                return false;
            }
        }
        if self.received.len() < REQUEST_MAX {
            return true;
        }
        let answer = Answer::refused(format!("a request is at most {REQUEST_MAX} bytes long"));
        let _ = self.stream.write_all(answer.to_line().as_bytes());
        false
    }
}

impl MutEventSubscriber for ControlServer {
    fn init(&mut self, ops: &mut EventOps) {
        let _ = ops.add(Events::new(&self.socket.listener, EventSet::IN));
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.socket.listener.as_raw_fd() {
            self.accept(ops);
        } else {
            self.serve(events.fd(), ops);
        }
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::sync::mpsc;
    use std::time::Duration;

    use event_manager::{EventManager, SubscriberOps};

    use super::*;
    use crate::control::ask;

    struct Recorder(mpsc::Sender<Request>);

    impl Answerer for Recorder {
        fn answer(&mut self, request: Request) -> Answer {
            self.0.send(request).unwrap();
            Answer::done()
        }
    }

    /// Runs `client` against a server on a socket of its own.
    fn with_server(client: impl FnOnce(&Path) + Send) -> Vec<Request> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (sender, receiver) = mpsc::channel();
        let server = ControlListener::bind(&path).unwrap();
        let server = server.serve(Box::new(Recorder(sender)));
        let mut manager = EventManager::<ControlServer>::new().unwrap();
        manager.add_subscriber(server);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| client(&path));
            while !client.is_finished() {
                manager.run_with_timeout(1).unwrap();
            }
            client.join().unwrap();
        });
        drop(manager);
        assert!(!path.exists(), "the socket is removed");
        receiver.try_iter().collect()
    }

    #[test]
    fn questions_are_answered_in_order() {
        let asked = with_server(|path| {
            let timeout = Duration::from_secs(5);
            assert!(ask(path, Request::Status, timeout).unwrap().ok);
            let mut stream = UnixStream::connect(path).unwrap();
            stream
                .write_all(b"{\"op\":\"stats\"}\n{\"op\":\"nonsense\"}\n{\"op\":")
                .unwrap();
            stream.write_all(b"\"stop\"}\n").unwrap();
            let lines: Vec<String> = BufReader::new(stream)
                .lines()
                .take(3)
                .map(|line| line.unwrap())
                .collect();
            assert!(lines[0].contains("true") && lines[1].contains("nonsense"));
            assert!(lines[2].contains("true"));
        });
        assert_eq!(asked, [Request::Status, Request::Stats, Request::Stop]);
    }

    #[test]
    fn a_line_without_end_and_a_crowd_are_cut_off() {
        with_server(|path| {
            let mut endless = UnixStream::connect(path).unwrap();
            let mut answer = String::new();
            endless.write_all(&[b'x'; REQUEST_MAX]).unwrap();
            BufReader::new(&endless).read_line(&mut answer).unwrap();
            assert!(answer.contains("at most"), "{answer}");

            let crowd: Vec<_> = (0..30)
                .map(|_| UnixStream::connect(path).unwrap())
                .collect();
            assert!(
                ask(path, Request::Status, Duration::from_secs(5))
                    .unwrap()
                    .ok
            );
            drop(crowd);
        });
    }

    #[test]
    fn a_dead_machines_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let living = UnixListener::bind(&path).unwrap();
        let error = ControlListener::bind(&path).unwrap_err();
        assert!(matches!(error, ServerError::InUse { .. }));
        drop(living);
        assert!(path.exists());
        ControlListener::bind(&path).unwrap();
    }
}
