//! The end of the lease, written where another process reads it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// Its name in the data directory.
const NAME: &str = "lease";

/// One line: the machine's boot id, and the end in milliseconds since its start. It is
/// written in place, at one length, so that whoever reads it sees one line or the other.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    host_boot_id: String,
    file: Option<File>,
}

impl Record {
    /// The record in a data directory.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn open(data: &Path, host_boot_id: &str) -> io::Result<Self> {
        let path = data.join(NAME);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            path,
            host_boot_id: host_boot_id.to_owned(),
            file,
        })
    }

    /// The end of the lease; none if there is no record of this start of the machine.
    #[must_use]
    pub fn read(&self) -> Option<Duration> {
        let text = fs::read_to_string(&self.path).ok()?;
        let (boot_id, end) = text.trim_end().split_once(' ')?;
        let end = end.parse().ok().map(Duration::from_millis);
        end.filter(|_| boot_id == self.host_boot_id)
    }

    /// What is left of the lease at a time; none if there is no record of this start of
    /// the machine.
    #[must_use]
    pub fn left(&self, now: Duration) -> Option<Duration> {
        self.read().map(|end| end.saturating_sub(now))
    }

    /// Whether there is one: without, no lease is needed.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Writes the end down; none for no lease.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn write(&mut self, end: Option<Duration>) -> io::Result<()> {
        let Some(end) = end else {
            self.file = None;
            return crate::files::remove_if_there(&self.path);
        };
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(crate::files::open_or_make(&self.path)?),
        };
        let line = format!("{} {:020}\n", self.host_boot_id, end.as_millis());
        file.write_all_at(line.as_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_there_for_another_process_of_the_same_start_of_the_machine() {
        let data = tempfile::tempdir().unwrap();
        let mut record = Record::open(data.path(), "boot-1").unwrap();
        assert_eq!((record.read(), record.exists()), (None, false));
        record
            .write(Some(Duration::from_millis(12_345_678)))
            .unwrap();
        record.write(Some(Duration::from_millis(7))).unwrap();
        let read = |boot| Record::open(data.path(), boot).unwrap().read();
        assert_eq!(read("boot-1"), Some(Duration::from_millis(7)));
        assert_eq!(read("boot-2"), None, "the machine was restarted since");
        record.write(None).unwrap();
        assert!(!record.exists());
        fs::write(data.path().join(NAME), "half a li").unwrap();
        assert_eq!(read("boot-1"), None);
    }
}
