//! Flow control (virtio 1.2, 5.10.6.3), arithmetic only.
//!
//! Each side says how large its receive buffer is (`buf_alloc`) and how many
//! bytes it has ever taken out of it (`fwd_cnt`); the other may have at most
//! that much on the way. Counters are 32 bits wide and wrap.

use std::collections::VecDeque;

use super::muxer::MAX_CONNECTIONS;

/// How much of a connection's data to the host is held at the most.
pub const BUFFER_SIZE: usize = 64 << 10;
/// The same of connections that come when [`LARGE_BUFFERS`] others are there.
pub const SMALL_BUFFER_SIZE: usize = 4 << 10;
/// How many connections of a guest have a buffer of [`BUFFER_SIZE`].
pub const LARGE_BUFFERS: usize = 128;
/// How much of all of a guest's data to the host is held at the most: 15.5 MiB.
pub const HELD_MAX: usize =
    LARGE_BUFFERS * BUFFER_SIZE + (MAX_CONNECTIONS - LARGE_BUFFERS) * SMALL_BUFFER_SIZE;

/// What the host may still send to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendCredit {
    buf_alloc: u32,
    fwd_cnt: u32,
    sent: u32,
}

impl SendCredit {
    /// No credit: the guest has not said anything yet.
    pub const NONE: SendCredit = SendCredit {
        buf_alloc: 0,
        fwd_cnt: 0,
        sent: 0,
    };

    /// Takes what the guest says in every packet.
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.buf_alloc = buf_alloc;
        self.fwd_cnt = fwd_cnt;
    }

    /// How many bytes the guest has room for. A guest that says nonsense, such
    /// as to have taken out more than was sent, gets none.
    pub fn available(&self) -> usize {
        let on_the_way = self.sent.wrapping_sub(self.fwd_cnt);
        self.buf_alloc.saturating_sub(on_the_way) as usize
    }

    /// Counts bytes that were sent.
    pub fn consume(&mut self, bytes: usize) {
        self.sent = self.sent.wrapping_add(bytes as u32);
    }
}

/// The bytes that came from the guest and that the host has not taken yet.
///
/// It never holds more than its size, and no memory while it is empty.
#[derive(Debug)]
pub struct ReceiveBuffer {
    size: usize,
    bytes: VecDeque<u8>,
    taken: u32,
    told: u32,
}

/// The guest sent more than it was allowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun;

impl ReceiveBuffer {
    /// An empty buffer that may hold so many bytes.
    pub fn new(size: usize) -> ReceiveBuffer {
        ReceiveBuffer {
            size,
            bytes: VecDeque::new(),
            taken: 0,
            told: 0,
        }
    }

    /// How many bytes it may hold.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether `bytes` more may come.
    ///
    /// # Errors
    ///
    /// [`Overrun`] if the guest ignored what it was told.
    pub fn admit(&self, bytes: usize) -> Result<(), Overrun> {
        let room = self.size - self.bytes.len();
        if bytes <= room { Ok(()) } else { Err(Overrun) }
    }

    /// Holds bytes that [`admit`](Self::admit) let in and the host did not take
    /// at once.
    pub fn hold(&mut self, bytes: &[u8]) {
        // Not what an empty queue grows by, which may be twice as much.
        self.bytes.reserve_exact(bytes.len());
        self.bytes.extend(bytes);
    }

    /// Counts bytes that went to the host without being held, or nowhere.
    pub fn pass(&mut self, bytes: usize) {
        self.taken = self.taken.wrapping_add(bytes as u32);
    }

    /// The bytes to give to the host next.
    pub fn next(&self) -> &[u8] {
        let (front, back) = self.bytes.as_slices();
        if front.is_empty() { back } else { front }
    }

    /// Drops and counts bytes that the host took.
    pub fn take(&mut self, bytes: usize) {
        self.bytes.drain(..bytes.min(self.bytes.len()));
        self.pass(bytes);
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
    }

    /// Drops and counts everything.
    pub fn discard(&mut self) {
        self.take(self.bytes.len());
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes are held.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// `buf_alloc` and `fwd_cnt` for a packet, which tells the guest.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.taken;
        (self.size as u32, self.taken)
    }

    /// Whether so much room has appeared that the guest should hear of it, unless
    /// a packet tells it anyway: half the buffer, so that it neither stalls nor is
    /// told all the time.
    pub fn should_tell(&self) -> bool {
        self.taken.wrapping_sub(self.told) >= self.size as u32 / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A guest that keeps the rules, as Linux computes them.
    #[derive(Default)]
    struct Guest {
        sent: u32,
        buf_alloc: u32,
        fwd_cnt: u32,
    }

    impl Guest {
        fn credit(&self) -> u32 {
            self.buf_alloc - self.sent.wrapping_sub(self.fwd_cnt)
        }
    }

    proptest! {
        /// A guest that keeps the rules never overruns, and is never left
        /// waiting while the buffer is empty.
        #[test]
        fn an_honest_guest_neither_overruns_nor_starves(
            start: u32,
            size in prop::sample::select(vec![SMALL_BUFFER_SIZE, BUFFER_SIZE]),
            steps in prop::collection::vec((0_u32..100_000, 0_usize..100_000), 1..200),
        ) {
            let mut buffer = ReceiveBuffer { taken: start, told: start, ..ReceiveBuffer::new(size) };
            let mut guest = Guest { sent: start, ..Default::default() };
            (guest.buf_alloc, guest.fwd_cnt) = buffer.tell();
            for (wanted, host_takes) in steps {
                let sent = wanted.min(guest.credit());
                prop_assert!(buffer.admit(sent as usize).is_ok());
                buffer.hold(&vec![0; sent as usize]);
                guest.sent = guest.sent.wrapping_add(sent);
                buffer.take(host_takes.min(buffer.len()));
                prop_assert!(buffer.bytes.capacity() <= size);
                if buffer.should_tell() {
                    (guest.buf_alloc, guest.fwd_cnt) = buffer.tell();
                }
                if buffer.is_empty() {
                    prop_assert!(guest.credit() > 0);
                }
            }
        }

        /// Whatever a guest says, the host never has more on the way to it than
        /// it said it has room for.
        #[test]
        fn credit_is_never_exceeded(
            sent_before: u32, buf_alloc: u32, fwd_cnt: u32, wanted in 0_usize..1_000_000,
        ) {
            let mut credit = SendCredit { sent: sent_before, ..SendCredit::NONE };
            credit.update(buf_alloc, fwd_cnt);
            credit.consume(wanted.min(credit.available()));
            let on_the_way = credit.sent.wrapping_sub(fwd_cnt);
            prop_assert!(on_the_way <= buf_alloc || credit.sent == sent_before);
        }
    }

    #[test]
    fn a_guest_that_took_out_what_was_never_sent_gets_no_credit() {
        let mut credit = SendCredit::NONE;
        credit.update(4096, 1);
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn more_than_the_buffer_is_an_overrun() {
        let mut buffer = ReceiveBuffer::new(BUFFER_SIZE);
        buffer.hold(&[0; 100]);
        assert_eq!(buffer.admit(BUFFER_SIZE - 100), Ok(()));
        assert_eq!(buffer.admit(BUFFER_SIZE - 99), Err(Overrun));
    }
}
