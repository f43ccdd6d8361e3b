//! Whom a TLS server may be: by a name and the host's roots, by the hash of its certificate, or anybody.
//!
//! A hash alone is enough: the map that says it vouches for the certificate, whatever name and dates that has, so a
//! host with a wrong calendar still finds its relay. Sessions are never resumed: every connection shows its certificate
//! and has it checked against what the map says now.

use std::sync::Arc;

use data_encoding::HEXLOWER_PERMISSIVE;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::sync::OnceCell;
use webpki::EndEntityCert;

use mesh_core::{derp::DerpNode, key::NodePublic};

use crate::roots;

/// What a certificate name in a relay map begins with when it is a hash.
const PIN: &str = "sha256-raw:";
/// The common name of a certificate that announces a relay's key, before the key in hexadecimal digits.
const ANNOUNCEMENT: &[u8] = b"derpkey";

/// Whom to believe.
#[derive(Clone, Debug)]
pub struct Trust {
    provider: Arc<CryptoProvider>,
    /// Read once for all clones.
    roots: Arc<OnceCell<Arc<RootCertStore>>>,
}

impl Trust {
    /// The host's roots and those of the file that SSL_CERT_FILE names. They are read when a certificate needs them for
    /// the first time.
    #[must_use]
    pub fn system() -> Self {
        Self { provider: Arc::new(rustls::crypto::ring::default_provider()), roots: Arc::default() }
    }

    /// These roots alone, each in DER; what is no certificate is left out.
    #[must_use]
    pub fn of(roots: Vec<Vec<u8>>) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.into_iter().map(CertificateDer::from));
        Self { roots: Arc::new(OnceCell::new_with(Some(Arc::new(store)))), ..Self::system() }
    }

    /// How to speak TLS with `node`.
    ///
    /// # Errors
    /// When the map's words about it make no sense, or the host has no roots.
    pub(crate) async fn for_relay(
        &self,
        node: &DerpNode,
    ) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
        let host = name(&node.host_name)?;
        let check = if node.insecure_for_tests {
            Check::Nothing
        } else if let Some(hash) = node.cert_name.strip_prefix(PIN) {
            let hash = HEXLOWER_PERMISSIVE.decode(hash.as_bytes()).ok().and_then(|hash| hash.try_into().ok());
            let hash = hash.ok_or_else(|| TlsError::BadPin(node.cert_name.clone()))?;
            Check::Hash { hash, host: node.host_name.clone() }
        } else {
            let expected = if node.cert_name.is_empty() { host.clone() } else { name(&node.cert_name)? };
            self.by_name(expected).await?
        };
        Ok((self.config(check)?, host))
    }

    /// How to speak TLS with a server that is known by its name.
    ///
    /// # Errors
    /// When `host` is no name, or the host has no roots.
    pub(crate) async fn for_host(&self, host: &str) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
        let host = name(host)?;
        Ok((self.config(self.by_name(host.clone()).await?)?, host))
    }

    /// How to speak TLS where what is inside tells who is there.
    ///
    /// # Errors
    /// When `host` is no name.
    pub(crate) fn unchecked(&self, host: &str) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
        Ok((self.config(Check::Nothing)?, name(host)?))
    }

    async fn by_name(&self, expected: ServerName<'static>) -> Result<Check, TlsError> {
        let roots = Arc::clone(self.roots.get_or_try_init(load).await?);
        let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider));
        let web = builder.build().map_err(|error| TlsError::Roots(error.to_string()))?;
        Ok(Check::Name { web, expected })
    }

    fn config(&self, check: Check) -> Result<Arc<ClientConfig>, TlsError> {
        let verifier = Arc::new(Verifier { check, provider: Arc::clone(&self.provider) });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// Why there is no TLS to be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not a name.
    #[error("\"{0}\" is no host name")]
    BadName(String),
    /// Not a hash.
    #[error("the relay map says \"{0}\" where sha256-raw: and 64 hexadecimal digits should be")]
    BadPin(String),
    /// No roots.
    #[error("the server's certificate cannot be checked: {0}")]
    Roots(String),
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

fn name(text: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(text.to_owned()).map_err(|_| TlsError::BadName(text.to_owned()))
}

async fn load() -> Result<Arc<RootCertStore>, TlsError> {
    let loaded = tokio::task::spawn_blocking(roots::load).await;
    let loaded = loaded.map_err(|error| TlsError::Roots(error.to_string()))?;
    loaded.map(Arc::new).map_err(TlsError::Roots)
}

/// The key that a certificate announces, when it is one that does.
///
/// It is made by the relay beside its real certificate and has the key in its common name, and the protocol's version as
/// its number: one byte, not 0.
pub(crate) fn announced_key(certificate: &CertificateDer<'_>) -> Option<NodePublic> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let [1..=255] = certificate.serial() else { return None };
    // The attribute's type (2.5.4.3), then a string type and a length that fits in one byte.
    const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
    let subject = certificate.subject();
    let at = subject.windows(COMMON_NAME.len()).position(|bytes| bytes == COMMON_NAME)?;
    let [_, length, text @ ..] = &subject[at + COMMON_NAME.len()..] else { return None };
    let text = text.get(..usize::from(*length))?;
    let key = HEXLOWER_PERMISSIVE.decode(text.strip_prefix(ANNOUNCEMENT)?).ok()?;
    Some(NodePublic::from_bytes(key.try_into().ok()?))
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Check {
    /// By a chain to a root, for this name.
    Name { web: Arc<WebPkiServerVerifier>, expected: ServerName<'static> },
    /// By the SHA-256 of the whole certificate.
    Hash { hash: [u8; 32], host: String },
    /// The map asks for none.
    Nothing,
}

/// Another certificate than the map says.
#[derive(Debug, thiserror::Error)]
#[error("certificate of {host} does not match {PIN}{pin} of the relay map")]
struct Mismatch {
    host: String,
    pin: String,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _sent: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.check {
            Check::Nothing => Ok(ServerCertVerified::assertion()),
            Check::Hash { hash, host } => {
                let found = ring::digest::digest(&ring::digest::SHA256, leaf);
                if found.as_ref() == hash {
                    return Ok(ServerCertVerified::assertion());
                }
                let mismatch = Mismatch { host: host.clone(), pin: HEXLOWER_PERMISSIVE.encode(hash) };
                Err(CertificateError::Other(OtherError(Arc::new(mismatch))).into())
            }
            Check::Name { web, expected } => {
                // An announcement is no part of the chain and may be out of date.
                let chain: Vec<_> = others.iter().filter(|other| announced_key(other).is_none()).cloned().collect();
                web.verify_server_cert(leaf, &chain, expected, ocsp, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match &self.check {
            Check::Nothing => Ok(HandshakeSignatureValid::assertion()),
            Check::Hash { .. } | Check::Name { .. } => verify_tls12_signature(
                message,
                certificate,
                signature,
                &self.provider.signature_verification_algorithms,
            ),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match &self.check {
            Check::Nothing => Ok(HandshakeSignatureValid::assertion()),
            Check::Hash { .. } | Check::Name { .. } => verify_tls13_signature(
                message,
                certificate,
                signature,
                &self.provider.signature_verification_algorithms,
            ),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What an error of TLS says to people.
pub(crate) fn explain(host: &str, error: &rustls::Error) -> String {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.to_string(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            format!("certificate of {host} is of an issuer that this host does not know")
        }
        Error::InvalidCertificate(why) => format!("certificate of {host} is not good: {why}"),
        Error::InvalidMessage(_) => format!("{host} does not speak TLS"),
        other => format!("TLS with {host} failed: {other}"),
    }
}
