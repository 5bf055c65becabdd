//! What is kept of a virtual machine's end: the last words of its VMM, which knows what
//! its guest did, and why it ended, which only its host agent knows.
//!
//! A VMM that is killed says nothing, one that is stopped does not say for whom, and one
//! that is reset goes on. So what it said is kept as it is, and three fields are added:
//! `cause`, the word that is told and shown; `why`, in a line; and `since`, RFC 3339.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::state::{Cause, End};

/// A VMM's last words, which may be none, with how it ended and when: one JSON object.
#[must_use]
pub fn with(words: &str, end: &End, at: SystemTime) -> String {
    let said = serde_json::from_str::<Map<String, Value>>(words);
    let mut all = said.unwrap_or_else(|_| silent(end.cause));
    let since = humantime::format_rfc3339_millis(at).to_string();
    all.insert("cause".to_owned(), end.cause.word().into());
    all.insert(
        "why".to_owned(),
        crate::guest::report::cut(&end.detail).into(),
    );
    all.insert("since".to_owned(), since.into());
    Value::Object(all).to_string()
}

/// In the place of a VMM's last words where it had none to say: it goes on, or nobody
/// knows of any.
fn silent(cause: Cause) -> Map<String, Value> {
    let reason = match cause {
        Cause::Reset => "reset",
        _ => "unknown",
    };
    Map::from_iter([("reason".to_owned(), reason.into())])
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn kept(words: &str, cause: Cause) -> Value {
        let end = End {
            cause,
            detail: "3 heartbeats missed; killed".to_owned(),
        };
        let at = UNIX_EPOCH + Duration::from_millis(1_500);
        serde_json::from_str(&with(words, &end, at)).unwrap()
    }

    #[test]
    fn what_a_vmm_said_stays_as_it_is_and_why_it_ended_is_added() {
        let kept = kept(r#"{"reason":"killed","exits":{"io":7}}"#, Cause::Hung);
        assert_eq!(
            kept,
            serde_json::json!({
                "reason": "killed",
                "exits": { "io": 7 },
                "cause": "hung",
                "why": "3 heartbeats missed; killed",
                "since": "1970-01-01T00:00:01.500Z",
            })
        );
    }

    #[test]
    fn where_nothing_was_said_there_is_an_object_all_the_same() {
        for words in ["", "{", "[1]", "\"text\""] {
            let kept = kept(words, Cause::Reset);
            assert_eq!(
                (&kept["reason"], &kept["cause"]),
                (&"reset".into(), &"reset".into())
            );
        }
        assert_eq!(kept("", Cause::Killed)["reason"], "unknown");
    }
}
