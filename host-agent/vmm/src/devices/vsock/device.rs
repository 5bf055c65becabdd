//! The vsock device behind its transport.
//!
//! vCPU threads start and reset it, the event loop moves its packets; both
//! reach it through one lock, which is never held for longer than one round of
//! bounded work.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::eventfd::EventFd;

use super::event_handler::VsockEventHandler;
use super::host::ListenError;
use super::limiter::{Direction, VsockLimiter};
use super::muxer::{MAX_CALLERS, MAX_CONNECTIONS, Muxer};
use super::packet::{HEADER_LEN, Header, MAX_PAYLOAD, Op};
use crate::devices::virtio::device::read_config_bytes;
use crate::devices::virtio::{
    ActivateError, Activation, Chain, Interrupt, QUEUE_SIZE_MAX, QueueError, VirtioDevice,
    Virtqueue, feature,
};
use crate::limits::{RateLimit, Throttled};
use crate::memory::GuestMemory;

/// `VIRTIO_VSOCK_F_STREAM` (5.10.3).
const F_STREAM: u32 = 0;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (5.10.6.7).
const EVENT_TRANSPORT_RESET: u32 = 0;
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
            held_calls: VecDeque::new(),
            rebirth: Rebirth::Known,
            limiter: VsockLimiter::new().map_err(VsockError::Event)?,
        };
        Ok(Vsock {
            cid,
            events,
            engine: Arc::new(Mutex::new(engine)),
        })
    }

    /// Takes the guest's first call to a host port, or the first after one to another, for
    /// the sign to write to an event: it gets no answer, and the guest is not listened to
    /// any more until somebody lets it go on ([`VsockHandle::go_on`]). Of several such calls
    /// one follows the other; one that comes too early stands for those before.
    pub fn stop_at_call(&self, port: u32, after: Option<u32>, sign: EventFd) {
        let call = HeldCall { port, after, sign };
        lock(&self.engine).held_calls.push_back(call);
    }

    /// What stays of the device outside when it has moved into its transport.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle {
            events: Arc::clone(&self.events),
            engine: Arc::clone(&self.engine),
        }
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
            event,
            memory,
            interrupt,
            tx_waits: false,
        });
        engine.muxer.set_accepting(true);
        // Whatever the driver made available before it was ready is seen now.
        for event in &*self.events {
            let _ = event.write(1);
        }
        Ok(())
    }

    fn suspend(&mut self) -> Option<Vec<Virtqueue>> {
        let mut engine = lock(&self.engine);
        let Running { rx, tx, event, .. } = engine.running.take()?;
        engine.limiter.forget_waits();
        Some(vec![rx, tx, event])
    }

    fn reset(&mut self) {
        lock(&self.engine).stop();
    }
}

/// Limits a device, and tells what it has done, wherever it is.
pub struct VsockHandle {
    events: Arc<[EventFd; 3]>,
    engine: Arc<Mutex<Engine>>,
}

impl std::fmt::Debug for VsockHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VsockHandle").finish_non_exhaustive()
    }
}

impl VsockHandle {
    /// Sets other limits; packets that wait for those before are looked at again.
    pub fn limit(&self, to_guest: &RateLimit, to_host: &RateLimit) {
        lock(&self.engine)
            .limiter
            .change(to_guest, to_host, Instant::now());
        for queue in [RX, TX] {
            let _ = self.events[queue].write(1);
        }
    }

    /// Lets through the call at which the guest was stopped. It is heard when the device is
    /// next looked at.
    pub fn go_on(&self) {
        lock(&self.engine).held_calls.pop_front();
    }

    /// Tells the guest, when it goes on, that it is another machine now: its
    /// connections are gone and its address is the one that it finds here
    /// (5.10.6.7). It is listened to once it has taken note of that.
    pub fn restored(&self, former_cid: u64) {
        let mut engine = lock(&self.engine);
        engine.muxer.set_former_cid(former_cid);
        engine.rebirth = Rebirth::Untold;
    }

    /// Calls a port of the guest, for this process itself; nothing if the guest's driver
    /// does not run. This end never blocks. As for who calls from outside, what is
    /// heard begins with `OK` and a port, or is the end: at once where nobody listens.
    ///
    /// # Errors
    ///
    /// If the host gives no sockets, or as many such calls wait for the guest as may.
    pub fn call_guest(&self, port: u32) -> io::Result<Option<UnixStream>> {
        let mut engine = lock(&self.engine);
        if engine.running.is_none() {
            return Ok(None);
        }
        let (ours, theirs) = UnixStream::pair()?;
        for end in [&ours, &theirs] {
            end.set_nonblocking(true)?;
        }
        if !engine.muxer.call_guest(port, theirs, Instant::now()) {
            return Err(io::Error::other("too many calls wait for the guest"));
        }
        let _ = self.events[RX].write(1);
        Ok(Some(ours))
    }

    /// What it has, and what has waited.
    pub fn stats(&self) -> VsockStats {
        let engine = lock(&self.engine);
        VsockStats {
            connections: engine.muxer.connections() as u64,
            held_bytes: engine.muxer.held() as u64,
            to_guest: engine.limiter.throttled(Direction::ToGuest),
            to_host: engine.limiter.throttled(Direction::ToHost),
        }
    }
}

/// What a device has, and what has waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockStats {
    /// Connections.
    pub connections: u64,
    /// Bytes that the host has not taken.
    pub held_bytes: u64,
    /// What has waited for the limits to the guest.
    pub to_guest: Throttled,
    /// What has waited for the limits to the host.
    pub to_host: Throttled,
}

pub(super) fn lock(engine: &Mutex<Engine>) -> MutexGuard<'_, Engine> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What moves packets between the queues and the multiplexer.
pub(super) struct Engine {
    pub(super) muxer: Muxer,
    running: Option<Running>,
    payload: Box<[u8]>,
    held_calls: VecDeque<HeldCall>,
    rebirth: Rebirth,
    pub(super) limiter: VsockLimiter,
}

/// A call at which the machine stops.
struct HeldCall {
    port: u32,
    /// The port that has to be called before; `None` when it has been.
    after: Option<u32>,
    sign: EventFd,
}

impl HeldCall {
    /// Takes note of a call; whether it is the one.
    fn is(&mut self, port: u32) -> bool {
        if self.after == Some(port) {
            self.after = None;
            return false;
        }
        self.after.is_none() && self.port == port
    }
}

/// Whether the guest knows that it was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rebirth {
    /// It does, or there is nothing to know.
    Known,
    /// It has to be told.
    Untold,
    /// It has been told, when the event queue's available index was this.
    Told {
        /// The index.
        available: u16,
    },
}

/// What exists only while the driver runs.
struct Running {
    rx: Virtqueue,
    tx: Virtqueue,
    /// A guest that was restored is told there that its connections are gone.
    event: Virtqueue,
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
        self.limiter.forget_waits();
    }

    /// Handles events of the host's sockets.
    pub(super) fn poll_host(&mut self) {
        if let Err(error) = self.muxer.poll_host(Instant::now()) {
            crate::say!("fabric-vmm: vsock: cannot wait for the host's sockets: {error}");
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
            held_calls,
            rebirth,
            limiter,
        } = self
        else {
            return Ok(Leftover::default());
        };
        let now = Instant::now();
        let mut leftover = Leftover::default();
        if *rebirth != Rebirth::Known {
            *rebirth = running.tell_of_rebirth(*rebirth)?;
            if *rebirth != Rebirth::Known {
                return Ok(leftover);
            }
            leftover.tx = true;
        }
        if listen {
            leftover.tx = running.drain_tx(muxer, payload, held_calls, limiter, now)?;
        }
        leftover.rx = running.fill_rx(muxer, payload, limiter, now)?;
        limiter.arm(now);
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
        held_calls: &mut VecDeque<HeldCall>,
        limiter: &mut VsockLimiter,
        now: Instant,
    ) -> Result<bool, QueueError> {
        limiter.look(Direction::ToHost);
        self.tx.disable_notification()?;
        for _ in 0..PACKETS_AT_A_TIME {
            if muxer.is_congested() {
                self.tx_waits = true;
                return Ok(false);
            }
            let popped = self.tx.pop()?;
            if popped.is_some() && !limiter.allows(Direction::ToHost, now) {
                self.tx.undo_pop();
                return Ok(false);
            }
            let head = match popped {
                Some(Ok(chain)) => {
                    let bytes = chain.readable.len().min(HEADER_LEN + MAX_PAYLOAD);
                    limiter.charge(Direction::ToHost, bytes, now);
                    if !held_calls.is_empty()
                        && let Some(port) = self.called(&chain)
                        && let Some(at) = held_calls.iter_mut().position(|held| held.is(port))
                    {
                        held_calls.drain(..at);
                        self.tx.undo_pop();
                        let _ = held_calls[0].sign.write(1);
                        return Ok(false);
                    }
                    self.receive(muxer, &chain, payload, now);
                    chain.head
                }
                Some(Err(bad)) => {
                    limiter.charge(Direction::ToHost, 0, now);
                    bad.head
                }
                None if self.tx.enable_notification()? => continue,
                None => return Ok(false),
            };
            self.tx.push_used(head, 0)?;
        }
        Ok(true)
    }

    /// The port that is called, if this is a call.
    fn called(&self, chain: &Chain) -> Option<u32> {
        let mut bytes = [0; HEADER_LEN];
        chain.readable.read_at(&self.memory, 0, &mut bytes).ok()?;
        let header = Header::from_bytes(&bytes);
        (Op::from_number(header.op) == Some(Op::Request)).then_some(header.dst_port)
    }

    /// Tells the guest once, and waits until it has read it: then it makes the
    /// buffer available again. A driver that offers no buffer is left to find out.
    fn tell_of_rebirth(&mut self, rebirth: Rebirth) -> Result<Rebirth, QueueError> {
        if let Rebirth::Told { available } = rebirth {
            let same = self.event.available_index()? == available;
            return Ok(if same { rebirth } else { Rebirth::Known });
        }
        let Some(popped) = self.event.pop()? else {
            return Ok(Rebirth::Known);
        };
        let (head, written) = match popped {
            Ok(chain) => {
                let event = EVENT_TRANSPORT_RESET.to_le_bytes();
                let written = chain.writable.write_at(&self.memory, 0, &event).is_ok();
                (chain.head, if written { event.len() } else { 0 })
            }
            Err(bad) => (bad.head, 0),
        };
        let available = self.event.enable_notification_of_more()?;
        self.event.push_used(head, written)?;
        if self.event.wants_interrupt()? {
            self.interrupt.signal_used_buffer();
        }
        Ok(Rebirth::Told { available })
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
        limiter: &mut VsockLimiter,
        now: Instant,
    ) -> Result<bool, QueueError> {
        limiter.look(Direction::ToGuest);
        for _ in 0..PACKETS_AT_A_TIME {
            if !muxer.has_packet() || !limiter.allows(Direction::ToGuest, now) {
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
            limiter.charge(Direction::ToGuest, written, now);
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
