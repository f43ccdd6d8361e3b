//! The handshake `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s` (WireGuard paper §5.4.2 and §5.4.3), as states that
//! are consumed: an `Initiator` waits for a response; a responder is done with one call.

use core::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    crypto::{noise::SymmetricState, x25519::SharedSecret},
    key::{NodePrivate, NodePublic, PresharedKey},
    rng::Rng,
    time::WallTime,
};

use super::{
    identity::{Identity, MacKeys, OpenedInitiation},
    message::{Initiation, Response},
};

/// Noise protocol name.
pub(super) const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
/// Noise prologue.
pub(super) const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// What never changes about a peer, worked out once.
pub struct Remote {
    /// Its static public key.
    pub key: NodePublic,
    /// Keys for the MACs of messages to it.
    pub mac_keys: MacKeys,
    pub(super) static_static: SharedSecret,
    pub(super) preshared_key: PresharedKey,
}

impl Remote {
    /// A peer; `None` when its key is a low-order point, with which no handshake is possible.
    #[must_use]
    pub fn new(local: &Identity, key: NodePublic, preshared_key: PresharedKey) -> Option<Self> {
        let static_static = local.diffie_hellman(&key)?;
        Some(Self { mac_keys: MacKeys::new(&key), key, static_static, preshared_key })
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({:?})", self.key)
    }
}

/// The transport keys of a session.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct TransportKeys {
    pub(super) send: [u8; 32],
    pub(super) receive: [u8; 32],
}

/// A TAI64N stamp (WireGuard paper §5.1): big-endian seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tai64n([u8; 12]);

impl Tai64n {
    /// Stamps are this coarse, so that they do not tell when exactly a handshake was made: 2^24 ns.
    const GRANULE_NANOS: u64 = 1 << 24;
    /// TAI64's label of 1970 and the ten seconds by which TAI was ahead of UTC then.
    const UNIX_EPOCH: u64 = 0x4000_0000_0000_000a;

    /// The stamp for `wall`, and in any case later than `last`, even when the wall clock was stepped back.
    #[must_use]
    pub fn after(last: Option<Self>, wall: WallTime) -> Self {
        let next = Self::from_nanos(wall.as_unix_nanos());
        match last {
            Some(last) if next <= last => Self::from_nanos(last.nanos().saturating_add(Self::GRANULE_NANOS)),
            Some(_) | None => next,
        }
    }

    fn from_nanos(nanos: u64) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&(Self::UNIX_EPOCH + nanos / 1_000_000_000).to_be_bytes());
        // Whitened within the second, as wireguard-go does it.
        let within = (nanos % 1_000_000_000) as u32 & !(Self::GRANULE_NANOS as u32 - 1);
        bytes[8..].copy_from_slice(&within.to_be_bytes());
        Self(bytes)
    }

    fn nanos(self) -> u64 {
        let [s0, s1, s2, s3, s4, s5, s6, s7, nanos @ ..] = self.0;
        let secs = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]).saturating_sub(Self::UNIX_EPOCH);
        secs.saturating_mul(1_000_000_000).saturating_add(u64::from(u32::from_be_bytes(nanos)))
    }
}

/// Waits for the response to an initiation.
pub(super) struct Initiator {
    ephemeral: NodePrivate,
    state: SymmetricState,
}

impl Initiator {
    /// Begins a handshake. The message is without its MACs.
    ///
    /// `None` when our ephemeral key and the peer's static key have no shared secret, which needs a key that
    /// [`Remote::new`] refuses.
    pub(super) fn start(
        local: &Identity,
        remote: &Remote,
        sender: u32,
        timestamp: Tai64n,
        rng: &mut Rng,
    ) -> Option<(Self, Initiation)> {
        let mut state = SymmetricState::new(CONSTRUCTION, IDENTIFIER);
        state.mix_hash(remote.key.as_bytes());

        let ephemeral = NodePrivate::generate(rng);
        let mut message = Initiation {
            sender,
            ephemeral: *ephemeral.public().as_bytes(),
            encrypted_static: [0; 48],
            encrypted_timestamp: [0; 28],
        };
        state.mix_chain(&message.ephemeral);
        state.mix_hash(&message.ephemeral);
        let key = state.mix_key(&ephemeral.diffie_hellman(&remote.key)?);
        state.seal(&key, local.public().as_bytes(), &mut message.encrypted_static);
        let key = state.mix_key(&remote.static_static);
        state.seal(&key, &timestamp.0, &mut message.encrypted_timestamp);
        Some((Self { ephemeral, state }, message))
    }

    /// Finishes the handshake; `None` when the response is not by the peer. Then nothing has changed: the right
    /// response may still come.
    pub(super) fn finish(&self, local: &Identity, remote: &Remote, message: &Response) -> Option<TransportKeys> {
        let mut state = self.state.clone();
        let ephemeral = NodePublic::from_bytes(message.ephemeral);
        state.mix_chain(&message.ephemeral);
        state.mix_hash(&message.ephemeral);
        state.mix_chain(self.ephemeral.diffie_hellman(&ephemeral)?.as_bytes());
        state.mix_chain(local.diffie_hellman(&ephemeral)?.as_bytes());
        let key = state.mix_psk(remote.preshared_key.as_bytes());
        let [] = state.open(&key, &message.encrypted_nothing).ok()?;
        let [send, receive] = state.split();
        Some(TransportKeys { send, receive })
    }
}

/// An initiation that the peer itself made: its timestamp could be opened.
pub(super) struct VerifiedInitiation {
    sender: u32,
    ephemeral: NodePublic,
    state: SymmetricState,
    pub(super) timestamp: Tai64n,
}

impl OpenedInitiation {
    /// Opens the timestamp; `None` when the sender does not hold the key that it named.
    pub(super) fn verify(self, remote: &Remote) -> Option<VerifiedInitiation> {
        let mut state = self.state;
        let key = state.mix_key(&remote.static_static);
        let timestamp = state.open(&key, &self.encrypted_timestamp).ok()?;
        let ephemeral = NodePublic::from_bytes(self.ephemeral);
        Some(VerifiedInitiation { sender: self.sender, ephemeral, state, timestamp: Tai64n(timestamp) })
    }
}

impl VerifiedInitiation {
    /// The response, without its MACs, and the session's keys. `None` when a key is a low-order point.
    pub(super) fn respond(mut self, remote: &Remote, sender: u32, rng: &mut Rng) -> Option<(Response, TransportKeys)> {
        let ephemeral = NodePrivate::generate(rng);
        let mut message = Response {
            sender,
            receiver: self.sender,
            ephemeral: *ephemeral.public().as_bytes(),
            encrypted_nothing: [0; 16],
        };
        self.state.mix_chain(&message.ephemeral);
        self.state.mix_hash(&message.ephemeral);
        self.state.mix_chain(ephemeral.diffie_hellman(&self.ephemeral)?.as_bytes());
        self.state.mix_chain(ephemeral.diffie_hellman(&remote.key)?.as_bytes());
        let key = self.state.mix_psk(remote.preshared_key.as_bytes());
        self.state.seal(&key, &[], &mut message.encrypted_nothing);
        let [receive, send] = self.state.split();
        Some((message, TransportKeys { send, receive }))
    }

    /// The index by which the peer knows the session.
    pub(super) fn receiver(&self) -> u32 {
        self.sender
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    #[test]
    fn both_ends_get_the_same_keys() {
        let (alice, bob) = identities();
        let psk = PresharedKey::from_bytes([9; 32]);
        let (keys_a, keys_b) = handshake(&alice, &bob, &psk, &psk).unwrap();
        assert_eq!(keys_a.send, keys_b.receive);
        assert_eq!(keys_a.receive, keys_b.send);
        assert_ne!(keys_a.send, keys_a.receive);
    }

    #[test]
    fn another_preshared_key_ends_it() {
        let (alice, bob) = identities();
        let (psk_a, psk_b) = (PresharedKey::from_bytes([9; 32]), PresharedKey::default());
        assert!(handshake(&alice, &bob, &psk_a, &psk_b).is_none());
    }

    #[test]
    fn stamps_always_rise() {
        let wall = WallTime::from_unix_secs(1_700_000_000);
        let first = Tai64n::after(None, wall);
        let second = Tai64n::after(Some(first), wall);
        let third = Tai64n::after(Some(second), WallTime::from_unix_secs(5));
        assert!(first < second && second < third);
        assert_eq!(first.0[..8], (0x4000_0000_0000_000au64 + 1_700_000_000).to_be_bytes());
        assert_eq!(second.0[9..], [0; 3]);
    }

    #[test]
    fn low_order_keys_are_refused() {
        let (alice, _) = identities();
        assert!(Remote::new(&alice, NodePublic::from_bytes([0; 32]), PresharedKey::default()).is_none());
    }

    fn identities() -> (Identity, Identity) {
        let identity = |byte| Identity::new(NodePrivate::from_bytes([byte; 32]));
        (identity(1), identity(2))
    }

    fn handshake(
        alice: &Identity,
        bob: &Identity,
        psk_a: &PresharedKey,
        psk_b: &PresharedKey,
    ) -> Option<(TransportKeys, TransportKeys)> {
        let mut rng = Seed::from_number(1).stream("test", 0);
        let to_bob = Remote::new(alice, bob.public(), psk_a.clone())?;
        let to_alice = Remote::new(bob, alice.public(), psk_b.clone())?;
        let stamp = Tai64n::after(None, WallTime::UNIX_EPOCH);
        let (initiator, initiation) = Initiator::start(alice, &to_bob, 1, stamp, &mut rng)?;
        let opened = bob.open_initiation(&initiation)?;
        assert_eq!(opened.peer, alice.public());
        let (response, keys_b) = opened.verify(&to_alice)?.respond(&to_alice, 2, &mut rng)?;
        Some((initiator.finish(alice, &to_bob, &response)?, keys_b))
    }
}
