//! ChaCha20-Poly1305 (RFC 8439) in place, and XChaCha20-Poly1305 for WireGuard's cookie reply.

use core::fmt;

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Bytes of an authentication tag.
pub const TAG: usize = 16;

/// What was sealed did not come from the holder of the key, or was changed on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authentication tag is wrong")]
pub struct ForgedError;

/// A ChaCha20-Poly1305 key, ready for use.
pub struct AeadKey(LessSafeKey);

impl AeadKey {
    /// The key of these bytes.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("a ChaCha20-Poly1305 key has 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// Encrypts all of `buffer` but its last [`TAG`] bytes in place and writes the tag into those.
    ///
    /// # Panics
    /// When `buffer` is shorter than a tag.
    #[inline]
    pub fn seal(&self, nonce: [u8; 12], aad: &[u8], buffer: &mut [u8]) {
        let (plaintext, tag) = buffer.split_at_mut(buffer.len() - TAG);
        let sealed = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), plaintext)
            .expect("a datagram is far below the AEAD's limit of 256 GiB");
        tag.copy_from_slice(sealed.as_ref());
    }

    /// Decrypts `buffer` in place and returns the plaintext, which is [`TAG`] bytes shorter.
    ///
    /// # Errors
    /// When the tag is wrong. The content of `buffer` is then unspecified.
    #[inline]
    pub fn open<'b>(&self, nonce: [u8; 12], aad: &[u8], buffer: &'b mut [u8]) -> Result<&'b mut [u8], ForgedError> {
        self.0.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), buffer).map_err(|_| ForgedError)
    }
}

impl fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AeadKey([private])")
    }
}

/// WireGuard's nonce: four zero bytes and the counter, little-endian.
#[inline]
#[must_use]
pub fn nonce_le(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// The control protocol's nonce: four zero bytes and the counter, big-endian.
#[must_use]
pub fn nonce_be(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// XChaCha20-Poly1305: ciphertext and tag of `plaintext`.
#[must_use]
pub fn xseal(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    XChaCha20Poly1305::new(key.into())
        .encrypt(nonce.into(), Payload { msg: plaintext, aad })
        .expect("encrypting into a growing buffer cannot fail")
}

/// XChaCha20-Poly1305: the plaintext of `sealed`.
///
/// # Errors
/// When the tag is wrong.
pub fn xopen(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, ForgedError> {
    XChaCha20Poly1305::new(key.into()).decrypt(nonce.into(), Payload { msg: sealed, aad }).map_err(|_| ForgedError)
}
