//! What comes and goes: many small instances, few large ones, long tails.
//!
//! After what Microsoft has published of Azure's load: *Azure Trace for Packing 2020*
//! (github.com/Azure/AzurePublicDataset, AzureTracesForPacking2020.md), the trace behind
//! Hadary et al., *Protean: VM Allocation Service at Scale*, OSDI 2020, in which a
//! request is a VM type that takes fractions of a machine, and most live shortly; and
//! Cortez et al., *Resource Central*, SOSP 2017, section 3: nearly 80 in 100 virtual
//! machines have one or two cores, most have less than 4 GB; 40 in 100 deployments are
//! a single machine, 80 in 100 at the most five; few live long. The trace itself is not
//! read: the shares below are drawn to those statements, over the sizes that Azure had
//! (`model::size`), so that a run needs no download and is the same for a seed.

use fabric_controller::{
    model::size::{self, MIB, Size},
    placement::{
        Architecture, FaultDomain, Group, Health, Instance, Kvm, Needs, Node, Resources, Spreading,
        Template,
    },
};
use fabric_proto::id::Digest;

/// Sizes, and how many in a thousand instances have them.
const SIZES: [(&str, u64); 7] = [
    ("ExtraSmall", 110),
    ("Small", 380),
    ("Medium", 290),
    ("Large", 120),
    ("ExtraLarge", 55),
    ("A6", 30),
    ("A7", 15),
];

/// Most instances of a deployment, and how many in a thousand have no more.
const DEPLOYMENTS: [(u64, u64); 4] = [(1, 400), (5, 400), (20, 150), (100, 50)];

/// Processors and GiB of nodes, and how many in a thousand are such.
const NODES: [((u32, u64), u64); 3] = [((24, 64), 700), ((16, 48), 200), ((40, 128), 100)];

/// Images that deployments have, the first the most.
const IMAGES: [(u8, u64); 4] = [(1, 500), (2, 250), (3, 150), (4, 100)];

/// How many in a thousand that go are of the newest tenth.
const YOUNG: u64 = 800;

/// The size to keep room for.
pub fn largest() -> Resources {
    Resources::of(size_of("A7"))
}

/// A seed and everything that follows from it.
pub struct Workload {
    pub seed: u64,
    /// Nodes in a rack.
    pub rack: usize,
}

impl Workload {
    pub fn nodes(&self, count: usize) -> Vec<Node> {
        let mut random = Random(self.seed);
        let node = |number: usize| {
            let (cpus, gib) = random.pick(&NODES);
            Node {
                id: format!("n{number:05}").parse().expect("a name"),
                domain: FaultDomain(format!("r{:05}", number / self.rack)),
                cpus,
                memory_bytes: gib << 30,
                disk_bytes: 0,
                health: Health::Connected,
                cordoned: false,
                condemned: false,
                unsteady: false,
                blame: 0,
                labels: Default::default(),
                architecture: Architecture::X86_64,
                kvm: Some(Kvm::Hardware),
                stock: Default::default(),
                own: Default::default(),
            }
        };
        (0..count).map(node).collect()
    }

    /// The same for everyone who asks.
    pub fn stream(&self) -> Stream {
        Stream {
            random: Random(self.seed ^ MIB),
            deployments: 0,
        }
    }
}

/// Deployments, one after another.
pub struct Stream {
    random: Random,
    deployments: u64,
}

impl Stream {
    pub fn deployment(&mut self) -> Vec<Instance> {
        let service = self.deployments;
        self.deployments += 1;
        let most = self.random.pick(&DEPLOYMENTS);
        let size = size_of(self.random.pick(&SIZES));
        let needs = Needs {
            resources: Resources::of(size),
            template: Some(Template {
                image: Digest::of_sha256(&[self.random.pick(&IMAGES); 32]),
                vcpus: size.vcpus,
                memory_bytes: size.memory_bytes,
            }),
            ..Needs::default()
        };
        let instance = |number| Instance {
            id: format!("s{service}-r-{number}").parse().expect("an id"),
            group: Group(format!("s{service}/r")),
            number,
            upgrade_domains: 5,
            spreading: Spreading::Preferred,
            fault_domains: 1,
            needs: needs.clone(),
            node: None,
            leaving: false,
        };
        let count = 1 + self.random.below(most);
        (0..u32::try_from(count).expect("few"))
            .map(instance)
            .collect()
    }

    /// Which of so many deployments, oldest first, goes next.
    pub fn going(&mut self, count: usize) -> usize {
        let count = count as u64;
        let newest = (count / 10).max(1);
        let young = self.random.below(1000) < YOUNG;
        let at = if young {
            count - 1 - self.random.below(newest)
        } else {
            self.random.below(count)
        };
        usize::try_from(at).expect("an index")
    }
}

fn size_of(name: &str) -> Size {
    size::azure(name).expect("one of Azure's sizes")
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    /// One of them, each as often as its share of a thousand says.
    fn pick<T: Copy>(&mut self, of: &[(T, u64)]) -> T {
        let mut at = self.below(of.iter().map(|(_, share)| share).sum());
        for (what, share) in of {
            if at < *share {
                return *what;
            }
            at -= share;
        }
        of[0].0
    }
}
