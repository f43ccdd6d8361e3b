//! Curve25519 keys by what they are for, so that one kind cannot be passed as another.
//!
//! * node key: who a node is to its peers; the WireGuard key
//! * machine key: who a host is to the coordination server
//! * disco key: who a running agent is to its peers' path discovery
//!
//! Private keys are wiped on drop and never print. Public keys compare in order of their bytes.

mod text;

use core::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{crypto::x25519, rng::Rng};

pub use text::ParseKeyError;

macro_rules! key_pair {
    ($private:ident, $public:ident, $what:literal) => {
        #[doc = concat!("The private half of a ", $what, " key: 32 clamped bytes.")]
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $private([u8; 32]);

        impl $private {
            /// The key of these bytes, clamped as RFC 7748 §5 says.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(x25519::clamp(bytes))
            }

            /// A fresh key.
            #[must_use]
            pub fn generate(rng: &mut Rng) -> Self {
                Self::from_bytes(rng.bytes())
            }

            /// The bytes, for storing them. They are a secret.
            #[must_use]
            pub fn to_bytes(&self) -> [u8; 32] {
                self.0
            }

            /// The public half.
            #[must_use]
            pub fn public(&self) -> $public {
                $public(x25519::public(&self.0))
            }
        }

        impl PartialEq for $private {
            fn eq(&self, other: &Self) -> bool {
                self.0.ct_eq(&other.0).into()
            }
        }

        impl Eq for $private {}

        impl fmt::Debug for $private {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($private), "([private])"))
            }
        }

        #[doc = concat!("The public half of a ", $what, " key: 32 bytes. All zeros, the default, is how the control protocol writes that there is none.")]
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $public([u8; 32]);

        impl $public {
            /// Whether it is all zeros and so no key.
            #[must_use]
            pub fn is_zero(&self) -> bool {
                *self == Self::default()
            }

            /// The key of these bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }
    };
}

key_pair!(NodePrivate, NodePublic, "node");
key_pair!(MachinePrivate, MachinePublic, "machine");
key_pair!(DiscoPrivate, DiscoPublic, "disco");

impl NodePrivate {
    /// X25519 with a peer's key; `None` for a low-order point.
    #[must_use]
    pub(crate) fn diffie_hellman(&self, peer: &NodePublic) -> Option<x25519::SharedSecret> {
        x25519::diffie_hellman(&self.0, &peer.0)
    }
}

impl MachinePrivate {
    /// X25519 with the other machine's key; `None` for a low-order point.
    #[must_use]
    pub(crate) fn diffie_hellman(&self, other: &MachinePublic) -> Option<x25519::SharedSecret> {
        x25519::diffie_hellman(&self.0, &other.0)
    }
}

/// A WireGuard pre-shared key (paper §5.2). All zeros is the same as none.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

impl PresharedKey {
    /// The key of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for PresharedKey {}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey([private])")
    }
}
