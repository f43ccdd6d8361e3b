//! BLAKE2s: plain, keyed, as HMAC, and the Noise key derivation over it.

use blake2::{
    Blake2s256, Blake2sMac,
    digest::{Digest, KeyInit, Mac, consts::U16},
};
use zeroize::Zeroize;

/// BLAKE2s-256 over the concatenation of `parts`.
#[must_use]
pub fn blake2s(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Keyed BLAKE2s with 16 bytes of output: the paper's MAC. `key` has 16 or 32 bytes.
#[must_use]
pub fn mac(key: &[u8], message: &[u8]) -> [u8; 16] {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("BLAKE2s takes keys of up to 32 bytes");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// HMAC (RFC 2104) with BLAKE2s-256 over the concatenation of `parts`.
#[must_use]
pub fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut block = [0; BLOCK];
    block[..32].copy_from_slice(key);

    let mut inner = Blake2s256::new();
    inner.update(block.map(|b| b ^ 0x36));
    for part in parts {
        inner.update(part);
    }
    let mut outer = Blake2s256::new();
    outer.update(block.map(|b| b ^ 0x5c));
    outer.update(inner.finalize());
    block.zeroize();
    outer.finalize().into()
}

/// The Noise key derivation: `N` outputs of 32 bytes from a chaining key and an input.
#[must_use]
pub fn kdf<const N: usize>(chain: &[u8; 32], input: &[u8]) -> [[u8; 32]; N] {
    let mut secret = hmac(chain, &[input]);
    let mut outputs = [[0; 32]; N];
    let mut previous: &[u8] = &[];
    for (number, output) in (1u8..).zip(&mut outputs) {
        *output = hmac(&secret, &[previous, &[number]]);
        previous = output;
    }
    secret.zeroize();
    outputs
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn blake2s_of_rfc_7693() {
        // RFC 7693 appendix B.
        let expected = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982";
        assert_eq!(HEXLOWER.encode(&blake2s(&[b"a", b"bc"])), expected);
    }

    #[test]
    fn kdf_is_a_chain_of_hmacs() {
        let chain = [1; 32];
        let secret = hmac(&chain, &[b"input"]);
        let first = hmac(&secret, &[&[1]]);
        let second = hmac(&secret, &[&first, &[2]]);
        assert_eq!(kdf::<2>(&chain, b"input"), [first, second]);
    }
}
