//! The vsock device behind its transport.
//!
//! vCPU threads start and reset it, the event loop moves its packets; both
//! reach it through one lock, which is never held for longer than one round of
//! bounded work.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::eventfd::EventFd;

use super::event_handler::VsockEventHandler;
use super::host::ListenError;
use super::muxer::{MAX_CALLERS, MAX_CONNECTIONS, Muxer};
use super::packet::{HEADER_LEN, Header, MAX_PAYLOAD};
use crate::devices::virtio::device::read_config_bytes;
use crate::devices::virtio::{
    ActivateError, Activation, Chain, Interrupt, QUEUE_SIZE_MAX, QueueError, VirtioDevice,
    Virtqueue, feature,
};
use crate::memory::GuestMemory;

/// `VIRTIO_VSOCK_F_STREAM` (5.10.3).
const F_STREAM: u32 = 0;
/// The smallest address that a guest may have; those below are reserved.
const FIRST_GUEST_CID: u64 = 3;
/// How many packets are moved in each direction before others get a turn.
const PACKETS_AT_A_TIME: usize = 256;

/// The queues, by their numbers (5.10.2).
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;
const QUEUES: [u16; 3] = [QUEUE_SIZE_MAX; 3];

/// Why a vsock device cannot be made.
#[derive(Debug, Error)]
pub enum VsockError {
    /// The address is reserved.
    #[error(
        "vsock CID {cid} is reserved: a guest's is at least {FIRST_GUEST_CID} and below {}",
        u32::MAX
    )]
    Cid {
        /// The address asked for.
        cid: u64,
    },
    /// It cannot listen at the path.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The host gave no event descriptor.
    #[error("cannot create an event for the vsock device")]
    Event(#[source] std::io::Error),
}

/// A virtio socket device.
pub struct Vsock {
    cid: u64,
    events: Arc<[EventFd; 3]>,
    engine: Arc<Mutex<Engine>>,
}

impl Vsock {
    /// A device for the guest with address `cid`, whose host side is at `path`.
    /// A relative path is relative to the working directory.
    ///
    /// # Errors
    ///
    /// [`VsockError`], which says what to do.
    pub fn new(cid: u64, path: &Path) -> Result<Vsock, VsockError> {
        if !(FIRST_GUEST_CID..u64::from(u32::MAX)).contains(&cid) {
            return Err(VsockError::Cid { cid });
        }
        raise_descriptor_limit();
        let event =
            || EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(VsockError::Event);
        let events = Arc::new([event()?, event()?, event()?]);
        let engine = Engine {
            muxer: Muxer::new(cid, path)?,
            running: None,
            payload: vec![0; MAX_PAYLOAD].into_boxed_slice(),
        };
        Ok(Vsock {
            cid,
            events,
            engine: Arc::new(Mutex::new(engine)),
        })
    }

    /// The device's part of the event loop; one, for one loop.
    pub fn event_handler(&self) -> VsockEventHandler {
        VsockEventHandler::new(Arc::clone(&self.events), Arc::clone(&self.engine))
    }
}

/// Asks the host for a descriptor for every connection there may be, and some
/// for everything else. Where it gives fewer, connections fail one by one.
fn raise_descriptor_limit() {
    let wanted = (MAX_CONNECTIONS + MAX_CALLERS + 256) as u64;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < wanted
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard);
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn device_features(&self) -> u64 {
        feature(F_STREAM)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn queue_events(&self) -> &[EventFd] {
        &*self.events
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            queues,
            memory,
            interrupt,
            ..
        } = activation;
        let Ok([rx, tx, event]) = <[Virtqueue; 3]>::try_from(queues) else {
            return Err(ActivateError::Queue {
                index: RX,
                source: QueueError::NotReady,
            });
        };
        let mut engine = lock(&self.engine);
        engine.running = Some(Running {
            rx,
            tx,
            _event: event,
            memory,
            interrupt,
            tx_waits: false,
        });
        engine.muxer.set_accepting(true);
        // Whatever the driver made available before it was ready is seen now.
        for event in [RX, TX] {
            let _ = self.events[event].write(1);
        }
        Ok(())
    }

    fn reset(&mut self) {
        lock(&self.engine).stop();
    }
}

pub(super) fn lock(engine: &Mutex<Engine>) -> MutexGuard<'_, Engine> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What moves packets between the queues and the multiplexer.
pub(super) struct Engine {
    pub(super) muxer: Muxer,
    running: Option<Running>,
    payload: Box<[u8]>,
}

/// What exists only while the driver runs.
struct Running {
    rx: Virtqueue,
    tx: Virtqueue,
    /// Unused until guests are restored from snapshots: then the guest is told
    /// there that its connections are gone (5.10.6.7).
    _event: Virtqueue,
    memory: GuestMemory,
    interrupt: Interrupt,
    /// The guest is not listened to until it has taken the answers that wait.
    tx_waits: bool,
}

/// Whether a queue was left with work in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Leftover {
    pub(super) rx: bool,
    pub(super) tx: bool,
}

impl Engine {
    fn stop(&mut self) {
        self.running = None;
        self.muxer.reset();
    }

    /// Handles events of the host's sockets.
    pub(super) fn poll_host(&mut self) {
        if let Err(error) = self.muxer.poll_host(Instant::now()) {
            eprintln!("fabric-vmm: vsock: cannot wait for the host's sockets: {error}");
            self.fail();
        }
    }

    /// Moves packets both ways until both queues are idle or the round is over;
    /// `listen` says whether the guest may have sent something.
    pub(super) fn move_packets(&mut self, listen: bool) -> Leftover {
        match self.try_move_packets(listen) {
            Ok(leftover) => leftover,
            Err(_) => {
                self.fail();
                Leftover::default()
            }
        }
    }

    /// The rings cannot be trusted any more.
    fn fail(&mut self) {
        if let Some(running) = &self.running {
            running.interrupt.signal_needs_reset();
        }
        self.stop();
    }

    fn try_move_packets(&mut self, listen: bool) -> Result<Leftover, QueueError> {
        let Engine {
            muxer,
            running: Some(running),
            payload,
        } = self
        else {
            return Ok(Leftover::default());
        };
        let now = Instant::now();
        let mut leftover = Leftover::default();
        if listen {
            leftover.tx = running.drain_tx(muxer, payload, now)?;
        }
        leftover.rx = running.fill_rx(muxer, payload, now)?;
        if running.tx_waits && !muxer.is_congested() {
            running.tx_waits = false;
            leftover.tx = true;
        }
        running.interrupt_driver()?;
        Ok(leftover)
    }
}

impl Running {
    /// Takes packets from the guest; returns whether there may be more.
    fn drain_tx(
        &mut self,
        muxer: &mut Muxer,
        payload: &mut [u8],
        now: Instant,
    ) -> Result<bool, QueueError> {
        self.tx.disable_notification()?;
        for _ in 0..PACKETS_AT_A_TIME {
            if muxer.is_congested() {
                self.tx_waits = true;
                return Ok(false);
            }
            let head = match self.tx.pop()? {
                Some(Ok(chain)) => {
                    self.receive(muxer, &chain, payload, now);
                    chain.head
                }
                Some(Err(bad)) => bad.head,
                None if self.tx.enable_notification()? => continue,
                None => return Ok(false),
            };
            self.tx.push_used(head, 0)?;
        }
        Ok(true)
    }

    fn receive(&self, muxer: &mut Muxer, chain: &Chain, payload: &mut [u8], now: Instant) {
        let mut bytes = [0; HEADER_LEN];
        if chain.readable.read_at(&self.memory, 0, &mut bytes).is_err() {
            return;
        }
        let header = Header::from_bytes(&bytes);
        let payload = payload.get_mut(..header.len as usize);
        let payload = payload.and_then(|payload| {
            chain
                .readable
                .read_at(&self.memory, HEADER_LEN, payload)
                .ok()
                .map(|()| payload)
        });
        match payload {
            Some(payload) => muxer.receive(&header, payload, now),
            None => muxer.receive_malformed(&header, now),
        }
    }

    /// Gives packets to the guest; returns whether there may be more.
    fn fill_rx(
        &mut self,
        muxer: &mut Muxer,
        payload: &mut [u8],
        now: Instant,
    ) -> Result<bool, QueueError> {
        for _ in 0..PACKETS_AT_A_TIME {
            if !muxer.has_packet() {
                return Ok(false);
            }
            let chain = match self.rx.pop()? {
                Some(Ok(chain)) => chain,
                Some(Err(bad)) => {
                    self.rx.push_used(bad.head, 0)?;
                    continue;
                }
                None if self.rx.enable_notification()? => continue,
                None => return Ok(false),
            };
            let room = chain
                .writable
                .len()
                .saturating_sub(HEADER_LEN)
                .min(payload.len());
            if room == 0 {
                self.rx.push_used(chain.head, 0)?;
                continue;
            }
            // Checked first: a packet that was made cannot be taken back.
            if !chain.writable.is_in(&self.memory) {
                return Err(QueueError::OutsideMemory);
            }
            let Some(header) = muxer.next_packet(&mut payload[..room], now) else {
                self.rx.undo_pop();
                return Ok(false);
            };
            let written = self.send(&chain, &header, payload)?;
            self.rx.push_used(chain.head, written)?;
        }
        Ok(muxer.has_packet())
    }

    fn send(&self, chain: &Chain, header: &Header, payload: &[u8]) -> Result<usize, QueueError> {
        let len = header.len as usize;
        chain
            .writable
            .write_at(&self.memory, 0, &header.to_bytes())
            .and_then(|()| {
                chain
                    .writable
                    .write_at(&self.memory, HEADER_LEN, &payload[..len])
            })
            .map_err(|_| QueueError::OutsideMemory)?;
        Ok(HEADER_LEN + len)
    }

    /// One interrupt for both queues, which share the line.
    ///
    /// To hold back the one for packets given back until there is one to take
    /// was tried: the guest saves an interrupt a packet, and no time.
    fn interrupt_driver(&mut self) -> Result<(), QueueError> {
        let tx = self.tx.wants_interrupt()?;
        let rx = self.rx.wants_interrupt()?;
        if tx || rx {
            self.interrupt.signal_used_buffer();
        }
        Ok(())
    }
}
