//! Answers the control socket, in the machine's event loop.
//!
//! A caller is not trusted with time or memory: few connections at once, short
//! lines, and whoever does not take their answer is disconnected. What the guest has to
//! answer first is waited for beside everything else, and never for long.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use thiserror::Error;

use super::knock::{Knock, KnockError};
use super::protocol::{Answer, REQUEST_MAX, Request, parse_request};
use crate::devices::vsock::deadlines::Deadlines;

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
    fn answer(&mut self, request: Request) -> Reply;

    /// The answer to a request that the guest had to hear.
    fn knocked(&mut self, heard: Result<(), KnockError>) -> Answer;
}

/// What a request leads to.
#[derive(Debug)]
pub enum Reply {
    /// An answer.
    Now(Answer),
    /// An answer when the guest has heard this, or has not.
    Later(Knock),
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Reply {
        Reply::Now(answer)
    }
}

/// The control socket, to which nobody listens yet. Its file is removed when
/// this is dropped.
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
    /// Until when guests are waited for, by the descriptors of their answers. Made here,
    /// for a machine that is jailed can make no timer.
    deadlines: Deadlines<RawFd>,
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
    /// What has to be answered before anything else is.
    knock: Option<Knock>,
}

impl std::fmt::Debug for ControlListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlListener")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
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
        let deadlines = Deadlines::new().map_err(fail)?;
        let path = path.to_owned();
        Ok(ControlListener {
            listener,
            path,
            deadlines,
        })
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
                knock: None,
            });
        }
    }

    fn disconnect(&mut self, index: usize, ops: &mut EventOps) {
        if let Some(connection) = self.connections.remove(index) {
            let _ = ops.remove(Events::empty(&connection.stream));
            if let Some(knock) = &connection.knock {
                self.forget(knock, ops);
            }
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
        let keep = self.connections[index].receive() && self.answer_all(index, ops);
        if !keep {
            self.disconnect(index, ops);
        }
    }

    /// Answers each whole line, up to one that the guest has to hear first; false when
    /// the caller is to be disconnected.
    fn answer_all(&mut self, index: usize, ops: &mut EventOps) -> bool {
        let connection = &mut self.connections[index];
        while connection.knock.is_none()
            && let Some(line) = connection.next_line()
        {
            let reply =
                parse_request(&line).map_or_else(Reply::Now, |asked| self.answerer.answer(asked));
            let answer = match reply {
                Reply::Now(answer) => answer,
                Reply::Later(knock) => match ops.add(Events::new(&knock, EventSet::IN)) {
                    Ok(()) => {
                        let deadlines = &mut self.socket.deadlines;
                        deadlines.change(knock.as_raw_fd(), None, Some(knock.until));
                        deadlines.arm(Instant::now());
                        connection.knock = Some(knock);
                        continue;
                    }
                    Err(error) => {
                        let error = std::io::Error::other(error);
                        self.answerer.knocked(Err(KnockError::Host(error)))
                    }
                },
            };
            if !connection.say(&answer) {
                return false;
            }
        }
        if connection.received.len() < REQUEST_MAX {
            return true;
        }
        connection.say(&Answer::refused(format!(
            "a request is at most {REQUEST_MAX} bytes long"
        )));
        false
    }

    /// Answers what the guest has heard, or has not, and goes on with what was asked next.
    fn knocked(&mut self, index: usize, heard: Result<(), KnockError>, ops: &mut EventOps) {
        let Some(knock) = self.connections[index].knock.take() else {
            return;
        };
        self.forget(&knock, ops);
        let answer = self.answerer.knocked(heard);
        let keep = self.connections[index].say(&answer) && self.answer_all(index, ops);
        if !keep {
            self.disconnect(index, ops);
        }
    }

    fn forget(&mut self, knock: &Knock, ops: &mut EventOps) {
        let _ = ops.remove(Events::empty(knock));
        let deadlines = &mut self.socket.deadlines;
        deadlines.change(knock.as_raw_fd(), Some(knock.until), None);
        deadlines.arm(Instant::now());
    }

    /// The connection whose guest answers there.
    fn knocking(&self, fd: RawFd) -> Option<usize> {
        let is_it = |knock: &Knock| knock.as_raw_fd() == fd;
        self.connections
            .iter()
            .position(|connection| connection.knock.as_ref().is_some_and(is_it))
    }

    /// Nobody is waited for any longer whose time is over.
    fn expire(&mut self, ops: &mut EventOps) {
        let now = Instant::now();
        self.socket.deadlines.acknowledge();
        while let Some(fd) = self.socket.deadlines.pop_passed(now) {
            if let Some(index) = self.knocking(fd) {
                self.knocked(index, Err(KnockError::Silent), ops);
            }
        }
        self.socket.deadlines.arm(now);
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

    /// Takes out the next whole line.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.received.iter().position(|byte| *byte == b'\n')?;
        Some(self.received.drain(..=end).collect())
    }

    /// Gives the caller an answer; false if it does not take it.
    fn say(&mut self, answer: &Answer) -> bool {
        self.stream.write_all(answer.to_line().as_bytes()).is_ok()
    }
}

impl MutEventSubscriber for ControlServer {
    fn init(&mut self, ops: &mut EventOps) {
        let _ = ops.add(Events::new(&self.socket.listener, EventSet::IN));
        let timer = self.socket.deadlines.timer_fd();
        let _ = ops.add(Events::new_raw(timer, EventSet::IN));
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.socket.listener.as_raw_fd() {
            self.accept(ops);
        } else if events.fd() == self.socket.deadlines.timer_fd() {
            self.expire(ops);
        } else if let Some(index) = self.knocking(events.fd()) {
            let knock = self.connections[index].knock.as_mut();
            if let Some(heard) = knock.and_then(Knock::advance) {
                self.knocked(index, heard, ops);
            }
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
    use std::thread;
    use std::time::Duration;

    use event_manager::{EventManager, SubscriberOps};

    use super::*;
    use crate::control::ask;

    /// Remembers what it was asked; hands the guest's end of each knock out.
    struct Recorder(mpsc::Sender<Request>, mpsc::Sender<UnixStream>);

    impl Answerer for Recorder {
        fn answer(&mut self, request: Request) -> Reply {
            self.0.send(request.clone()).unwrap();
            if request != Request::PowerButton {
                return Reply::Now(Answer::done());
            }
            let (guest, ours) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            self.1.send(guest).unwrap();
            Reply::Later(Knock::new(ours, Instant::now()))
        }

        fn knocked(&mut self, heard: Result<(), KnockError>) -> Answer {
            heard.map_or_else(
                |error| Answer::refused(error.to_string()),
                |()| Answer::done(),
            )
        }
    }

    /// Runs `client` against a server on a socket of its own.
    fn with_server(client: impl FnOnce(&Path) + Send) -> Vec<Request> {
        with_guest(|path, _| client(path))
    }

    /// The same with who has the guest's ends of knocks.
    fn with_guest(client: impl FnOnce(&Path, mpsc::Receiver<UnixStream>) + Send) -> Vec<Request> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (sender, receiver) = mpsc::channel();
        let (knocks, guest) = mpsc::channel();
        let server = ControlListener::bind(&path).unwrap();
        let server = server.serve(Box::new(Recorder(sender, knocks)));
        let mut manager = EventManager::<ControlServer>::new().unwrap();
        manager.add_subscriber(server);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| client(&path, guest));
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
    fn what_the_guest_has_to_hear_first_holds_up_nobody_else() {
        let patience = Duration::from_secs(5);
        let asked = with_guest(|path, guest| {
            let mut caller = UnixStream::connect(path).unwrap();
            caller
                .write_all(b"{\"op\":\"power_button\"}\n{\"op\":\"stats\"}\n")
                .unwrap();
            let mut door = guest.recv_timeout(patience).unwrap();
            assert!(ask(path, Request::Status, patience).unwrap().ok);
            door.write_all(b"OK 1\nok\n").unwrap();
            let lines = BufReader::new(&caller).lines().take(2);
            for line in lines {
                assert!(line.unwrap().contains("true"));
            }
            // One who does not wait for it leaves nothing behind.
            caller.write_all(b"{\"op\":\"power_button\"}\n").unwrap();
            let mut door = guest.recv_timeout(patience).unwrap();
            drop(caller);
            assert_eq!(door.read(&mut [0]).unwrap(), 0);
        });
        let button = Request::PowerButton;
        assert_eq!(asked[0], button);
        assert_eq!(asked[1..], [Request::Status, Request::Stats, button]);
    }

    #[test]
    fn a_guest_that_does_not_answer_is_not_waited_for_without_end() {
        with_guest(|path, guest| {
            thread::scope(|scope| {
                let refused = scope.spawn(move || {
                    let _door = guest.recv().unwrap();
                    guest.recv().unwrap();
                });
                let patience = Duration::from_secs(60);
                let silent = ask(path, Request::PowerButton, patience).unwrap();
                assert!(silent.error.unwrap().contains("has not answered"));
                let refusal = ask(path, Request::PowerButton, patience).unwrap();
                assert!(refusal.error.unwrap().contains("does not listen"));
                refused.join().unwrap();
            });
        });
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
