//! Typed identifiers. Each is checked once, where it enters.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A text that is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {kind}: {rule}")]
pub struct InvalidId {
    /// What it should have been, with its article.
    kind: &'static str,
    /// What it was.
    value: String,
    /// What it must be.
    rule: &'static str,
}

/// Longest name, in bytes: that of a DNS label (RFC 1035, 2.3.4).
const LONGEST: usize = 63;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::try_from(value.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(value: String) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(&value) {
                    Ok(Self(value))
                } else {
                    // Hostile input is not repeated at length.
                    let value = value.chars().take(LONGEST + 1).collect();
                    Err(InvalidId { kind: $kind, value, rule: $rule })
                }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

fn is_name(text: &str, also: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=LONGEST).contains(&bytes.len())
        && bytes.iter().all(|byte| word(byte) || also.contains(byte))
        && bytes.first().is_some_and(word)
        && bytes.last().is_some_and(word)
}

identifier! {
    /// Name of a node.
    NodeId, "a node name",
    "1 to 63 of a-z, 0-9, '-' and '.', a letter or digit at both ends",
    |text| is_name(text, b"-.")
}
identifier! {
    /// Id of an instance: SERVICE-ROLE-NUMBER.
    InstanceId, "an instance id",
    "1 to 63 of a-z, 0-9 and '-', a letter or digit at both ends",
    |text| is_name(text, b"-")
}
identifier! {
    /// Name of a service.
    ServiceName, "a service name",
    "1 to 63 of a-z, 0-9 and '-', a letter or digit at both ends",
    |text| is_name(text, b"-")
}
identifier! {
    /// Name of a role within its service.
    RoleName, "a role name",
    "1 to 63 of a-z, 0-9 and '-', a letter or digit at both ends",
    |text| is_name(text, b"-")
}
identifier! {
    /// Name of an image or a package.
    BlobName, "an image or package name",
    "1 to 63 of a-z, 0-9, '-', '.', '_' and '/', a letter or digit at both ends, no '..' or '//'",
    |text| is_name(text, b"-._/") && !text.contains("..") && !text.contains("//")
}
identifier! {
    /// Name of a snapshot within its instance.
    SnapshotName, "a snapshot name",
    "1 to 63 of a-z, 0-9, '-', '.' and '_', a letter or digit at both ends",
    |text| is_name(text, b"-._")
}
identifier! {
    /// Digest of a file: `sha256:` and 64 hexadecimal digits.
    Digest, "a digest",
    "\"sha256:\" and 64 of 0-9 and a-f",
    |text| text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

impl Digest {
    /// The digest of a SHA-256 sum.
    #[must_use]
    pub fn of_sha256(sum: &[u8; 32]) -> Self {
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in sum {
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }

    /// The 64 hexadecimal digits, for use as a file name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_leave_its_directory_is_refused() {
        for text in [
            "",
            "..",
            "../x",
            "a/b",
            "-a",
            "a-",
            "A",
            "a b",
            "a\0",
            &"a".repeat(64),
        ] {
            assert!(text.parse::<InstanceId>().is_err(), "{text:?} was taken");
        }
        assert_eq!(
            "shop-web-0".parse::<InstanceId>().unwrap().as_str(),
            "shop-web-0"
        );
    }

    #[test]
    fn a_blob_name_may_have_folders_but_no_way_up() {
        assert!("guest-os/1.0".parse::<BlobName>().is_ok());
        for text in ["a/../b", "/a", "a//b", "a/"] {
            assert!(text.parse::<BlobName>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn an_error_names_what_it_should_be_the_value_and_the_rule() {
        let error = "Shop".parse::<ServiceName>().unwrap_err().to_string();
        assert!(
            error.starts_with("\"Shop\" is not a service name: 1 to 63 of"),
            "{error}"
        );
    }

    #[test]
    fn a_digest_is_lower_case_hex_of_full_length() {
        let digest = Digest::of_sha256(&[0xab; 32]);
        assert_eq!(digest.hex(), "ab".repeat(32));
        assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
        assert!("sha256:AB".parse::<Digest>().is_err());
    }

    #[test]
    fn ids_are_checked_when_they_are_deserialized() {
        #[derive(Deserialize)]
        struct Holder {
            #[allow(dead_code)]
            id: InstanceId,
        }
        let deserializer = serde::de::value::MapDeserializer::<_, serde::de::value::Error>::new(
            [("id", "../etc")].into_iter(),
        );
        assert!(Holder::deserialize(deserializer).is_err());
    }
}
