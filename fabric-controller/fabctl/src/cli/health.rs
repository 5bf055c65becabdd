//! How the fabric is, and what to send to whoever is to find out.

use std::path::PathBuf;

use clap::Args;

/// Settings of `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Looks at the context and its certificate, the controller (version, clock, disk), nodes,\n\
services with their updates, and instances. Changes nothing. Ends with 5 if it has found\n\
something, with 0 if not.\n\
Examples:\n  fabctl doctor\n  fabctl doctor --patience 10m --output json"
)]
pub struct Doctor {
    /// For how long an instance may not be Ready before that is found.
    #[arg(long, value_name = "TIME", default_value = "2m")]
    pub patience: humantime::Duration,
}

/// Settings of `support-bundle`.
#[derive(Debug, Args)]
#[command(
    after_help = "A .tar.gz of JSON: what is, what was to be, what has happened, what `doctor` finds.\n\
Settings and environments of roles, arguments of their programs, keys and tokens are left\n\
out, and so is what roles have written. What could not be had is listed in it. Look\n\
through it all the same before you give it to somebody: names and messages are yours.\n\
Examples:\n  fabctl support-bundle\n  fabctl support-bundle /tmp/case-17.tar.gz"
)]
pub struct SupportBundle {
    /// The file to write; it must not be there [default: fabric-support-TIME.tar.gz].
    pub file: Option<PathBuf>,
}
