//! Placement, as tables and as JSON.

use fabric_proto::v1::{
    ExplainPlacementResponse, PlacementMiss, PlacementMove, PlacementVerdict,
    SimulatePlacementResponse,
};
use serde_json::{Value, json};

use super::table::{table, text};

/// Why an instance is where it is, and what each node says.
#[must_use]
pub fn explanation(answer: &ExplainPlacementResponse) -> String {
    let ExplainPlacementResponse {
        instance_id: id,
        node_id: node,
        chosen_node_id: chosen,
        ..
    } = answer;
    let mut lines = Vec::new();
    lines.push(match (node.as_str(), chosen.as_str()) {
        ("", "") => format!("{id} has no node: {}", answer.unplaceable),
        ("", chosen) => format!("{id} has no node yet; {chosen} can take it"),
        (node, "") => format!(
            "{id} is on node {node}. Placed now, it would find none: {}",
            answer.unplaceable
        ),
        (node, chosen) if node == chosen => {
            format!("{id} is on node {node}, and would be placed there again")
        }
        (node, chosen) => format!("{id} is on node {node}. Placed now, it would be on {chosen}"),
    });
    if !answer.relaxed.is_empty() {
        lines.push(format!(
            "It is not spread as it should be: {}",
            answer.relaxed
        ));
    }
    let mut nodes = table(["NODE", "FAULT DOMAIN", "FITS", "WHY"]);
    for verdict in &answer.verdicts {
        nodes.add_row([
            verdict.node_id.clone(),
            verdict.fault_domain.clone(),
            if verdict.fits { "yes" } else { "no" }.to_owned(),
            why(verdict, chosen),
        ]);
    }
    lines.push(String::new());
    lines.push(text(&nodes, "there is no node; start a host agent"));
    if !answer.remedies.is_empty() {
        lines.push("\nWhat would make it fit:".to_owned());
        lines.extend(answer.remedies.iter().map(|remedy| format!("  {remedy}")));
    }
    lines.join("\n")
}

fn why(verdict: &PlacementVerdict, chosen: &str) -> String {
    if !verdict.fits {
        let refusals = verdict.refusals.iter();
        return refusals
            .map(|refusal| refusal.message.as_str())
            .collect::<Vec<_>>()
            .join("; ");
    }
    if verdict.node_id == chosen {
        return format!(
            "best: {} of its group in the fault domain, {} on the node, {}",
            verdict.in_fault_domain, verdict.on_node, verdict.score
        );
    }
    if verdict.behind.is_empty() {
        return verdict.score.clone();
    }
    verdict.behind.clone()
}

/// What would come of something.
#[must_use]
pub fn outcome(answer: &SimulatePlacementResponse) -> String {
    let mut lines = vec![format!(
        "{} would be placed, {} would find no node, {} would stay where they are",
        answer.moves.len(),
        answer.misses.len(),
        answer.staying
    )];
    if !answer.moves.is_empty() {
        lines.push(String::new());
        lines.push(moves(&answer.moves));
    }
    if !answer.misses.is_empty() {
        let mut misses = table(["WITHOUT A NODE", "NOW ON", "WHY"]);
        for miss in &answer.misses {
            let from = or_dash(&miss.from_node_id);
            misses.add_row([miss.instance_id.clone(), from, miss.reason.clone()]);
        }
        lines.push(String::new());
        lines.push(text(&misses, ""));
    }
    if !answer.repairs.is_empty() {
        lines.push("\nThese moves would then spread roles evenly again:".to_owned());
        lines.push(moves(&answer.repairs));
    }
    lines.push("\nnothing was done".to_owned());
    lines.join("\n")
}

fn moves(moves: &[PlacementMove]) -> String {
    let mut shown = table(["INSTANCE", "FROM", "TO", "FAULT DOMAIN", "NOTE"]);
    for one in moves {
        shown.add_row([
            one.instance_id.clone(),
            or_dash(&one.from_node_id),
            one.to_node_id.clone(),
            one.to_fault_domain.clone(),
            one.note.clone(),
        ]);
    }
    text(&shown, "")
}

fn or_dash(node: &str) -> String {
    if node.is_empty() { "-" } else { node }.to_owned()
}

/// An explanation.
#[must_use]
pub fn explanation_json(answer: &ExplainPlacementResponse) -> Value {
    let verdict = |verdict: &PlacementVerdict| {
        let refusal = |refusal: &fabric_proto::v1::PlacementRefusal| json!({ "reason": refusal.reason, "message": refusal.message });
        json!({
            "node_id": verdict.node_id,
            "fault_domain": verdict.fault_domain,
            "fits": verdict.fits,
            "refusals": verdict.refusals.iter().map(refusal).collect::<Vec<_>>(),
            "behind": verdict.behind,
            "in_fault_domain": verdict.in_fault_domain,
            "in_upgrade_domain": verdict.in_upgrade_domain,
            "on_node": verdict.on_node,
            "points": verdict.points,
            "score": verdict.score,
        })
    };
    json!({
        "instance_id": answer.instance_id,
        "node_id": answer.node_id,
        "chosen_node_id": answer.chosen_node_id,
        "relaxed": answer.relaxed,
        "unplaceable": answer.unplaceable,
        "remedies": answer.remedies,
        "verdicts": answer.verdicts.iter().map(verdict).collect::<Vec<_>>(),
    })
}

/// What would come of something.
#[must_use]
pub fn outcome_json(answer: &SimulatePlacementResponse) -> Value {
    let moves = |moves: &[PlacementMove]| -> Vec<Value> {
        let one = |one: &PlacementMove| {
            json!({
                "instance_id": one.instance_id,
                "from_node_id": one.from_node_id,
                "to_node_id": one.to_node_id,
                "to_fault_domain": one.to_fault_domain,
                "note": one.note,
            })
        };
        moves.iter().map(one).collect()
    };
    let miss = |miss: &PlacementMiss| {
        json!({
            "instance_id": miss.instance_id,
            "from_node_id": miss.from_node_id,
            "reason": miss.reason,
            "remedies": miss.remedies,
        })
    };
    json!({
        "moves": moves(&answer.moves),
        "misses": answer.misses.iter().map(miss).collect::<Vec<_>>(),
        "staying": answer.staying,
        "repairs": moves(&answer.repairs),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_begins_with_the_answer_and_ends_with_what_to_do() {
        let answer = ExplainPlacementResponse {
            instance_id: "shop-web-0".to_owned(),
            unplaceable: "no node is connected".to_owned(),
            remedies: vec!["bring node n1 back".to_owned()],
            ..ExplainPlacementResponse::default()
        };
        let shown = explanation(&answer);
        assert!(shown.starts_with("shop-web-0 has no node: no node is connected\n"));
        assert!(shown.ends_with("What would make it fit:\n  bring node n1 back"));
    }

    #[test]
    fn an_outcome_counts_first_and_says_that_nothing_was_done() {
        let shown = outcome(&SimulatePlacementResponse {
            staying: 3,
            ..SimulatePlacementResponse::default()
        });
        assert_eq!(
            shown,
            "0 would be placed, 0 would find no node, 3 would stay where they are\n\nnothing was done"
        );
    }
}
