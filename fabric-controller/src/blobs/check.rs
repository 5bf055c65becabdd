//! Whether an uploaded file is a VHD that a guest can be given.
//!
//! The only place that knows the `vhd` crate.

use std::path::Path;

use vhd::{BlockDevice as _, DiskType, OpenOptions};

use crate::model::blob::VhdFacts;

/// Opens the file and answers what is in it, or in one line why it is refused.
///
/// # Errors
///
/// It is no VHD, a damaged one, or one that needs a parent.
pub fn vhd_facts(path: &Path) -> Result<VhdFacts, String> {
    let disk = vhd::open(path, &OpenOptions::read_only()).map_err(|error| {
        // The path is the controller's own and says nothing to whoever uploads.
        crate::reconcile::chain(&error).replace(&path.display().to_string(), "the file")
    })?;
    if let Some(defect) = disk.repaired() {
        return Err(format!("one of its footers is damaged: {defect}"));
    }
    let vhd_type = match disk.disk_type() {
        DiskType::Fixed => "fixed",
        DiskType::Dynamic => "dynamic",
        DiskType::Differencing => {
            return Err("it is a differencing disk, whose parent is not here; \
                        merge it into a dynamic one first"
                .to_owned());
        }
    };
    Ok(VhdFacts {
        virtual_bytes: disk.size(),
        vhd_type: vhd_type.to_owned(),
    })
}
