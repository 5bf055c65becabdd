//! A vsock port at which the guest agent waits for callers, beside its session.

use std::time::Duration;

use tokio::time::sleep;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use crate::console;

/// Wait after a caller that could not be taken: the kernel may lack memory.
const RETRY: Duration = Duration::from_secs(1);

/// See the [module](self).
pub struct Door {
    listener: VsockListener,
    what: &'static str,
}

impl Door {
    /// Waits at that port for `what`; none, which is said, if it cannot be.
    pub fn open(port: u32, what: &'static str) -> Option<Self> {
        // Any address of its own: a copy has another than its template.
        match VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)) {
            Ok(listener) => Some(Self { listener, what }),
            Err(error) => {
                console::say(format_args!("cannot listen for {what}: {error}"));
                None
            }
        }
    }

    /// The next caller, and where it calls from.
    pub async fn next(&self) -> (VsockStream, VsockAddr) {
        loop {
            match self.listener.accept().await {
                Ok(caller) => return caller,
                Err(error) => {
                    let what = self.what;
                    console::say(format_args!("cannot take a call for {what}: {error}"));
                    sleep(RETRY).await;
                }
            }
        }
    }
}
