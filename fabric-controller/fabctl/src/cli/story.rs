//! What happens, and what has happened.

use clap::Args;

/// Settings of `events`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fabctl events\n  fabctl events --about shop-web-0\n  \
fabctl events --after 120 --follow --output json"
)]
pub struct Events {
    /// Only those after this cursor.
    #[arg(long, value_name = "CURSOR", default_value_t = 0)]
    pub after: u64,
    /// Go on with what happens, until Ctrl-C.
    #[arg(long, short)]
    pub follow: bool,
    /// Only those about this node, image, package, service or instance.
    #[arg(long, value_name = "NAME")]
    pub about: Option<String>,
}

/// Settings of `audit`.
#[derive(Debug, Args)]
#[command(
    after_help = "Every call that changes something is in it, and every denial.\n\
Examples:\n  fabctl audit\n  fabctl audit --after 120 --follow --output json"
)]
pub struct Audit {
    /// Only those after this cursor.
    #[arg(long, value_name = "CURSOR", default_value_t = 0)]
    pub after: u64,
    /// Go on with what is written, until Ctrl-C.
    #[arg(long, short)]
    pub follow: bool,
}

/// Settings of `watch`.
#[derive(Debug, Args)]
#[command(
    after_help = "In a terminal the view takes all of it: nodes by fault domain, services, instances,\n\
events. Its keys are in its last line; q ends it. Elsewhere, and with --output json, every\n\
change of an instance and every event is a line, until Ctrl-C."
)]
pub struct Watch {
    /// Only instances of this service.
    #[arg(long)]
    pub service: Option<String>,
}

/// Settings of `why`.
#[derive(Debug, Args)]
#[command(
    after_help = "A failure begins with the first sign of trouble, which may be its node's, and ends when\n\
the role is Ready. Each line says which one led to it, and how much later it was.\n\
Examples:\n  fabctl why shop-web-0\n  fabctl why shop-web-0 --all --output json"
)]
pub struct Why {
    /// Its id, such as shop-web-0.
    pub id: String,
    /// Every failure that is on record, not the last one alone.
    #[arg(long)]
    pub all: bool,
}
