//! Which of the nodes that can take an instance is to be preferred.
//!
//! A score is a sum of points, fewer being better; each term says why. Ten thousand
//! points of [`Score::fill`] are a whole node, and the others are weighed against that:
//! fetching an image is worth a node that is six parts in a hundred emptier.

use std::fmt;

use super::{
    host::Host,
    types::{Fill, Needs, Policy, Resources, Template},
};

/// Points of a whole.
const WHOLE: u64 = 10_000;
/// The image would have to be fetched.
const NO_IMAGE: u32 = 600;
/// The guest would have to be booted, or a template made first.
const NO_TEMPLATE: u32 = 500;
/// For each unrelated service that keeps failing there.
const BLAME: u32 = 4000;
/// Most failures that count: a bad node comes last, and is used when there is no other.
const MOST_BLAME: u32 = 8;
/// The node could not take as many of the largest size afterwards.
const LARGEST_LOST: u32 = 1500;

/// What speaks against a node, in points.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score {
    /// By the policy: how full it would be, or how empty.
    pub fill: u32,
    /// The image is not there.
    pub image: u32,
    /// There is no template of this image and size, and has been no instance.
    pub template: u32,
    /// Unrelated services keep failing there.
    pub blame: u32,
    /// It takes room that the largest size would have had.
    pub largest: u32,
}

impl Score {
    /// The sum.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.fill + self.image + self.template + self.blame + self.largest
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} points (fill {}", self.total(), self.fill)?;
        let others = [
            ("image not there", self.image),
            ("no template", self.template),
            ("blame", self.blame),
            ("room for the largest size", self.largest),
        ];
        for (what, points) in others.iter().filter(|(_, points)| *points > 0) {
            write!(f, ", {what} {points}")?;
        }
        f.write_str(")")
    }
}

/// Scores a node that has room for it. `largest` is the size to keep room for.
pub(super) fn score(policy: Policy, host: &Host, needs: &Needs, largest: &Resources) -> Score {
    let free = host.free();
    let after = free.minus(&needs.resources);
    let template = needs.template.as_ref();
    let lacks = |has: fn(&Host, &Template) -> bool| template.is_some_and(|one| !has(host, one));
    Score {
        fill: match policy.fill {
            Fill::Spread => fullness(&after, &host.capacity),
            Fill::Pack => emptiness(&after, &host.capacity),
        },
        image: if lacks(|host, one| host.has_image(&one.image)) {
            NO_IMAGE
        } else {
            0
        },
        template: if lacks(Host::has_template) {
            NO_TEMPLATE
        } else {
            0
        },
        blame: host.node.blame.min(MOST_BLAME) * BLAME,
        largest: if after.times(largest) < free.times(largest) {
            LARGEST_LOST
        } else {
            0
        },
    }
}

/// How full it is by what it has least of.
fn fullness(free: &Resources, all: &Resources) -> u32 {
    shares(free, all)
        .into_iter()
        .map(|free| WHOLE as u32 - free)
        .max()
        .unwrap_or(0)
}

/// How much of it is left, and how unevenly: what is left of one thing only is lost.
fn emptiness(free: &Resources, all: &Resources) -> u32 {
    let [cores, memory, _] = shares(free, all);
    cores.midpoint(memory).midpoint(cores.max(memory))
}

/// The free parts of processors, memory and disk.
fn shares(free: &Resources, all: &Resources) -> [u32; 3] {
    let share = |free: u64, all: u64| {
        let part = (free.min(all) * WHOLE).checked_div(all).unwrap_or(0);
        u32::try_from(part).unwrap_or(WHOLE as u32)
    };
    let mib = |bytes: u64| bytes >> 20;
    [
        share(free.millicores, all.millicores),
        share(mib(free.memory_bytes), mib(all.memory_bytes)),
        share(mib(free.disk_bytes), mib(all.disk_bytes)),
    ]
}
