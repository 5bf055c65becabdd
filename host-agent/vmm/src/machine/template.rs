//! What a VMM does when the guest that becomes a template calls: it keeps what has booted,
//! and later all of it.
//!
//! The vsock device holds the call and gives a sign; both of these wait for one, in the
//! event loop.

use std::path::PathBuf;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::keeper::{SharedKeeper, lock};
use crate::config::TemplateConfig;
use crate::devices::vsock::VsockHandle;
use crate::vcpu::fault::chain;
use crate::vcpu::{Board, Outcome};

/// Takes a snapshot of a guest that has booted, when it calls, and lets it go on.
#[derive(Debug)]
pub struct BootedKeeper {
    sign: EventFd,
    path: PathBuf,
    vsock: VsockHandle,
    keeper: SharedKeeper,
    board: Arc<Board>,
}

impl BootedKeeper {
    /// Waits for the sign.
    pub fn new(
        sign: EventFd,
        path: PathBuf,
        vsock: VsockHandle,
        keeper: SharedKeeper,
        board: Arc<Board>,
    ) -> BootedKeeper {
        BootedKeeper {
            sign,
            path,
            vsock,
            keeper,
            board,
        }
    }
}

impl MutEventSubscriber for BootedKeeper {
    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, &self.sign);
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // It is readable, and if not, nothing is lost.
        let _ = self.sign.read();
        // Nobody looks at the device before this is done.
        self.vsock.go_on();
        if let Err(error) = lock(&self.keeper).snapshot(&self.path) {
            self.board.ending.end(Outcome::Failed {
                message: format!("there is no snapshot of the boot: {}", chain(&error)),
                fault: None,
            });
        }
    }
}

/// Makes the template when the guest calls, and ends the machine.
#[derive(Debug)]
pub struct TemplateMaker {
    sign: EventFd,
    config: TemplateConfig,
    keeper: SharedKeeper,
    board: Arc<Board>,
}

impl TemplateMaker {
    /// Waits for the sign.
    pub fn new(
        sign: EventFd,
        config: TemplateConfig,
        keeper: SharedKeeper,
        board: Arc<Board>,
    ) -> TemplateMaker {
        TemplateMaker {
            sign,
            config,
            keeper,
            board,
        }
    }
}

impl MutEventSubscriber for TemplateMaker {
    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, &self.sign);
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // It is readable, and if not, nothing is lost.
        let _ = self.sign.read();
        if self.board.ending.has_ended() {
            return;
        }
        let mut keeper = lock(&self.keeper);
        let made = keeper
            .pause()
            .and_then(|()| keeper.snapshot(&self.config.path));
        self.board.ending.end(match made {
            Ok(()) => Outcome::TemplateMade {
                path: self.config.path.clone(),
            },
            Err(error) => Outcome::Failed {
                message: format!("the template cannot be made: {}", chain(&error)),
                fault: None,
            },
        });
    }
}

fn listen(ops: &mut EventOps, sign: &EventFd) {
    if let Err(error) = ops.add(Events::new(sign, EventSet::IN)) {
        crate::say!("fabric-vmm: cannot listen to the guest's call: {error}");
    }
}
