//! The device status state machine (virtio 1.2, 2.1 and 3.1.1).
//!
//! ```text
//!  Reset ─1─▶ Acknowledged ─3─▶ Driver ─11─▶ FeaturesOk ─15─▶ DriverOk
//!    ▲             │              │              │               │
//!    │             └──────────────┴──── |128 ────┴───────────────┤
//!    └──── 0, from everywhere ◀──────────────────────────── Failed
//! ```
//!
//! [`Phase`] is the only state; its bits follow from it. What a driver may write
//! is the constant table [`TRANSITIONS`]; every other write changes nothing.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// `DEVICE_NEEDS_RESET`: set by the device alone, reported beside the phase.
pub const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// How far driver and device have come with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nobody has looked at the device.
    Reset,
    /// The guest has seen the device.
    Acknowledged,
    /// A driver has taken it: features may be negotiated.
    Driver,
    /// Features are settled: queues may be laid out.
    FeaturesOk,
    /// Queues are settled: the device runs.
    DriverOk,
    /// The driver has given up: only a reset helps.
    Failed,
}

/// What a driver's write to the status register does: from, written, to.
pub const TRANSITIONS: [(Phase, u32, Phase); 9] = [
    (Phase::Reset, ACKNOWLEDGE, Phase::Acknowledged),
    (Phase::Acknowledged, DRIVER, Phase::Driver),
    (Phase::Driver, FEATURES_OK, Phase::FeaturesOk),
    (Phase::FeaturesOk, DRIVER_OK, Phase::DriverOk),
    (Phase::Reset, FAILED, Phase::Failed),
    (Phase::Acknowledged, ACKNOWLEDGE | FAILED, Phase::Failed),
    (Phase::Driver, DRIVER | FAILED, Phase::Failed),
    (Phase::FeaturesOk, FEATURES_OK | FAILED, Phase::Failed),
    (Phase::DriverOk, DRIVER_OK | FAILED, Phase::Failed),
];

impl Phase {
    /// What the status register reads in this phase.
    pub const fn bits(self) -> u32 {
        match self {
            Phase::Reset => 0,
            Phase::Acknowledged => ACKNOWLEDGE,
            Phase::Driver => DRIVER,
            Phase::FeaturesOk => FEATURES_OK,
            Phase::DriverOk => DRIVER_OK,
            Phase::Failed => FAILED,
        }
    }

    /// Where a driver's write leads, or `None` if it may not be written now.
    ///
    /// Drivers write back what they read with a bit added, so the device's own
    /// `DEVICE_NEEDS_RESET` bit is ignored. Zero leads to [`Phase::Reset`] from
    /// everywhere.
    pub fn after_write(self, written: u32) -> Option<Phase> {
        if written == 0 {
            return Some(Phase::Reset);
        }
        let written = written & !NEEDS_RESET;
        TRANSITIONS
            .iter()
            .find(|(from, value, _)| *from == self && *value == written)
            .map(|(_, _, to)| *to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Phase; 6] = [
        Phase::Reset,
        Phase::Acknowledged,
        Phase::Driver,
        Phase::FeaturesOk,
        Phase::DriverOk,
        Phase::Failed,
    ];

    #[test]
    fn a_driver_walks_the_steps_in_order() {
        let mut phase = Phase::Reset;
        for (written, expected) in [
            (1, Phase::Acknowledged),
            (3, Phase::Driver),
            (11, Phase::FeaturesOk),
            (15, Phase::DriverOk),
        ] {
            phase = phase.after_write(written).unwrap();
            assert_eq!(phase, expected);
            assert_eq!(phase.bits(), written);
        }
    }

    #[test]
    fn no_step_can_be_skipped_or_taken_back() {
        for from in ALL {
            for written in 1..=255 {
                let Some(to) = from.after_write(written) else {
                    continue;
                };
                let step = ALL.iter().position(|p| *p == to).unwrap()
                    - ALL.iter().position(|p| *p == from).unwrap();
                assert!(
                    step == 1 || to == Phase::Failed,
                    "{from:?} --{written}--> {to:?}"
                );
            }
        }
    }

    #[test]
    fn zero_resets_from_everywhere_and_nothing_else_leaves_failed() {
        for phase in ALL {
            assert_eq!(phase.after_write(0), Some(Phase::Reset));
        }
        for written in 1..=255_u32 {
            let next = Phase::Failed.after_write(written);
            assert_eq!(next, None);
        }
    }

    #[test]
    fn the_devices_own_bit_written_back_is_ignored() {
        assert_eq!(
            Phase::Reset.after_write(1 | NEEDS_RESET),
            Some(Phase::Acknowledged)
        );
    }
}
