//! Private keys, which never leave the machine that they were made on, and requests
//! for certificates.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::{CryptoProvider, ring};

/// No key, or no random number, could be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a private key")]
pub struct KeyError(#[source] rcgen::Error);

/// The system gives no random bytes.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandom;

/// A new private key with a request for a certificate that is signed by it.
pub struct NewKey {
    /// The key, as PEM (PKCS #8).
    pub key_pem: String,
    /// The request, DER (PKCS #10). It names nobody: who the certificate is for is the
    /// controller's to say.
    pub request: Vec<u8>,
}

impl NewKey {
    /// Makes one: ECDSA on P-256.
    ///
    /// # Errors
    ///
    /// The system has no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(KeyError)?;
        let request = CertificateParams::default().serialize_request(&key);
        Ok(Self {
            key_pem: key.serialize_pem(),
            request: request.map_err(KeyError)?.der().to_vec(),
        })
    }
}

/// Random bytes.
///
/// # Errors
///
/// The system has none.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    let filled = provider().secure_random.fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| NoRandom)
}

/// The one provider of cryptography.
#[must_use]
pub fn provider() -> CryptoProvider {
    ring::default_provider()
}
