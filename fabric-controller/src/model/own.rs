//! Resources of an operator's own, such as GPUs: counted by name, and nothing else.
//!
//! A node says how many it has, a size how many it takes, and placement never promises
//! one twice. What they are is the operator's to know: no guest is given anything of them.

use std::{collections::BTreeMap, fmt};

pub use fabric_proto::label::{COUNTS, MOST_KINDS};
use serde::{Deserialize, Serialize};

use super::label;

/// So many of each kind; kinds of which there are none are not in it. See the
/// [module](self).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OwnResources(BTreeMap<String, u64>);

impl OwnResources {
    /// What somebody says there is.
    ///
    /// # Errors
    ///
    /// What of it cannot be, and the rule.
    pub fn checked(said: BTreeMap<String, u64>) -> Result<Self, String> {
        if said.len() > MOST_KINDS {
            return Err(format!("there are more than {MOST_KINDS}"));
        }
        for (kind, count) in &said {
            if !label::is_valid(kind) {
                return Err(format!("{kind:?} is no name; names {}", label::RULE));
            }
            if !COUNTS.contains(count) {
                let (low, high) = COUNTS.into_inner();
                return Err(format!("{count} of {kind:?}; it must be {low} to {high}"));
            }
        }
        Ok(said.into_iter().collect())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of that kind.
    #[must_use]
    pub fn of(&self, kind: &str) -> u64 {
        self.0.get(kind).copied().unwrap_or(0)
    }

    /// By kind.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(kind, count)| (kind.as_str(), *count))
    }

    /// By kind, as it is sent.
    #[must_use]
    pub fn to_map(&self) -> BTreeMap<String, u64> {
        self.0.clone()
    }

    /// These as well.
    pub fn add(&mut self, others: &Self) {
        for (kind, count) in &others.0 {
            match self.0.get_mut(kind) {
                Some(sum) => *sum = sum.saturating_add(*count),
                None => drop(self.0.insert(kind.clone(), *count)),
            }
        }
    }

    /// Without these; none of a kind of which there are fewer.
    pub fn subtract(&mut self, others: &Self) {
        for (kind, count) in &others.0 {
            if let Some(rest) = self.0.get_mut(kind) {
                *rest = rest.saturating_sub(*count);
                if *rest == 0 {
                    self.0.remove(kind);
                }
            }
        }
    }

    /// What is left of it without the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.subtract(other);
        rest
    }

    /// Whether there are so many in what is free.
    #[must_use]
    pub fn fits_in(&self, free: &Self) -> bool {
        self.iter().all(|(kind, count)| count <= free.of(kind))
    }
}

impl FromIterator<(String, u64)> for OwnResources {
    fn from_iter<T: IntoIterator<Item = (String, u64)>>(all: T) -> Self {
        Self(all.into_iter().filter(|(_, count)| *count > 0).collect())
    }
}

impl fmt::Display for OwnResources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, count)) in self.iter().enumerate() {
            let and = if index == 0 { "" } else { " and " };
            write!(f, "{and}{count} {kind}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(all: &[(&str, u64)]) -> OwnResources {
        let owned = |(kind, count): &(&str, u64)| ((*kind).to_owned(), *count);
        all.iter().map(owned).collect()
    }

    #[test]
    fn kinds_are_counted_each_for_itself_and_none_is_nothing() {
        let mut sum = own(&[("gpu", 2), ("nic", 0)]);
        sum.add(&own(&[("gpu", 1), ("dongle", 4)]));
        assert_eq!(sum, own(&[("dongle", 4), ("gpu", 3)]));
        assert_eq!(sum.to_string(), "4 dongle and 3 gpu");
        let rest = sum.minus(&own(&[("dongle", 9), ("gpu", 1), ("fpga", 1)]));
        assert_eq!(rest, own(&[("gpu", 2)]));
        assert!(rest.minus(&rest).is_empty());
    }

    #[test]
    fn all_kinds_must_fit() {
        let free = own(&[("gpu", 2)]);
        assert!(own(&[]).fits_in(&free) && own(&[("gpu", 2)]).fits_in(&free));
        assert!(!own(&[("gpu", 3)]).fits_in(&free));
        assert!(!own(&[("gpu", 1), ("nic", 1)]).fits_in(&free));
    }
}
