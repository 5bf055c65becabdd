//! What is left out of a bundle.
//!
//! - In service files: the values of `settings` and `environment`, and the arguments of
//!   programs (their names stay).
//! - Those values wherever else they stand, in an event say, if they are long enough to
//!   be told from other words.
//! - Texts with a key (PEM) or a join token in them, whole.

use std::collections::BTreeSet;

use serde_json::Value;
use toml::{Table, Value as Toml};

/// What stands where something was.
const LEFT_OUT: &str = "(left out)";
/// A file that is no TOML is left out whole.
const NO_TOML: &str = "(left out: it is not TOML)";
/// Shorter values are words that stand everywhere.
const SHORTEST: usize = 6;
/// How PEM and join tokens begin: a text with one of them is left out whole.
const NEVER: [&str; 2] = ["-----BEGIN", "fabric1-"];
/// Tables of a role whose values may be secret.
const TABLES: [&str; 2] = ["settings", "environment"];
/// What runs a program, with arguments.
const PROGRAMS: [&str; 3] = ["command", "before_snapshot", "after_start"];
/// The same in a probe.
const PROBES: [&str; 2] = ["liveness", "readiness"];
/// The field of JSON that has a service file.
const DEFINITION: &str = "definition_toml";

/// What is known to be secret.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    values: BTreeSet<String>,
}

impl Secrets {
    /// Takes what may be secret out of a service file.
    pub fn learn(&mut self, definition: &str) {
        let Ok(mut file) = definition.parse::<Table>() else {
            return;
        };
        each(&mut file, &mut |value| {
            if let Toml::String(text) = value
                && text.len() >= SHORTEST
            {
                self.values.insert(text.clone());
            }
        });
    }

    /// Leaves out of JSON what is secret.
    pub fn scrub(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.cleaned(text),
            Value::Array(values) => values.iter_mut().for_each(|one| self.scrub(one)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name == DEFINITION
                        && let Value::String(text) = value
                    {
                        *text = without(text);
                    }
                    self.scrub(value);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn cleaned(&self, text: &str) -> String {
        if NEVER.iter().any(|mark| text.contains(mark)) {
            return LEFT_OUT.to_owned();
        }
        let mut text = text.to_owned();
        // The longest first: one may be part of another.
        let mut values: Vec<&String> = self.values.iter().collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        for value in values {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), LEFT_OUT);
            }
        }
        text
    }
}

/// A service file without what may be secret.
fn without(definition: &str) -> String {
    if definition.is_empty() {
        return String::new();
    }
    let Ok(mut file) = definition.parse::<Table>() else {
        return NO_TOML.to_owned();
    };
    each(&mut file, &mut |value| *value = LEFT_OUT.into());
    toml::to_string(&file).unwrap_or_else(|_| NO_TOML.to_owned())
}

/// Each value in a service file that may be secret.
fn each(file: &mut Table, act: &mut impl FnMut(&mut Toml)) {
    let roles = file.get_mut("role").and_then(Toml::as_array_mut);
    let roles = roles.into_iter().flatten();
    for role in roles.filter_map(Toml::as_table_mut) {
        for name in TABLES {
            let values = role.get_mut(name).and_then(Toml::as_table_mut);
            for (_, value) in values.into_iter().flatten() {
                act(value);
            }
        }
        for name in PROGRAMS {
            arguments(role.get_mut(name), act);
        }
        for name in PROBES {
            let probe = role.get_mut(name).and_then(Toml::as_table_mut);
            arguments(probe.and_then(|probe| probe.get_mut("exec")), act);
        }
    }
}

fn arguments(program: Option<&mut Toml>, act: &mut impl FnMut(&mut Toml)) {
    let words = program.and_then(Toml::as_array_mut);
    for word in words.into_iter().flatten().skip(1) {
        act(word);
    }
}

#[cfg(test)]
mod tests {
    use fabric_trust::token::JoinToken;
    use serde_json::json;

    use super::*;

    const FILE: &str = r#"
name = "shop"
[[role]]
name = "web"
command = ["/role/web/run", "--key", "argument-secret"]
[role.settings]
password = "setting-secret"
pin = "1234"
[role.environment]
API_KEY = "environment-secret"
[role.readiness]
exec = ["/bin/check", "probe-secret"]
"#;

    const SECRETS: [&str; 4] = [
        "argument-secret",
        "setting-secret",
        "environment-secret",
        "probe-secret",
    ];

    #[test]
    fn a_service_file_keeps_its_form_and_loses_its_secrets() {
        let text = without(FILE);
        for secret in SECRETS.iter().chain(["1234"].iter()) {
            assert!(!text.contains(secret), "{secret} is in\n{text}");
        }
        for kept in ["password", "API_KEY", "/role/web/run", "/bin/check", "shop"] {
            assert!(text.contains(kept), "{kept} is not in\n{text}");
        }
        assert_eq!(without("= ="), NO_TOML);
    }

    #[test]
    fn what_a_file_has_is_left_out_wherever_it_stands() {
        let mut secrets = Secrets::default();
        secrets.learn(FILE);
        let token = JoinToken::generate(b"a certificate").unwrap().to_string();
        let mut value = json!({
            "services": [{ "definition_toml": FILE, "pin": 1234 }],
            "events": ["the role wrote argument-secret and setting-secret twice: setting-secret"],
            "more": { "key": "-----BEGIN PRIVATE KEY-----\nabc", "said": format!("token={token}") },
        });
        secrets.scrub(&mut value);
        let text = value.to_string();
        for secret in SECRETS.iter().chain([token.as_str(), "PRIVATE KEY"].iter()) {
            assert!(!text.contains(secret), "{secret} is in\n{text}");
        }
        assert!(
            text.contains("the role wrote (left out) and (left out) twice"),
            "{text}"
        );
    }
}
