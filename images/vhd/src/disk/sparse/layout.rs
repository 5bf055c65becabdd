//! Where the structures of a dynamic or differencing disk are in its file, and
//! whether each is inside the file and has its place for itself.

use std::io;
use std::ops::{ControlFlow, Range};

use crate::device::SECTOR_SIZE;
use crate::error::{Defect, Structure};
use crate::format::bat::{self, BlockShape};
use crate::format::footer::FOOTER_LEN;
use crate::format::header::HEADER_LEN;
use crate::format::{Footer, Header};
use crate::storage::Storage;

/// The places of a disk's structures.
pub(crate) struct Layout<'a> {
    pub(crate) footer: &'a Footer,
    pub(crate) header: &'a Header,
    pub(crate) bat: &'a [u32],
    /// Where the footer at the end begins; the length of the file if there is
    /// none.
    pub(crate) limit: u64,
}

impl Layout<'_> {
    /// The first byte behind all structures, the footer at the end left out;
    /// a multiple of a sector.
    pub(crate) fn used_end(&self) -> u64 {
        let stored = self.header.block_shape().stored_len();
        let fixed = self
            .fixed_regions()
            .into_iter()
            .map(|region| region.range.end)
            .max();
        let blocks = self.used_entries().map(|(_, at)| at + stored).max();
        fixed.max(blocks).unwrap_or(0).next_multiple_of(SECTOR_SIZE)
    }

    /// Bytes in front of the footer that belong to no structure.
    pub(crate) fn unreferenced(&self) -> u64 {
        let stored = self.header.block_shape().stored_len();
        let fixed: u64 = self
            .fixed_regions()
            .iter()
            .map(|r| r.range.end - r.range.start)
            .sum();
        let used = fixed + self.used_entries().count() as u64 * stored;
        self.limit.saturating_sub(used)
    }

    /// Blocks in the file, with the index of their entry and their offset.
    pub(crate) fn used_entries(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        used_entries(self.bat)
    }

    /// Hands every defect of the layout to `report`, until that breaks off.
    pub(crate) fn inspect<B>(
        &self,
        report: &mut dyn FnMut(Defect) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut fixed = self.fixed_regions();
        fixed.sort_by_key(|region| region.range.start);
        for region in &fixed {
            if region.range.end > self.limit {
                report(region.outside(self.limit))?;
            }
        }
        for pair in fixed.windows(2) {
            if pair[0].range.end > pair[1].range.start {
                report(pair[1].overlaps(&pair[0].name))?;
            }
        }
        self.inspect_blocks(&fixed, report)?;
        self.inspect_overlaps(report)
    }

    /// Blocks outside the file or in the place of a structure.
    fn inspect_blocks<B>(
        &self,
        fixed: &[Region],
        report: &mut dyn FnMut(Defect) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let stored = self.header.block_shape().stored_len();
        for (index, at) in self.used_entries() {
            let block = at..at + stored;
            if block.end > self.limit {
                let Range { end, .. } = block;
                let rule = format!(
                    "the block ends at {end}, behind the end of the data at {}",
                    self.limit
                );
                report(entry_defect(index, at, rule))?;
            } else if let Some(region) = fixed.iter().find(|region| region.meets(&block)) {
                let rule = format!("the block overlaps the {}", region.name);
                report(entry_defect(index, at, rule))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Blocks that overlap each other.
    fn inspect_overlaps<B>(
        &self,
        report: &mut dyn FnMut(Defect) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let stored = self.header.block_shape().stored_len();
        let mut blocks: Vec<u32> = self
            .bat
            .iter()
            .copied()
            .filter(|e| *e != bat::UNUSED)
            .collect();
        blocks.sort_unstable();
        for pair in blocks.windows(2) {
            if u64::from(pair[1] - pair[0]) * SECTOR_SIZE < stored {
                let first = self.bat.iter().position(|e| *e == pair[0]).unwrap_or(0);
                let second = self.bat.iter().rposition(|e| *e == pair[1]).unwrap_or(0);
                let (at, rule) = (
                    u64::from(pair[1]) * SECTOR_SIZE,
                    format!("the block overlaps that of entry {first}"),
                );
                report(entry_defect(second, at, rule))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// All structures but the blocks and the footer at the end.
    fn fixed_regions(&self) -> Vec<Region> {
        let header_at = self.footer.data_offset;
        let region = |structure, field: &str, name: &str, start: u64, len: u64| Region {
            structure,
            field: field.to_owned(),
            name: name.to_owned(),
            range: start..start.saturating_add(len),
        };
        let mut regions = vec![
            region(
                Structure::FooterCopy,
                "place",
                "copy of the footer",
                0,
                FOOTER_LEN as u64,
            ),
            region(
                Structure::Footer,
                "Data Offset",
                "header",
                header_at,
                HEADER_LEN as u64,
            ),
            region(
                Structure::Header,
                "Table Offset",
                "block allocation table",
                self.header.table_offset,
                self.header.table_len(),
            ),
        ];
        let locators = self.header.parent_locators.iter().enumerate();
        for (index, locator) in locators.filter(|(_, l)| l.is_used() && l.space() > 0) {
            let number = index + 1;
            regions.push(region(
                Structure::ParentLocator,
                &format!("Platform Data Offset of entry {number}"),
                &format!("data of parent locator {number}"),
                locator.platform_data_offset,
                locator.space(),
            ));
        }
        regions
    }
}

/// A defect of the table's entry with this index, whose block is at `at`.
fn entry_defect(index: usize, at: u64, rule: String) -> Defect {
    let value = format!("{:#010x} (byte {at})", at / SECTOR_SIZE);
    Defect::new(
        Structure::BlockAllocationTable,
        format!("entry {index}"),
        value,
        rule,
    )
}

/// A structure's place.
struct Region {
    structure: Structure,
    /// The field that says where it is.
    field: String,
    name: String,
    range: Range<u64>,
}

impl Region {
    fn outside(&self, limit: u64) -> Defect {
        let Range { start, end } = self.range;
        let rule = format!(
            "the {} ends at {end}, behind the end of the data at {limit}",
            self.name
        );
        Defect::new(self.structure, self.field.clone(), start, rule)
    }

    fn overlaps(&self, other: &str) -> Defect {
        let rule = format!("the {} overlaps the {other}", self.name);
        Defect::new(self.structure, self.field.clone(), self.range.start, rule)
    }

    fn meets(&self, range: &Range<u64>) -> bool {
        self.range.start < range.end && range.start < self.range.end
    }
}

/// Blocks in the file, with the index of their entry and their offset.
pub(crate) fn used_entries(bat: &[u32]) -> impl Iterator<Item = (usize, u64)> + '_ {
    bat.iter()
        .enumerate()
        .filter(|(_, entry)| **entry != bat::UNUSED)
        .map(|(index, entry)| (index, u64::from(*entry) * SECTOR_SIZE))
}

/// Checks that the table is inside the file, so that it can be read.
pub(crate) fn check_table(header: &Header, limit: u64) -> Result<(), Defect> {
    let end = header.table_offset.saturating_add(header.table_len());
    if end <= limit {
        return Ok(());
    }
    let rule =
        format!("the block allocation table ends at {end}, behind the end of the data at {limit}");
    Err(Defect::new(
        Structure::Header,
        "Table Offset",
        header.table_offset,
        rule,
    ))
}

/// Reads the block allocation table.
pub(crate) fn read_table(storage: &dyn Storage, header: &Header) -> io::Result<Vec<u32>> {
    const CHUNK: usize = 16 << 10;
    let mut left = header.max_table_entries as usize;
    let mut at = header.table_offset;
    let mut bat = Vec::with_capacity(left);
    let mut chunk = [0; CHUNK];
    while left > 0 {
        let entries = left.min(CHUNK / bat::ENTRY_LEN as usize);
        let bytes = &mut chunk[..entries * bat::ENTRY_LEN as usize];
        storage.read_exact_at(bytes, at)?;
        bat.extend(bytes.as_chunks().0.iter().copied().map(u32::from_be_bytes));
        at += bytes.len() as u64;
        left -= entries;
    }
    Ok(bat)
}

/// Reads the data of a locator, unless it is too long to be one.
pub(crate) fn read_locator(
    storage: &dyn Storage,
    locator: &crate::format::ParentLocator,
) -> io::Result<Option<String>> {
    if locator.platform_data_length > crate::format::locator::MAX_LOCATOR_LEN {
        return Ok(None);
    }
    let mut data = vec![0; locator.platform_data_length as usize];
    storage.read_exact_at(&mut data, locator.platform_data_offset)?;
    Ok(locator.decode(&data))
}

/// Where the next block goes in a file whose structures end at `end`: its
/// bitmap so that its data begins on a 4 KiB boundary.
pub(super) fn next_block(end: u64, shape: BlockShape) -> u64 {
    const ALIGNMENT: u64 = 4096;
    (end + shape.bitmap_len).next_multiple_of(ALIGNMENT) - shape.bitmap_len
}
