//! The keys on a terminal that are not the guest's: `Ctrl-A x` ends the machine,
//! `Ctrl-A Ctrl-A` is a Ctrl-A for the guest.

const CTRL_A: u8 = 1;

/// Takes the escape sequences out of what the user types.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// What of `typed` is for the guest, or `None` where the user ends the
    /// machine.
    pub fn filter(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut input = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (true, b'x') => return None,
                (true, CTRL_A) => input.push(CTRL_A),
                (true, other) => input.extend([CTRL_A, other]),
                (false, CTRL_A) => self.escaped = true,
                (false, other) => input.push(other),
            }
        }
        Some(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_ends_and_all_else_reaches_the_guest() {
        let mut filter = EscapeFilter::default();
        assert_eq!(
            filter.filter(b"ls\x03x").as_deref(),
            Some(b"ls\x03x".as_slice())
        );
        assert_eq!(
            filter.filter(b"\x01\x01\x01").as_deref(),
            Some(b"\x01".as_slice())
        );
        assert_eq!(filter.filter(b"b").as_deref(), Some(b"\x01b".as_slice()));
        assert_eq!(filter.filter(b"a\x01"), Some(b"a".to_vec()));
        assert_eq!(filter.filter(b"x"), None);
    }
}
