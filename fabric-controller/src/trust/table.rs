//! Which call is for whom: the one table, which [`guard`](super::guard) enforces and
//! `fabric-controller permissions` prints. What is not in it is for nobody.
//!
//! Whoever can open the unix socket may make all of them.

use fabric_trust::identity::Role::{self, Admin, Node, Operator, Reader};

use super::caller::Kind;

/// One call, and who may make it.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// `PACKAGE.SERVICE/METHOD`
    pub call: &'static str,
    /// Holders of such certificates.
    pub roles: &'static [Role],
    /// Machines without a certificate, which want one.
    pub joining: bool,
    /// Whether it changes something, and so is in the audit log.
    pub changes: bool,
}

const fn see(call: &'static str) -> Rule {
    rule(call, &[Admin, Operator, Reader], false)
}

const fn change(call: &'static str) -> Rule {
    rule(call, &[Admin, Operator], true)
}

const fn rule(call: &'static str, roles: &'static [Role], changes: bool) -> Rule {
    Rule {
        call,
        roles,
        joining: false,
        changes,
    }
}

/// See the [module](self).
pub const TABLE: &[Rule] = &[
    see("fabric.v1.ControllerService/GetController"),
    see("fabric.v1.NodeService/ListNodes"),
    change("fabric.v1.NodeService/CordonNode"),
    change("fabric.v1.NodeService/UncordonNode"),
    change("fabric.v1.NodeService/DrainNode"),
    change("fabric.v1.NodeService/LabelNode"),
    rule("fabric.v1.NodeService/RemoveNode", &[Admin], true),
    change("fabric.v1.BlobService/BeginUpload"),
    change("fabric.v1.BlobService/Upload"),
    see("fabric.v1.BlobService/ListBlobs"),
    see("fabric.v1.BlobService/GetBlob"),
    change("fabric.v1.BlobService/DeleteBlob"),
    change("fabric.v1.ServiceService/ApplyService"),
    see("fabric.v1.ServiceService/ListServices"),
    see("fabric.v1.ServiceService/GetService"),
    change("fabric.v1.ServiceService/DeleteService"),
    change("fabric.v1.ServiceService/SwapSlots"),
    see("fabric.v1.ServiceService/ListRevisions"),
    change("fabric.v1.ServiceService/RollbackService"),
    see("fabric.v1.ServiceService/GetUpdate"),
    change("fabric.v1.ServiceService/ControlUpdate"),
    see("fabric.v1.InstanceService/ListInstances"),
    see("fabric.v1.InstanceService/GetInstance"),
    change("fabric.v1.InstanceService/RestartInstance"),
    change("fabric.v1.InstanceService/PauseInstance"),
    change("fabric.v1.InstanceService/ResumeInstance"),
    change("fabric.v1.InstanceService/StopInstance"),
    change("fabric.v1.InstanceService/StartInstance"),
    change("fabric.v1.InstanceService/SnapshotInstance"),
    change("fabric.v1.InstanceService/RestoreInstance"),
    change("fabric.v1.InstanceService/DeleteSnapshot"),
    see("fabric.v1.InstanceService/WatchInstances"),
    see("fabric.v1.InstanceService/StreamOutput"),
    see("fabric.v1.PlacementService/ExplainPlacement"),
    see("fabric.v1.PlacementService/SimulatePlacement"),
    see("fabric.v1.EventService/ListEvents"),
    see("fabric.v1.EventService/WatchEvents"),
    rule("fabric.v1.TrustService/CreateToken", &[Admin], true),
    Rule {
        call: "fabric.v1.TrustService/JoinNode",
        roles: &[],
        joining: true,
        changes: true,
    },
    rule("fabric.v1.TrustService/RenewCertificate", &[Node], true),
    rule("fabric.v1.TrustService/CreateCertificate", &[Admin], true),
    rule("fabric.v1.TrustService/ListCertificates", &[Admin], false),
    rule("fabric.v1.TrustService/RevokeCertificate", &[Admin], true),
    rule("fabric.v1.AuditService/ListAuditEntries", &[Admin], false),
    rule("fabric.v1.AuditService/WatchAuditEntries", &[Admin], false),
    rule("fabric.node.v1.NodeService/Session", &[Node], true),
    rule("fabric.node.v1.NodeService/FetchBlob", &[Node], false),
    rule("fabric.node.v1.NodeService/SendOutput", &[Node], false),
    rule("grpc.health.v1.Health/Check", &Role::ALL, false),
    rule("grpc.health.v1.Health/Watch", &Role::ALL, false),
    see("grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
];

impl Rule {
    /// The rule for a call.
    #[must_use]
    pub fn of(call: &str) -> Option<&'static Self> {
        TABLE.iter().find(|rule| rule.call == call)
    }

    /// True if such a caller may make it.
    #[must_use]
    pub fn allows(&self, kind: Kind) -> bool {
        match kind {
            Kind::Local => true,
            Kind::Certified(role) => self.roles.contains(&role),
            Kind::Joining => self.joining,
        }
    }

    /// Who may make it, in words.
    #[must_use]
    pub fn who(&self) -> String {
        let mut words: Vec<_> = self.roles.iter().map(|role| role.word()).collect();
        if self.joining {
            words.push("a machine that joins");
        }
        words.join(", ")
    }
}

/// The table as Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from("| call | who may | audited |\n|---|---|---|\n");
    for rule in TABLE {
        let audited = if rule.changes { "yes" } else { "" };
        text.push_str(&format!(
            "| `{}` | {} | {audited} |\n",
            rule.call,
            rule.who()
        ));
    }
    text
}
