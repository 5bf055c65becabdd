//! Asks a machine one question over its control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::protocol::{Answer, Request};

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
        source: std::io::Error,
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
}

/// Asks the machine behind `path`, waiting for at most `timeout` at each step.
///
/// # Errors
///
/// When there is no machine, it does not answer, or answers nonsense. A refusal
/// is an answer.
pub fn ask(path: &Path, request: Request, timeout: Duration) -> Result<Answer, ClientError> {
    let line = exchange(path, request, timeout).map_err(|source| ClientError::Io {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&line).map_err(|source| ClientError::Answer {
        path: path.to_owned(),
        source,
    })
}

fn exchange(path: &Path, request: Request, timeout: Duration) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut text = serde_json::to_string(&request)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_MAX)).read_line(&mut line)?;
    Ok(line)
}
