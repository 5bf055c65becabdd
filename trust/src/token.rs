//! What a machine joins with, once.
//!
//! `fabric1-SECRET-FINGERPRINT`: 16 random bytes, and the SHA-256 of the CA's
//! certificate, both in hexadecimal. By the fingerprint the machine knows the
//! controller before it says the secret; the controller keeps only the secret's
//! SHA-256.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

use crate::{
    identity::hex,
    key::{self, NoRandom},
};

const PREFIX: &str = "fabric1-";

/// See the [module](self). `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: String,
    fingerprint: String,
}

/// What is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no join token: one is fabric1-, 32 and 64 hexadecimal digits; make one with \
     `fabric-controller token create` on the controller's machine"
)]
pub struct InvalidToken;

impl JoinToken {
    /// A new one, for joining where this is the CA's certificate.
    ///
    /// # Errors
    ///
    /// The system has no random bytes.
    pub fn generate(ca_der: &[u8]) -> Result<Self, NoRandom> {
        Ok(Self {
            secret: hex(&key::random::<16>()?),
            fingerprint: fingerprint(ca_der),
        })
    }

    /// True if this is the certificate of the CA that it names.
    #[must_use]
    pub fn names(&self, ca_der: &[u8]) -> bool {
        self.fingerprint == fingerprint(ca_der)
    }

    /// SHA-256 of the secret, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        hex(&Sha256::digest(&self.secret))
    }
}

/// SHA-256 of a certificate, in hexadecimal.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    hex(&Sha256::digest(der))
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.secret, self.fingerprint)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken(of CA {})", self.fingerprint)
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let parts = text
            .trim()
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'));
        let (secret, fingerprint) = parts.ok_or(InvalidToken)?;
        let digits = |text: &str, length| {
            let digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            text.len() == length && text.bytes().all(digit)
        };
        if !digits(secret, 32) || !digits(fingerprint, 64) {
            return Err(InvalidToken);
        }
        Ok(Self {
            secret: secret.to_owned(),
            fingerprint: fingerprint.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_is_not_shown_by_accident() {
        let token = JoinToken::generate(b"ca").unwrap();
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert!(token.names(b"ca") && !token.names(b"other"));
        assert!(!format!("{token:?}").contains(&token.secret));
        for wrong in [
            "",
            "fabric1-",
            &text[..text.len() - 1],
            &text.replace("fabric1", "f"),
        ] {
            assert_eq!(wrong.parse::<JoinToken>(), Err(InvalidToken), "{wrong}");
        }
    }
}
