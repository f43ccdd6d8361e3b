//! What a relay keeps in its state directory: its key, and the certificate that clients pin.
//!
//! Both are made once. Clients are told the hash of the certificate in their DERP map, so another certificate would lock
//! them all out until the map has changed. So it is never replaced here: one that is for another host is refused, and
//! whoever runs the relay decides which of the two is wrong.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{fs, io, path::Path, sync::Arc};

use data_encoding::HEXLOWER;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PKCS_ED25519, SerialNumber, date_time_ymd};
use rustls::{
    CipherSuite, ServerConfig,
    client::verify_server_name,
    crypto::{CryptoProvider, ring::Ticketer},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::ParsedCertificate,
};

use mesh_core::key::{NodePrivate, NodePublic};
use transports::program::{
    Exit, Failure,
    state_dir::{self, cannot_use, write_secret},
};

/// A certificate with its chain, and its key.
pub(super) struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// `sha256-raw:` and the hash of the leaf: what a DERP map says to pin it.
    pub(super) fn pin(&self) -> String {
        let leaf = self.chain.first().map(AsRef::as_ref).unwrap_or_default();
        format!("sha256-raw:{}", HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, leaf).as_ref()))
    }

    /// Reads a certificate chain and its key that somebody else takes care of.
    pub(super) fn read(chain: &Path, key: &Path, host: &str) -> Result<Self, Failure> {
        let certificate = Self::read_files(chain, key)?;
        if certificate.is_for(host) {
            return Ok(certificate);
        }
        let message = format!("the certificate in {} is not for \"{host}\"", chain.display());
        Err(Failure::new(Exit::Usage, "wrong-certificate", message)
            .hint("give the name that is in it with --host, or a certificate for this one"))
    }

    fn read_files(chain: &Path, key: &Path) -> Result<Self, Failure> {
        let wrong = |path: &Path, error: &dyn std::fmt::Display| {
            Failure::new(Exit::Usage, "bad-certificate", format!("cannot read {}: {error}", path.display()))
                .hint("restore it: clients may pin this certificate, and believe no other")
        };
        let certificates = CertificateDer::pem_file_iter(chain)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| wrong(chain, &error))?;
        if certificates.is_empty() {
            return Err(wrong(chain, &"there is no certificate in it"));
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
        Ok(Self { chain: certificates, key })
    }

    /// The self-signed certificate of the state directory; made when there is none.
    pub(super) fn load_or_make(state_dir: &Path, host: &str) -> Result<Self, Failure> {
        let (chain, key) = (state_dir.join("relay.crt"), state_dir.join("relay.pem"));
        state_dir::make(state_dir)?;
        // The key is written first: where there is no certificate, no client can have pinned one.
        if !chain.exists() {
            let (chain_text, key_text) = make(host).map_err(|error| {
                Failure::new(Exit::Usage, "bad-host", format!("cannot make a certificate for \"{host}\": {error}"))
            })?;
            write_secret(&key, &key_text)?;
            write_secret(&chain, &chain_text)?;
        }
        let certificate = Self::read_files(&chain, &key)?;
        if certificate.is_for(host) {
            return Ok(certificate);
        }
        let message = format!("the certificate in {} was made for another host than \"{host}\"", chain.display());
        Err(Failure::new(Exit::Usage, "wrong-certificate", message).hint(format!(
            "give the former --host, or remove {} and {} for a new one and put what mesh-relay derp-map prints then into \
             every DERP map, for clients pin the old one",
            chain.display(),
            key.display()
        )))
    }

    /// Whether clients that connect to `host` find that name in it.
    fn is_for(&self, host: &str) -> bool {
        let Some(leaf) = self.chain.first() else { return false };
        let (leaf, name) = (ParsedCertificate::try_from(leaf), ServerName::try_from(host));
        leaf.is_ok_and(|leaf| name.is_ok_and(|name| verify_server_name(&leaf, &name).is_ok()))
    }

    /// The TLS configuration, with one more certificate behind the chain that tells clients the relay's key, so that
    /// they can send their greeting along with the request.
    pub(super) fn into_config(mut self, relay: &NodePublic) -> Result<Arc<ServerConfig>, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::new(Exit::Usage, "bad-certificate", format!("the certificate cannot be used: {error}"))
        };
        self.chain.push(announcement(relay).map_err(|error| wrong(&error))?);
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&error))?
            .with_no_client_auth()
            .with_single_cert(self.chain, self.key)
            .map_err(|error| wrong(&error))?;
        // Tickets that a client keeps cost the relay nothing. Stock clients take none, and one is enough for others.
        config.ticketer = Ticketer::new().map_err(|error| wrong(&error))?;
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }
}

/// ring's cipher suites without TLS 1.3's AES-256: every client has AES-128, which costs a quarter less here where most of
/// the work is done. Whether it is that or ChaCha20 is left to the client, which knows its own hardware.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite() != CipherSuite::TLS13_AES_256_GCM_SHA384);
    provider
}

/// The relay's key; made when there is none.
pub(super) fn load_or_make_key(state_dir: &Path) -> Result<NodePrivate, Failure> {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct KeyFile {
        #[serde(rename = "PrivateKey")]
        private_key: String,
    }
    state_dir::make(state_dir)?;
    let path = state_dir.join("relay.key");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let seed = transports::entropy::seed().map_err(|error| cannot_use(&path, &error))?;
            let key = NodePrivate::generate(&mut seed.stream("relay key", 0));
            let text = serde_json::json!(KeyFile { private_key: key.to_secret_text() }).to_string();
            write_secret(&path, &text)?;
            return Ok(key);
        }
        // Bytes that are no text are damage like any other.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
        Err(error) => return Err(cannot_use(&path, &error)),
    };
    // What is wrong in it is not printed: it is a secret.
    let file: Option<KeyFile> = serde_json::from_str(&text).ok();
    file.and_then(|file| NodePrivate::from_secret_text(&file.private_key).ok()).ok_or_else(|| {
        Failure::new(Exit::Usage, "bad-key-file", format!("{} holds no relay key", path.display()))
            .hint("restore it, or remove it for a new key")
    })
}

fn make(host: &str) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, host);
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2125, 1, 1);
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn announcement(relay: &NodePublic) -> Result<CertificateDer<'static>, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("derpkey{}", HEXLOWER.encode(relay.as_bytes())));
    // The version of the protocol; clients read it.
    params.serial_number = Some(SerialNumber::from(2_u64));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2125, 1, 1);
    Ok(params.self_signed(&key)?.der().clone())
}
