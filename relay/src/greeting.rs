//! The boxes of the first frames: the client's, which proves that it holds its key, and the relay's answer.
//!
//! The protocol has no challenge, so a recorded first frame would let in whoever sends it again; stock relays rely on TLS
//! alone. This one remembers the nonces it has seen.

#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::collections::{BTreeSet, VecDeque};

use mesh_core::{
    crypto::nacl::{BoxKey, NONCE},
    derp::{Frame, frame},
    key::{NodePrivate, NodePublic},
    rng::Rng,
};

use crate::limits;

/// What a client says about itself. What is not of use here (whether it answers pings, what program it is, the key of a
/// mesh) is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClientInfo {
    /// Version of the protocol.
    pub version: u8,
}

/// What the relay answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ServerInfo {
    /// Version of the protocol.
    pub version: u8,
}

/// Why a first frame lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GreetingError {
    /// The box does not open, or holds something else.
    Malformed,
    /// It was seen before.
    Replayed,
}

/// The nonces of first frames, the oldest first.
#[derive(Debug, Default)]
pub struct Seen {
    nonces: BTreeSet<[u8; NONCE]>,
    order: VecDeque<[u8; NONCE]>,
}

impl Seen {
    fn note(&mut self, nonce: [u8; NONCE]) -> bool {
        if !self.nonces.insert(nonce) {
            return false;
        }
        self.order.push_back(nonce);
        if self.order.len() > limits::GREETINGS_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.nonces.remove(&oldest);
        }
        true
    }
}

/// Opens the box of a first frame and returns the key for answering.
///
/// # Errors
/// When it does not prove that whoever sends it holds `client`'s private key.
pub fn open(
    server: &NodePrivate,
    client: &NodePublic,
    sealed: &[u8],
    seen: &mut Seen,
) -> Result<(ClientInfo, BoxKey), GreetingError> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(GreetingError::Malformed)?;
    let key = BoxKey::new(&server.to_bytes(), client.as_bytes()).ok_or(GreetingError::Malformed)?;
    let json = key.open(nonce, sealed).map_err(|_| GreetingError::Malformed)?;
    let info: ClientInfo = serde_json::from_slice(&json).map_err(|_| GreetingError::Malformed)?;
    if info.version != frame::VERSION {
        return Err(GreetingError::Malformed);
    }
    // Only now: a forged frame must not use up a nonce.
    if seen.note(*nonce) { Ok((info, key)) } else { Err(GreetingError::Replayed) }
}

/// Appends the answer to `out`.
pub fn answer(key: &BoxKey, rng: &mut Rng, out: &mut Vec<u8>) {
    let info = serde_json::json!(ServerInfo { version: frame::VERSION }).to_string();
    let nonce: [u8; NONCE] = rng.bytes();
    let sealed = [&nonce[..], &key.seal(&nonce, info.as_bytes())].concat();
    Frame::ServerInfo { sealed: &sealed }.encode(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_opens_once() {
        let mut seen = Seen::default();
        let greeting = sealed(br#"{"version":2,"CanAckPings":true,"meshKey":"00"}"#);
        assert!(open(&server(), &client().public(), &greeting, &mut seen).is_ok());
        let again = open(&server(), &client().public(), &greeting, &mut seen).map(|_| ());
        assert_eq!(again, Err(GreetingError::Replayed));
    }

    #[test]
    fn whatever_is_not_right_is_refused() {
        let mut seen = Seen::default();
        let mut check = |key: &NodePublic, sealed: &[u8]| open(&server(), key, sealed, &mut seen).map(|_| ());
        let right = sealed(br#"{"version":2}"#);
        let other = NodePrivate::from_bytes([9; 32]).public();
        assert_eq!(check(&other, &right), Err(GreetingError::Malformed));
        assert_eq!(check(&NodePublic::from_bytes([0; 32]), &right), Err(GreetingError::Malformed));
        for cut in 0..right.len() {
            assert_eq!(check(&client().public(), &right[..cut]), Err(GreetingError::Malformed));
        }
        for json in [&b"{}"[..], b"", b"{\"version\":1}", b"[2", b"{\"version\":\"2\"}"] {
            assert_eq!(check(&client().public(), &sealed(json)), Err(GreetingError::Malformed));
        }
        assert_eq!(check(&client().public(), &right), Ok(()));
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut seen = Seen::default();
        for number in 0..=limits::GREETINGS_REMEMBERED as u64 {
            let mut nonce = [0; NONCE];
            nonce[..8].copy_from_slice(&number.to_be_bytes());
            assert!(seen.note(nonce));
        }
        assert_eq!(seen.nonces.len(), limits::GREETINGS_REMEMBERED);
    }

    fn server() -> NodePrivate {
        NodePrivate::from_bytes([1; 32])
    }

    fn client() -> NodePrivate {
        NodePrivate::from_bytes([2; 32])
    }

    fn sealed(json: &[u8]) -> Vec<u8> {
        let mut nonce = [7; NONCE];
        nonce[..8].copy_from_slice(&(json.len() as u64).to_be_bytes());
        let key = BoxKey::new(&client().to_bytes(), server().public().as_bytes()).unwrap();
        [&nonce[..], &key.seal(&nonce, json)].concat()
    }
}
