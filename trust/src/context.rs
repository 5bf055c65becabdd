//! A controller's address with the certificate for it; and the file in which an
//! operator keeps several of them, each under a name.
//!
//! A host agent keeps one [`Context`] by itself. Such files hold private keys: they are
//! written with mode 0600, at once or not at all.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    address::Address,
    identity::{Identity, NotOurs},
};

/// The environment variable that names the file.
pub const VARIABLE: &str = "FABCTL_CONFIG";

/// See the [module](self). `Debug` shows no key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Where the controller is.
    pub server: Address,
    /// The certificate of its CA, as PEM; empty for a unix socket.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca: String,
    /// Our own certificate, as PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub certificate: String,
    /// Its private key, as PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Context");
        shown.field("server", &self.server).finish_non_exhaustive()
    }
}

/// Certificates and key of a context, decoded.
pub struct Credentials {
    /// The CA's certificate.
    pub ca: CertificateDer<'static>,
    /// Our own.
    pub certificate: CertificateDer<'static>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

/// A context that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A part of it is no PEM of its kind.
    #[error("its {0} is not there or is no PEM of one")]
    Part(&'static str),
    /// Its certificate is not one of a fabric.
    #[error("its certificate cannot be used")]
    NotOurs(#[from] NotOurs),
}

impl Context {
    /// Its certificates and key.
    ///
    /// # Errors
    ///
    /// One of them cannot be read.
    pub fn credentials(&self) -> Result<Credentials, ContextError> {
        let part = |name| move |_| ContextError::Part(name);
        Ok(Credentials {
            ca: CertificateDer::from_pem_slice(self.ca.as_bytes()).map_err(part("ca"))?,
            certificate: CertificateDer::from_pem_slice(self.certificate.as_bytes())
                .map_err(part("certificate"))?,
            key: PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(part("key"))?,
        })
    }

    /// Who its certificate says that we are.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn identity(&self) -> Result<Identity, ContextError> {
        Ok(Identity::of(&self.credentials()?.certificate)?)
    }
}

/// An operator's contexts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// Name of the one that is used unless another is said; empty for none.
    #[serde(default)]
    pub current: String,
    /// All of them.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// A file of contexts that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system says no.
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// What was done, such as "read".
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{} is not a file of contexts: {reason}", .path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// Why. It is never told with the text, which may hold a key.
        reason: String,
    },
}

impl Contexts {
    /// One alone, which is the one that is used.
    #[must_use]
    pub fn one(name: &str, context: Context) -> Self {
        Self {
            current: name.to_owned(),
            contexts: BTreeMap::from([(name.to_owned(), context)]),
        }
    }

    /// Where an operator's are: `$FABCTL_CONFIG`, or `fabctl/config.toml` in
    /// `$XDG_CONFIG_HOME` or `~/.config`. `None` without any of these.
    #[must_use]
    pub fn place() -> Option<PathBuf> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        if let Some(file) = set(VARIABLE) {
            return Some(file.into());
        }
        let config = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".config")))?;
        Some(config.join("fabctl/config.toml"))
    }

    /// Reads a file; there are none in one that is not there.
    ///
    /// # Errors
    ///
    /// It cannot be read or is no such file.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        Ok(read(path)?.unwrap_or_default())
    }

    /// Writes a file.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        write(path, self)
    }
}

/// Reads one of these files; `None` if it is not there.
///
/// # Errors
///
/// It cannot be read or is no such file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let form = |error: toml::de::Error| FileError::Form {
        path: path.to_owned(),
        reason: error.message().to_owned(),
    };
    toml::from_str(&text).map(Some).map_err(form)
}

/// Writes one of these files, mode 0600, with its directory if need be.
///
/// # Errors
///
/// It cannot be written.
pub fn write(path: &Path, content: &impl Serialize) -> Result<(), FileError> {
    let text = toml::to_string_pretty(content).map_err(|error| FileError::Form {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    write_private(path, text.as_bytes()).map_err(io_error("write", path))
}

/// Writes a file that nobody else may read, at once or not at all.
///
/// # Errors
///
/// It cannot be written.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    // Made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(directory)?.sync_all()
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn contexts_are_kept_in_a_file_that_nobody_else_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/config.toml");
        assert_eq!(Contexts::read(&path).unwrap(), Contexts::default());
        let context = Context {
            server: "controller:7070".parse().unwrap(),
            ca: "a\nb\n".to_owned(),
            certificate: "c".to_owned(),
            key: "secret".to_owned(),
        };
        let contexts = Contexts::one("lab", context.clone());
        contexts.write(&path).unwrap();
        assert_eq!(Contexts::read(&path).unwrap(), contexts);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{context:?}").contains("secret"));
        assert!(matches!(
            context.credentials(),
            Err(ContextError::Part("ca"))
        ));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_without_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "[contexts.a]\nserver = 'x'\nkey = secret\n").unwrap();
        let error = Contexts::read(&path).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
