//! Flaws: there in few places of an input, and in none of one that has run out.

use arbitrary::{Arbitrary, Result, Unstructured};

/// There once in sixteen times.
#[derive(Debug, Clone)]
pub struct Rarely<T>(pub Option<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Rarely<T> {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        // An input that has run out reads as zeroes.
        let there = u8::arbitrary(input)? & 15 == 15;
        Ok(Self(if there {
            Some(T::arbitrary(input)?)
        } else {
            None
        }))
    }
}

impl<T> Rarely<T> {
    /// Whether it is there.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// The flaw, or what is right.
    pub fn or(&self, right: T) -> T
    where
        T: Clone,
    {
        self.0.clone().unwrap_or(right)
    }
}
