//! The symmetric state of a Noise handshake: chaining key and transcript hash.
//!
//! Shared by WireGuard (`IKpsk2`) and the control protocol (`IK`), which differ in what they mix, not in how.

use core::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{
    aead::{AeadKey, ForgedError, TAG, nonce_le},
    hash::{blake2s, kdf},
    x25519::SharedSecret,
};

/// Chaining key and transcript hash.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SymmetricState {
    chain: [u8; 32],
    hash: [u8; 32],
}

impl SymmetricState {
    /// The state after the protocol's name and a prologue.
    #[must_use]
    pub fn new(construction: &[u8], prologue: &[u8]) -> Self {
        let chain = blake2s(&[construction]);
        let hash = blake2s(&[&chain, prologue]);
        Self { chain, hash }
    }

    /// `H = HASH(H ‖ data)`
    pub fn mix_hash(&mut self, data: &[u8]) {
        self.hash = blake2s(&[&self.hash, data]);
    }

    /// `C = KDF1(C, input)`
    pub fn mix_chain(&mut self, input: &[u8]) {
        [self.chain] = kdf(&self.chain, input);
    }

    /// `(C, k) = KDF2(C, DH)`
    #[must_use]
    pub fn mix_key(&mut self, shared: &SharedSecret) -> AeadKey {
        let [chain, mut key] = kdf(&self.chain, shared.as_bytes());
        self.chain = chain;
        let aead = AeadKey::new(&key);
        key.zeroize();
        aead
    }

    /// `(C, τ, k) = KDF3(C, psk)`, `H = HASH(H ‖ τ)`
    #[must_use]
    pub fn mix_psk(&mut self, psk: &[u8; 32]) -> AeadKey {
        let [chain, mut tau, mut key] = kdf(&self.chain, psk);
        self.chain = chain;
        self.mix_hash(&tau);
        let aead = AeadKey::new(&key);
        tau.zeroize();
        key.zeroize();
        aead
    }

    /// Seals `plaintext` into `out` (16 bytes longer) and mixes it into the hash.
    pub fn seal(&mut self, key: &AeadKey, plaintext: &[u8], out: &mut [u8]) {
        out[..plaintext.len()].copy_from_slice(plaintext);
        key.seal(nonce_le(0), &self.hash, out);
        self.mix_hash(out);
    }

    /// Opens `sealed` (`N + 16` bytes) and mixes it into the hash.
    ///
    /// # Errors
    /// When the tag is wrong; the state is then unchanged.
    pub fn open<const N: usize>(&mut self, key: &AeadKey, sealed: &[u8]) -> Result<[u8; N], ForgedError> {
        let mut buffer = [0; 64];
        let buffer = buffer.get_mut(..N + TAG).ok_or(ForgedError)?;
        if sealed.len() != buffer.len() {
            return Err(ForgedError);
        }
        buffer.copy_from_slice(sealed);
        let plaintext = key.open(nonce_le(0), &self.hash, buffer)?;
        let plaintext = plaintext.first_chunk().copied().ok_or(ForgedError)?;
        self.mix_hash(sealed);
        Ok(plaintext)
    }

    /// The two transport keys, initiator's first: `KDF2(C, ε)`.
    #[must_use]
    pub fn split(&self) -> [[u8; 32]; 2] {
        kdf(&self.chain, &[])
    }
}

impl fmt::Debug for SymmetricState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SymmetricState([private])")
    }
}
