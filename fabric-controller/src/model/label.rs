//! Labels of nodes, and what they may be.

/// Most labels that a role can ask for.
pub const MOST_ASKED: usize = 16;
/// Most labels that a node can have from its own configuration, and from an operator.
pub const MOST: usize = 64;
/// Longest key or value, in characters.
pub const LONGEST: usize = 255;

/// What keys and values must be, to be said of one that is not.
pub const RULE: &str = "have 1 to 255 characters, none of them a control character";

/// Whether that can be a key or a value.
#[must_use]
pub fn is_valid(text: &str) -> bool {
    (1..=LONGEST).contains(&text.chars().count()) && !text.contains(char::is_control)
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
}
