//! Addresses of a controller, as users write them.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::PORT;

/// Where a controller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Address {
    /// At a unix socket on this machine; file permission is what protects it.
    Unix(PathBuf),
    /// At a TCP port, by mTLS 1.3.
    Tcp {
        /// Name or IP address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

/// What is no address, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// It is none.
    #[error("{0:?} is no address of a controller; give HOST:PORT, [IPV6]:PORT or unix:PATH")]
    Form(String),
    /// It asks for a connection without TLS.
    #[error(
        "{0:?} asks for a connection without TLS, which no controller takes; \
         give HOST:PORT or unix:PATH"
    )]
    Plaintext(String),
}

impl Address {
    /// Whether it is on this machine, so that nobody else answers there.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let form = || InvalidAddress::Form(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err(form())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        if text.starts_with("http://") {
            return Err(InvalidAddress::Plaintext(text.chars().take(200).collect()));
        }
        let plain = text.strip_prefix("https://").unwrap_or(text);
        let plain = plain.strip_suffix('/').unwrap_or(plain);
        if let Ok(ip) = plain.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self::Tcp {
                host: ip.to_string(),
                port: PORT,
            });
        }
        let (host, port) = match plain.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| form())?),
            None => (plain, PORT),
        };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let good = host.parse::<IpAddr>().is_ok()
            || (bare.is_none() && !host.is_empty() && host.len() < 254 && host.bytes().all(named));
        // A bare number is a port that lacks its host, or nonsense.
        if !good || port == 0 || host.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(form());
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_and_loopback_are_on_this_machine() {
        let local = |text: &str| text.parse::<Address>().unwrap().is_local();
        assert!(
            ["unix:/s", "127.0.0.1", "[::1]:1", "localhost:7"]
                .into_iter()
                .all(local)
        );
        assert!(!["10.0.0.1", "localhost.example.com"].into_iter().any(local));
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, shown) in [
            ("127.0.0.1:7071", "127.0.0.1:7071"),
            ("https://fabric.example.com:70/", "fabric.example.com:70"),
            ("controller", "controller:7070"),
            ("10.0.0.1", "10.0.0.1:7070"),
            ("[::1]:7070", "[::1]:7070"),
            ("[::1]", "[::1]:7070"),
            ("unix:/run/s", "unix:/run/s"),
            ("unix:s", "unix:s"),
        ] {
            assert_eq!(
                text.parse::<Address>().map(|a| a.to_string()),
                Ok(shown.to_owned())
            );
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "", "7070", ":7070", "unix:", "a b:1", "a:b", "a:0", "a:70000", "x/y:1",
        ] {
            assert!(
                matches!(text.parse::<Address>(), Err(InvalidAddress::Form(_))),
                "{text}"
            );
        }
        assert!(matches!(
            "http://127.0.0.1:7070".parse::<Address>(),
            Err(InvalidAddress::Plaintext(_))
        ));
    }
}
