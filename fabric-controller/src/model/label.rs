//! Labels of nodes: what they may be, and how many.

pub use fabric_proto::label::{RULE, is_valid};

/// Most labels that a role can ask for.
pub const MOST_ASKED: usize = 16;
/// Most labels that a node can have from its own configuration, and from an operator.
pub const MOST: usize = 64;
