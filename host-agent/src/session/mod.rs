//! The link to the controller: one channel that connects when it is used, one
//! session on it that is opened again for ever, and the calls for bulk data.
//!
//! Everything else on the node works on while the controller is away.

mod blobs;
mod link;

pub use blobs::ControllerBlobs;
pub use link::{Identity, Link};

use std::time::Duration;

use fabric_proto::node::v1::node_service_client::NodeServiceClient;
use tonic::transport::{Channel, Endpoint};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How often, and for how long, a silent controller is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Largest message from the controller: a goal for many instances.
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;

/// Why an address is not one of a controller.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is neither a URL nor a path.
    #[error("{0:?} is not a controller's address: must be http://HOST:PORT or unix:PATH")]
    Form(String),
    /// There is no encryption yet.
    #[error(
        "{0:?} is not on this machine: without certificates, which come later, \
         only loopback addresses and unix sockets are used"
    )]
    NotLocal(String),
}

/// A client of the controller at that address. Connects when it is used, and again
/// after it was cut off.
///
/// # Errors
///
/// When the address is not one, or not local.
pub fn connect(address: &str) -> Result<NodeServiceClient<Channel>, AddressError> {
    let form = || AddressError::Form(address.to_owned());
    if !address.starts_with("unix:") {
        let uri: tonic::transport::Uri = address.parse().map_err(|_| form())?;
        if uri.scheme_str() != Some("http") {
            return Err(form());
        }
        let host = uri.host().ok_or_else(form)?.trim_matches(['[', ']']);
        let local = host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        if !local {
            return Err(AddressError::NotLocal(address.to_owned()));
        }
    }
    let channel = Endpoint::from_shared(address.to_owned())
        .map_err(|_| form())?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_lazy();
    Ok(NodeServiceClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE))
}

/// Whether a controller at that address is on this machine: then nobody else answers
/// for it.
#[must_use]
pub fn is_local(address: &str) -> bool {
    if address.starts_with("unix:") {
        return true;
    }
    let uri = address.parse::<tonic::transport::Uri>().ok();
    let host = uri.as_ref().and_then(|uri| uri.host()).unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    let loopback = |host: &str| {
        let address = host.parse::<std::net::IpAddr>();
        address.is_ok_and(|address| address.is_loopback())
    };
    host == "localhost" || loopback(host)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
