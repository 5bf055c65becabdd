//! A new data directory: its CA, its names, and its administrator's context.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use fabric_trust::{
    address::Address as Server,
    context::{Context, Contexts, FileError, write_private},
    identity::Role,
    key::NewKey,
};

use super::{
    DIRECTORY, TrustError,
    ca::{Ca, CaError, Requested},
};
use crate::{
    fail_point::{self, Step},
    listen::Address,
};

/// The administrator's context, in the data directory.
pub const CONTEXT: &str = "admin.toml";
/// The names that `init` was given.
const NAMES: &str = "names";
/// How long the first administrator's certificate lasts.
const ADMIN_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What was set up.
pub struct Setup {
    /// SHA-256 of the CA's certificate, in hexadecimal.
    pub fingerprint: String,
    /// The administrator's context.
    pub context: Context,
    /// Its file.
    pub file: PathBuf,
}

/// Makes the CA and the administrator's context, unless there is a CA already.
///
/// # Errors
///
/// They cannot be made.
pub fn set_up(
    data_dir: &Path,
    server: &Server,
    names: &[String],
) -> Result<Option<Setup>, TrustError> {
    let directory = data_dir.join(DIRECTORY);
    let file = data_dir.join(CONTEXT);
    // Written last: with it, nothing is left to do, and an administrator's context that was
    // taken away stays away.
    let known = directory.join(NAMES);
    if known.exists() {
        return Ok(None);
    }
    let (ca, _) = Ca::open(&directory)?;
    fail_point::reached(Step::CaMade);
    let context = admin(&ca, server)?;
    Contexts::one("fabric", context.clone()).write(&file)?;
    fail_point::reached(Step::AdminMade);
    write_private(&known, names.join("\n").as_bytes()).map_err(|source| CaError::Io {
        what: "write",
        path: known,
        source,
    })?;
    Ok(Some(Setup {
        fingerprint: ca.fingerprint(),
        context,
        file,
    }))
}

/// An administrator's context.
fn admin(ca: &Ca, server: &Server) -> Result<Context, TrustError> {
    let key = NewKey::generate().map_err(|error| io_error("make a key for", error))?;
    let requested = Requested::read(&key.request).map_err(|error| io_error("use", error))?;
    let issued = ca.issue(&requested, Role::Admin, "admin", ADMIN_LIFE)?;
    Ok(Context {
        server: server.clone(),
        ca: ca.pem().to_owned(),
        certificate: issued.pem,
        key: key.key_pem,
    })
}

fn io_error(
    what: &'static str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> TrustError {
    TrustError::Context(FileError::Io {
        what,
        path: CONTEXT.into(),
        source: io::Error::other(error),
    })
}

/// The names of the controller: those of this machine on loopback, its host name, those
/// that `init` was given, and these.
///
/// # Errors
///
/// They cannot be read.
pub fn names(directory: &Path, more: &[String]) -> Result<Vec<String>, TrustError> {
    let path = directory.join(NAMES);
    let given = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => {
            return Err(TrustError::Ca(CaError::Io {
                what: "read",
                path,
                source,
            }));
        }
    };
    let host = nix::unistd::gethostname().unwrap_or_default();
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let all = given
        .lines()
        .map(str::to_owned)
        .chain(host.into_string())
        .chain(more.iter().cloned());
    for name in all {
        if !names.contains(&name) && check_name(&name).is_ok() {
            names.push(name);
        }
    }
    Ok(names)
}

/// A name or an IP address for the controller's certificate.
///
/// # Errors
///
/// It is none.
pub fn check_name(name: &str) -> Result<String, String> {
    let label = |label: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..64).contains(&label.len()) && label.bytes().all(good)
    };
    if name.parse::<IpAddr>().is_ok() || (name.len() < 254 && name.split('.').all(label)) {
        Ok(name.to_owned())
    } else {
        Err("must be a DNS name or an IP address".to_owned())
    }
}

/// The addresses among those that are listened at which belong into the certificate.
#[must_use]
pub fn listened(addresses: &[Address]) -> Vec<String> {
    let ips = addresses.iter().filter_map(|address| match address {
        Address::Tcp(address) if !address.ip().is_unspecified() => Some(address.ip().to_string()),
        _ => None,
    });
    ips.collect()
}

/// Where a controller is that listens as it does unless told otherwise.
#[must_use]
pub fn local() -> Server {
    Server::Tcp {
        host: "127.0.0.1".to_owned(),
        port: fabric_trust::PORT,
    }
}

/// Where an operator on this machine reaches a controller that listens there.
#[must_use]
pub fn server(addresses: &[Address]) -> Option<Server> {
    addresses.iter().find_map(|address| match address {
        Address::Tcp(address) => {
            let ip = address.ip();
            Some(Server::Tcp {
                host: match (ip.is_unspecified(), ip.is_ipv6()) {
                    (false, _) => ip.to_string(),
                    (true, false) => "127.0.0.1".to_owned(),
                    (true, true) => "::1".to_owned(),
                },
                port: address.port(),
            })
        }
        Address::Unix(_) => None,
    })
}
