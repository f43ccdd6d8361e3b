//! Framing of the map stream: a length of four bytes, little-endian, and a message of so many bytes, compressed if the
//! node asked for that. `control-protocol.md` §5.3.
//!
//! ```
//! use mesh_core::control::codec::{MapReader, frame};
//!
//! let mut reader = MapReader::new();
//! let bytes = [frame(b"{}").unwrap(), frame(b"{\"KeepAlive\":true}").unwrap()].concat();
//! reader.receive(&bytes[..7])?;
//! assert_eq!(reader.pop().as_deref(), Some(&b"{}"[..]));
//! assert_eq!(reader.pop(), None);
//! reader.receive(&bytes[7..])?;
//! assert_eq!(reader.pop().map(|message| message.len()), Some(18));
//! # Ok::<(), mesh_core::control::codec::FrameError>(())
//! ```
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::collections::VecDeque;

use crate::limits;

/// Bytes of a length.
const HEADER: usize = 4;

/// Why a map stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a map message of {0} bytes; there may be 1 to {max}", max = limits::MAP_MESSAGE_BYTES)]
pub struct FrameError(pub usize);

/// Takes messages off a map stream, in whatever pieces it arrives. They still are compressed.
#[derive(Debug, Default)]
pub struct MapReader {
    /// A message, or the length of one, that has begun.
    partial: Vec<u8>,
    messages: VecDeque<Vec<u8>>,
    ended: Option<FrameError>,
}

impl MapReader {
    /// Nothing has come yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes. Room is made for what has come, not for what a length says.
    ///
    /// # Errors
    /// When a length is 0 or above [`limits::MAP_MESSAGE_BYTES`]. That is final; messages before it can be had.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        if let Some(ended) = self.ended {
            return Err(ended);
        }
        loop {
            let wanted = match self.partial.first_chunk::<HEADER>() {
                None => HEADER,
                Some(length) => match usize::try_from(u32::from_le_bytes(*length)) {
                    Ok(length @ 1..=limits::MAP_MESSAGE_BYTES) => HEADER + length,
                    other => {
                        let ended = FrameError(other.unwrap_or(usize::MAX));
                        self.ended = Some(ended);
                        return Err(ended);
                    }
                },
            };
            if self.partial.len() >= HEADER && self.partial.len() == wanted {
                self.messages.push_back(self.partial.split_off(HEADER));
                self.partial.clear();
                continue;
            }
            if bytes.is_empty() {
                return Ok(());
            }
            let (now, later) = bytes.split_at_checked(wanted - self.partial.len()).unwrap_or((bytes, &[]));
            self.partial.extend_from_slice(now);
            bytes = later;
        }
    }

    /// The next message that is whole.
    #[must_use]
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.messages.pop_front()
    }

    /// Whether the stream would end within a message.
    #[must_use]
    pub fn is_within_message(&self) -> bool {
        !self.partial.is_empty()
    }
}

/// A message as it goes into the stream.
///
/// # Errors
/// When it is empty or longer than [`limits::MAP_MESSAGE_BYTES`].
pub fn frame(message: &[u8]) -> Result<Vec<u8>, FrameError> {
    match u32::try_from(message.len()) {
        Ok(length) if (1..=limits::MAP_MESSAGE_BYTES).contains(&message.len()) => {
            Ok([&length.to_le_bytes(), message].concat())
        }
        Ok(_) | Err(_) => Err(FrameError(message.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_may_arrive_byte_by_byte() {
        let bytes = [frame(b"one").unwrap(), frame(b"three").unwrap()].concat();
        let mut reader = MapReader::new();
        for byte in bytes {
            reader.receive(&[byte]).unwrap();
        }
        assert!(!reader.is_within_message());
        assert_eq!([reader.pop(), reader.pop(), reader.pop()], [Some(b"one".to_vec()), Some(b"three".to_vec()), None]);
    }

    #[test]
    fn a_wrong_length_is_final_and_takes_no_room() {
        for length in [0u32, 64 << 20 | 1, u32::MAX] {
            let mut reader = MapReader::new();
            reader.receive(&frame(b"before").unwrap()).unwrap();
            let error = FrameError(length as usize);
            assert_eq!(reader.receive(&length.to_le_bytes()), Err(error));
            assert_eq!(reader.receive(&frame(b"after").unwrap()), Err(error));
            assert_eq!(reader.pop(), Some(b"before".to_vec()));
        }
        assert_eq!(frame(b""), Err(FrameError(0)));
    }
}
