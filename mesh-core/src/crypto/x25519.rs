//! X25519 (RFC 7748) with a check for low-order points.

pub use x25519_dalek::SharedSecret;
use x25519_dalek::{PublicKey, StaticSecret};

/// Clamps a scalar as RFC 7748 §5 says.
#[must_use]
pub fn clamp(mut bytes: [u8; 32]) -> [u8; 32] {
    bytes[0] &= 248;
    bytes[31] &= 127;
    bytes[31] |= 64;
    bytes
}

/// The public key of a private one.
#[must_use]
pub fn public(private: &[u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*private)).to_bytes()
}

/// The shared secret; `None` when it is all zeros, that is, when `public` is a low-order point.
#[must_use]
pub fn diffie_hellman(private: &[u8; 32], public: &[u8; 32]) -> Option<SharedSecret> {
    let shared = StaticSecret::from(*private).diffie_hellman(&PublicKey::from(*public));
    shared.was_contributory().then_some(shared)
}
