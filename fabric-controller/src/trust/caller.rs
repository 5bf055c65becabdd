//! Who is at the other end of a connection.

use std::{fmt, sync::Arc, time::SystemTime};

use fabric_proto::id::NodeId;
use fabric_trust::identity::Role;
use tonic::{Request, Status};

use super::gate::TlsPeer;
use crate::{
    error::{Error, Result},
    listen::Peer,
};

/// What a caller is to the [table](super::table).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Whoever can open the unix socket: may do everything, and speak for any node.
    Local,
    /// Who has a certificate.
    Certified(Role),
    /// Who has none: a machine that wants to join.
    Joining,
}

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Caller {
    /// What it is.
    pub kind: Kind,
    /// What it is called.
    pub name: String,
    /// Serial of its certificate; empty without one.
    pub serial: String,
    /// From where, for people.
    pub from: String,
    peer: Option<Arc<TlsPeer>>,
}

impl Caller {
    /// At the other end of a connection.
    #[must_use]
    pub fn new(peer: &Peer) -> Self {
        match peer {
            Peer::Unix(peer) => Self {
                kind: Kind::Local,
                name: peer
                    .peer_cred
                    .map_or_else(|| "?".to_owned(), |peer| format!("uid {}", peer.uid())),
                serial: String::new(),
                from: "unix".to_owned(),
                peer: None,
            },
            Peer::Tls(peer) => {
                let identity = peer.identity.as_ref();
                Self {
                    kind: identity.map_or(Kind::Joining, |one| Kind::Certified(one.role)),
                    name: identity.map_or_else(String::new, |one| one.name.clone()),
                    serial: identity.map_or_else(String::new, |one| one.serial.clone()),
                    from: peer.address.to_string(),
                    peer: Some(Arc::clone(peer)),
                }
            }
        }
    }

    /// Who made a call, as the [guard](super::guard) found.
    ///
    /// # Errors
    ///
    /// The call did not come by it.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>();
        let unknown = || Status::unauthenticated("it is not known who makes this call");
        caller.cloned().ok_or_else(unknown)
    }

    /// False once its certificate has expired.
    #[must_use]
    pub fn is_good(&self, now: SystemTime) -> bool {
        self.peer
            .as_ref()
            .is_none_or(|peer| peer.identity.is_none() || peer.is_good(now))
    }

    /// It has got another certificate, for the same name.
    pub fn renewed(&self, until: SystemTime) {
        if let Some(peer) = &self.peer {
            peer.renewed(until);
        }
    }

    /// The one node that it may speak for; `None`: any.
    ///
    /// # Errors
    ///
    /// It is no node.
    pub fn node(&self) -> Result<Option<NodeId>> {
        match self.kind {
            Kind::Local => Ok(None),
            Kind::Certified(Role::Node) => self
                .name
                .parse()
                .map(Some)
                .map_err(|_| Error::Denied(format!("{:?} is no name of a node", self.name))),
            _ => Err(Error::Denied(format!("{self} does not speak for any node"))),
        }
    }

    /// Checks that it may speak for this node.
    ///
    /// # Errors
    ///
    /// It may not.
    pub fn speaks_for(&self, node: &NodeId) -> Result<()> {
        match self.node()? {
            Some(own) if own != *node => Err(Error::Denied(format!(
                "{self} may not speak for node {node}: its certificate names {own}; give the host \
                 agent no --node-id, or let the machine join under that name"
            ))),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Local => write!(f, "local {}", self.name),
            Kind::Certified(role) => write!(f, "{role} {}", self.name),
            Kind::Joining => f.write_str("nobody"),
        }
    }
}
