//! How an instance failed and came back, as lines and as JSON.

use std::time::{Duration, SystemTime};

use fabric_proto::v1::Instance;
use serde_json::{Value, json};

use super::{
    clean, json as shown,
    table::{table, text},
    words,
};
use crate::story::{Ending, Failure};

/// How the instance is, and its failures, each in order.
#[must_use]
pub fn lines(id: &str, instance: Option<&Instance>, failures: &[Failure], all: bool) -> String {
    let mut lines = vec![now(id, instance)];
    let Some(last) = failures.last() else {
        lines.push("Nothing has failed, as far as the events that are kept tell.".to_owned());
        return lines.join("\n");
    };
    let count = failures.len();
    if all || count == 1 {
        for failure in failures {
            lines.push(String::new());
            lines.push(one(failure, instance));
        }
        return lines.join("\n");
    }
    lines.push(format!(
        "It has failed {count} times, as far as the events that are kept tell; this is the last \
         one (--all tells each):\n"
    ));
    lines.push(one(last, instance));
    lines.join("\n")
}

fn now(id: &str, instance: Option<&Instance>) -> String {
    let Some(instance) = instance else {
        return format!("{id} is not there any more.");
    };
    let node = match instance.node_id.as_str() {
        "" => "has no node".to_owned(),
        node => format!("is on node {node}"),
    };
    let since = words::age(instance.since.as_ref(), SystemTime::now());
    let why = match clean(&instance.reason) {
        why if why.is_empty() => why,
        why => format!(" ({why})"),
    };
    format!("{id} {node}, {} for {since}{why}.", instance.state)
}

fn one(failure: &Failure, instance: Option<&Instance>) -> String {
    let mut rows = table(["", "TIME", "AFTER", "WHAT", "OF", "BECAUSE OF", "MESSAGE"]);
    for (number, line) in failure.lines.iter().enumerate() {
        let event = &line.event;
        let after = match number {
            0 => String::new(),
            _ => format!("+{}", seconds(line.after)),
        };
        rows.add_row([
            (number + 1).to_string(),
            words::clock(event.time.as_ref()),
            after,
            clean(&event.reason),
            clean(&event.subject),
            line.cause
                .map_or_else(|| "-".to_owned(), |cause| (cause + 1).to_string()),
            clean(&event.message),
        ]);
    }
    let took = seconds(failure.took());
    let ending = match failure.ending {
        Ending::Recovered => format!("It was Ready again {took} after the first sign of trouble."),
        Ending::Removed => format!("It was removed {took} after the first sign of trouble."),
        Ending::Open if instance.is_some_and(|instance| instance.state == "Ready") => {
            "It is Ready by now; since when, the events that are kept do not tell.".to_owned()
        }
        Ending::Open => "It has not been Ready again since.".to_owned(),
    };
    format!("{}\n{ending}", text(&rows, ""))
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

/// The same as JSON.
#[must_use]
pub fn object(id: &str, instance: Option<&Instance>, failures: &[Failure]) -> Value {
    let failures = failures.iter().map(|failure| {
        let lines = failure.lines.iter().map(|line| {
            let mut event = shown::event(&line.event);
            let cause = line.cause.map(|cause| failure.lines[cause].event.cursor);
            event["cause_cursor"] = json!(cause);
            event["after_ms"] = json!(millis(line.after));
            event
        });
        let ending = match failure.ending {
            Ending::Recovered => "recovered",
            Ending::Removed => "removed",
            Ending::Open => "open",
        };
        json!({
            "ending": ending,
            "took_ms": millis(failure.took()),
            "events": lines.collect::<Vec<_>>(),
        })
    });
    json!({
        "instance_id": id,
        "instance": instance.map(shown::instance),
        "failures": failures.collect::<Vec<_>>(),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
