//! NaCl's `crypto_box`: X25519, HSalsa20, XSalsa20-Poly1305, tag before ciphertext. For disco and DERP.

use core::fmt;

use crypto_secretbox::{
    KeyInit, XSalsa20Poly1305,
    aead::{Aead, generic_array::GenericArray},
    cipher::consts::U10,
};
use zeroize::Zeroize;

use super::{aead::ForgedError, x25519};

/// Bytes of a nonce.
pub const NONCE: usize = 24;
/// Bytes that a box adds to what is in it.
pub const TAG: usize = 16;

/// The key that two parties share for boxes to each other. Worth keeping: making one costs a Diffie-Hellman.
pub struct BoxKey(XSalsa20Poly1305);

impl BoxKey {
    /// The key between our private and their public key; `None` for a low-order point.
    #[must_use]
    pub fn new(private: &[u8; 32], public: &[u8; 32]) -> Option<Self> {
        let shared = x25519::diffie_hellman(private, public)?;
        let mut key = salsa20::hsalsa::<U10>(GenericArray::from_slice(shared.as_bytes()), &GenericArray::default());
        let cipher = XSalsa20Poly1305::new(&key);
        key.as_mut_slice().zeroize();
        Some(Self(cipher))
    }

    /// Tag and ciphertext of `plaintext`.
    #[must_use]
    pub fn seal(&self, nonce: &[u8; NONCE], plaintext: &[u8]) -> Vec<u8> {
        self.0.encrypt(nonce.into(), plaintext).expect("encrypting into a growing buffer cannot fail")
    }

    /// The plaintext of tag and ciphertext.
    ///
    /// # Errors
    /// When the tag is wrong.
    pub fn open(&self, nonce: &[u8; NONCE], sealed: &[u8]) -> Result<Vec<u8>, ForgedError> {
        self.0.decrypt(nonce.into(), sealed).map_err(|_| ForgedError)
    }
}

impl fmt::Debug for BoxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxKey([private])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_opens_at_the_other_end_alone() {
        let public = |private: &[u8; 32]| x25519::public(private);
        let (alice, bob, eve) = ([1; 32], [2; 32], [3; 32]);
        let sealed = BoxKey::new(&alice, &public(&bob)).unwrap().seal(&[7; NONCE], b"hello");
        assert_eq!(sealed.len(), 5 + TAG);
        assert_eq!(BoxKey::new(&bob, &public(&alice)).unwrap().open(&[7; NONCE], &sealed).unwrap(), b"hello");
        assert!(BoxKey::new(&eve, &public(&alice)).unwrap().open(&[7; NONCE], &sealed).is_err());
        assert!(BoxKey::new(&alice, &[0; 32]).is_none());
    }
}
