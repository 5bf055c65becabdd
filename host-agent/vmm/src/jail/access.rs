//! Landlock: what the process may do with files and sockets, whatever else fails.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

/// The newest rules that are known here; older kernels take those they know.
const KNOWN: ABI = ABI::V6;

/// Allows files to be made, read and removed in `directory`, for snapshots, and
/// nothing elsewhere; no TCP, no signals, no abstract sockets.
///
/// # Errors
///
/// When the kernel has no Landlock.
pub fn restrict(directory: &Path) -> io::Result<()> {
    let in_directory: BitFlags<AccessFs> = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let restricted = || {
        let place = PathFd::new(directory).map_err(io::Error::other)?;
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))
            .and_then(|rules| rules.handle_access(AccessNet::from_all(KNOWN)))
            .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
            .and_then(Ruleset::create)
            .and_then(|rules| rules.add_rule(PathBeneath::new(place, in_directory)))
            .and_then(landlock::RulesetCreated::restrict_self)
            .map_err(io::Error::other)
    };
    match restricted()?.ruleset {
        RulesetStatus::NotEnforced => Err(io::Error::other("the kernel has no Landlock")),
        _ => Ok(()),
    }
}
