//! The only place that names crypto crates. Thin: each function says what it is in the field's terms.

pub mod aead;
pub mod hash;
pub mod nacl;
pub mod noise;
pub mod x25519;
