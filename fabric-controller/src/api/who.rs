//! Who makes a call, as history and events call them.

use tonic::Request;

use crate::listen::Peer;

/// The caller: a user of this machine over a unix socket, an address over TCP.
pub(super) fn who<T>(request: &Request<T>) -> String {
    match request.extensions().get::<Peer>() {
        Some(Peer::Unix(peer)) => match peer.peer_cred {
            Some(peer) => format!("uid {}", peer.uid()),
            None => "a local user".to_owned(),
        },
        Some(Peer::Tcp(peer)) => match peer.remote_addr() {
            Some(address) => address.ip().to_string(),
            None => "an unknown address".to_owned(),
        },
        None => "unknown".to_owned(),
    }
}
