//! What is simulated: nodes, services, an operator's calls, and faults, drawn from a seed
//! or as an operator says.

use std::time::Duration;

use fabric_controller::model::{deployment::Slot, lease::LeasePolicy};
use fabric_proto::{id::NodeId, v1::UpdateAction};
use fastrand::Rng;
use host_agent::hypervisor::simulated::Temper;

const GIB: u64 = 1 << 30;

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where all that is drawn later comes from.
    pub seed: u64,
    /// The nodes.
    pub nodes: Vec<NodePlan>,
    /// How guests are while faults happen.
    pub temper: Temper,
    /// What the operator does, in order.
    pub calls: Vec<(Duration, Call)>,
    /// What happens to the cluster.
    pub faults: Vec<Fault>,
    /// When faults are over, and everything has to come right.
    pub calm: Duration,
    /// Until when it has.
    pub deadline: Duration,
    /// At least until then it goes on.
    pub at_least: Duration,
    /// How nodes are held to their leases.
    pub lease: LeasePolicy,
    /// How fast the controller's clock is.
    pub controller_rate: f64,
}

/// A node.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Its name.
    pub node: NodeId,
    /// Its fault domain.
    pub rack: String,
    /// Whether it has a fast disk, as its label says.
    pub is_fast: bool,
    /// Its processors.
    pub cpus: u32,
    /// Its memory.
    pub memory_bytes: u64,
    /// How fast its clock is.
    pub rate: f64,
    /// How late it is at killing what it runs when its lease ends: nothing else than its
    /// guests comes to run on it from just before the end on. Less than the slack.
    pub late: Duration,
    /// When its host agent is started.
    pub starts: Duration,
    /// What its guests do comes from this.
    pub seed: u64,
}

/// What an operator does.
#[derive(Debug, Clone)]
pub enum Call {
    /// Applies a service file.
    Apply {
        /// Its text.
        text: String,
        /// Where.
        slot: Slot,
    },
    /// Exchanges what is in a service's slots.
    Swap {
        /// Its name.
        service: String,
    },
    /// Goes back to what a service's production was before.
    Rollback {
        /// Its name.
        service: String,
    },
    /// Has a say in an update.
    Control {
        /// Name of the service.
        service: String,
        /// Where.
        slot: Slot,
        /// What.
        action: UpdateAction,
    },
    /// Deletes a service, or what is in its staging.
    Delete {
        /// Its name.
        service: String,
        /// None for all of it.
        slot: Option<Slot>,
    },
    /// Restarts an instance's virtual machine.
    Restart {
        /// Which.
        instance: String,
    },
    /// Stops an instance.
    Stop {
        /// Which.
        instance: String,
    },
    /// Starts one that was stopped.
    Start {
        /// Which.
        instance: String,
    },
    /// Drains a node.
    Drain(NodeId),
    /// Ends that.
    Uncordon(NodeId),
    /// Says that a node is gone for good. It may come back, and is a new one then.
    Remove(NodeId),
}

impl Call {
    /// It in a word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Apply { slot, .. } => match slot {
                Slot::Production => "apply",
                Slot::Staging => "stage",
            },
            Self::Swap { .. } => "swap",
            Self::Rollback { .. } => "rollback",
            Self::Control { action, .. } => match action {
                UpdateAction::Pause => "pause_update",
                UpdateAction::Resume => "resume_update",
                UpdateAction::Abort => "abort_update",
                UpdateAction::Advance | UpdateAction::Unspecified => "advance_update",
            },
            Self::Delete { slot, .. } => match slot {
                None => "delete",
                Some(_) => "unstage",
            },
            Self::Restart { .. } => "restart",
            Self::Stop { .. } => "stop",
            Self::Start { .. } => "start",
            Self::Drain(_) => "drain",
            Self::Uncordon(_) => "uncordon",
            Self::Remove(_) => "remove_node",
        }
    }
}

/// Something that is wrong for a while.
#[derive(Debug, Clone)]
pub struct Fault {
    /// From then on.
    pub from: Duration,
    /// Until then; never if that does not come.
    pub until: Duration,
    /// What.
    pub kind: FaultKind,
}

/// What is wrong. Nodes are named by their place in [`Plan::nodes`].
#[derive(Debug, Clone, PartialEq)]
pub enum FaultKind {
    /// The controller's process is killed, and started again at the end.
    ControllerKilled,
    /// A node's host agent is killed, and started again at the end.
    AgentKilled(usize),
    /// A node is without power.
    NodeKilled(usize),
    /// A node's machine sleeps: nothing of it runs, and its clock goes on.
    NodeSleeps(usize),
    /// Nodes and the controller do not hear each other.
    Cut {
        /// Which nodes.
        nodes: Vec<usize>,
        /// What they say does not arrive.
        from_nodes: bool,
        /// What they are told does not arrive.
        to_nodes: bool,
    },
    /// The way between a node and the controller takes longer.
    Slow(usize, Duration),
    /// The disk under the controller's store is full.
    StoreFull,
    /// The wall clock of a node is wrong by so many seconds.
    NodeClock(usize, i64),
    /// That of the controller.
    ControllerClock(i64),
}

impl FaultKind {
    /// It in a word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::ControllerKilled => "controller_killed",
            Self::AgentKilled(_) => "agent_killed",
            Self::NodeKilled(_) => "node_killed",
            Self::NodeSleeps(_) => "node_sleeps",
            Self::Cut {
                from_nodes: true,
                to_nodes: true,
                ..
            } => "partition",
            Self::Cut { .. } => "partition_one_way",
            Self::Slow(..) => "delay",
            Self::StoreFull => "store_full",
            Self::NodeClock(..) | Self::ControllerClock(_) => "clock_jump",
        }
    }

    /// What two faults may not have in common while both last.
    fn place(&self) -> Option<String> {
        match self {
            Self::ControllerKilled => Some("controller".to_owned()),
            Self::AgentKilled(node) | Self::NodeKilled(node) | Self::NodeSleeps(node) => {
                Some(format!("node {node}"))
            }
            Self::Slow(node, _) => Some(format!("way {node}")),
            Self::StoreFull => Some("store".to_owned()),
            Self::NodeClock(node, _) => Some(format!("clock {node}")),
            Self::ControllerClock(_) => Some("clock".to_owned()),
            Self::Cut { .. } => None,
        }
    }
}

/// A service that plans make.
#[derive(Debug, Clone)]
struct Shape {
    name: String,
    roles: Vec<RoleShape>,
    bake: u64,
    rolls_back: bool,
}

#[derive(Debug, Clone)]
struct RoleShape {
    name: &'static str,
    kind: &'static str,
    size: &'static str,
    instances: u32,
    image: &'static str,
    version: u32,
    upgrade_domains: u32,
    /// The value of its one setting.
    setting: u32,
    /// Whether a process that runs is told of another.
    delivers: bool,
    place: PlaceShape,
}

/// What a role asks of nodes, and of how it lies on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlaceShape {
    /// Nothing.
    Any,
    /// A fast disk.
    Fast,
    /// Rather nowhere than not spread, over so many fault domains.
    Strict(u32),
}

/// Images that plans name.
pub const IMAGES: [&str; 2] = ["guest-os", "guest-os-2"];
/// The package that plans name.
pub const PACKAGE: &str = "hello-web";
/// The label of nodes with a fast disk.
pub const FAST: (&str, &str) = ("disk", "fast");
/// The one setting of roles.
pub const SETTING: &str = "colour";
/// Most instances of a role in staging: there is room for them beside all others.
const STAGED: u32 = 2;

impl Shape {
    fn draw(rng: &mut Rng, index: usize, most: u32, racks: u32) -> Self {
        let kinds = [("web", "web"), ("worker", "worker")];
        let roles = kinds.iter().take(rng.usize(1..=2));
        let roles = roles.map(|(name, kind)| RoleShape {
            name,
            kind,
            size: if rng.bool() { "small" } else { "tiny" },
            instances: rng.u32(1..=most),
            image: IMAGES[0],
            version: 1,
            upgrade_domains: rng.u32(1..=5),
            setting: 0,
            delivers: rng.bool(),
            place: match rng.u32(0..6) {
                0 => PlaceShape::Fast,
                1 => PlaceShape::Strict(racks.min(2)),
                _ => PlaceShape::Any,
            },
        });
        Self {
            name: format!("s{index}"),
            roles: roles.collect(),
            bake: rng.u64(0..=3),
            rolls_back: rng.bool(),
        }
    }

    fn change(&mut self, rng: &mut Rng, most: u32) {
        let index = rng.usize(0..self.roles.len());
        let role = &mut self.roles[index];
        match rng.u32(0..14) {
            0..=3 => role.version += 1,
            4..=5 => role.image = IMAGES[usize::from(role.image == IMAGES[0])],
            6 => role.size = if role.size == "tiny" { "small" } else { "tiny" },
            7..=8 => role.setting += 1,
            9..=10 => {
                role.place = match role.place {
                    PlaceShape::Any => PlaceShape::Fast,
                    PlaceShape::Fast => PlaceShape::Any,
                    strict @ PlaceShape::Strict(_) => strict,
                };
            }
            _ => role.instances = rng.u32(1..=most),
        }
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    /// Id of an instance of its first role.
    fn instance(&self, number: u32) -> String {
        format!("{}-{}-{number}", self.name, self.roles[0].name)
    }

    /// The same for staging.
    fn staged(mut self) -> Self {
        for role in &mut self.roles {
            role.instances = role.instances.min(STAGED);
        }
        self
    }

    fn text(&self) -> String {
        let on_failure = if self.rolls_back { "rollback" } else { "stop" };
        let mut text = format!(
            "name = \"{}\"\n[update]\nbake = \"{}s\"\ntimeout = \"60s\"\non_failure = \
             \"{on_failure}\"\n[sizes.tiny]\nvcpus = 1\nmemory = \"512MiB\"\n[sizes.small]\nvcpus \
             = 2\nmemory = \"1GiB\"\n",
            self.name, self.bake
        );
        for role in &self.roles {
            // There are fewer places for who is particular.
            let instances = match role.place {
                PlaceShape::Any => role.instances,
                PlaceShape::Fast | PlaceShape::Strict(_) => role.instances.div_ceil(2),
            };
            let change = if role.delivers { "deliver" } else { "restart" };
            text.push_str(&format!(
                "[[role]]\nname = \"{}\"\nkind = \"{}\"\nsize = \"{}\"\ninstances = \
                 {instances}\nimage = \"{}\"\npackage = \"{PACKAGE}\"\ncommand = \
                 [\"/v{}\"]\nupgrade_domains = {}\nsettings = {{ {SETTING} = \"{}\" \
                 }}\nsettings_change = \"{change}\"\n",
                role.name,
                role.kind,
                role.size,
                role.image,
                role.version,
                role.upgrade_domains,
                role.setting,
            ));
            match role.place {
                PlaceShape::Any => {}
                PlaceShape::Fast => {
                    let (key, value) = FAST;
                    text.push_str(&format!("node_labels = {{ {key} = \"{value}\" }}\n"));
                }
                PlaceShape::Strict(domains) => {
                    text.push_str(&format!("spread = \"strict\"\nfault_domains = {domains}\n"));
                }
            }
        }
        text
    }
}

/// When the first call is made.
const FIRST_CALL: Duration = Duration::from_secs(5);
/// When the first fault happens.
const FIRST_FAULT: Duration = Duration::from_secs(20);
/// When a node that is silent has nothing left that runs.
const TO_BE_GONE: Duration = Duration::from_secs(16);
/// How long everything has for coming right.
const TO_COME_RIGHT: Duration = Duration::from_secs(600);

impl Plan {
    /// What a seed stands for.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (count, span) = match seed % 100 {
            0 => (rng.usize(150..=300), 40),
            50 => (rng.usize(40..=100), 60),
            _ => (rng.usize(3..=20), rng.u64(40..=120)),
        };
        let mut nodes = nodes(&mut rng, count, false);
        let mut lateness = Rng::with_seed(seed ^ 0x6c61_7465);
        for node in &mut nodes {
            worst(&mut lateness, node);
        }
        let calm = FIRST_FAULT + Duration::from_secs(span);
        let mut calls = calls(&mut rng, &nodes, calm);
        let faults = faults(&mut rng, count, calm);
        calls.extend(removals(&mut rng, &nodes, &faults));
        Self {
            seed,
            nodes,
            temper: temper(&mut rng),
            calls,
            faults,
            calm,
            deadline: calm + TO_COME_RIGHT,
            at_least: calm,
            lease: LeasePolicy::default(),
            controller_rate: rate(&mut rng, 1),
        }
    }

    /// A service file of an operator's, on so many nodes, with these faults.
    #[must_use]
    pub fn of_file(seed: u64, count: usize, text: String, faults: Vec<Fault>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let last = faults.iter().map(|fault| fault.from).max();
        let calm = last.unwrap_or_default() + Duration::from_secs(1);
        Self {
            seed,
            nodes: nodes(&mut rng, count, true),
            temper: Temper::EVEN,
            calls: vec![(FIRST_CALL, Call::apply(text))],
            faults,
            calm,
            deadline: calm + TO_COME_RIGHT,
            at_least: calm,
            lease: LeasePolicy::default(),
            controller_rate: 1.0,
        }
    }
}

/// A clock that goes wrong by so many percent at the most.
fn rate(rng: &mut Rng, percent: u32) -> f64 {
    1.0 + (rng.f64() * 2.0 - 1.0) * f64::from(percent) / 100.0
}

/// Makes every other node one for which the controller waits as long as it does: nearly as
/// slow and as late as a node may be.
fn worst(rng: &mut Rng, node: &mut NodePlan) {
    let (rate, late) = (0.92 + rng.f64() / 50.0, rng.u64(1_700..1_900));
    if rng.bool() {
        node.rate = rate;
        node.late = Duration::from_millis(late);
    }
}

fn nodes(rng: &mut Rng, count: usize, even: bool) -> Vec<NodePlan> {
    let racks = match even {
        true => count.clamp(1, 3),
        false => rng.usize(1..=count.min(6)),
    };
    let names = (0..count).filter_map(|index| format!("node-{index}").parse::<NodeId>().ok());
    let nodes = names.enumerate().map(|(index, node)| NodePlan {
        node,
        rack: format!("rack-{}", index % racks),
        // At least half of them, wherever they are.
        is_fast: index / racks % 2 == 0,
        cpus: if even { 8 } else { rng.u32(2..=8) },
        memory_bytes: if even {
            32 * GIB
        } else {
            rng.u64(8..=32) * GIB
        },
        // Clocks of nodes may go slower than the controller's by a tenth.
        rate: if even { 1.0 } else { rate(rng, 8) },
        late: Duration::ZERO,
        starts: Duration::from_millis(rng.u64(0..3_000)),
        seed: rng.u64(..),
    });
    nodes.collect()
}

fn temper(rng: &mut Rng) -> Temper {
    let sometimes = |rng: &mut Rng, percent| if rng.u32(0..3) == 0 { percent } else { 0 };
    Temper {
        // Together with the keeper's looks that is what a node has for killing.
        end: Duration::from_millis(5)..Duration::from_millis(1_700),
        launches_fail: sometimes(rng, 5),
        boots_panic: sometimes(rng, 5),
        boots_hang: sometimes(rng, 3),
        well_for: (rng.u32(0..2) == 0).then(|| Duration::from_secs(rng.u64(60..600))),
        ..Temper::EVEN
    }
}

/// When calls are made, and which.
type Calls = Vec<(Duration, Call)>;

fn calls(rng: &mut Rng, nodes: &[NodePlan], calm: Duration) -> Calls {
    // So much that there is room for all of it on half of the nodes.
    let services = rng.usize(1..=3);
    let most = u32::try_from(nodes.len() * 3 / (services * 2)).unwrap_or(u32::MAX);
    let most = most.clamp(1, 60);
    let mut racks: Vec<_> = nodes.iter().map(|node| &node.rack).collect();
    racks.sort();
    racks.dedup();
    let racks = u32::try_from(racks.len()).unwrap_or(1);
    let shapes = (0..services).map(|index| Shape::draw(rng, index, most, racks));
    let mut shapes: Vec<_> = shapes.collect();
    let mut at = FIRST_CALL;
    let mut calls = Vec::new();
    for shape in &shapes {
        calls.push((at, Call::apply(shape.text())));
        at += millis(rng, 100..2_000);
    }
    at = FIRST_FAULT;
    loop {
        at += millis(rng, 2_000..20_000);
        if at >= calm {
            return calls;
        }
        let index = rng.usize(0..shapes.len());
        let shape = &mut shapes[index];
        match rng.u32(0..20) {
            0..=8 => {
                shape.change(rng, most);
                calls.push((at, Call::apply(shape.text())));
                calls.extend(has_a_say(rng, at, shape, Slot::Production));
            }
            9 => {
                let instance = shape.instance(0);
                calls.push((at, Call::Restart { instance }));
            }
            10..=11 => {
                let instance = shape.instance(rng.u32(0..2));
                let again = at + millis(rng, 500..30_000);
                if rng.bool() {
                    let instance = instance.clone();
                    calls.push((again, Call::Start { instance }));
                }
                calls.push((at, Call::Stop { instance }));
            }
            12..=13 => {
                let node = nodes[rng.usize(0..nodes.len())].node.clone();
                let end = at + millis(rng, 5_000..40_000);
                calls.push((end, Call::Uncordon(node.clone())));
                calls.push((at, Call::Drain(node)));
            }
            14..=15 => calls.extend(stage(rng, at, shape)),
            16..=17 => {
                let service = shape.name();
                calls.push((at, Call::Rollback { service }));
                calls.extend(has_a_say(rng, at, shape, Slot::Production));
            }
            18 => {
                let (service, slot) = (shape.name(), None);
                calls.push((at, Call::Delete { service, slot }));
                let again = at + millis(rng, 100..10_000);
                // Of the others some go for good.
                if index == 0 || rng.bool() {
                    calls.push((again, Call::apply(shape.text())));
                }
            }
            _ => {}
        }
    }
}

fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

impl Call {
    const fn apply(text: String) -> Self {
        let slot = Slot::Production;
        Self::Apply { text, slot }
    }
}

/// What comes of an update that has begun then: it is left alone, or an operator has a say
/// in it, and sometimes another.
fn has_a_say(rng: &mut Rng, begun: Duration, shape: &Shape, slot: Slot) -> Calls {
    let mut calls = Vec::new();
    let mut at = begun;
    let mut is_paused = false;
    while rng.u32(0..5) < if is_paused { 4 } else { 2 } {
        at += millis(rng, 200..8_000);
        let action = match rng.u32(0..4) {
            _ if is_paused => UpdateAction::Resume,
            0..=1 => UpdateAction::Pause,
            2 => UpdateAction::Abort,
            _ => UpdateAction::Advance,
        };
        is_paused = action == UpdateAction::Pause;
        let service = shape.name();
        let control = Call::Control {
            service,
            slot,
            action,
        };
        calls.push((at, control));
    }
    calls
}

/// Another version is tried in staging; then it goes into production, or away.
fn stage(rng: &mut Rng, at: Duration, shape: &Shape) -> Calls {
    let mut staged = shape.clone().staged();
    staged.change(rng, STAGED);
    let text = staged.text();
    let slot = Slot::Staging;
    let mut calls = vec![(at, Call::Apply { text, slot })];
    calls.extend(has_a_say(rng, at, shape, slot));
    let mut at = at + millis(rng, 2_000..20_000);
    while rng.u32(0..3) > 0 {
        let service = shape.name();
        calls.push((at, Call::Swap { service }));
        at += millis(rng, 200..15_000);
    }
    if rng.bool() {
        let (service, slot) = (shape.name(), Some(slot));
        calls.push((at, Call::Delete { service, slot }));
    }
    calls
}

/// Some nodes that are not heard for long are said to be gone for good.
fn removals(rng: &mut Rng, nodes: &[NodePlan], faults: &[Fault]) -> Calls {
    let mut calls = Vec::new();
    for fault in faults {
        let node = match &fault.kind {
            FaultKind::NodeKilled(node)
            | FaultKind::NodeSleeps(node)
            | FaultKind::AgentKilled(node) => *node,
            FaultKind::Cut { nodes, .. } if nodes.len() == 1 => nodes[0],
            _ => continue,
        };
        let at = fault.from + TO_BE_GONE + millis(rng, 0..3_000);
        if at < fault.until && rng.bool() {
            calls.push((at, Call::Remove(nodes[node].node.clone())));
        }
    }
    calls
}

fn faults(rng: &mut Rng, nodes: usize, calm: Duration) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut at = FIRST_FAULT;
    // Some seeds are harder than others.
    let pause = rng.u64(500..12_000);
    loop {
        at += Duration::from_millis(rng.u64(pause / 4..pause));
        if at >= calm {
            return faults;
        }
        let node = rng.usize(0..nodes);
        let kind = match rng.u32(0..20) {
            0..=1 => FaultKind::ControllerKilled,
            2..=4 => FaultKind::AgentKilled(node),
            5..=6 => FaultKind::NodeKilled(node),
            7 => FaultKind::NodeSleeps(node),
            8..=12 => cut(rng, node, nodes),
            13..=15 => FaultKind::Slow(node, Duration::from_millis(rng.u64(50..4_000))),
            16..=17 => FaultKind::StoreFull,
            18 => FaultKind::NodeClock(node, rng.i64(-7_200..7_200)),
            _ => FaultKind::ControllerClock(rng.i64(-7_200..7_200)),
        };
        let lasts = match rng.u32(0..3) {
            0 => rng.u64(200..3_000),
            1 => rng.u64(3_000..20_000),
            _ => rng.u64(10_000..60_000),
        };
        let fault = Fault {
            from: at,
            until: (at + Duration::from_millis(lasts)).min(calm),
            kind,
        };
        let place = fault.kind.place();
        let is_free = |other: &&Fault| {
            place.is_some() && other.kind.place() == place && other.until >= fault.from
        };
        if !faults.iter().any(|other| is_free(&other)) {
            faults.push(fault);
        }
    }
}

fn cut(rng: &mut Rng, node: usize, nodes: usize) -> FaultKind {
    let mut cut = vec![node];
    if rng.u32(0..4) == 0 {
        let more = rng.usize(1..=nodes.div_ceil(2));
        cut.extend((1..more).map(|next| (node + next) % nodes));
    }
    let (from_nodes, to_nodes) = match rng.u32(0..4) {
        0 => (true, false),
        1 => (false, true),
        _ => (true, true),
    };
    FaultKind::Cut {
        nodes: cut,
        from_nodes,
        to_nodes,
    }
}
