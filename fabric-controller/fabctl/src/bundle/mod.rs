//! The file of `fabctl support-bundle`: a .tar.gz of JSON, without secrets and without
//! end.
//!
//! [`secrets`] says what is left out. Everything that goes in goes through it.

pub mod secrets;

use std::{
    io::{self, Write},
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::Value;
use tar::{Builder, Header};

use self::secrets::Secrets;

/// Longest piece, in bytes.
const LONGEST: usize = 64 << 20;

/// A bundle that is being written.
pub struct Bundle<W: Write> {
    archive: Builder<GzEncoder<W>>,
    folder: String,
    now: SystemTime,
    secrets: Secrets,
    names: Vec<String>,
}

impl<W: Write> Bundle<W> {
    /// An empty one, whose files will be in that folder.
    pub fn new(out: W, folder: &str, now: SystemTime, secrets: Secrets) -> Self {
        Self {
            archive: Builder::new(GzEncoder::new(out, Compression::default())),
            folder: folder.to_owned(),
            now,
            secrets,
            names: Vec::new(),
        }
    }

    /// The files that are in it.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Adds a file with that JSON. False, and nothing is added, if it is too long.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn add(&mut self, name: &str, mut value: Value) -> io::Result<bool> {
        self.secrets.scrub(&mut value);
        let mut bytes = serde_json::to_vec_pretty(&value)?;
        bytes.push(b'\n');
        if bytes.len() > LONGEST {
            return Ok(false);
        }
        self.add_bytes(name, &bytes)?;
        Ok(true)
    }

    /// Adds a file with that text, which is ours.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn add_text(&mut self, name: &str, text: &str) -> io::Result<()> {
        self.add_bytes(name, text.as_bytes())
    }

    fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        let since = self.now.duration_since(SystemTime::UNIX_EPOCH);
        header.set_mtime(since.unwrap_or(Duration::ZERO).as_secs());
        let path = format!("{}/{name}", self.folder);
        self.archive.append_data(&mut header, path, bytes)?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// Writes its end.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn finish(self) -> io::Result<W> {
        self.archive.into_inner()?.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use serde_json::json;
    use tar::Archive;

    use super::*;

    #[test]
    fn what_goes_in_is_in_it_but_for_what_is_secret_or_too_long() {
        let mut secrets = Secrets::default();
        secrets.learn("[[role]]\n[role.settings]\npassword = \"hunter2hunter2\"\n");
        let mut bundle = Bundle::new(Vec::new(), "f", SystemTime::UNIX_EPOCH, secrets);
        let told = json!([{ "message": "it said hunter2hunter2!" }]);
        assert!(bundle.add("events.json", told).unwrap());
        let long = Value::from("x".repeat(LONGEST));
        assert!(!bundle.add("long.json", long).unwrap());
        bundle.add_text("README.txt", "hello\n").unwrap();
        assert_eq!(bundle.names(), ["events.json", "README.txt"]);

        let bytes = bundle.finish().unwrap();
        let mut archive = Archive::new(GzDecoder::new(bytes.as_slice()));
        let mut files = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mode().unwrap(), 0o600);
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.push((path, text));
        }
        assert_eq!(files[1], ("f/README.txt".to_owned(), "hello\n".to_owned()));
        assert_eq!(files[0].0, "f/events.json");
        assert!(files[0].1.contains("it said (left out)!"), "{}", files[0].1);
    }
}
