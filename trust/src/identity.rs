//! What a certificate says of its holder: a role and a name, in one URI among its
//! subject's alternative names (`fabric:node/NAME`). Nothing else in a certificate
//! is looked at.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

/// Longest name.
const LONGEST: usize = 63;
/// What a URI of ours begins with.
const SCHEME: &str = "fabric:";

/// What the holder of a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A person or program that may do everything.
    Admin,
    /// One that may see and change what runs.
    Operator,
    /// One that may see.
    Reader,
    /// A machine's host agent.
    Node,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Operator, Self::Reader, Self::Node];

    /// Its word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Reader => "reader",
            Self::Node => "node",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.word() == text);
        found.ok_or_else(|| "must be admin, operator, reader or node".to_owned())
    }
}

/// Who holds a certificate, and which one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What the holder is.
    pub role: Role,
    /// What it is called.
    pub name: String,
    /// Serial number, in hexadecimal.
    pub serial: String,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

/// A certificate that says nothing of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// It cannot be read.
    #[error("it is no X.509 certificate")]
    Form,
    /// It has no URI of ours, or more than one.
    #[error("it names no role and name of a fabric (one URI fabric:ROLE/NAME)")]
    NoName,
}

impl Identity {
    /// Reads a certificate. Whether it is genuine is not looked at.
    ///
    /// # Errors
    ///
    /// It is not one of a fabric.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, NotOurs> {
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
            .map_err(|_| NotOurs::Form)?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|_| NotOurs::Form)?
            .ok_or(NotOurs::NoName)?;
        let mut uris = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
                _ => None,
            });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(NotOurs::NoName);
        };
        let (role, name) = uri.split_once('/').ok_or(NotOurs::NoName)?;
        let role = role.parse().map_err(|_| NotOurs::NoName)?;
        check_name(name).map_err(|_| NotOurs::NoName)?;
        let time = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        };
        Ok(Self {
            role,
            name: name.to_owned(),
            serial: hex(parsed.raw_serial()),
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
        })
    }

    /// When a new one should be got: two thirds of its life are over then.
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before);
        self.not_after - life.unwrap_or_default() / 3
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// The URI that says so in a certificate.
#[must_use]
pub fn uri(role: Role, name: &str) -> String {
    format!("{SCHEME}{role}/{name}")
}

/// Checks what someone is to be called.
///
/// # Errors
///
/// The rule, for people.
pub fn check_name(name: &str) -> Result<(), String> {
    let good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if (1..=LONGEST).contains(&name.len()) && name.bytes().all(good) {
        Ok(())
    } else {
        Err(format!("a name is 1 to {LONGEST} of a-z, 0-9, '-' and '.'"))
    }
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
