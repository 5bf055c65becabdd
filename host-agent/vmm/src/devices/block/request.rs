//! From a descriptor chain to a typed request (virtio 1.2, 5.2.6).
//!
//! The chain's framing is free (2.7.4.3): the header is the first 16 readable
//! bytes and the status the last writable byte, however they are cut into
//! descriptors. Everything a request says is checked here, so that whoever
//! carries out a [`Request`] need not look again.

use thiserror::Error;
use vhd::SECTOR_SIZE;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::devices::virtio::{Chain, GuestBuffer};
use crate::memory::GuestMemory;

/// The most segments in one discard or write-zeroes request.
pub const MAX_SEGMENTS: usize = 16;
/// The most sectors in one such segment: 512 MiB.
pub const MAX_SEGMENT_SECTORS: u32 = 1 << 20;

const HEADER_LEN: usize = 16;
const SEGMENT_LEN: usize = 16;

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The size of the disk in bytes.
    pub size: u64,
    /// Whether requests that change the disk are refused.
    pub read_only: bool,
    /// Whether the driver negotiated `VIRTIO_BLK_F_DISCARD`.
    pub discard: bool,
    /// Whether the driver negotiated `VIRTIO_BLK_F_WRITE_ZEROES`.
    pub write_zeroes: bool,
}

/// What the guest wants of the disk. Offsets and lengths are whole sectors
/// inside the disk.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Read from `offset` into `into`.
    Read {
        /// Where on the disk, in bytes.
        offset: u64,
        /// Where in the guest.
        into: GuestBuffer,
    },
    /// Write `from` at `offset`.
    Write {
        /// Where on the disk, in bytes.
        offset: u64,
        /// Where in the guest.
        from: GuestBuffer,
    },
    /// Make everything written durable.
    Flush,
    /// Say the disk's serial number.
    GetId {
        /// Where in the guest.
        into: GuestBuffer,
    },
    /// These ranges are no longer needed.
    Discard(Vec<Range>),
    /// These ranges must read as zeroes.
    WriteZeroes(Vec<Range>),
}

impl Request {
    /// How many bytes pass between the disk and the guest. To discard, or to write
    /// zeroes, moves none: the image makes holes.
    pub fn bytes(&self) -> u64 {
        match self {
            Request::Read { into, .. } => into.len() as u64,
            Request::Write { from, .. } => from.len() as u64,
            _ => 0,
        }
    }
}

/// A run of whole sectors inside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes, not zero.
    pub len: u64,
}

/// Why a request is not carried out; the guest sees the status alone.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// There is no whole request header.
    #[error("the request header is missing or not in guest memory")]
    Header,
    /// The buffers do not fit the request type.
    #[error("the buffers do not fit the request type")]
    Buffers,
    /// A length is not a multiple of a sector, or is zero.
    #[error("the length is not a whole number of sectors")]
    Unaligned,
    /// The request reaches beyond the disk.
    #[error("the sectors reach beyond the end of the disk")]
    OutOfRange,
    /// The request would change a read-only disk.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A discard or write-zeroes segment is larger than the device said.
    #[error("there are more segments, or more sectors in one, than the device offers")]
    TooLarge,
    /// The request type is unknown or was not negotiated.
    #[error("the request type is unknown or was not negotiated")]
    Type,
    /// A segment carries a flag that is reserved.
    #[error("a segment carries a reserved flag")]
    Flags,
}

impl Refusal {
    /// The status byte that says so.
    pub fn status(self) -> u8 {
        let status = match self {
            Refusal::Type | Refusal::Flags => VIRTIO_BLK_S_UNSUPP,
            _ => VIRTIO_BLK_S_IOERR,
        };
        status as u8
    }
}

/// A chain, understood as far as it can be.
#[derive(Debug)]
pub struct Parsed {
    /// The one byte of the chain in which the device answers.
    pub status: GuestBuffer,
    /// What is wanted, or why it is refused.
    pub request: Result<Request, Refusal>,
}

impl Parsed {
    /// Understands a chain. `None` if it has not even room for a status: then
    /// there is nowhere to answer.
    pub fn from_chain(chain: Chain, memory: &GuestMemory, limits: &Limits) -> Option<Parsed> {
        let Chain {
            readable,
            mut writable,
            ..
        } = chain;
        let status = writable.take_back(1)?;
        Some(Parsed {
            status,
            request: parse(readable, writable, memory, limits),
        })
    }
}

fn parse(
    mut readable: GuestBuffer,
    writable: GuestBuffer,
    memory: &GuestMemory,
    limits: &Limits,
) -> Result<Request, Refusal> {
    let header = readable.take_front(HEADER_LEN).ok_or(Refusal::Header)?;
    let mut bytes = [0; HEADER_LEN];
    header
        .read_at(memory, 0, &mut bytes)
        .map_err(|_| Refusal::Header)?;
    let request_type = le_u32(&bytes, 0);
    let sector = le_u64(&bytes, 8);

    match request_type {
        VIRTIO_BLK_T_IN => {
            refuse_unless_empty(&readable)?;
            let offset = check_range(sector, writable.len() as u64, limits)?;
            Ok(Request::Read {
                offset,
                into: writable,
            })
        }
        VIRTIO_BLK_T_OUT => {
            refuse_unless_empty(&writable)?;
            refuse_read_only(limits)?;
            let offset = check_range(sector, readable.len() as u64, limits)?;
            Ok(Request::Write {
                offset,
                from: readable,
            })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID if writable.is_empty() => Err(Refusal::Buffers),
        VIRTIO_BLK_T_GET_ID => Ok(Request::GetId { into: writable }),
        VIRTIO_BLK_T_DISCARD if limits.discard => {
            refuse_read_only(limits)?;
            // Unmapping is what a discard is; its flag is for the other request.
            Ok(Request::Discard(segments(&readable, memory, limits, 0)?))
        }
        VIRTIO_BLK_T_WRITE_ZEROES if limits.write_zeroes => {
            refuse_read_only(limits)?;
            let flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            Ok(Request::WriteZeroes(segments(
                &readable, memory, limits, flags,
            )?))
        }
        _ => Err(Refusal::Type),
    }
}

/// The segments of a discard or write-zeroes request (5.2.6).
fn segments(
    readable: &GuestBuffer,
    memory: &GuestMemory,
    limits: &Limits,
    allowed_flags: u32,
) -> Result<Vec<Range>, Refusal> {
    let len = readable.len();
    if len == 0 || !len.is_multiple_of(SEGMENT_LEN) {
        return Err(Refusal::Buffers);
    }
    if len > MAX_SEGMENTS * SEGMENT_LEN {
        return Err(Refusal::TooLarge);
    }
    let mut bytes = [0; MAX_SEGMENTS * SEGMENT_LEN];
    let bytes = &mut bytes[..len];
    readable
        .read_at(memory, 0, bytes)
        .map_err(|_| Refusal::Buffers)?;
    bytes
        .chunks_exact(SEGMENT_LEN)
        .map(|one| segment(one, limits, allowed_flags))
        .collect()
}

fn segment(bytes: &[u8], limits: &Limits, allowed_flags: u32) -> Result<Range, Refusal> {
    let sector = le_u64(bytes, 0);
    let sectors = le_u32(bytes, 8);
    let flags = le_u32(bytes, 12);
    if flags & !allowed_flags != 0 {
        return Err(Refusal::Flags);
    }
    if sectors > MAX_SEGMENT_SECTORS {
        return Err(Refusal::TooLarge);
    }
    let len = u64::from(sectors) * SECTOR_SIZE;
    Ok(Range {
        offset: check_range(sector, len, limits)?,
        len,
    })
}

/// Checks a run of sectors and returns its offset in bytes.
fn check_range(sector: u64, len: u64, limits: &Limits) -> Result<u64, Refusal> {
    if len == 0 || !len.is_multiple_of(SECTOR_SIZE) {
        return Err(Refusal::Unaligned);
    }
    let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Refusal::OutOfRange)?;
    let end = offset.checked_add(len).ok_or(Refusal::OutOfRange)?;
    if end > limits.size {
        return Err(Refusal::OutOfRange);
    }
    Ok(offset)
}

fn refuse_unless_empty(buffer: &GuestBuffer) -> Result<(), Refusal> {
    if buffer.is_empty() {
        Ok(())
    } else {
        Err(Refusal::Buffers)
    }
}

fn refuse_read_only(limits: &Limits) -> Result<(), Refusal> {
    if limits.read_only {
        Err(Refusal::ReadOnly)
    } else {
        Ok(())
    }
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}
