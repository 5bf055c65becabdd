//! What a guest can do to a disk, in a form that proptest can make up.

use proptest::prelude::*;
use vhd::BlockDevice;

use super::{SECTOR, sectors};

#[derive(Debug, Clone)]
pub enum Action {
    Write { sector: u64, count: u64 },
    WriteZeroes { sector: u64, count: u64 },
    Discard { sector: u64, count: u64 },
    Flush,
    Reopen,
}

/// Actions on a disk of `size` sectors, `longest` sectors at a time.
pub fn actions(size: u64, longest: u64, most: usize) -> impl Strategy<Value = Vec<Action>> {
    let range = move || {
        (0..size, 1..=longest).prop_map(move |(sector, count)| (sector, count.min(size - sector)))
    };
    let action = prop_oneof![
        8 => range().prop_map(|(sector, count)| Action::Write { sector, count }),
        1 => range().prop_map(|(sector, count)| Action::WriteZeroes { sector, count }),
        1 => range().prop_map(|(sector, count)| Action::Discard { sector, count }),
        2 => Just(Action::Flush),
        1 => Just(Action::Reopen),
    ];
    prop::collection::vec(action, 1..most)
}

/// The tag of the first sector that the action with this number writes.
pub fn first_tag(number: usize) -> u64 {
    (number as u64 + 1) << 16
}

impl Action {
    /// Does it to a device. Reopening is the caller's.
    pub fn apply(&self, number: usize, device: &dyn BlockDevice) -> vhd::Result<()> {
        let bytes = |sectors: &u64| sectors * SECTOR as u64;
        match self {
            Self::Write { sector, count } => {
                device.write_at(&sectors(first_tag(number), *count), bytes(sector))
            }
            Self::WriteZeroes { sector, count } => device.write_zeroes(bytes(sector), bytes(count)),
            Self::Discard { sector, count } => device.discard(bytes(sector), bytes(count)),
            Self::Flush => device.flush(),
            Self::Reopen => Ok(()),
        }
    }
}
