//! The way to a controller: mTLS 1.3 over TCP, or a unix socket.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader},
    net::{TcpStream, UnixStream},
    time,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::{
    address::Address,
    context::{Context, ContextError, Credentials},
    explain::explained,
    key,
    token::JoinToken,
};

/// How long a connection may take, TLS and all.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the first bytes of the controller are waited for.
const FIRST: Duration = Duration::from_secs(2);
/// The application protocol.
pub const H2: &[u8] = b"h2";

/// Certificates that cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// They cannot be read.
    #[error("the context for {server} cannot be used")]
    Context {
        /// Where it leads.
        server: Address,
        /// Why.
        #[source]
        source: ContextError,
    },
    /// TLS does not take them.
    #[error("the certificates for {server} cannot be used")]
    Tls {
        /// Where they lead.
        server: Address,
        /// Why.
        #[source]
        source: Error,
    },
}

/// Our own certificate, which can be replaced while it is in use: connections that
/// are opened afterwards have the new one.
#[derive(Debug)]
pub struct OwnCertificate(RwLock<Arc<CertifiedKey>>);

impl OwnCertificate {
    /// Takes another certificate.
    ///
    /// # Errors
    ///
    /// It is not one for its key.
    pub fn replace(&self, credentials: Credentials) -> Result<(), Error> {
        let certified = Arc::new(certified_key(credentials)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }
}

fn certified_key(credentials: Credentials) -> Result<CertifiedKey, Error> {
    let Credentials {
        certificate, key, ..
    } = credentials;
    CertifiedKey::from_der(vec![certificate], key, &key::provider())
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.0.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A way to a controller. Opens connections whenever one is needed.
#[derive(Clone)]
pub struct Dial {
    server: Address,
    tls: Option<TlsConnector>,
    own: Option<Arc<OwnCertificate>>,
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dial").field(&self.server).finish()
    }
}

impl Dial {
    /// As a context says.
    ///
    /// # Errors
    ///
    /// Its certificates cannot be used.
    pub fn new(context: &Context) -> Result<Self, DialError> {
        let server = context.server.clone();
        if matches!(server, Address::Unix(_)) {
            return Ok(Self::unix(server));
        }
        let credentials = context.credentials().map_err(|source| DialError::Context {
            server: server.clone(),
            source,
        })?;
        Self::with(&server, credentials).map_err(|source| DialError::Tls { server, source })
    }

    fn unix(server: Address) -> Self {
        Self {
            server,
            tls: None,
            own: None,
        }
    }

    fn with(server: &Address, credentials: Credentials) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(credentials.ca.clone())?;
        let own = Arc::new(OwnCertificate(RwLock::new(Arc::new(certified_key(
            credentials,
        )?))));
        let config = ClientConfig::builder_with_provider(Arc::new(key::provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::clone(&own) as _);
        Ok(Self {
            server: server.clone(),
            tls: Some(connector(config)),
            own: Some(own),
        })
    }

    /// To the controller whose CA a token names, without a certificate of our own.
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn joining(server: &Address, token: &JoinToken) -> Result<Self, DialError> {
        if matches!(server, Address::Unix(_)) {
            return Ok(Self::unix(server.clone()));
        }
        let verifier = Pinned {
            token: token.clone(),
            algorithms: key::provider().signature_verification_algorithms,
        };
        let config = ClientConfig::builder_with_provider(Arc::new(key::provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| DialError::Tls {
                server: server.clone(),
                source,
            })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Self {
            server: server.clone(),
            tls: Some(connector(config)),
            own: None,
        })
    }

    /// Where it leads.
    #[must_use]
    pub const fn server(&self) -> &Address {
        &self.server
    }

    /// Our own certificate, unless this is a unix socket.
    #[must_use]
    pub const fn own(&self) -> Option<&Arc<OwnCertificate>> {
        self.own.as_ref()
    }

    /// A channel with an open connection.
    ///
    /// # Errors
    ///
    /// There is none to be had.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let dial = self.clone();
        let connector = service_fn(move |_: Uri| {
            let dial = dial.clone();
            async move { dial.open().await.map(TokioIo::new) }
        });
        endpoint().connect_with_connector(connector).await
    }

    /// A channel that connects when it is used, and again after it was cut off.
    #[must_use]
    pub fn connect_lazy(&self, tune: impl FnOnce(Endpoint) -> Endpoint) -> Channel {
        let dial = self.clone();
        tune(endpoint()).connect_with_connector_lazy(service_fn(move |_: Uri| {
            let dial = dial.clone();
            async move { dial.open().await.map(TokioIo::new) }
        }))
    }

    /// Opens a connection.
    async fn open(self) -> io::Result<Open> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "nobody answered within 5 s");
        let open = async {
            match &self.server {
                Address::Unix(path) => Ok(Box::pin(UnixStream::connect(path).await?) as Open),
                Address::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    self.secure(host, stream).await
                }
            }
        };
        time::timeout(CONNECT, open).await.map_err(late)?
    }

    async fn secure(&self, host: &str, stream: TcpStream) -> io::Result<Open> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let Some(tls) = &self.tls else {
            return Err(io::Error::other("there is no certificate for it"));
        };
        let stream = tls.connect(name, stream).await.map_err(explained)?;
        // With TLS 1.3 a client is through before the server has looked at its
        // certificate. A controller speaks first: what it says is the verdict.
        let mut stream = BufReader::new(stream);
        match time::timeout(FIRST, stream.fill_buf()).await {
            Ok(Err(error)) => Err(explained(error)),
            Ok(Ok([])) => Err(explained(io::ErrorKind::UnexpectedEof.into())),
            Ok(Ok(_)) | Err(_) => Ok(Box::pin(stream)),
        }
    }
}

fn connector(mut config: ClientConfig) -> TlsConnector {
    config.alpn_protocols = vec![H2.to_vec()];
    // A resumed session would go on with the certificate of the first one.
    config.resumption = Resumption::disabled();
    Arc::new(config).into()
}

/// The URI is not used to connect, only to have an authority.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://fabric").connect_timeout(CONNECT + FIRST)
}

/// A connection of either kind.
pub trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

type Open = Pin<Box<dyn Stream>>;

/// Takes the controller whose CA a token names.
#[derive(Debug)]
struct Pinned {
    token: JoinToken,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates.iter().find(|one| self.token.names(one));
        let ca = ca.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let provider = Arc::new(key::provider());
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        webpki.verify_server_cert(end_entity, &[], server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("there is no TLS 1.2 here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
