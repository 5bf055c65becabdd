//! The vsock device's part of the event loop.

use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::device::{EVENT, Engine, Leftover, RX, TX, lock};

/// What woke the handler: queue numbers, and beyond them the host's sockets and the
/// time for what was held to its limits.
const HOST: u32 = 3;
const TIME: u32 = 4;

/// Moves the device's packets when a queue or a socket of the host is ready.
pub struct VsockEventHandler {
    queues: Arc<[EventFd; 3]>,
    engine: Arc<Mutex<Engine>>,
}

impl VsockEventHandler {
    pub(super) fn new(queues: Arc<[EventFd; 3]>, engine: Arc<Mutex<Engine>>) -> VsockEventHandler {
        VsockEventHandler { queues, engine }
    }

    fn handle(&self, source: u32) {
        let mut engine = lock(&self.engine);
        let listen = source == TX as u32 || source == TIME;
        if source == HOST {
            engine.poll_host();
        } else if source == TIME {
            engine.limiter.acknowledge();
        } else if let Some(queue) = self.queues.get(source as usize) {
            // It is readable, and if not, nothing is lost.
            let _ = queue.read();
        }
        self.come_back(engine.move_packets(listen));
    }

    /// Wakes the handler again for what a round left over, after everybody else
    /// has had a turn.
    fn come_back(&self, leftover: Leftover) {
        if leftover.rx {
            let _ = self.queues[RX].write(1);
        }
        if leftover.tx {
            let _ = self.queues[TX].write(1);
        }
    }
}

impl MutEventSubscriber for VsockEventHandler {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        self.handle(events.data());
    }

    fn init(&mut self, ops: &mut EventOps) {
        let (host, timer) = {
            let engine = lock(&self.engine);
            (engine.muxer.event_fd(), engine.limiter.timer_fd())
        };
        let sources = [
            Events::with_data(&self.queues[RX], RX as u32, EventSet::IN),
            Events::with_data(&self.queues[TX], TX as u32, EventSet::IN),
            Events::with_data(&self.queues[EVENT], EVENT as u32, EventSet::IN),
            Events::with_data_raw(host, HOST, EventSet::IN),
            Events::with_data_raw(timer, TIME, EventSet::IN),
        ];
        for source in sources {
            if let Err(error) = ops.add(source) {
                crate::say!("fabric-vmm: vsock: cannot join the event loop: {error}");
            }
        }
    }
}
