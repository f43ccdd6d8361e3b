//! The messages of a map stream: lengths, compression, JSON.

use std::io::{self, Read};

use bytes::{Buf, Bytes, BytesMut};

use mesh_core::{
    control::{
        netmap::{self, DecodeError},
        types::MapResponse,
    },
    limits,
};

/// Compressed bytes of one message at most. At the bound: the stream is given up.
const COMPRESSED_BYTES: usize = limits::MAP_MESSAGE_BYTES;
/// The largest window of a compressed message, as a power of two: what it takes to decompress one is bounded by it.
/// 8 MiB, as RFC 8878 §3.1.1.1.2 recommends.
const WINDOW_LOG: u32 = 23;

/// Why a map stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum MapError {
    /// Longer than it may be.
    #[error("a map message of {0} bytes is longer than any can be")]
    TooLong(usize),
    /// Not compressed as was agreed.
    #[error("a map message cannot be decompressed: {0}")]
    Zstd(io::Error),
    /// No map.
    #[error("a map message cannot be read: {0}")]
    Json(#[from] DecodeError),
}

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// As they are.
    None,
    /// Each by itself.
    Zstd,
}

/// Cuts a stream into messages.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    buffer: BytesMut,
}

impl MapReader {
    /// Takes the next bytes.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message that is whole, as it was written.
    ///
    /// # Errors
    /// When it is longer than it may be. That is final.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, MapError> {
        let Some(length) = self.buffer.first_chunk() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > COMPRESSED_BYTES {
            return Err(MapError::TooLong(length));
        }
        if self.buffer.len() - size_of::<u32>() < length {
            return Ok(None);
        }
        self.buffer.advance(size_of::<u32>());
        let message = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // An idle stream holds no room for its first message.
            self.buffer = BytesMut::new();
        }
        Ok(Some(message))
    }

    /// Whether a message has begun whose end has not come.
    pub(super) fn is_within_message(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// Reads one message.
///
/// # Errors
/// When it cannot be read, or is longer than it may be.
pub(super) fn read(message: &[u8], compression: Compression) -> Result<MapResponse, MapError> {
    match compression {
        Compression::None => Ok(netmap::decode(message, None)?),
        Compression::Zstd => Ok(netmap::decode(&decompress(message)?, None)?),
    }
}

fn decompress(message: &[u8]) -> Result<Vec<u8>, MapError> {
    let mut decoder = zstd::Decoder::with_buffer(message).map_err(MapError::Zstd)?;
    decoder.window_log_max(WINDOW_LOG).map_err(MapError::Zstd)?;
    let mut text = Vec::new();
    // One byte more than there may be tells that there is more.
    decoder.take(limits::MAP_MESSAGE_BYTES as u64 + 1).read_to_end(&mut text).map_err(MapError::Zstd)?;
    if text.len() > limits::MAP_MESSAGE_BYTES { Err(MapError::TooLong(text.len())) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_whatever_pieces() {
        let messages: [&[u8]; 3] = [b"first", b"", b"third"];
        let stream: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
        for size in 1..=stream.len() {
            let mut reader = MapReader::default();
            let mut heard = Vec::new();
            for piece in stream.chunks(size) {
                reader.receive(piece);
                while let Some(message) = reader.next().unwrap() {
                    heard.push(message);
                }
            }
            assert_eq!(heard, messages);
            assert!(!reader.is_within_message());
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_comes() {
        let mut reader = MapReader::default();
        reader.receive(&u32::MAX.to_le_bytes());
        assert!(matches!(reader.next(), Err(MapError::TooLong(_))));
    }

    #[test]
    fn both_forms_are_read_and_a_bomb_is_not() {
        let text = br#"{"KeepAlive":true}"#;
        let packed = zstd::encode_all(&text[..], 1).unwrap();
        assert!(read(text, Compression::None).unwrap().keep_alive);
        assert!(read(&packed, Compression::Zstd).unwrap().keep_alive);
        let bomb = zstd::encode_all(io::repeat(b' ').take(limits::MAP_MESSAGE_BYTES as u64 + 1), 1).unwrap();
        assert!(bomb.len() < 1 << 20);
        assert!(matches!(read(&bomb, Compression::Zstd), Err(MapError::TooLong(_))));
        assert!(matches!(read(text, Compression::Zstd), Err(MapError::Zstd(_))));
        assert!(matches!(read(&packed, Compression::None), Err(MapError::Json(_))));
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [u32::try_from(message.len()).unwrap().to_le_bytes().as_slice(), message].concat()
    }
}
