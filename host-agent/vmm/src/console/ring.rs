//! The console ring: a file of bounded size that keeps the end of an endless
//! stream of bytes, and outlives the process that writes it.
//!
//! ```text
//!  0        8         12      16        24     32        64              64 + capacity + SLACK
//!  | magic  | version | 0     | capacity| total| 0       | cells ...     |
//! ```
//!
//! All numbers are little-endian. `total` counts every byte ever written; byte
//! `n` of the stream is in cell `n % (capacity + SLACK)`. The writer writes the
//! bytes first and `total` after them, at most [`SLACK`] bytes at a time. So at
//! any moment, whatever the writer is doing or was doing when it was killed,
//! the last `capacity` bytes before `total` are whole: what is being written
//! overwrites older ones only.
//!
//! Reading needs no lock: a reader looks at `total` again after it has copied,
//! and drops from its copy what may have been overwritten meanwhile.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// How many bytes beyond `capacity` the ring has room for, and how many are
/// written at a time at most.
pub const SLACK: u64 = 4096;

const MAGIC: [u8; 8] = *b"FABCRING";
const VERSION: u32 = 1;
const HEADER: u64 = 64;
const CAPACITY_AT: usize = 16;
const TOTAL_AT: usize = 24;
/// The largest capacity a reader believes.
const CAPACITY_MAX: u64 = 1 << 30;

/// What can be wrong with a ring.
#[derive(Debug, Error)]
pub enum RingError {
    /// The file could not be opened, read or written.
    #[error("cannot {action} console ring {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The file is no ring, or not one that this version reads.
    #[error("{path} is not a console ring: {field} is {value}, expected {expected}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The header's field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it has to hold.
        expected: String,
    },
}

/// The one writer of a ring.
#[derive(Debug)]
pub struct RingWriter {
    file: File,
    cells: u64,
    total: u64,
}

impl RingWriter {
    /// Makes the file, or begins it anew, for the last `capacity` bytes.
    ///
    /// # Errors
    ///
    /// When the file cannot be made or the disk has no room for it.
    pub fn create(path: &Path, capacity: u64) -> Result<RingWriter, RingError> {
        let fail = |action| {
            move |source| RingError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(path)
            .map_err(fail("create"))?;
        let cells = capacity + SLACK;
        file.set_len(HEADER + cells).map_err(fail("size"))?;
        file.write_all_at(&encode_header(capacity, 0), 0)
            .map_err(fail("begin"))?;
        Ok(RingWriter {
            file,
            cells,
            total: 0,
        })
    }

    /// Appends to the stream.
    ///
    /// # Errors
    ///
    /// Those of the file system; what was written before stays readable.
    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        for part in bytes.chunks(SLACK as usize) {
            let cell = self.total % self.cells;
            let until_end = usize::try_from(self.cells - cell).unwrap_or(usize::MAX);
            let (first, wrapped) = part.split_at(part.len().min(until_end));
            self.file.write_all_at(first, HEADER + cell)?;
            if !wrapped.is_empty() {
                self.file.write_all_at(wrapped, HEADER)?;
            }
            self.total += part.len() as u64;
            self.file
                .write_all_at(&self.total.to_le_bytes(), TOTAL_AT as u64)?;
        }
        Ok(())
    }

    /// How many bytes were ever written.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// A part of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where in the stream the bytes begin.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many bytes between the asked offset and `offset` are gone.
    pub lost: u64,
    /// How many bytes the stream had when this was read.
    pub total: u64,
}

impl Chunk {
    /// Where in the stream to go on reading.
    pub fn next_offset(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// Reads a ring, while it is written and after.
#[derive(Debug)]
pub struct RingReader {
    file: File,
    path: PathBuf,
    capacity: u64,
}

impl RingReader {
    /// Opens a ring.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or is no ring.
    pub fn open(path: &Path) -> Result<RingReader, RingError> {
        let file = File::open(path).map_err(|source| RingError::Io {
            action: "open",
            path: path.to_owned(),
            source,
        })?;
        let mut reader = RingReader {
            file,
            path: path.to_owned(),
            capacity: 0,
        };
        let (capacity, _) = reader.header()?;
        reader.capacity = capacity;
        Ok(reader)
    }

    /// How many bytes were ever written.
    ///
    /// # Errors
    ///
    /// When the header cannot be read.
    pub fn total(&self) -> Result<u64, RingError> {
        Ok(self.header()?.1)
    }

    /// Reads at most `max` bytes from `offset` of the stream on, or from the
    /// oldest that is still there. An `offset` beyond the end reads nothing,
    /// from the end.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is no ring any more.
    pub fn read_from(&self, offset: u64, max: usize) -> Result<Chunk, RingError> {
        let (_, total) = self.header()?;
        let start = offset.min(total).max(total.saturating_sub(self.capacity));
        let available = usize::try_from(total - start).unwrap_or(usize::MAX);
        let mut bytes = vec![0; available.min(max)];
        self.copy_cells(start, &mut bytes)?;

        // What the writer may have overwritten while this was copied.
        let (_, total_after) = self.header()?;
        let intact = total_after.saturating_sub(self.capacity);
        let overwritten = intact.saturating_sub(start).min(bytes.len() as u64);
        bytes.drain(..usize::try_from(overwritten).unwrap_or(bytes.len()));
        let start = start + overwritten;
        Ok(Chunk {
            offset: start,
            bytes,
            lost: start.saturating_sub(offset),
            total,
        })
    }

    /// Reads the last `max` bytes of the stream.
    ///
    /// # Errors
    ///
    /// As [`read_from`](Self::read_from).
    pub fn tail(&self, max: usize) -> Result<Chunk, RingError> {
        let start = self.total()?.saturating_sub(max as u64);
        self.read_from(start, max)
    }

    fn copy_cells(&self, start: u64, bytes: &mut [u8]) -> Result<(), RingError> {
        let cells = self.capacity + SLACK;
        let cell = start % cells;
        let until_end = usize::try_from(cells - cell).unwrap_or(usize::MAX);
        let split = bytes.len().min(until_end);
        let (first, wrapped) = bytes.split_at_mut(split);
        self.read_exact(first, HEADER + cell)?;
        self.read_exact(wrapped, HEADER)
    }

    fn header(&self) -> Result<(u64, u64), RingError> {
        let mut header = [0; HEADER as usize];
        self.read_exact(&mut header, 0)?;
        let wrong = |field, value: String, expected: String| RingError::Format {
            path: self.path.clone(),
            field,
            value,
            expected,
        };
        if header[..8] != MAGIC {
            let value = String::from_utf8_lossy(&header[..8]).into_owned();
            return Err(wrong("magic", format!("{value:?}"), "\"FABCRING\"".into()));
        }
        let version = u64::from(little_endian(&header[8..12]) as u32);
        if version != u64::from(VERSION) {
            return Err(wrong("version", version.to_string(), VERSION.to_string()));
        }
        let capacity = little_endian(&header[CAPACITY_AT..CAPACITY_AT + 8]);
        if capacity > CAPACITY_MAX {
            return Err(wrong(
                "capacity",
                capacity.to_string(),
                format!("{CAPACITY_MAX} at most"),
            ));
        }
        Ok((capacity, little_endian(&header[TOTAL_AT..TOTAL_AT + 8])))
    }

    fn read_exact(&self, bytes: &mut [u8], at: u64) -> Result<(), RingError> {
        self.file
            .read_exact_at(bytes, at)
            .map_err(|source| RingError::Io {
                action: "read",
                path: self.path.clone(),
                source,
            })
    }
}

fn encode_header(capacity: u64, total: u64) -> [u8; HEADER as usize] {
    let mut header = [0; HEADER as usize];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[CAPACITY_AT..CAPACITY_AT + 8].copy_from_slice(&capacity.to_le_bytes());
    header[TOTAL_AT..TOTAL_AT + 8].copy_from_slice(&total.to_le_bytes());
    header
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(capacity: u64) -> (tempfile::TempDir, PathBuf, RingWriter) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.ring");
        let writer = RingWriter::create(&path, capacity).unwrap();
        (folder, path, writer)
    }

    #[test]
    fn what_is_written_is_read_from_any_offset() {
        let (_folder, path, mut writer) = ring(4096);
        writer.write(b"hello, world\n").unwrap();
        let reader = RingReader::open(&path).unwrap();
        let chunk = reader.read_from(7, 5).unwrap();
        assert_eq!(
            (chunk.offset, chunk.bytes.as_slice()),
            (7, b"world".as_slice())
        );
        assert_eq!((chunk.lost, chunk.total, chunk.next_offset()), (0, 13, 12));
        assert_eq!(reader.tail(6).unwrap().bytes, b"world\n");
        assert_eq!(reader.read_from(99, 10).unwrap().bytes, b"");
    }

    #[test]
    fn a_reader_is_told_what_it_missed() {
        let (_folder, path, mut writer) = ring(10);
        writer.write(&[b'x'; 100]).unwrap();
        let chunk = RingReader::open(&path)
            .unwrap()
            .read_from(20, 1000)
            .unwrap();
        assert_eq!((chunk.offset, chunk.bytes.len(), chunk.lost), (90, 10, 70));
    }

    #[test]
    fn a_file_that_is_no_ring_is_refused_by_field() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [b'a'; 100]).unwrap();
        let error = RingReader::open(&path).unwrap_err().to_string();
        assert!(error.contains("magic is \"aaaaaaaa\""), "{error}");
        let mut header = encode_header(u64::MAX, 0).to_vec();
        std::fs::write(&path, &header).unwrap();
        let error = RingReader::open(&path).unwrap_err().to_string();
        assert!(error.contains("capacity"), "{error}");
        header[8] = 9;
        std::fs::write(&path, &header).unwrap();
        let error = RingReader::open(&path).unwrap_err().to_string();
        assert!(error.contains("version is 9, expected 1"), "{error}");
        std::fs::write(&path, b"short").unwrap();
        RingReader::open(&path).unwrap_err();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The reader sees exactly the end of the stream, whatever the sizes.
        #[test]
        fn the_reader_sees_exactly_the_suffix(
            capacity in 1u64..9000,
            writes in prop::collection::vec(1usize..6000, 1..8),
            offset in 0u64..30_000,
            max in 0usize..20_000,
        ) {
            let (_folder, path, mut writer) = ring(capacity);
            let mut stream = Vec::new();
            for size in writes {
                let bytes: Vec<u8> = (0..size).map(|i| ((stream.len() + i) % 251) as u8).collect();
                writer.write(&bytes).unwrap();
                stream.extend(bytes);
            }
            let total = stream.len() as u64;
            let chunk = RingReader::open(&path).unwrap().read_from(offset, max).unwrap();
            let start = offset.min(total).max(total.saturating_sub(capacity));
            let end = (start + max as u64).min(total);
            prop_assert_eq!(chunk.offset, start);
            prop_assert_eq!(chunk.bytes, &stream[start as usize..end as usize]);
            prop_assert_eq!(chunk.lost, start.saturating_sub(offset));
        }

        /// A writer killed between its bytes and its count leaves the ring as
        /// it was before that write.
        #[test]
        fn a_torn_write_disturbs_nothing(
            capacity in 1u64..5000,
            before in 1usize..20_000,
            torn in 1usize..=SLACK as usize,
        ) {
            let (_folder, path, mut writer) = ring(capacity);
            let stream: Vec<u8> = (0..before).map(|i| (i % 251) as u8).collect();
            writer.write(&stream).unwrap();
            let header = encode_header(capacity, before as u64);
            writer.write(&vec![0xee; torn]).unwrap();
            File::options().write(true).open(&path).unwrap().write_all_at(&header, 0).unwrap();

            let chunk = RingReader::open(&path).unwrap().read_from(0, usize::MAX).unwrap();
            let kept = before.min(capacity as usize);
            prop_assert_eq!(chunk.bytes, &stream[before - kept..]);
        }
    }
}
