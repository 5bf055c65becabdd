//! Tables for people.

use comfy_table::{CellAlignment, Table, presets};

/// A table with a header. Columns after the first are right-aligned if `numbers`.
pub fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>, numbers: bool) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    if numbers {
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
