//! `vhd info`.

use std::path::PathBuf;

use anyhow::Result;
use vhd::format::PlatformCode;
use vhd::{DynamicInfo, Info};

use super::output::{self, Output};

/// Show what an image says about itself
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Show what an image says about itself: footer, header, geometry, parent.\n\n\
        Fails where footer or header do not check; `vhd check` then says all that is wrong. The \
        parent's name and paths are shown as they are recorded; nothing is opened there.",
    after_help = "Examples:\n  vhd info base.vhd\n  vhd info base.vhd --output json | jq .virtual_size"
)]
pub(super) struct Args {
    /// The image
    file: PathBuf,
    /// How the result is written
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let info = vhd::info(&self.file)?;
        match self.output {
            Output::Json => output::json(&info),
            Output::Table => output::fields(&fields(&info)),
        }
    }
}

fn fields(info: &Info) -> Vec<(&'static str, String)> {
    let footer = &info.footer;
    let text = |letters: &[u8]| letters.escape_ascii().to_string();
    let mut fields = vec![
        ("File", info.path.display().to_string()),
        ("Disk Type", info.disk_type.to_string()),
        ("Current Size", output::size(info.virtual_size)),
        ("File length", output::size(info.file_len)),
        ("Space taken", output::size(info.file_allocated)),
        ("Unique Id", footer.unique_id.to_string()),
        ("Time Stamp", footer.time_stamp.to_string()),
        ("Disk Geometry", geometry(info)),
        ("Creator Application", text(&footer.creator_application)),
        ("Creator Host OS", text(&footer.creator_host_os)),
    ];
    if let Some(defect) = &info.footer_defect {
        fields.push(("Damaged", format!("{defect} (the other footer is used)")));
    }
    if let Some(dynamic) = &info.dynamic {
        dynamic_fields(dynamic, &mut fields);
    }
    fields
}

fn geometry(info: &Info) -> String {
    let geometry = info.footer.disk_geometry;
    if info.geometry_size == info.virtual_size {
        return geometry.to_string();
    }
    format!("{geometry} = {}", output::size(info.geometry_size))
}

fn dynamic_fields(dynamic: &DynamicInfo, fields: &mut Vec<(&'static str, String)>) {
    let header = &dynamic.header;
    fields.push(("Block Size", output::size(header.block_size.into())));
    fields.push((
        "Blocks in file",
        format!("{} of {}", dynamic.blocks_in_file, dynamic.blocks),
    ));
    if header.parent_unique_id.is_nil() {
        return;
    }
    fields.push(("Parent Unique ID", header.parent_unique_id.to_string()));
    fields.push(("Parent Time Stamp", header.parent_time_stamp.to_string()));
    fields.push(("Parent Unicode Name", header.parent_unicode_name.clone()));
    for locator in &dynamic.locators {
        let name = match locator.platform_code {
            PlatformCode::W2RU => "Parent Locator W2ru",
            PlatformCode::W2KU => "Parent Locator W2ku",
            _ => "Parent Locator",
        };
        fields.push((
            name,
            locator
                .name
                .clone()
                .unwrap_or_else(|| "(not readable)".into()),
        ));
    }
}
