//! What the controller shows of itself at a connection, and whom it lets in.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::SystemTime,
};

use fabric_trust::{dial::H2, identity::Identity, key};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;

use super::{
    TrustError,
    ca::{Ca, SERVER_LIFE},
};

/// Serials of certificates that are not let in any more, and what ends the
/// connections of the others once they are among them.
#[derive(Debug, Default)]
pub struct Revoked(Mutex<BTreeMap<String, CancellationToken>>);

impl Revoked {
    /// Cancelled when this serial is revoked.
    #[must_use]
    pub fn token(&self, serial: &str) -> CancellationToken {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.entry(serial.to_owned()).or_default().clone()
    }

    /// From now on.
    pub fn add(&self, serial: &str) {
        self.token(serial).cancel();
    }

    /// True if it is one.
    #[must_use]
    pub fn contains(&self, serial: &str) -> bool {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens
            .get(serial)
            .is_some_and(CancellationToken::is_cancelled)
    }

    /// Forgets those that are revoked, except these, which would otherwise be valid.
    pub fn retain(&self, serials: impl Fn(&str) -> bool) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|serial, token| !token.is_cancelled() || serials(serial));
    }
}

/// See the [module](self).
pub struct Tls {
    ca: Arc<Ca>,
    names: Vec<String>,
    own: Arc<Own>,
    config: Arc<ServerConfig>,
}

/// The controller's own certificate, and from when on another is to be used.
struct Own(RwLock<(Arc<CertifiedKey>, SystemTime)>);

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own")
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&own.0))
    }
}

impl Tls {
    /// With a new certificate of the controller for these names.
    ///
    /// # Errors
    ///
    /// None can be made.
    pub fn new(ca: Arc<Ca>, revoked: Arc<Revoked>, names: Vec<String>) -> Result<Self, TrustError> {
        let own = Arc::new(Own(RwLock::new(certificate(&ca, &names)?)));
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let provider = Arc::new(key::provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(NotRevoked { verifier, revoked }))
            .with_cert_resolver(Arc::clone(&own) as _);
        config.alpn_protocols = vec![H2.to_vec()];
        // Who comes back shows a certificate again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            ca,
            names,
            own,
            config: Arc::new(config),
        })
    }

    /// The settings for connections.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// The names that the controller has.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Takes another certificate when two thirds of this one's life are over.
    ///
    /// # Errors
    ///
    /// None can be made; this one stays.
    pub fn renew(&self, now: SystemTime) -> Result<(), TrustError> {
        let due = self.own.0.read().unwrap_or_else(PoisonError::into_inner).1;
        if now >= due {
            let new = certificate(&self.ca, &self.names)?;
            *self.own.0.write().unwrap_or_else(PoisonError::into_inner) = new;
            tracing::info!("the controller has a new certificate for TLS");
        }
        Ok(())
    }
}

/// The chain has the CA, so that who joins can compare its fingerprint.
fn certificate(ca: &Ca, names: &[String]) -> Result<(Arc<CertifiedKey>, SystemTime), TrustError> {
    let (leaf, private, not_after) = ca.issue_own(names)?;
    let chain = vec![leaf, ca.der().clone()];
    let certified = CertifiedKey::from_der(chain, private, &key::provider())?;
    Ok((Arc::new(certified), not_after - SERVER_LIFE / 3))
}

/// Takes certificates of our CA that say who someone is and are not revoked.
#[derive(Debug)]
struct NotRevoked {
    verifier: Arc<dyn ClientCertVerifier>,
    revoked: Arc<Revoked>,
}

impl ClientCertVerifier for NotRevoked {
    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .verifier
            .verify_client_cert(end_entity, intermediates, now)?;
        let identity = Identity::of(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.revoked.contains(&identity.serial) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
