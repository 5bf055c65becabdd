//! Output of one role on its way up: bounded, the oldest dropped and counted.
//! Knows nothing of where it comes from or goes to.

use std::{collections::VecDeque, time::SystemTime};

use bytes::{Bytes, BytesMut};

/// Most bytes kept for one role, bookkeeping included.
const MOST: usize = 128 * 1024;
/// What one piece is counted for beside its bytes, so that many small ones are
/// bounded as well.
const OVERHEAD: usize = 64;
/// Most bytes in one piece: the contract's.
pub const LONGEST_PIECE: usize = 16 * 1024;

/// Where a piece came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The role's standard output.
    Stdout,
    /// The role's standard error.
    Stderr,
    /// The guest agent's remarks.
    Agent,
}

/// Bytes that were read together or one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where they came from.
    pub stream: Stream,
    /// The bytes.
    pub data: Bytes,
    /// When the first of them was read.
    pub time: SystemTime,
    /// Bytes of the same stream that were lost just before.
    pub dropped: u64,
}

/// The pieces of one role.
#[derive(Debug, Default)]
pub struct Logs {
    pieces: VecDeque<Growing>,
    size: usize,
    /// Bytes lost of each stream after its last piece here.
    lost: [u64; 3],
}

#[derive(Debug)]
struct Growing {
    stream: Stream,
    data: BytesMut,
    time: SystemTime,
    dropped: u64,
}

impl Logs {
    /// Adds what was read.
    pub fn push(&mut self, stream: Stream, data: &[u8], time: SystemTime) {
        for data in data.chunks(LONGEST_PIECE) {
            self.push_piece(stream, data, time);
        }
        while self.size > MOST {
            self.drop_oldest();
        }
    }

    fn push_piece(&mut self, stream: Stream, data: &[u8], time: SystemTime) {
        self.size += data.len();
        if let Some(last) = self.pieces.back_mut()
            && last.stream == stream
            && last.data.len() + data.len() <= LONGEST_PIECE
        {
            last.data.extend_from_slice(data);
            return;
        }
        self.size += OVERHEAD;
        let dropped = std::mem::take(&mut self.lost[stream as usize]);
        self.pieces.push_back(Growing {
            stream,
            data: data.into(),
            time,
            dropped,
        });
    }

    fn drop_oldest(&mut self) {
        let Some(piece) = self.pieces.pop_front() else {
            return;
        };
        self.size -= piece.data.len() + OVERHEAD;
        let lost = piece.dropped.saturating_add(piece.data.len() as u64);
        match self
            .pieces
            .iter_mut()
            .find(|next| next.stream == piece.stream)
        {
            Some(next) => next.dropped = next.dropped.saturating_add(lost),
            None => self.lost[piece.stream as usize] += lost,
        }
    }

    /// The oldest piece.
    pub fn pop(&mut self) -> Option<Piece> {
        let piece = self.pieces.pop_front()?;
        self.size -= piece.data.len() + OVERHEAD;
        Some(Piece {
            stream: piece.stream,
            data: piece.data.freeze(),
            time: piece.time,
            dropped: piece.dropped,
        })
    }

    /// True when there is nothing to pass on.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THEN: SystemTime = SystemTime::UNIX_EPOCH;

    fn drain(logs: &mut Logs) -> Vec<Piece> {
        std::iter::from_fn(|| logs.pop()).collect()
    }

    #[test]
    fn what_is_written_piecemeal_goes_up_together() {
        let mut logs = Logs::default();
        logs.push(Stream::Stdout, b"hel", THEN);
        logs.push(Stream::Stdout, b"lo\n", THEN);
        logs.push(Stream::Stderr, b"oops\n", THEN);
        logs.push(Stream::Stdout, b"bye\n", THEN);
        let texts: Vec<_> = drain(&mut logs)
            .into_iter()
            .map(|piece| piece.data)
            .collect();
        assert_eq!(texts, [&b"hello\n"[..], b"oops\n", b"bye\n"]);
        assert!(logs.is_empty());
    }

    #[test]
    fn a_role_that_writes_too_fast_loses_its_oldest_and_the_loss_is_counted() {
        let mut logs = Logs::default();
        let line = [b'x'; 1000];
        for _ in 0..1000 {
            logs.push(Stream::Stdout, &line, THEN);
        }
        let pieces = drain(&mut logs);
        let kept: usize = pieces.iter().map(|piece| piece.data.len()).sum();
        assert!(
            kept <= MOST && kept > MOST - 2 * LONGEST_PIECE,
            "{kept} bytes"
        );
        assert_eq!(pieces[0].dropped, (1_000_000 - kept) as u64);
        assert!(pieces[1..].iter().all(|piece| piece.dropped == 0));
    }

    fn stream() -> impl Strategy<Value = Stream> {
        prop_oneof![
            Just(Stream::Stdout),
            Just(Stream::Stderr),
            Just(Stream::Agent)
        ]
    }

    proptest! {
        #[test]
        fn every_byte_is_passed_on_in_order_or_counted(
            writes in proptest::collection::vec((stream(), 0..40_000_usize, any::<bool>()), 1..60),
        ) {
            let mut logs = Logs::default();
            let mut written = [0_u64; 3];
            let mut seen = [0_u64; 3];
            let mut take = |logs: &mut Logs| {
                if let Some(piece) = logs.pop() {
                    prop_assert!(piece.data.len() <= LONGEST_PIECE);
                    let seen = &mut seen[piece.stream as usize];
                    *seen += piece.dropped;
                    for byte in &piece.data {
                        prop_assert_eq!(*byte, (*seen % 251) as u8);
                        *seen += 1;
                    }
                }
                Ok(())
            };
            for (stream, length, pop) in writes {
                let written = &mut written[stream as usize];
                let data: Vec<u8> =
                    (0..length as u64).map(|at| ((*written + at) % 251) as u8).collect();
                *written += length as u64;
                logs.push(stream, &data, THEN);
                prop_assert!(logs.size <= MOST);
                if pop {
                    take(&mut logs)?;
                }
            }
            while !logs.is_empty() {
                take(&mut logs)?;
            }
            for stream in 0..3 {
                prop_assert_eq!(seen[stream] + logs.lost[stream], written[stream]);
            }
            prop_assert_eq!(logs.size, 0);
        }
    }
}
