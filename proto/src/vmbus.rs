//! What host agent, VMM and guest agent agree on about the VMBus and the guest.

/// Context id of the host, as every guest sees it (virtio 1.2, 5.10.4).
pub const HOST_CID: u32 = 2;

/// Port on which the host agent serves `fabric.guest.v1.GuestService`. A guest's
/// connection to it arrives at the unix socket `PATH_1024`.
pub const SESSION_PORT: u32 = 1024;

/// Port on which a guest agent takes faults to inject, one line of text each.
/// It listens only when the kernel command line says [`FAULTS_ARGUMENT`].
pub const FAULT_PORT: u32 = 1025;

/// Port on which a guest calls its host when its roles are ready to be copied. Nobody
/// answers: where it is waited for, the guest becomes a template at its next call to
/// [`SESSION_PORT`].
pub const TEMPLATE_PORT: u32 = 1026;

/// Port at which a guest's power button is: the VMM knocks there when it is told to
/// press it, the guest agent says `ok` and powers the guest off in order. Only the host
/// may ([`HOST_CID`]). The VMM, which knows nothing of this crate, has the number as
/// `fabric_vmm::control::knock::PORT`.
pub const POWER_BUTTON_PORT: u32 = 1027;

/// Port on which a guest that will become a template calls its host when its kernel has
/// booted and it holds nothing of its disk any more; then it goes on to mount the disk. Only
/// a template's host takes the call. Whoever else goes on from a snapshot of this moment, as
/// a machine that is reset, gets no answer: it is no template, and goes on like any guest.
pub const BOOTED_PORT: u32 = 1028;

/// Variable in the environment of a guest's first process, put there by a kernel
/// command line argument of this name: the guest will become a template. Its agent
/// does before its first call what a guest that is not copied does after it. The
/// value is the program that its copies will run, or nothing that is an absolute path.
pub const TEMPLATE_VARIABLE: &str = "fabric_template";

/// Directory of a guest in which each role has its own, by its name; at that its package is
/// mounted.
pub const ROLES: &str = "/role";

/// Kernel command line argument that opens [`FAULT_PORT`].
pub const FAULTS_ARGUMENT: &str = "fabric.faults=1";
