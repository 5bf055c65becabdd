//! Opening a dynamic or differencing disk, and mending its ends.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::bitmap::Bitmaps;
use super::layout::{self, Layout};
use super::{Sparse, State};
use crate::disk::{Disk, Located, OpenOptions};
use crate::error::{Defect, Error, Result, Structure};
use crate::format::footer::FOOTER_LEN;
use crate::format::header::HEADER_LEN;
use crate::format::{Footer, Header};
use crate::storage::Storage;

/// Reads the dynamic disk header to which the footer points.
pub(crate) fn read_header(
    path: &Path,
    storage: &dyn Storage,
    footer: &Footer,
    limit: u64,
) -> Result<Header> {
    let at = footer.data_offset;
    if at.saturating_add(HEADER_LEN as u64) > limit {
        let rule = format!("the dynamic disk header would end behind the data's end at {limit}");
        let defect = Defect::new(Structure::Footer, "Data Offset", at, rule);
        return Err(Error::invalid(path, defect));
    }
    let mut bytes = [0; HEADER_LEN];
    storage
        .read_exact_at(&mut bytes, at)
        .map_err(|source| Error::io(path, "read the dynamic disk header", source))?;
    Header::parse(&bytes).map_err(|defect| Error::invalid(path, defect))
}

impl Sparse {
    /// Opens the disk whose footer is `located` and whose header has been
    /// read. The parent has been checked.
    pub(in crate::disk) fn open(
        path: &Path,
        storage: Box<dyn Storage>,
        located: &Located,
        header: Header,
        parent: Option<Arc<Disk>>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let read_only = options.read_only;
        let invalid = |defect| Error::invalid(path, defect);
        let limit = located.limit();
        header
            .check_size(located.footer.current_size)
            .map_err(invalid)?;
        layout::check_table(&header, limit).map_err(invalid)?;
        let bat = layout::read_table(&*storage, &header)
            .map_err(|source| Error::io(path, "read the block allocation table", source))?;
        let layout = Layout {
            footer: &located.footer,
            header: &header,
            bat: &bat,
            limit,
        };
        if let ControlFlow::Break(defect) = layout.inspect(&mut ControlFlow::Break) {
            return Err(invalid(defect));
        }
        let end = if read_only {
            limit
        } else {
            mend(&*storage, located, &layout)
                .map_err(|source| Error::io(path, "mend the footer", source))?
        };
        Ok(Self {
            path: path.to_owned(),
            storage,
            footer: located.bytes,
            size: located.footer.current_size,
            shape: header.block_shape(),
            header,
            parent,
            read_only,
            quota: options.quota.unwrap_or(u64::MAX),
            state: Mutex::new(State {
                bat,
                unpublished: std::collections::BTreeSet::new(),
                bitmaps: Bitmaps::new(),
                end,
            }),
            committing: Mutex::new(()),
            poisoned: AtomicBool::new(false),
        })
    }
}

/// Restores both footers and cuts off blocks that a crash has left without an
/// entry. Returns where the footer at the end is.
///
/// The copy comes first: while the end is being mended, it is all there is. The
/// end is cut off behind the place of the footer, not in front of it, where the
/// last thing in the file would be what a guest wrote.
/// Less than a block in front of the footer is left alone, for other tools
/// keep things there.
fn mend(storage: &dyn Storage, located: &Located, layout: &Layout<'_>) -> std::io::Result<u64> {
    if located.tail_at.is_some() && located.defect.is_some() {
        storage.write_all_at(&located.bytes, 0)?;
        storage.sync_data()?;
    }
    let used_end = layout.used_end();
    match located.tail_at {
        Some(end) if end < used_end + layout.header.block_shape().stored_len() => Ok(end),
        _ => {
            storage.set_len(used_end + FOOTER_LEN as u64)?;
            storage.write_all_at(&located.bytes, used_end)?;
            storage.sync_data()?;
            Ok(used_end)
        }
    }
}
