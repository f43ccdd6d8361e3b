//! Keys for programs under test.

use std::{fs::File, io::Read};

use mesh_core::key::NodePrivate;

/// A WireGuard key pair, both as base64.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// A secret, but only of this run.
    pub private: String,
    /// What others know.
    pub public: String,
}

impl KeyPair {
    /// A fresh pair.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let private = NodePrivate::from_bytes(bytes);
        Ok(Self { private: private.to_secret_base64(), public: private.public().to_base64() })
    }
}
