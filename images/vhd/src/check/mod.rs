//! A full account of what is wrong with an image.
//!
//! Opening a disk stops at the first defect; a check goes on and lists all,
//! says which of them matter, and looks where opening does not: into sector
//! bitmaps and parent locators. It reads only, and takes a shared lock, so it
//! refuses a disk that is in use for writing.

mod blocks;

use std::fmt;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::disk::{Disk, Layout, Located, OpenOptions, layout, locate, read_header};
use crate::error::{Defect, Error, Result, Structure};
use crate::format::{DiskType, Footer, Header, PlatformCode, bat};
use crate::storage::{LockedFile, Storage};

/// Most problems that are listed; the rest is counted.
pub const MAX_LISTED: usize = 100;

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is wrong, but worth knowing.
    Note,
    /// The disk opens and its data is whole; something is to be mended, or
    /// other tools may read it differently.
    Warning,
    /// The disk does not open, or holds wrong data.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something that a check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// The field that breaks a rule, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defect: Option<Defect>,
    /// All of it in words.
    pub message: String,
}

/// The result of a check.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The image's file.
    pub path: PathBuf,
    /// Its type, if a footer could be read.
    pub disk_type: Option<DiskType>,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// What the blocks hold, of a disk that is not fixed.
    pub blocks: Option<BlockCounts>,
    /// Problems, in the order of the structures; at most [`MAX_LISTED`].
    pub problems: Vec<Problem>,
    /// Problems found above that number, which are not listed; the search ends
    /// soon after.
    pub not_listed: u64,
}

impl Report {
    /// Whether there is neither error nor warning.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.not_listed == 0 && self.problems.iter().all(|p| p.severity == Severity::Note)
    }

    fn add(&mut self, severity: Severity, message: impl Into<String>) {
        self.push(Problem {
            severity,
            defect: None,
            message: message.into(),
        });
    }

    fn add_defect(&mut self, severity: Severity, defect: Defect) {
        let message = defect.to_string();
        self.push(Problem {
            severity,
            defect: Some(defect),
            message,
        });
    }

    /// Adds a defect, or fails with what is none.
    fn add_error(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Invalid { defect, .. } => {
                self.add_defect(Severity::Error, *defect);
                Ok(())
            }
            other => Err(other),
        }
    }

    fn push(&mut self, problem: Problem) {
        if self.problems.len() < MAX_LISTED {
            self.problems.push(problem);
        } else {
            self.not_listed += 1;
        }
    }
}

/// What the blocks of a disk hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct BlockCounts {
    /// Blocks of the disk.
    pub total: u64,
    /// Blocks in the file.
    pub in_file: u64,
    /// Sectors in the file by their bitmaps.
    pub sectors_in_file: u64,
    /// Bytes of the file that belong to no structure: padding, and blocks that
    /// were lost in a crash.
    pub unreferenced: u64,
}

/// Checks an image; with `parents`, nearest first, the chain as well.
///
/// Fails only where the image cannot be read at all.
pub fn check(path: impl AsRef<Path>, parents: &[PathBuf]) -> Result<Report> {
    let path = path.as_ref();
    let file = LockedFile::open(path, true)?;
    let file_len = file
        .len()
        .map_err(|source| Error::io(path, "inspect", source))?;
    let mut report = Report {
        path: path.to_owned(),
        disk_type: None,
        file_len,
        blocks: None,
        problems: Vec::new(),
        not_listed: 0,
    };
    match locate(path, &file, None) {
        Ok(located) => check_located(path, &file, &located, &mut report)?,
        Err(error) => report.add_error(error)?,
    }
    if report
        .problems
        .iter()
        .all(|problem| problem.severity < Severity::Error)
    {
        check_chain(path, parents, &mut report)?;
    }
    Ok(report)
}

fn check_located(path: &Path, file: &File, located: &Located, report: &mut Report) -> Result<()> {
    let footer = &located.footer;
    report.disk_type = Some(footer.disk_type);
    if let Some(defect) = &located.defect {
        report.add_defect(Severity::Warning, defect.clone());
        report.add(
            Severity::Note,
            "one of the two footers is good; opening the disk for writing mends the other",
        );
    }
    check_footer(footer, report);
    if footer.disk_type == DiskType::Fixed {
        check_fixed(located, report);
        return Ok(());
    }
    match read_header(path, file, footer, located.limit()) {
        Ok(header) => check_header(path, file, located, &header, report),
        Err(error) => report.add_error(error),
    }
}

/// What is odd in a footer but no reason to refuse it.
fn check_footer(footer: &Footer, report: &mut Report) {
    if footer.features & crate::format::footer::FEATURE_RESERVED == 0 {
        let value = format!("{:#010x}", footer.features);
        let rule = "bit 1 is reserved and always set";
        let defect = Defect::new(Structure::Footer, "Features", value, rule);
        report.add_defect(Severity::Note, defect);
    }
    if footer.saved_state {
        report.add(
            Severity::Warning,
            "Saved State is set: a machine is suspended on this disk",
        );
    }
    let by_geometry = footer.disk_geometry.bytes();
    let creator = &footer.creator_application;
    if by_geometry != footer.current_size
        && footer.disk_geometry != crate::format::Geometry::MAX
        && [b"vpc ", b"qemu"].contains(&creator)
    {
        let lost = footer.current_size - by_geometry;
        report.add(
            Severity::Note,
            format!(
                "QEMU and Virtual PC take the size from Disk Geometry ({}) and see {lost} bytes \
                 less than Current Size",
                footer.disk_geometry
            ),
        );
    }
}

fn check_fixed(located: &Located, report: &mut Report) {
    let (size, there) = (located.footer.current_size, located.limit());
    if there < size {
        let rule = format!("the file is truncated: it has {there} bytes in front of the footer");
        let defect = Defect::new(Structure::Footer, "Current Size", size, rule);
        report.add_defect(Severity::Error, defect);
    } else if there > size {
        let gap = there - size;
        report.add(
            Severity::Warning,
            format!("{gap} bytes between data and footer are not used"),
        );
    }
}

fn check_header(
    path: &Path,
    file: &File,
    located: &Located,
    header: &Header,
    report: &mut Report,
) -> Result<()> {
    let limit = located.limit();
    if let Err(defect) = header.check_size(located.footer.current_size) {
        report.add_defect(Severity::Error, defect);
    }
    check_locators(file, located, header, report);
    if let Err(defect) = layout::check_table(header, limit) {
        report.add_defect(Severity::Error, defect);
        return Ok(());
    }
    let bat = layout::read_table(file, header)
        .map_err(|source| Error::io(path, "read the block allocation table", source))?;
    let layout = Layout {
        footer: &located.footer,
        header,
        bat: &bat,
        limit,
    };
    let mut sound = true;
    let _: ControlFlow<()> = layout.inspect(&mut |defect| {
        sound = false;
        report.add_defect(Severity::Error, defect);
        // A hostile table can have millions of them.
        if report.not_listed == 0 {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    let total = located
        .footer
        .current_size
        .div_ceil(u64::from(header.block_size));
    let beyond = bat
        .iter()
        .skip(total as usize)
        .filter(|entry| **entry != bat::UNUSED)
        .count();
    if beyond > 0 {
        report.add(
            Severity::Warning,
            format!("{beyond} blocks behind the end of the disk"),
        );
    }
    let mut counts = BlockCounts {
        total,
        in_file: layout.used_entries().count() as u64,
        unreferenced: layout.unreferenced(),
        ..BlockCounts::default()
    };
    if sound {
        blocks::check_bitmaps(path, file, &layout, total, &mut counts, report)?;
    }
    if counts.unreferenced >= header.block_shape().stored_len() {
        report.add(
            Severity::Note,
            format!(
                "{} bytes of the file belong to no block",
                counts.unreferenced
            ),
        );
    }
    report.blocks = Some(counts);
    Ok(())
}

/// Other tools find the parent by locators; ours are told.
fn check_locators(file: &File, located: &Located, header: &Header, report: &mut Report) {
    let used: Vec<_> = header
        .parent_locators
        .iter()
        .filter(|l| l.is_used())
        .collect();
    if located.footer.disk_type != DiskType::Differencing {
        if !used.is_empty() {
            report.add(
                Severity::Note,
                "parent locators in a disk that has no parent",
            );
        }
        return;
    }
    let windows = [PlatformCode::W2KU, PlatformCode::W2RU];
    if !used
        .iter()
        .any(|locator| windows.contains(&locator.platform_code))
    {
        report.add(
            Severity::Warning,
            "no parent locator W2ku or W2ru: other tools may not find the parent",
        );
    }
    for locator in used {
        if layout::read_locator(file, locator).is_err() {
            report.add(
                Severity::Error,
                format!(
                    "the data of parent locator {} is not in the file",
                    locator.platform_code
                ),
            );
        }
    }
}

fn check_chain(path: &Path, parents: &[PathBuf], report: &mut Report) -> Result<()> {
    if report.disk_type == Some(DiskType::Differencing) && parents.is_empty() {
        report.add(
            Severity::Note,
            "the parent was not given and has not been checked",
        );
        return Ok(());
    }
    let options = OpenOptions::read_only().with_parents(parents);
    match Disk::open(path, &options) {
        Ok(_) => Ok(()),
        Err(
            error @ (Error::Invalid { .. }
            | Error::ParentMissing { .. }
            | Error::ParentMismatch { .. }
            | Error::ParentUnexpected { .. }),
        ) => {
            report.add(Severity::Error, error.to_string());
            Ok(())
        }
        Err(other) => Err(other),
    }
}
