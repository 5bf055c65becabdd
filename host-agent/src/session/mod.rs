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
use fabric_trust::dial::Dial;
use tonic::transport::{Channel, Endpoint};

/// How often, and for how long, a silent controller is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Largest message from the controller: a goal for many instances.
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;

/// A channel to the controller. Connects when it is used, and again after it was cut off.
#[must_use]
pub fn channel(dial: &Dial) -> Channel {
    dial.connect_lazy(kept_alive)
}

/// Has a silent controller noticed.
#[must_use]
pub fn kept_alive(endpoint: Endpoint) -> Endpoint {
    endpoint
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
}

/// A client of the controller on a channel.
#[must_use]
pub fn client(channel: Channel) -> NodeServiceClient<Channel> {
    NodeServiceClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
