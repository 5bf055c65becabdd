//! A role's output on disk: two files of bounded size, the older given up for the
//! newer. Read by absolute offset, so that a reader knows what it missed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// Size of one of the two files.
const LARGEST: u64 = 1024 * 1024;

/// A role's output.
#[derive(Debug)]
pub struct RoleLog {
    files: Mutex<Files>,
    end: watch::Sender<u64>,
}

#[derive(Debug)]
struct Files {
    newer: PathBuf,
    older: PathBuf,
    file: File,
    largest: u64,
    /// Offset at which the older file begins, the newer begins, the newer ends.
    start: u64,
    middle: u64,
    end: u64,
}

impl RoleLog {
    /// Opens the log of that name; what is there is kept.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, LARGEST)
    }

    fn open_with(path: &Path, largest: u64) -> io::Result<Self> {
        let older = path.with_extension("log.1");
        let file = append_to(path)?;
        let middle = fs::metadata(&older).map_or(0, |facts| facts.len());
        let end = middle + file.metadata()?.len();
        let newer = path.to_owned();
        let files = Files {
            newer,
            older,
            file,
            largest,
            start: 0,
            middle,
            end,
        };
        Ok(Self {
            files: Mutex::new(files),
            end: watch::Sender::new(end),
        })
    }

    /// Adds output.
    ///
    /// # Errors
    ///
    /// What the file system says; the output is lost then.
    pub fn append(&self, data: &[u8]) -> io::Result<()> {
        let mut files = self.lock();
        files.append(data)?;
        let end = files.end;
        drop(files);
        self.end.send_replace(end);
        Ok(())
    }

    /// Where the output ends now, and tells when there is more.
    #[must_use]
    pub fn end(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// Up to `most` bytes from `offset` on, or from where the output begins if
    /// that is later; and the offset of the first one.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn read(&self, offset: u64, most: u64) -> io::Result<(u64, Vec<u8>)> {
        self.lock().read(offset, most)
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        // Nothing in here can panic half-way.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let length = data.len() as u64;
        if self.end > self.middle && self.end - self.middle + length > self.largest {
            fs::rename(&self.newer, &self.older)?;
            self.file = append_to(&self.newer)?;
            self.start = self.middle;
            self.middle = self.end;
        }
        self.file.write_all(data)?;
        self.end += length;
        Ok(())
    }

    fn read(&self, offset: u64, most: u64) -> io::Result<(u64, Vec<u8>)> {
        let at = offset.max(self.start);
        let (path, begin, end) = if at < self.middle {
            (&self.older, self.start, self.middle)
        } else {
            (&self.newer, self.middle, self.end)
        };
        let mut data = Vec::new();
        if at < end {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(at - begin))?;
            file.take(most.min(end - at)).read_to_end(&mut data)?;
        }
        Ok((at, data))
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(log: &RoleLog, mut offset: u64) -> (u64, Vec<u8>) {
        let (first, mut all) = log.read(offset, 3).unwrap();
        offset = first + all.len() as u64;
        loop {
            let (at, more) = log.read(offset, 3).unwrap();
            assert_eq!(at, offset);
            if more.is_empty() {
                return (first, all);
            }
            offset += more.len() as u64;
            all.extend(more);
        }
    }

    proptest! {
        /// What is read is the end of what was written, never more than two
        /// files of it, and at least one.
        #[test]
        fn the_newest_output_is_kept_within_bounds(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..40),
            from in 0u64..400,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("role.log");
            let log = RoleLog::open_with(&path, 50).unwrap();
            let mut written = Vec::new();
            for piece in &pieces {
                log.append(piece).unwrap();
                written.extend_from_slice(piece);
            }
            let from = from.min(written.len() as u64);
            let (first, read) = read_all(&log, from);
            prop_assert!(first >= from);
            prop_assert_eq!(&read[..], &written[usize::try_from(first).unwrap()..]);
            let (oldest, kept) = read_all(&log, 0);
            prop_assert!(kept.len() <= 100 && (oldest == 0 || kept.len() >= 10));

            // And by the next process.
            drop(log);
            let again = RoleLog::open_with(&path, 50).unwrap();
            prop_assert_eq!(read_all(&again, 0).1, kept);
        }
    }
}
