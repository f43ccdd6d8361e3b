//! Static keys, the two MACs of handshake messages, and the opening of initiations.

use core::fmt;

use subtle::ConstantTimeEq;

use crate::{
    crypto::{
        hash::{blake2s, mac},
        noise::SymmetricState,
        x25519::SharedSecret,
    },
    key::{NodePrivate, NodePublic},
};

use super::{
    handshake::{CONSTRUCTION, IDENTIFIER},
    message::{Initiation, split_macs},
};

/// WireGuard paper §5.4.4.
const LABEL_MAC1: &[u8] = b"mac1----";
/// WireGuard paper §5.4.7.
const LABEL_COOKIE: &[u8] = b"cookie--";

/// What both ends derive from a receiver's static public key.
#[derive(Clone, Debug)]
pub struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    /// The keys for messages to `receiver`.
    #[must_use]
    pub fn new(receiver: &NodePublic) -> Self {
        Self {
            mac1: blake2s(&[LABEL_MAC1, receiver.as_bytes()]),
            cookie: blake2s(&[LABEL_COOKIE, receiver.as_bytes()]),
        }
    }

    /// The first MAC of a message.
    #[must_use]
    pub fn mac1(&self, message: &[u8]) -> [u8; 16] {
        mac(&self.mac1, message)
    }

    /// Whether the first MAC of a handshake message was made with these: whoever sent it means their receiver.
    #[must_use]
    pub fn has_mac1(&self, message: &[u8]) -> bool {
        split_macs(message).is_some_and(|(covered, _, macs)| self.mac1(covered).ct_eq(&macs.mac1).into())
    }

    /// The key under which the receiver seals cookies.
    #[must_use]
    pub fn cookie(&self) -> &[u8; 32] {
        &self.cookie
    }
}

/// Who we are, as handshakes need it.
pub struct Identity {
    private: NodePrivate,
    public: NodePublic,
    keys: MacKeys,
    /// The state before an initiation to us: name, identifier and our key are mixed in already.
    initial: SymmetricState,
}

impl Identity {
    /// The identity of a key.
    #[must_use]
    pub fn new(private: NodePrivate) -> Self {
        let public = private.public();
        let mut initial = SymmetricState::new(CONSTRUCTION, IDENTIFIER);
        initial.mix_hash(public.as_bytes());
        Self { keys: MacKeys::new(&public), public, private, initial }
    }

    /// Our public key.
    #[must_use]
    pub fn public(&self) -> NodePublic {
        self.public
    }

    /// Keys for the MACs of messages to us.
    #[must_use]
    pub fn mac_keys(&self) -> &MacKeys {
        &self.keys
    }

    /// Whether the sender of a handshake message knew our public key.
    #[must_use]
    pub fn has_mac1(&self, message: &[u8]) -> bool {
        self.keys.has_mac1(message)
    }

    /// Opens an initiation as far as its sender's key. One Diffie-Hellman; no state changes.
    #[must_use]
    pub fn open_initiation(&self, message: &Initiation) -> Option<OpenedInitiation> {
        let mut state = self.initial.clone();
        state.mix_chain(&message.ephemeral);
        state.mix_hash(&message.ephemeral);
        let shared = self.diffie_hellman(&NodePublic::from_bytes(message.ephemeral))?;
        let key = state.mix_key(&shared);
        let peer = state.open(&key, &message.encrypted_static).ok()?;
        Some(OpenedInitiation {
            peer: NodePublic::from_bytes(peer),
            sender: message.sender,
            ephemeral: message.ephemeral,
            encrypted_timestamp: message.encrypted_timestamp,
            state,
        })
    }

    /// X25519 with our static key.
    pub(super) fn diffie_hellman(&self, public: &NodePublic) -> Option<SharedSecret> {
        self.private.diffie_hellman(public)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.public)
    }
}

/// An initiation opened as far as its sender's key. That the sender holds that key, and that the message is new, is
/// for [`Tunnel::handle_initiation`](super::Tunnel::handle_initiation) to find out.
#[derive(Debug)]
pub struct OpenedInitiation {
    /// Who it says it is.
    pub peer: NodePublic,
    pub(super) sender: u32,
    pub(super) ephemeral: [u8; 32],
    pub(super) encrypted_timestamp: [u8; 28],
    pub(super) state: SymmetricState,
}
