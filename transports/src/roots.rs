//! The certificates that this host trusts: the system's, and those of the file that `SSL_CERT_FILE` names.

use rustls::RootCertStore;
use tracing::warn;

/// Reads them: some hundred files or a large one, so not on a thread that others wait for. What cannot be read is logged
/// and left out.
///
/// # Errors
/// When there is none; what to tell a person.
pub fn load() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    // As OpenSSL and Go do: the variable's file stands in for the system's bundle, beside the system's directories.
    let places = openssl_probe::probe();
    let directories = places.cert_dir.iter().map(|directory| (None, Some(directory.as_path())));
    for (file, directory) in [(places.cert_file.as_deref(), None)].into_iter().chain(directories) {
        let found = rustls_native_certs::load_certs_from_paths(file, directory);
        for error in &found.errors {
            warn!(%error, "a root certificate cannot be read");
        }
        roots.add_parsable_certificates(found.certs);
    }
    if roots.is_empty() {
        return Err("no root certificates were found on this system, nor in SSL_CERT_FILE".to_owned());
    }
    Ok(roots)
}
