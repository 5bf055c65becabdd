//! Why here, why not there, and what would make it fit.

use std::{collections::BTreeMap, fmt};

use fabric_proto::id::{InstanceId, NodeId};

use super::{
    cluster::{Cluster, Placed},
    filter::{self, Refusal},
    score::Score,
    types::{
        Amount, Architecture, FaultDomain, Group, Instance, Needs, OwnResources, Resources,
        Spreading,
    },
};

/// A spread that could not be kept for want of room, or of domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relaxed {
    /// What is spread.
    pub group: Group,
    /// The domain that has one more now.
    pub domain: FaultDomain,
    /// How many it had.
    pub has: u32,
    /// Which rule yields.
    pub rule: Rule,
}

/// What a fault domain may have of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// No more than one above the fewest that a usable domain has, which is this.
    Even(u32),
    /// No more than this, its share of as many domains as the group is to lie on.
    Share(u32),
}

impl Rule {
    /// The one that is broken by one more, if one is.
    pub(super) fn broken(has: u32, least: u32, share: u32) -> Option<Self> {
        if has > least {
            Some(Self::Even(least))
        } else {
            (has >= share).then_some(Self::Share(share))
        }
    }
}

impl fmt::Display for Relaxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            group,
            domain,
            has,
            rule,
        } = self;
        write!(f, "fault domain {domain} has {has} of {group} already and ")?;
        match rule {
            Rule::Even(least) => write!(f, "another has {least}, which has no room"),
            Rule::Share(share) => write!(
                f,
                "should have {share} at the most: there are fewer fault domains than it wants"
            ),
        }
    }
}

/// What would make an instance fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// A node is only closed, by an operator or for what it did.
    Uncordon(NodeId),
    /// A node is only not there.
    Reconnect(NodeId),
    /// A node only lacks labels.
    Label(NodeId, Vec<(String, String)>),
    /// A node only breaks the spread.
    Relax(Group),
    /// A node only lacks room, and could have it.
    Free(NodeId, Resources, OwnResources),
    /// A node only has other processors, which are these.
    Image(Architecture),
    /// Another node; of that architecture, where nodes of another refuse.
    Add(Needs, Option<Architecture>),
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uncordon(node) => write!(f, "uncordon node {node}"),
            Self::Reconnect(node) => write!(f, "bring node {node} back"),
            Self::Label(node, labels) => {
                write!(f, "label node {node}: `fabctl node label {node}")?;
                labels
                    .iter()
                    .try_for_each(|(key, value)| write!(f, " {}", word(key, value)))?;
                f.write_str("`")
            }
            Self::Relax(group) => {
                write!(
                    f,
                    "let the spread of {group} be preferred instead of strict"
                )
            }
            Self::Free(node, short, own) => {
                let mut what = Vec::new();
                if short.millicores > 0 {
                    what.push(super::types::Cores(short.millicores).to_string());
                }
                let mib = |bytes: u64| bytes.div_ceil(1 << 20);
                if short.memory_bytes > 0 {
                    what.push(format!("{} MiB of memory", mib(short.memory_bytes)));
                }
                if short.disk_bytes > 0 {
                    what.push(format!("{} MiB of disk", mib(short.disk_bytes)));
                }
                if !own.is_empty() {
                    what.push(own.to_string());
                }
                write!(f, "free {} on node {node}", what.join(" and "))
            }
            Self::Image(other) => write!(f, "give it an image for {other}"),
            Self::Add(needs, architecture) => {
                f.write_str("add ")?;
                match architecture {
                    Some(architecture) => write!(f, "an {architecture} node")?,
                    None => f.write_str("a node")?,
                }
                let amount = Amount(&needs.resources, &needs.own);
                write!(f, " with {amount} free")?;
                if let Some(kvm) = needs.kvm {
                    write!(f, ", {kvm} KVM")?;
                }
                for (key, value) in &needs.labels {
                    write!(f, ", label {key}={value}")?;
                }
                Ok(())
            }
        }
    }
}

/// A label as a word of a command line, in quotes if a shell would take it for more.
fn word(key: &str, value: &str) -> String {
    let plain = |char: char| char.is_alphanumeric() || "-_./:@%+,".contains(char);
    let word = format!("{key}={value}");
    if key.chars().chain(value.chars()).all(plain) {
        word
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Why no node can take an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaceable {
    /// What it asks for.
    pub needed: Resources,
    /// What it asks for of an operator's own resources.
    pub needed_own: OwnResources,
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of them can be asked.
    pub connected: usize,
    /// The nodes that lack nothing but room, by name, with what they have free: the
    /// first few.
    pub short: Vec<(NodeId, Resources)>,
    /// How many nodes refuse, by their first reason.
    pub refusals: BTreeMap<&'static str, usize>,
    /// What would make it fit, the least first.
    pub remedies: Vec<Remedy>,
}

/// Most nodes that are named in a reason.
const MOST_NAMED: usize = 3;
/// Most remedies in a line.
const MOST_REMEDIES: usize = 2;

impl Unplaceable {
    /// Asks every node.
    pub(super) fn of(cluster: &mut Cluster, instance: &Instance) -> Self {
        let all = cluster.verdicts(instance);
        let mut short = Vec::new();
        let mut refusals = BTreeMap::new();
        for verdict in &all {
            let Err(why) = &verdict.outcome else { continue };
            if why.iter().all(Refusal::is_room) && short.len() < MOST_NAMED {
                short.push((verdict.node.clone(), verdict.free));
            }
            if let Some(first) = why.first() {
                *refusals.entry(first.kind()).or_default() += 1;
            }
        }
        let connected = |verdict: &&Verdict| {
            let gone = |why: &Refusal| matches!(why, Refusal::NotConnected | Refusal::Lost);
            !verdict
                .outcome
                .as_ref()
                .is_err_and(|why| why.iter().any(gone))
        };
        Self {
            needed: instance.needs.resources,
            needed_own: instance.needs.own.clone(),
            nodes: all.len(),
            connected: all.iter().filter(connected).count(),
            short,
            refusals,
            remedies: remedies(&all, instance),
        }
    }
}

impl fmt::Display for Unplaceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("there is no node; start a host agent");
        }
        if self.connected == 0 {
            return f.write_str("no node is connected");
        }
        let needed = Amount(&self.needed, &self.needed_own);
        if self.short.is_empty() {
            write!(f, "no node can take it ({needed}): ")?;
        } else {
            write!(f, "no node has room for {needed}: ")?;
            for (index, (node, free)) in self.short.iter().enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                write!(f, "{comma}{node} has {free} free")?;
            }
            f.write_str("; ")?;
        }
        let mut first = true;
        for (kind, count) in &self.refusals {
            let comma = if first { "" } else { ", " };
            let be = if *count == 1 { "is" } else { "are" };
            write!(f, "{comma}{count} {be} {kind}")?;
            first = false;
        }
        if !self.remedies.is_empty() {
            f.write_str("; to make it fit, ")?;
            for (index, remedy) in self.remedies.iter().take(MOST_REMEDIES).enumerate() {
                let or = if index == 0 { "" } else { ", or " };
                write!(f, "{or}{remedy}")?;
            }
        }
        Ok(())
    }
}

/// What a node says to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The node.
    pub node: NodeId,
    /// Its fault domain.
    pub domain: FaultDomain,
    /// All that can be promised of it.
    pub capacity: Resources,
    /// What of it is free.
    pub free: Resources,
    /// What of an operator's own resources is free.
    pub free_own: OwnResources,
    /// Its standing if it can take the instance, or every reason why it cannot.
    pub outcome: Result<Standing, Vec<Refusal>>,
}

/// What nodes that can take an instance are compared by, in this order; less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How many of the group are in its fault domain.
    pub in_domain: u32,
    /// How many of those are of the same upgrade domain.
    pub in_cell: u32,
    /// How many of the group are on the node.
    pub on_node: u32,
    /// Its points.
    pub score: Score,
}

impl Standing {
    /// As one number after another.
    #[must_use]
    pub const fn key(&self) -> (u32, u32, u32, u32) {
        (
            self.in_domain,
            self.in_cell,
            self.on_node,
            self.score.total(),
        )
    }

    /// In what it is behind the one that was chosen, for people.
    #[must_use]
    pub fn behind(&self, chosen: &Self) -> String {
        let more = |what: &str, mine: u32, theirs: u32| format!("{what}: {mine}, not {theirs}");
        if self.in_domain != chosen.in_domain {
            let what = "more of its group in this fault domain";
            more(what, self.in_domain, chosen.in_domain)
        } else if self.in_cell != chosen.in_cell {
            let what = "more of its upgrade domain in this fault domain";
            more(what, self.in_cell, chosen.in_cell)
        } else if self.on_node != chosen.on_node {
            more(
                "more of its group on this node",
                self.on_node,
                chosen.on_node,
            )
        } else if self.score.total() != chosen.score.total() {
            format!("{}, not {}", self.score, chosen.score.total())
        } else {
            "as good; the first by name is taken".to_owned()
        }
    }
}

/// Why an instance is where it is, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The instance.
    pub instance: InstanceId,
    /// The node that it is on.
    pub node: Option<NodeId>,
    /// Where it would be placed if it were placed now.
    pub decision: Result<Placed, Unplaceable>,
    /// What every node says to it, by name, as if it were placed now.
    pub verdicts: Vec<Verdict>,
}

impl Cluster {
    /// Explains an instance. One that has a node is asked for as if it were to be
    /// placed anew, all others being where they are.
    #[must_use]
    pub fn explain(&self, instance: &Instance) -> Explanation {
        let mut without = self.clone();
        if let Some(node) = &instance.node {
            without.release(instance, node);
        }
        let decision = without.choose(instance);
        let avoid = &instance.needs.avoid;
        let goes_back = decision
            .as_ref()
            .is_ok_and(|placed| avoid.contains(&placed.node));
        Explanation {
            instance: instance.id.clone(),
            node: instance.node.clone(),
            decision,
            // As they were asked in the end.
            verdicts: match goes_back {
                true => without.verdicts(&instance.avoiding_none()),
                false => without.verdicts(instance),
            },
        }
    }

    /// What every node says to an instance, by name.
    pub(super) fn verdicts(&mut self, instance: &Instance) -> Vec<Verdict> {
        let (spread, least) = (self.spread_of(instance), self.least_of(instance));
        let (needs, share) = (&instance.needs, self.share_of(instance));
        let strict = instance.spreading == Spreading::Strict;
        let verdict = |(number, host): (u32, &super::host::Host)| {
            let (domain, free) = (&self.domains[host.domain as usize], host.free());
            let mut why = filter::standing(&host.node, needs);
            let free_own = host.free_own();
            why.extend(filter::room(&free, &needs.resources));
            why.extend(filter::own_room(&host.node, &free_own, &needs.own));
            let in_domain = spread.in_domain(host.domain);
            if let Some(rule) = Rule::broken(in_domain, least, share).filter(|_| strict) {
                why.push(Refusal::Spread {
                    group: instance.group.clone(),
                    domain: domain.clone(),
                    has: in_domain,
                    rule,
                });
            }
            let standing = || Standing {
                in_domain,
                in_cell: spread.in_cell(host.domain, instance.upgrade_domain()),
                on_node: spread.on_node(number),
                score: self.hosts.score(number, needs),
            };
            Verdict {
                node: host.node.id.clone(),
                domain: domain.clone(),
                capacity: host.capacity,
                free,
                free_own,
                outcome: if why.is_empty() {
                    Ok(standing())
                } else {
                    Err(why)
                },
            }
        };
        (0..).zip(&self.hosts.all).map(verdict).collect()
    }
}

/// What would make it fit: one remedy of each kind, by the node that needs least.
fn remedies(all: &[Verdict], instance: &Instance) -> Vec<Remedy> {
    let needs = &instance.needs;
    let refusing = || {
        let refused = |verdict: &'_ Verdict| verdict.outcome.clone().err();
        all.iter()
            .filter_map(move |verdict| Some((verdict, refused(verdict)?)))
    };
    let find = |remedy: &dyn Fn(&Verdict, &[Refusal]) -> Option<Remedy>| {
        refusing().find_map(|(verdict, why)| remedy(verdict, &why))
    };
    let uncordon = find(&|verdict, why| {
        let closed = |why: &Refusal| {
            matches!(
                why,
                Refusal::Cordoned | Refusal::Condemned | Refusal::Unsteady
            )
        };
        why.iter()
            .all(closed)
            .then(|| Remedy::Uncordon(verdict.node.clone()))
    });
    let reconnect = find(&|verdict, why| {
        let gone = why == [Refusal::NotConnected] || why == [Refusal::Lost];
        gone.then(|| Remedy::Reconnect(verdict.node.clone()))
    });
    let label = find(&|verdict, why| {
        let label = |why: &Refusal| match why {
            Refusal::Label { key, needed, .. } => Some((key.clone(), needed.clone())),
            _ => None,
        };
        let labels = why.iter().map(label).collect::<Option<_>>()?;
        Some(Remedy::Label(verdict.node.clone(), labels))
    });
    let relax = find(&|_, why| {
        let spread = matches!(why, [Refusal::Spread { .. }]);
        spread.then(|| Remedy::Relax(instance.group.clone()))
    });
    let free = refusing()
        .filter(|(verdict, why)| {
            why.iter().all(Refusal::is_room) && needs.resources.fits_in(&verdict.capacity)
        })
        .map(|(verdict, _)| {
            let short = needs.resources.minus(&verdict.free);
            (short, needs.own.minus(&verdict.free_own), &verdict.node)
        })
        .min();
    let free = free.map(|(short, own, node)| Remedy::Free(node.clone(), short, own));
    let image = find(&|_, why| match why {
        [Refusal::Architecture { has, .. }] => Some(Remedy::Image(*has)),
        _ => None,
    });
    let is_other = |why: &Refusal| matches!(why, Refusal::Architecture { .. });
    let others = refusing().any(|(_, why)| why.iter().any(is_other));
    let add = Remedy::Add(needs.clone(), others.then_some(needs.architecture));
    [uncordon, reconnect, label, relax, free, image, Some(add)]
        .into_iter()
        .flatten()
        .collect()
}
