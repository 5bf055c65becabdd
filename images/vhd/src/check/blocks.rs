//! Checking sector bitmaps against the data they describe.

use std::fs::File;
use std::path::Path;

use super::{BlockCounts, Report, Severity};
use crate::device::SECTOR_SIZE;
use crate::disk::Layout;
use crate::error::{Error, Result};
use crate::format::DiskType;
use crate::storage::Storage;

/// Bytes of data that are looked at at once.
const CHUNK: usize = 64 << 10;

/// Counts sectors in the file, and warns of a dynamic disk that reads
/// differently in tools that ignore its bitmaps.
pub(super) fn check_bitmaps(
    path: &Path,
    file: &File,
    layout: &Layout<'_>,
    total: u64,
    counts: &mut BlockCounts,
    report: &mut Report,
) -> Result<()> {
    let shape = layout.header.block_shape();
    let is_dynamic = layout.footer.disk_type == DiskType::Dynamic;
    let mut bitmap = vec![0; shape.bitmap_len as usize];
    let mut ambiguous = 0u64;
    let io = |source| Error::io(path, "read a block", source);
    for (index, at) in layout
        .used_entries()
        .filter(|(index, _)| (*index as u64) < total)
    {
        file.read_exact_at(&mut bitmap, at).map_err(io)?;
        let begin = index as u64 * shape.block_size;
        let len = shape.block_size.min(layout.footer.current_size - begin);
        let sectors = len / SECTOR_SIZE;
        let set = count_ones(&bitmap, sectors);
        counts.sectors_in_file += set;
        if is_dynamic && set < sectors {
            let data_at = at + shape.bitmap_len;
            ambiguous += stray_sectors(file, &bitmap, data_at, sectors).map_err(io)?;
        }
    }
    if ambiguous > 0 {
        report.add(
            Severity::Warning,
            format!(
                "{ambiguous} sectors hold data that the sector bitmaps call unused: they read as \
                 zeroes, but as that data in tools that ignore the bitmaps of dynamic disks"
            ),
        );
    }
    Ok(())
}

fn count_ones(bitmap: &[u8], sectors: u64) -> u64 {
    (0..sectors)
        .filter(|sector| is_set(bitmap, *sector))
        .count() as u64
}

fn is_set(bitmap: &[u8], sector: u64) -> bool {
    bitmap[(sector / 8) as usize] & (0x80 >> (sector % 8)) != 0
}

/// Sectors of a block whose bit is clear but whose data is not zeroes.
fn stray_sectors(file: &File, bitmap: &[u8], data_at: u64, sectors: u64) -> std::io::Result<u64> {
    let per_chunk = CHUNK as u64 / SECTOR_SIZE;
    let mut buffer = vec![0; CHUNK];
    let mut stray = 0;
    for first in (0..sectors).step_by(per_chunk as usize) {
        let count = per_chunk.min(sectors - first);
        let at = data_at + first * SECTOR_SIZE;
        if (first..first + count).all(|sector| is_set(bitmap, sector)) || is_hole(file, at, count)?
        {
            continue;
        }
        let data = &mut buffer[..(count * SECTOR_SIZE) as usize];
        file.read_exact_at(data, at)?;
        let used = data
            .chunks_exact(SECTOR_SIZE as usize)
            .map(|s| s.iter().any(|b| *b != 0));
        let pairs = (first..).zip(used);
        stray += pairs
            .filter(|(sector, used)| *used && !is_set(bitmap, *sector))
            .count() as u64;
    }
    Ok(stray)
}

/// Whether so many sectors of the file are a hole.
fn is_hole(file: &File, at: u64, sectors: u64) -> std::io::Result<bool> {
    let (data, end) = file.data_run(at)?;
    Ok(!data && end >= at + sectors * SECTOR_SIZE)
}
