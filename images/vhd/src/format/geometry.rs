//! "Disk Geometry": cylinders, heads and sectors per track.
//!
//! Nothing addresses sectors by them any more, but readers differ in what
//! they take for the size of a disk. Virtual PC, and QEMU for images whose
//! "Creator Application" it does not know, multiply the geometry; Hyper-V,
//! Azure and this crate use "Current Size". Most sizes are not a product of
//! three such numbers, so the two differ by less than a cylinder, and a
//! geometry is in order when
//!
//! - it describes the disk to within one cylinder and no more than the disk:
//!   what the specification's algorithm yields, or
//! - it is the largest there is, [`Geometry::MAX`]: the disk is larger than
//!   cylinders can count, or `qemu-img -o force_size=on` marks in this way
//!   that "Current Size" is meant.

use std::fmt;

use serde::Serialize;

use crate::device::SECTOR_SIZE;

/// "Disk Geometry", 4 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Geometry {
    /// "Cylinder", 2 bytes.
    pub cylinders: u16,
    /// "Heads", 1 byte.
    pub heads: u8,
    /// "Sectors per track/cylinder", 1 byte.
    pub sectors_per_track: u8,
}

impl Geometry {
    /// The largest geometry: 65535 cylinders, 16 heads, 255 sectors, which is
    /// a little below 128 GiB.
    pub const MAX: Self = Self {
        cylinders: 65535,
        heads: 16,
        sectors_per_track: 255,
    };

    /// The geometry of a disk of `size` bytes ("Appendix: CHS Calculation").
    #[must_use]
    pub fn for_size(size: u64) -> Self {
        let total = (size / SECTOR_SIZE).min(Self::MAX.sectors());
        let (heads, sectors_per_track) = if total >= 65535 * 16 * 63 {
            (16, 255)
        } else {
            Self::small(total)
        };
        let cylinders = total / u64::from(sectors_per_track) / u64::from(heads);
        Self {
            cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
            heads,
            sectors_per_track,
        }
    }

    /// Heads and sectors per track of a disk below 65535 × 16 × 63 sectors:
    /// the fewest that keep the number of cylinders within 10 bits.
    fn small(total: u64) -> (u8, u8) {
        let tracks = total / 17;
        let heads = tracks.div_ceil(1024).max(4);
        if heads <= 16 && tracks < heads * 1024 {
            return (u8::try_from(heads).unwrap_or(16), 17);
        }
        if total / 31 < 16 * 1024 {
            (16, 31)
        } else {
            (16, 63)
        }
    }

    /// Sectors that the geometry describes.
    #[must_use]
    pub fn sectors(self) -> u64 {
        u64::from(self.cylinders) * self.sectors_per_cylinder()
    }

    /// Bytes that the geometry describes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.sectors() * SECTOR_SIZE
    }

    fn sectors_per_cylinder(self) -> u64 {
        u64::from(self.heads) * u64::from(self.sectors_per_track)
    }

    /// Whether this is a geometry that a disk of `size` bytes can have.
    #[must_use]
    pub fn describes(self, size: u64) -> bool {
        let total = size / SECTOR_SIZE;
        let cylinder = self.sectors_per_cylinder();
        self == Self::MAX || self.sectors() <= total && total - self.sectors() < cylinder
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.cylinders, self.heads, self.sectors_per_track
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn geometry(cylinders: u16, heads: u8, sectors_per_track: u8) -> Geometry {
        Geometry {
            cylinders,
            heads,
            sectors_per_track,
        }
    }

    #[test]
    fn follows_the_algorithm_of_the_specification() {
        // Values that Virtual PC and qemu-img write for these sizes.
        assert_eq!(Geometry::for_size(1_009_664), geometry(29, 4, 17));
        assert_eq!(Geometry::for_size(104_865_792), geometry(1004, 12, 17));
        assert_eq!(Geometry::for_size(10 << 30), geometry(20805, 16, 63));
        assert_eq!(Geometry::for_size(100 << 30), geometry(51400, 16, 255));
        assert_eq!(
            Geometry::for_size(crate::format::MAX_DISK_SIZE),
            Geometry::MAX
        );
    }

    #[test]
    fn force_size_marks_any_size_with_the_largest_geometry() {
        assert!(Geometry::MAX.describes(1 << 20));
    }

    #[test]
    fn a_cylinder_more_or_less_does_not_describe_the_disk() {
        let Geometry {
            cylinders,
            heads,
            sectors_per_track,
        } = Geometry::for_size(64 << 20);
        assert!(!geometry(cylinders + 1, heads, sectors_per_track).describes(64 << 20));
        assert!(!geometry(cylinders - 1, heads, sectors_per_track).describes(64 << 20));
        assert!(!geometry(0, 0, 0).describes(64 << 20));
    }

    proptest! {
        #[test]
        fn what_it_computes_describes_the_disk(sectors in 1u64..=crate::format::MAX_DISK_SIZE / 512) {
            prop_assert!(Geometry::for_size(sectors * 512).describes(sectors * 512));
        }
    }
}
