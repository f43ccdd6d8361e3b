//! From the bytes of a map message to a [`MapResponse`].

use core::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, IntoDeserializer, MapAccess, Visitor,
        value::{MapAccessDeserializer, StringDeserializer},
    },
};
use serde_json::value::RawValue;

use super::Interner;
use crate::{control::types::MapResponse, limits};

/// Why a map message cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than [`limits::MAP_MESSAGE_BYTES`].
    #[error("{0} bytes are more than a map message may have ({max})", max = limits::MAP_MESSAGE_BYTES)]
    TooLong(usize),
    /// No JSON, or a value of another kind than it should be.
    #[error("line {line}, column {column}: {what}")]
    Malformed {
        /// From 1.
        line: usize,
        /// In bytes, from 1; 0 at the start of a line.
        column: usize,
        /// What is wrong, in words.
        what: String,
    },
}

/// Reads one map message. With an interner, peers that are written alike share one [`Arc`](std::sync::Arc).
///
/// # Errors
/// When it is too long or malformed; nothing of it is used then.
pub fn decode(text: &[u8], interner: Option<&mut Interner>) -> Result<MapResponse, DecodeError> {
    if text.len() > limits::MAP_MESSAGE_BYTES {
        return Err(DecodeError::TooLong(text.len()));
    }
    let mut bad_peer = None;
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let message = Message { interner, bad_peer: &mut bad_peer };
    let read = deserializer.deserialize_map(message).and_then(|response| deserializer.end().map(|()| response));
    read.map_err(|error| match bad_peer {
        Some(BadPeer { at, error }) => malformed(text, at - text.as_ptr() as usize, &error),
        None => malformed(text, 0, &error),
    })
}

/// An error whose position counts from byte `start` of the text.
fn malformed(text: &[u8], start: usize, error: &serde_json::Error) -> DecodeError {
    let before = text.get(..start).unwrap_or_default();
    let lines_before = before.iter().filter(|byte| **byte == b'\n').count();
    let column_before = before.iter().rev().take_while(|byte| **byte != b'\n').count();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let what = error.to_string();
    DecodeError::Malformed {
        line: lines_before + error.line(),
        column: error.column() + if error.line() == 1 { column_before } else { 0 },
        what: what.strip_suffix(&position).unwrap_or(&what).to_owned(),
    }
}

/// Reads a map message; takes its peers from the interner when there is one.
struct Message<'i> {
    interner: Option<&'i mut Interner>,
    bad_peer: &'i mut Option<BadPeer>,
}

/// Where in memory a peer stands that cannot be read, and why not.
struct BadPeer {
    at: usize,
    error: serde_json::Error,
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = MapResponse;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map message")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MapResponse, A::Error> {
        let Some(interner) = self.interner else {
            return MapResponse::deserialize(MapAccessDeserializer::new(map));
        };
        let (mut peers, mut peers_changed) = (Vec::new(), Vec::new());
        let others = WithoutPeers { map, peers: &mut peers, peers_changed: &mut peers_changed };
        let mut response = MapResponse::deserialize(MapAccessDeserializer::new(others))?;
        for (fragments, list) in [(peers, &mut response.peers), (peers_changed, &mut response.peers_changed)] {
            for fragment in fragments {
                match interner.read(fragment) {
                    Ok(peer) => list.push(peer),
                    Err(error) => {
                        let what = serde::de::Error::custom(&error);
                        *self.bad_peer = Some(BadPeer { at: fragment.get().as_ptr() as usize, error });
                        return Err(what);
                    }
                }
            }
        }
        Ok(response)
    }
}

/// The members of a map message without its lists of peers, which are put aside.
struct WithoutPeers<'de, 'l, A> {
    map: A,
    peers: &'l mut Vec<&'de RawValue>,
    peers_changed: &'l mut Vec<&'de RawValue>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for WithoutPeers<'de, '_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(name) = self.map.next_key::<String>()? {
            let list = match name.as_str() {
                "Peers" => &mut *self.peers,
                "PeersChanged" => &mut *self.peers_changed,
                _ => {
                    let name: StringDeserializer<A::Error> = name.into_deserializer();
                    return seed.deserialize(name).map(Some);
                }
            };
            *list = self.map.next_value::<Option<Vec<&'de RawValue>>>()?.unwrap_or_default();
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_where_with_and_without_an_interner() {
        let text = b"{\n  \"Domain\": \"x\",\n  \"Peers\": [\n    {\"ID\": 1},\n    {\"ID\": \"two\"}\n  ]\n}";
        let plain = decode(text, None).unwrap_err();
        let shared = decode(text, Some(&mut Interner::new())).unwrap_err();
        assert_eq!(plain.to_string(), "line 5, column 16: invalid type: string \"two\", expected i64");
        assert_eq!(shared, plain);
        for text in ["", "{", "[]", "{\"Peers\":7}", "{\"Peers\":[]} x", "null"] {
            assert!(decode(text.as_bytes(), None).is_err(), "{text}");
            assert!(decode(text.as_bytes(), Some(&mut Interner::new())).is_err(), "{text}");
        }
    }

    #[test]
    fn an_interner_changes_nothing_in_what_is_read() {
        let text = br#"{"Node":{"ID":1},"Peers":[{"ID":2},{"ID":3}],"PeersChanged":null,"Later":[{}],"Domain":"x"}"#;
        assert_eq!(decode(text, Some(&mut Interner::new())), decode(text, None));
    }

    #[test]
    fn a_message_past_the_bound_is_refused() {
        let text = vec![b' '; limits::MAP_MESSAGE_BYTES + 1];
        assert_eq!(decode(&text, None), Err(DecodeError::TooLong(text.len())));
    }
}
