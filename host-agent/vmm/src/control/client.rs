//! Asks a machine one question over its control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use thiserror::Error;

use super::protocol::{Answer, OLDEST, Request, VERSION};

/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The socket could not be reached, or did not answer in time.
    #[error("no answer from control socket {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What came back is no answer.
    #[error("control socket {path} answered with something else")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The machine speaks another version.
    #[error(
        "the machine behind control socket {path} speaks version {version}, must be {OLDEST} \
         to {VERSION}"
    )]
    Version {
        /// The socket.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The machine is too old for that.
    #[error(
        "the machine behind control socket {path} speaks version {version}, and this is there \
         since {since}: restart it"
    )]
    TooOld {
        /// The socket.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The version that has what was asked.
        since: u32,
    },
}

/// Asks the machine behind `path`, and waits for `timeout` in all: the machine may be one
/// that takes no calls, or says its answer a byte at a time.
///
/// # Errors
///
/// When there is no machine, it does not answer, answers nonsense, or is of a version
/// that does not know this. A refusal is an answer.
pub fn ask(path: &Path, request: Request, timeout: Duration) -> Result<Answer, ClientError> {
    let since = request.since();
    let line = exchange(path, request, timeout).map_err(|source| ClientError::Io {
        path: path.to_owned(),
        source,
    })?;
    understand(path, since, &line)
}

/// What the machine behind `path` has answered to what is there since that version. It may
/// have said anything.
///
/// # Errors
///
/// When it is no answer, or one of a version that is not understood.
pub fn understand(path: &Path, since: u32, line: &str) -> Result<Answer, ClientError> {
    let answer: Answer = serde_json::from_str(line).map_err(|source| ClientError::Answer {
        path: path.to_owned(),
        source,
    })?;
    let (path, version) = (path.to_owned(), answer.version);
    if !(OLDEST..=VERSION).contains(&version) {
        return Err(ClientError::Version { path, version });
    }
    if !answer.ok && version < since {
        return Err(ClientError::TooOld {
            path,
            version,
            since,
        });
    }
    Ok(answer)
}

fn exchange(path: &Path, request: Request, timeout: Duration) -> io::Result<String> {
    let until = Instant::now() + timeout;
    let mut stream = connect(path, timeout)?;
    stream.set_write_timeout(Some(left(until)?))?;
    let mut text = serde_json::to_string(&request)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(Until { stream, until }.take(ANSWER_MAX)).read_line(&mut line)?;
    Ok(line)
}

/// Connects: a machine that takes no calls has callers wait once enough of them do.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let milliseconds = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
    let patience = TimeVal::milliseconds(milliseconds);
    setsockopt(&socket, SendTimeout, &patience)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

/// What is left of the time.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

/// Reads what comes until then.
struct Until {
    stream: UnixStream,
    until: Instant,
}

impl Read for Until {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.until)?))?;
        self.stream.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use nix::sys::socket::Backlog;
    use serde_json::Value;

    use super::*;
    use crate::control::protocol::parse_request;

    /// What machines of each version that is understood were asked, and answered.
    const RECORDED: [(u32, &str); 2] = [
        (OLDEST, include_str!("recorded/1.jsonl")),
        (VERSION, include_str!("recorded/2.jsonl")),
    ];

    /// Requests and answers by turns.
    fn dialogue(recorded: &str) -> Vec<(&str, &str)> {
        let lines: Vec<_> = recorded.lines().collect();
        lines.chunks(2).map(|pair| (pair[0], pair[1])).collect()
    }

    /// Asks a machine that answers with that line.
    fn ask_one_that_says(answer: &str, request: Request) -> Result<Answer, ClientError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = String::new();
                BufReader::new(&stream).read_line(&mut asked).unwrap();
                writeln!(stream, "{answer}").unwrap();
            });
            ask(&path, request, Duration::from_secs(5))
        })
    }

    #[test]
    fn machines_of_the_last_two_versions_are_understood() {
        for (version, recorded) in RECORDED {
            for (asked, answered) in dialogue(recorded) {
                // What was asked then is still asked so, and still has a meaning.
                let request = parse_request(asked.as_bytes()).unwrap();
                assert_eq!(serde_json::to_string(&request).unwrap(), asked);
                assert!(request.since() <= version, "{asked}");

                let answer = ask_one_that_says(answered, request).unwrap();
                let said: Value = serde_json::from_str(answered).unwrap();
                assert!(answer.ok && answer.version == version, "{answered}");
                // Nothing that was said is lost; of our own version, nothing is added.
                let heard = serde_json::to_value(&answer).unwrap();
                assert!(holds(&heard, &said), "{heard} is not {said}");
                assert!(version < VERSION || heard == said, "{heard} is not {said}");
            }
        }
    }

    #[test]
    fn a_machine_that_answers_by_the_byte_or_takes_no_calls_is_given_up_in_time() {
        const TIMEOUT: Duration = Duration::from_millis(300);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let gives_up = || {
            let started = Instant::now();
            let error = ask(&path, Request::Stats, TIMEOUT).unwrap_err();
            assert!(matches!(error, ClientError::Io { .. }), "{error}");
            started.elapsed()
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                while stream.write_all(b" ").is_ok() {
                    thread::sleep(TIMEOUT / 10);
                }
            });
            assert!(gives_up() >= TIMEOUT);
        });

        // Each call waits in the line, until that is full.
        socket::listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let waiting: Vec<_> = (0..2)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        assert!(gives_up() >= TIMEOUT);
        drop(waiting);
    }

    #[test]
    fn every_request_is_recorded_since_there_is_one() {
        for (version, recorded) in RECORDED {
            let asked = dialogue(recorded).len();
            let there = [
                Request::Status,
                Request::Stats,
                Request::Stop,
                Request::Pause,
                Request::Resume,
                Request::Reset,
                Request::PowerButton,
                Request::Snapshot { path: "/s".into() },
                Request::Limit {
                    limits: Default::default(),
                },
            ];
            let there = there.iter().filter(|request| request.since() <= version);
            assert_eq!(asked, there.count(), "version {version}");
        }
    }

    #[test]
    fn an_older_machine_says_that_it_is_too_old_and_a_strange_one_is_not_believed() {
        let refusal = r#"{"version":1,"ok":false,"error":"unknown variant `pause`"}"#;
        let error = ask_one_that_says(refusal, Request::Pause).unwrap_err();
        assert!(
            matches!(error, ClientError::TooOld { since: 2, .. }),
            "{error}"
        );
        // A refusal of what it knows is its answer.
        assert!(!ask_one_that_says(refusal, Request::Stop).unwrap().ok);
        for version in [OLDEST - 1, VERSION + 1] {
            let answer = format!(r#"{{"version":{version},"ok":true}}"#);
            let error = ask_one_that_says(&answer, Request::Stop).unwrap_err();
            assert!(matches!(error, ClientError::Version { .. }), "{error}");
        }
    }

    #[test]
    fn what_a_later_version_adds_to_an_answer_is_ignored() {
        let answer = r#"{"version":2,"ok":true,"mood":"good"}"#;
        assert_eq!(
            ask_one_that_says(answer, Request::Stop).unwrap(),
            Answer::done()
        );
    }

    /// Whether everything of `part` is in `whole`.
    fn holds(whole: &Value, part: &Value) -> bool {
        match (whole, part) {
            (Value::Object(whole), Value::Object(part)) => part
                .iter()
                .all(|(name, value)| whole.get(name).is_some_and(|there| holds(there, value))),
            _ => whole == part,
        }
    }
}
