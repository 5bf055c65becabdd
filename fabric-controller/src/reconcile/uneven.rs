//! Whether any spread could be mended at all: a quick look, before placement is asked.
//!
//! Pure. Placement takes long to make itself a picture of a large cluster, and nearly always
//! there is nothing to mend. What it moves goes to a fault domain that has fewer of its group
//! by two at least, so it is enough to count; and only for a group that lies so unevenly are
//! nodes looked for that would do, had they room. Nothing that placement would move is missed
//! here; what is found here may still have nowhere to go.

use std::{
    cell::LazyCell,
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use fabric_proto::id::NodeId;

use super::{
    placing::{self, GroupOf},
    plan::Input,
};
use crate::{
    model::{
        instance::{InstanceRecord, Phase},
        service::ServiceRole,
    },
    placement::{Node, filter},
};

/// One of a group.
struct Member<'a> {
    record: &'a InstanceRecord,
    role: Option<&'a ServiceRole>,
    /// Number of its fault domain.
    domain: usize,
}

/// Whether there is an instance that may be moved, of a group that could be spread better.
pub(super) fn is_any(input: &Input, may_move: impl Fn(&InstanceRecord) -> bool) -> bool {
    let (domain_of, domains) = domains(input);
    let nodes = LazyCell::new(|| {
        let mut by_domain: Vec<Vec<Node>> = vec![Vec::new(); domains];
        for node in placing::nodes(input) {
            if let Some(domain) = domain_of.get(node.id.as_str()) {
                by_domain[*domain].push(node);
            }
        }
        by_domain
    });
    groups(input, &domain_of).into_values().any(|mut members| {
        let counts = count(&members);
        let most = counts.values().max().copied().unwrap_or(0);
        let least = match counts.len() < domains {
            true => 0,
            false => counts.values().min().copied().unwrap_or(0),
        };
        most > least + 1
            && members.iter().any(|one| may_move(one.record))
            && has_a_better_place(&mut members, &counts, &nodes)
    })
}

/// The number of each node's fault domain, and how many there are.
fn domains(input: &Input) -> (HashMap<&str, usize>, usize) {
    let mut numbers = HashMap::new();
    let mut domain_of = HashMap::with_capacity(input.nodes.len());
    for node in &input.nodes {
        let next = numbers.len();
        let number = *numbers.entry(node.fault_domain()).or_insert(next);
        domain_of.insert(node.node_id.as_str(), number);
    }
    (domain_of, numbers.len())
}

/// What is on nodes that are known, by what it is spread with.
fn groups<'a>(
    input: &'a Input,
    domain_of: &HashMap<&str, usize>,
) -> HashMap<GroupOf<'a>, Vec<Member<'a>>> {
    let services = input.services.iter().map(|one| (&one.name, one));
    let services: HashMap<_, _> = services.collect();
    let mut groups: HashMap<_, Vec<_>> = HashMap::new();
    for record in input.instances.iter() {
        let node = record.node.as_ref().map(NodeId::as_str);
        let domain = node.and_then(|node| domain_of.get(node));
        if let (Some(domain), Phase::Wanted) = (domain, record.phase) {
            let service = services.get(&record.service);
            let role = service.and_then(|service| service.role_of(record));
            let group = placing::group_of(record, role);
            groups.entry(group).or_default().push(Member {
                record,
                role,
                domain: *domain,
            });
        }
    }
    groups
}

/// How many each fault domain has that has any.
fn count(members: &[Member<'_>]) -> BTreeMap<usize, u32> {
    let mut counts = BTreeMap::new();
    for one in members {
        *counts.entry(one.domain).or_default() += 1;
    }
    counts
}

/// Whether there is a node that would do for one of them, in a domain that has fewer by two.
fn has_a_better_place(
    members: &mut [Member<'_>],
    counts: &BTreeMap<usize, u32>,
    nodes: &[Vec<Node>],
) -> bool {
    let has = |domain: usize| counts.get(&domain).copied().unwrap_or(0);
    // Of those that ask for the same the one in the fullest domain has the most to choose from.
    members.sort_by_key(|one| Reverse(has(one.domain)));
    let mut asked = Vec::new();
    members.iter().any(|one| {
        let asks = (&one.record.spec, &one.record.given_up.by);
        if asked.contains(&asks) {
            return false;
        }
        asked.push(asks);
        let needs = placing::instance(one.record, one.role).needs;
        let would_do = |node: &Node| filter::would_do(node, &needs);
        let better = (0..).zip(nodes);
        better
            .filter(|(domain, _)| has(*domain) + 1 < has(one.domain))
            .any(|(_, nodes)| nodes.iter().any(would_do))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{
            instance::tests::{record, spec},
            service::{ServiceRole, tests::service},
        },
        reconcile::{plan::NodeFacts, tests::node_record},
    };

    /// A role of so many instances on each of some nodes.
    fn cluster(counts: &[(&str, u32)]) -> Input {
        let nodes: Vec<_> = counts.iter().map(|(node, _)| node_record(node)).collect();
        let facts = nodes.iter().map(|node| {
            let facts = NodeFacts {
                connected: true,
                ..NodeFacts::default()
            };
            (node.node_id.clone(), facts)
        });
        let on = |(node, count): &(&str, u32)| vec![record(node); *count as usize];
        let instances: Vec<_> = counts.iter().flat_map(on).collect();
        let many = u32::try_from(instances.len()).unwrap();
        Input {
            services: vec![service("shop", vec![ServiceRole::of(spec(), many)])],
            facts: facts.collect(),
            nodes,
            instances,
            ..Input::default()
        }
    }

    fn found(input: &Input) -> bool {
        is_any(input, |_| true)
    }

    #[test]
    fn an_even_spread_is_left_alone_and_an_uneven_one_found() {
        assert!(!found(&cluster(&[("n1", 2), ("n2", 1), ("n3", 1)])));
        assert!(!found(&cluster(&[("n1", 1), ("n2", 0), ("n3", 0)])));
        let uneven = cluster(&[("n1", 3), ("n2", 1), ("n3", 2)]);
        assert!(found(&uneven));
        assert!(!is_any(&uneven, |_| false));
    }

    #[test]
    fn what_cannot_be_mended_is_not_looked_at() {
        let mut input = cluster(&[("n1", 2), ("n2", 2), ("n3", 0)]);
        assert!(found(&input));
        input.nodes[2].cordoned = true;
        assert!(!found(&input));
        input.nodes[2].cordoned = false;
        input.facts.clear();
        assert!(!found(&input), "no node is there");
    }

    #[test]
    fn racks_are_counted_and_not_their_nodes() {
        let mut input = cluster(&[("n1", 2), ("n2", 0), ("n3", 2)]);
        assert!(found(&input));
        for (node, rack) in input.nodes.iter_mut().zip(["r1", "r1", "r2"]) {
            node.fault_domain = Some(rack.to_owned());
        }
        assert!(!found(&input));
    }
}
