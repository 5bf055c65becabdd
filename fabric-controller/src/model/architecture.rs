//! For which processors an image is, and which ones a machine has.
//!
//! Its words are those of Linux (`uname -m`) and Rust (`std::env::consts::ARCH`), in
//! which host agents report their machines.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Processor architecture of nodes and images. Whoever says nothing about it, be it a
/// record, a host agent or an operator, means x86-64: there was no other before.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Architecture {
    /// x86-64.
    #[default]
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[serde(rename = "aarch64")]
    Aarch64,
}

/// A word that is none of an architecture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no architecture that guests can have; it must be x86_64 or aarch64")]
pub struct UnknownArchitecture(String);

impl Architecture {
    /// All of them, by their words.
    pub const WORDS: [(&str, Self); 2] = [("x86_64", Self::X86_64), ("aarch64", Self::Aarch64)];

    /// Whether it is the one that is meant where nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::WORDS.iter().find(|(_, one)| one == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

impl FromStr for Architecture {
    type Err = UnknownArchitecture;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let found = Self::WORDS.iter().find(|(known, _)| *known == word);
        let unknown = || UnknownArchitecture(word.to_owned());
        found.map(|(_, one)| *one).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_and_read_by_its_word() {
        for (word, one) in Architecture::WORDS {
            assert_eq!(word.parse(), Ok(one));
            assert_eq!(one.to_string(), word);
            assert_eq!(serde_json::to_value(one).unwrap(), word);
        }
    }

    #[test]
    fn another_word_is_refused_with_what_it_must_be() {
        for word in ["", "riscv64", "X86_64", "x86-64", "amd64", "arm64"] {
            let told = Architecture::from_str(word).unwrap_err().to_string();
            let rule = "is no architecture that guests can have; it must be x86_64 or aarch64";
            assert_eq!(told, format!("{word:?} {rule}"));
        }
    }
}
