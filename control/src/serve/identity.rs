//! What a server keeps in its state directory beside the database: its key. And certificates that others take care of.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
    sync::Arc,
};

use mesh_core::{key::MachinePrivate, rng::Seed};
use rustls::{
    ServerConfig,
    crypto::ring::Ticketer,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use transports::program::{
    Exit, Failure,
    state_dir::{self, cannot_use, write_secret},
};

use super::config::TlsFiles;

/// A server's key, which stays locked as long as this is there: two servers on one state would each forget what the other
/// one decides.
pub(super) struct KeyFile {
    pub(super) key: MachinePrivate,
    _locked: File,
}

impl KeyFile {
    /// The key of a state directory; made when there is none.
    pub(super) fn open(state_dir: &Path, seed: &Seed) -> Result<Self, Failure> {
        let path = state_dir.join("noise.key");
        let cannot = |error: &io::Error| cannot_use(&path, error);
        state_dir::make(state_dir)?;
        if !path.exists() {
            let key = MachinePrivate::generate(&mut seed.stream("noise key", 0));
            write_secret(&path, &(key.to_secret_text() + "\n"))?;
        }
        let file = File::open(&path).map_err(|error| cannot(&error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("another mesh-control uses {}", state_dir.display());
                return Err(Failure::new(Exit::Refused, "already-running", message)
                    .hint("stop it, or give another directory with --state-dir"));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(&error)),
        }
        let text = match fs::read_to_string(&path) {
            // Bytes that are no text are damage like any other.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
            read => read.map_err(|error| cannot(&error))?,
        };
        // What is wrong in it is not printed: it is a secret.
        let key = MachinePrivate::from_secret_text(text.trim()).map_err(|_| {
            Failure::new(Exit::Usage, "bad-key-file", format!("{} holds no key", path.display()))
                .hint("restore it; nodes believe no other key until they are restarted")
        })?;
        Ok(Self { key, _locked: file })
    }
}

/// The TLS configuration of a certificate chain and its key.
pub(super) fn tls(files: &TlsFiles) -> Result<Arc<ServerConfig>, Failure> {
    let wrong = |path: &Path, error: &dyn core::fmt::Display| {
        Failure::new(Exit::Usage, "bad-certificate", format!("cannot use {}: {error}", path.display()))
            .hint("give a certificate chain and its key, both in PEM, with --tls-cert and --tls-key")
    };
    let chain = CertificateDer::pem_file_iter(&files.chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(&files.chain, &error))?;
    if chain.is_empty() {
        return Err(wrong(&files.chain, &"there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| wrong(&files.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&files.chain, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&files.chain, &error))?;
    // Tickets that a client keeps cost the server nothing.
    config.ticketer = Ticketer::new().map_err(|error| wrong(&files.chain, &error))?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_one_server_alone_may_use_it() {
        let folder = std::env::temp_dir().join(format!("mesh-control-key-{}", std::process::id()));
        let first = KeyFile::open(&folder, &Seed::from_number(1)).unwrap();
        let public = first.key.public();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("noise.key"))), (0o700, 0o600));
        let told = |result: Result<KeyFile, Failure>| result.map(|_| ()).unwrap_err().message().to_owned();
        assert!(told(KeyFile::open(&folder, &Seed::from_number(2))).contains("another mesh-control"));
        drop(first);
        assert_eq!(KeyFile::open(&folder, &Seed::from_number(2)).unwrap().key.public(), public);
        fs::write(folder.join("noise.key"), "privkey:xx").unwrap();
        assert!(told(KeyFile::open(&folder, &Seed::from_number(2))).contains("holds no key"));
        fs::remove_dir_all(folder).unwrap();
    }
}
