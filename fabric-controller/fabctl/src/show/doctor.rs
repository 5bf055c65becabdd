//! What was found, as lines and as JSON.

use serde_json::{Value, json};

use super::{clean, words};
use crate::doctor::{Finding, Severity, facts::Facts};

/// Each finding with its remedy, and how many there are.
#[must_use]
pub fn lines(facts: &Facts, findings: &[Finding]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for finding in findings {
        let word = match finding.severity {
            Severity::Problem => "PROBLEM",
            Severity::Notice => "notice ",
        };
        let (subject, what) = (clean(&finding.subject), clean(&finding.what));
        lines.push(format!("{word}  {subject}: {what}"));
        lines.push(format!("         do: {}", clean(&finding.remedy)));
    }
    if findings.is_empty() {
        lines.push(format!(
            "nothing is wrong: controller {} at {}, {} nodes, {} services, {} instances",
            facts
                .controller
                .as_ref()
                .map_or("", |controller| controller.version.as_str()),
            facts.server,
            facts.nodes.len(),
            facts.services.len(),
            facts.instances.len()
        ));
    }
    lines.join("\n")
}

/// What was found, in a few words.
#[must_use]
pub fn summary(findings: &[Finding]) -> String {
    let count = |severity| {
        findings
            .iter()
            .filter(|one| one.severity == severity)
            .count()
    };
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let (problems, notices) = (count(Severity::Problem), count(Severity::Notice));
    format!(
        "found {problems} problem{} and {notices} notice{}",
        plural(problems),
        plural(notices)
    )
}

/// The same as JSON.
#[must_use]
pub fn object(facts: &Facts, findings: &[Finding]) -> Value {
    let findings = findings.iter().map(|finding| {
        json!({
            "severity": finding.severity.word(),
            "subject": finding.subject,
            "what": finding.what,
            "remedy": finding.remedy,
        })
    });
    json!({
        "server": facts.server,
        "controller": facts.controller.as_ref().map(super::json::controller),
        "clock_ahead_ms": facts.ahead_millis,
        "round_trip_ms": u64::try_from(facts.round_trip.as_millis()).ok(),
        "nodes": facts.nodes.len(),
        "services": facts.services.len(),
        "instances": facts.instances.len(),
        "findings": findings.collect::<Vec<_>>(),
        "at": facts.now.map(|now| words::rfc3339(Some(&now.into()))),
    })
}
