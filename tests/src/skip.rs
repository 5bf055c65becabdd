//! What a story leaves out, where this host cannot show it.

use std::env;

use anyhow::ensure;

/// Leaves a story, or the rest of it, untold, and says why; with
/// `FABRIC_REQUIRE_ISOLATION=1` that is a failure, as this host is to have all that
/// machines are isolated by: root, and control groups.
///
/// # Errors
///
/// It may not be left out.
pub fn skipped(why: &str) -> anyhow::Result<()> {
    let required = env::var_os("FABRIC_REQUIRE_ISOLATION").is_some_and(|value| value == "1");
    ensure!(!required, "FABRIC_REQUIRE_ISOLATION=1, but {why}");
    eprintln!("skipped: {why}");
    Ok(())
}
