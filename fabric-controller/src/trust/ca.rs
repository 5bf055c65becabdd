//! The fabric's own certificate authority: a key and a certificate in two files of the
//! data directory, made when there are none.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use fabric_trust::{
    context::write_private,
    identity::{self, Role, hex},
    key::{self, NoRandom},
    token::fingerprint,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
    pem::PemObject as _,
};

use crate::{
    clock,
    error::{Error, Result},
    fail_point::{self, Step},
};

/// How long the CA lasts.
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// How long the controller's own certificates last.
pub const SERVER_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How far clocks may be apart; certificates begin so much earlier.
const SKEW: Duration = Duration::from_secs(300);
/// Longest request for a certificate.
const LONGEST_REQUEST: usize = 16 * 1024;

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of it cannot be read or written.
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
    /// A file of it is damaged, or not of the other one.
    #[error("{} is not what was written there ({reason}); put it back from a backup", .path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong. Never with what is in it.
        reason: String,
    },
    /// No key or certificate can be made.
    #[error("cannot make a key or a certificate")]
    Make(#[from] rcgen::Error),
    /// There are no random bytes.
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
}

/// See the [module](self).
pub struct Ca {
    der: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was made.
#[derive(Debug, Clone)]
pub struct Issued {
    /// It, as PEM.
    pub pem: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// The public key of a request for a certificate, whose sender has the private one.
pub struct Requested(rcgen::PublicKey);

impl Requested {
    /// Reads a request and checks its signature. Nothing else in it is looked at.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn read(csr: &[u8]) -> Result<Self> {
        if csr.len() > LONGEST_REQUEST {
            return Err(Error::Invalid(format!(
                "csr: the most is {LONGEST_REQUEST} bytes"
            )));
        }
        let der = CertificateSigningRequestDer::from(csr);
        let read = CertificateSigningRequestParams::from_der(&der).map_err(|error| {
            Error::Invalid(format!(
                "csr: it is no request for a certificate (PKCS #10): {error}"
            ))
        })?;
        Ok(Self(read.public_key))
    }
}

impl Ca {
    /// Reads the CA in a directory, or makes one; true if it is new.
    ///
    /// # Errors
    ///
    /// It cannot be read, or made.
    pub fn open(directory: &Path) -> Result<(Self, bool), CaError> {
        let (key_file, file) = (directory.join("ca.key"), directory.join("ca.crt"));
        let read = |path: &Path| match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CaError::Io {
                what: "read",
                path: path.to_owned(),
                source,
            }),
        };
        let damaged = |path: &Path, reason: &str| CaError::Damaged {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let (key_pem, pem) = (read(&key_file)?, read(&file)?);
        if let Some(pem) = pem {
            let key_pem = key_pem.ok_or_else(|| damaged(&key_file, "it is not there"))?;
            let key = KeyPair::from_pem(&key_pem).map_err(|_| damaged(&key_file, "no key"))?;
            let der = CertificateDer::from_pem_slice(pem.as_bytes())
                .map_err(|_| damaged(&file, "no certificate"))?;
            let public = key.subject_public_key_info();
            if !der.windows(public.len()).any(|part| part == public) {
                return Err(damaged(&file, "it is not of the key in ca.key"));
            }
            let issuer =
                Issuer::from_ca_cert_der(&der, key).map_err(|_| damaged(&file, "not of a CA"))?;
            return Ok((Self { der, pem, issuer }, false));
        }
        // The key first: alone it is a CA that was not finished.
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let write = |path: &Path, text: &str| {
            write_private(path, text.as_bytes()).map_err(|source| CaError::Io {
                what: "write",
                path: path.to_owned(),
                source,
            })
        };
        write(&key_file, &key.serialize_pem())?;
        fail_point::reached(Step::CaKeyMade);
        let mut params = params(clock::system(), CA_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Two CAs are told apart by name, too.
        params.distinguished_name = named(&format!("fabric CA {}", hex(&key::random::<4>()?)));
        let certificate = params.self_signed(&key)?;
        write(&file, &certificate.pem())?;
        let ca = Self {
            der: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        };
        Ok((ca, true))
    }

    /// Its certificate.
    #[must_use]
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its certificate, as PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of its certificate, in hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// A certificate for a caller: an operator or a node.
    ///
    /// # Errors
    ///
    /// None can be made.
    pub fn issue(
        &self,
        key: &Requested,
        role: Role,
        name: &str,
        ttl: Duration,
    ) -> Result<Issued, CaError> {
        let mut params = params(clock::system(), ttl)?;
        params.distinguished_name = named(name);
        params.subject_alt_names = vec![SanType::URI(identity::uri(role, name).try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.leaf(params, &key.0).map(|(issued, _)| issued)
    }

    /// A certificate for the controller itself, of a key that is only in memory.
    ///
    /// # Errors
    ///
    /// None can be made.
    pub fn issue_own(
        &self,
        names: &[String],
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>, SystemTime), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(clock::system(), SERVER_LIFE)?;
        params.distinguished_name = named("fabric-controller");
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.clone().try_into()?),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (issued, der) = self.leaf(params, &key)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok((der, key, issued.not_after))
    }

    fn leaf(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<(Issued, CertificateDer<'static>), CaError> {
        let mut serial = key::random::<16>()?;
        // Positive, and with 32 digits.
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let not_after = params.not_after.into();
        let certificate = params.signed_by(key, &self.issuer)?;
        let issued = Issued {
            pem: certificate.pem(),
            serial: hex(&serial),
            not_after,
        };
        Ok((issued, certificate.der().clone()))
    }
}

fn params(now: SystemTime, ttl: Duration) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.not_before = (now - SKEW.min(ttl / 4)).into();
    params.not_after = (now + ttl).into();
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    full
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use fabric_trust::{identity::Identity, key::NewKey};

    use super::*;

    #[test]
    fn a_ca_is_made_once_and_kept_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let (first, fresh) = Ca::open(dir.path()).unwrap();
        assert!(fresh);
        let (second, fresh) = Ca::open(dir.path()).unwrap();
        assert!(!fresh && first.der() == second.der());
        let mode = fs::metadata(dir.path().join("ca.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(
            dir.path().join("ca.key"),
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                .unwrap()
                .serialize_pem(),
        )
        .unwrap();
        let error = Ca::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("not of the key"), "{error}");
    }

    #[test]
    fn a_certificate_says_who_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, _) = Ca::open(dir.path()).unwrap();
        let key = NewKey::generate().unwrap();
        let requested = Requested::read(&key.request).unwrap();
        let hour = Duration::from_secs(3600);
        let issued = ca.issue(&requested, Role::Node, "n1", hour).unwrap();
        let der = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
        let identity = Identity::of(&der).unwrap();
        assert_eq!((identity.role, identity.name.as_str()), (Role::Node, "n1"));
        assert_eq!(identity.serial, issued.serial);
        assert!(identity.renew_at() > clock::system() && identity.renew_at() < identity.not_after);
        let mut broken = key.request;
        let last = broken.len() - 1;
        broken[last] ^= 1;
        assert!(Requested::read(&broken).is_err());
        assert!(Requested::read(b"").is_err());
    }
}
