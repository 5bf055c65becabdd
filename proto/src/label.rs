//! Labels of nodes, and resources of an operator's own: what they may be, and how command
//! lines say them.

use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive};

/// Longest key or value, or name of a resource, in characters.
pub const LONGEST: usize = 255;

/// What keys, values and names must be, to be said of one that is not.
pub const RULE: &str = "have 1 to 255 characters, none of them a control character";

/// Most kinds of resources that a node can have or a size can take.
pub const MOST_KINDS: usize = 16;
/// How many of a kind, where there are any.
pub const COUNTS: RangeInclusive<u64> = 1..=1_000_000;

/// Whether that can be a key, a value or a name.
#[must_use]
pub fn is_valid(text: &str) -> bool {
    (1..=LONGEST).contains(&text.chars().count()) && !text.contains(char::is_control)
}

/// Reads KEY=VALUE.
///
/// # Errors
///
/// Says the rule that the text does not keep.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    if !is_valid(key) || !is_valid(value) {
        return Err(format!("must be KEY=VALUE; both {RULE}"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads NAME=COUNT.
///
/// # Errors
///
/// Says the rule that the text does not keep.
pub fn resource(text: &str) -> Result<(String, u64), String> {
    let (name, count) = text.rsplit_once('=').ok_or("must be NAME=COUNT")?;
    if !is_valid(name) {
        return Err(format!("must be NAME=COUNT; names {RULE}"));
    }
    let (low, high) = COUNTS.into_inner();
    let count = count.parse().ok().filter(|count| COUNTS.contains(count));
    let count = count.ok_or_else(|| format!("must be NAME=COUNT; a count is {low} to {high}"))?;
    Ok((name.to_owned(), count))
}

/// All that was said with an option, by name.
///
/// # Errors
///
/// Says which was said twice.
pub fn each_once<V: Display>(
    option: &str,
    said: impl IntoIterator<Item = (String, V)>,
) -> Result<BTreeMap<String, V>, String> {
    let mut all = BTreeMap::new();
    for (name, value) in said {
        if let Some(before) = all.get(&name) {
            return Err(format!(
                "{option} {name}={value}: it was said to be {before} before"
            ));
        }
        all.insert(name, value);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_some_characters_and_no_control_characters() {
        for good in ["a", "disk", "Straße 1", &"ä".repeat(LONGEST)] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "a\nb", "\u{7f}", &"a".repeat(LONGEST + 1)] {
            assert!(!is_valid(bad), "{bad}");
        }
        assert!(RULE.contains(&LONGEST.to_string()));
    }

    #[test]
    fn labels_and_resources_have_a_name_and_something_of_it() {
        assert_eq!(label("disk=a=b"), Ok(("disk".into(), "a=b".into())));
        assert_eq!(resource("gpu=2"), Ok(("gpu".into(), 2)));
        for wrong in ["", "disk", "=nvme", "disk=", "disk=a\n"] {
            let why = label(wrong).unwrap_err();
            assert!(why.starts_with("must be KEY=VALUE"), "{wrong}: {why}");
        }
        for wrong in [
            "gpu",
            "gpu=",
            "gpu=two",
            "gpu=-1",
            "gpu=0",
            "gpu=1000001",
            "=1",
        ] {
            let why = resource(wrong).unwrap_err();
            assert!(why.starts_with("must be NAME=COUNT"), "{wrong}: {why}");
        }
    }

    #[test]
    fn what_is_said_twice_is_refused_whatever_it_is() {
        let said = |all: &[(&str, u64)]| {
            let owned = |(name, count): &(&str, u64)| ((*name).to_owned(), *count);
            each_once("--resource", all.iter().map(owned))
        };
        assert_eq!(said(&[("gpu", 2), ("nic", 1)]).unwrap()["gpu"], 2);
        assert_eq!(
            said(&[("gpu", 2), ("gpu", 1)]).unwrap_err(),
            "--resource gpu=1: it was said to be 2 before"
        );
    }
}
