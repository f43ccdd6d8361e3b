//! Disco: the small sealed messages by which nodes find paths to each other.
//!
//! A packet is six bytes of magic, the sender's disco key, a nonce, and a NaCl box. [`Disco`] holds our key, seals and
//! opens, and keeps the shared key per peer, which costs a Diffie-Hellman to make. It knows no paths and no peers:
//! who may speak to us is the caller's to say, before anything is opened.

pub mod message;

use core::fmt;
use std::collections::BTreeMap;

use crate::{
    crypto::nacl::{BoxKey, NONCE, TAG},
    key::{DiscoPrivate, DiscoPublic},
    rng::Rng,
};

pub use message::{Message, ParseError, Ping, Pong, TxId};

/// First bytes of every disco packet: "TS" and a speech balloon.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];

/// Bytes before the box.
const HEADER: usize = MAGIC.len() + 32 + NONCE;

/// Our key, and the keys shared with others.
pub struct Disco {
    private: DiscoPrivate,
    public: DiscoPublic,
    shared: BTreeMap<DiscoPublic, BoxKey>,
    rng: Rng,
}

/// Why a packet was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No disco packet.
    #[error("not a disco packet")]
    NotDisco,
    /// Not sealed for us by the key it names. Normal after the peer or we restarted.
    #[error("the box could not be opened")]
    Sealed,
    /// Opened, and not understood.
    #[error(transparent)]
    Message(#[from] ParseError),
}

/// Who a packet says it is from; `None` when it is no disco packet. Opens nothing.
#[must_use]
pub fn sender(packet: &[u8]) -> Option<DiscoPublic> {
    let rest = packet.strip_prefix(&MAGIC)?;
    let (key, rest) = rest.split_first_chunk::<32>()?;
    (rest.len() >= NONCE + TAG).then(|| DiscoPublic::from_bytes(*key))
}

impl Disco {
    /// With our key.
    #[must_use]
    pub fn new(private: DiscoPrivate, rng: Rng) -> Self {
        Self { public: private.public(), private, shared: BTreeMap::new(), rng }
    }

    /// Our public key.
    #[must_use]
    pub fn public(&self) -> DiscoPublic {
        self.public
    }

    /// The packet that carries `message` to `peer`; `None` when its key is a low-order point or the message is not
    /// one that this node sends.
    #[must_use]
    pub fn seal(&mut self, peer: DiscoPublic, message: &Message) -> Option<Vec<u8>> {
        let plaintext = message.emit()?;
        let nonce = self.rng.bytes();
        let sealed = self.shared(peer)?.seal(&nonce, &plaintext);
        let mut packet = Vec::with_capacity(HEADER + sealed.len());
        packet.extend(MAGIC);
        packet.extend(self.public.as_bytes());
        packet.extend(nonce);
        packet.extend(sealed);
        Some(packet)
    }

    /// Opens a packet. The caller has looked at its [`sender`] and knows it.
    ///
    /// # Errors
    /// When it is not for us, or not understood.
    pub fn open(&mut self, packet: &[u8]) -> Result<(DiscoPublic, Message), OpenError> {
        let peer = sender(packet).ok_or(OpenError::NotDisco)?;
        let (nonce, sealed) = packet[MAGIC.len() + 32..].split_first_chunk().ok_or(OpenError::NotDisco)?;
        let plaintext = self.shared(peer).ok_or(OpenError::Sealed)?.open(nonce, sealed);
        let plaintext = plaintext.map_err(|_| OpenError::Sealed)?;
        Ok((peer, Message::parse(&plaintext)?))
    }

    /// Forgets the key shared with a peer that is gone.
    pub fn forget(&mut self, peer: &DiscoPublic) {
        self.shared.remove(peer);
    }

    fn shared(&mut self, peer: DiscoPublic) -> Option<&BoxKey> {
        if !self.shared.contains_key(&peer) {
            let key = BoxKey::new(&self.private.to_bytes(), peer.as_bytes())?;
            self.shared.insert(peer, key);
        }
        self.shared.get(&peer)
    }
}

impl fmt::Debug for Disco {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disco").field("public", &self.public).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    #[test]
    fn a_sealed_message_opens_at_its_receiver_alone() {
        let [mut alice, mut bob, mut eve] = [1, 2, 3].map(disco);
        let ping = Message::Ping(Ping { tx: TxId([1; 12]), node: None, padding_bytes: 0 });
        let packet = alice.seal(bob.public(), &ping).unwrap();
        assert_eq!(sender(&packet), Some(alice.public()));
        assert_eq!(bob.open(&packet), Ok((alice.public(), ping)));
        assert_eq!(eve.open(&packet), Err(OpenError::Sealed));
    }

    #[test]
    fn changed_and_short_packets_are_refused() {
        let [mut alice, mut bob] = [1, 2].map(disco);
        let pong = Message::Pong(Pong { tx: TxId([1; 12]), observed: "192.0.2.1:1".parse().unwrap() });
        let packet = alice.seal(bob.public(), &pong).unwrap();
        assert_eq!(packet.len(), 110);
        // RFC 7748 §5: the highest bit of a public key is not part of it. Another sender, though, to whoever compares keys.
        let unused = (MAGIC.len() + 31) * 8 + 7;
        for bit in (0..packet.len() * 8).filter(|bit| *bit != unused) {
            let mut changed = packet.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(bob.open(&changed).is_err());
        }
        for cut in 0..packet.len() {
            assert!(bob.open(&packet[..cut]).is_err());
        }
    }

    fn disco(number: u8) -> Disco {
        let seed = Seed::from_number(u64::from(number));
        Disco::new(DiscoPrivate::from_bytes([number; 32]), seed.stream("disco", 0))
    }
}
