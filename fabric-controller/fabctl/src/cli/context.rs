//! Contexts.

use std::path::PathBuf;

use clap::Subcommand;

/// What can be done with contexts.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List them; * marks the current one.
    List,
    /// Show one, without its key.
    Show {
        /// Its name; by default the current one's.
        name: Option<String>,
    },
    /// Use one from now on.
    Use {
        /// Its name.
        name: String,
    },
    /// Take one from a file that an administrator made, and use it from now on.
    Import {
        /// The file.
        file: PathBuf,
        /// What to call it [default: as the file does].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
}
