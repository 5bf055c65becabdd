//! The rights of root that this process keeps: those that virtual machines need when
//! they are started, watched and cleaned up after.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// Each, and what for. SECURITY.md has the same list.
const NEEDED: [(Capability, &str); 9] = [
    (
        Capability::CAP_SYS_ADMIN,
        "namespaces and mounts of virtual machines",
    ),
    (Capability::CAP_SETUID, "a user for each virtual machine"),
    (Capability::CAP_SETGID, "a group for each"),
    (
        Capability::CAP_SETPCAP,
        "a bounding set with nothing in it for each",
    ),
    (Capability::CAP_CHOWN, "a directory that is that user's"),
    (
        Capability::CAP_DAC_OVERRIDE,
        "sockets and files in such a directory",
    ),
    (
        Capability::CAP_FOWNER,
        "the modes of files that were made there",
    ),
    (Capability::CAP_KILL, "ending the processes of such users"),
    (
        Capability::CAP_SYS_PTRACE,
        "finding them again by their working directory",
    ),
];

/// Gives up all others, for this thread, those that it starts, and every program that
/// any of them becomes.
///
/// # Errors
///
/// When the kernel does not let go of one.
pub fn keep_needed() -> Result<(), CapsError> {
    let needed: CapsHashSet = NEEDED.iter().map(|(capability, _)| *capability).collect();
    let permitted = caps::read(None, CapSet::Permitted)?;
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding)?.difference(&needed) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    let kept = permitted.intersection(&needed).copied().collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_is_gone_for_good_and_the_rest_is_documented() {
        // Of this thread alone.
        keep_needed().unwrap();
        let has = |set, capability| caps::has_cap(None, set, capability).unwrap();
        // Whoever is not root has no say in its bounding set.
        let root = has(CapSet::Permitted, Capability::CAP_SETPCAP);
        for gone in [Capability::CAP_SYS_MODULE, Capability::CAP_NET_ADMIN] {
            assert!(!has(CapSet::Permitted, gone) && !has(CapSet::Effective, gone));
            assert!(
                !root || !has(CapSet::Bounding, gone),
                "{gone} can be had back"
            );
        }
        let text = include_str!("../../SECURITY.md");
        for (capability, why) in NEEDED {
            let line = format!("| `{capability}` | {why} |");
            assert!(text.contains(&line), "SECURITY.md lacks: {line}");
        }
    }
}
