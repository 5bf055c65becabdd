//! Landlock: what the process may do with files and sockets, whatever else fails.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

/// The newest rules that are known here; older kernels take those they know.
const KNOWN: ABI = ABI::V6;

/// Allows files to be made, read and removed in `directory`, for snapshots, if there is one,
/// and nothing elsewhere; no TCP, no signals, no abstract sockets.
///
/// # Errors
///
/// When the kernel has no Landlock.
pub fn restrict(directory: Option<&Path>) -> io::Result<()> {
    let in_directory: BitFlags<AccessFs> = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let restricted = || {
        let place = directory.map(PathFd::new).transpose();
        let place = place.map_err(io::Error::other)?;
        let rules = place.map(|place| Ok(PathBeneath::new(place, in_directory)));
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))
            .and_then(|rules| rules.handle_access(AccessNet::from_all(KNOWN)))
            .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
            .and_then(Ruleset::create)
            .and_then(|created| created.add_rules(rules))
            .and_then(landlock::RulesetCreated::restrict_self)
            .map_err(io::Error::other)
    };
    match restricted()?.ruleset {
        RulesetStatus::NotEnforced => Err(io::Error::other("the kernel has no Landlock")),
        _ => Ok(()),
    }
}
