//! The messages of a map stream: compression, JSON.

use std::io::{self, Read};

use mesh_core::{
    control::{
        codec::FrameError,
        netmap::{self, DecodeError},
        types::MapResponse,
    },
    limits,
};

/// The largest window of a compressed message, as a power of two: what it takes to decompress one is bounded by it.
/// 8 MiB, as RFC 8878 §3.1.1.1.2 recommends.
const WINDOW_LOG: u32 = 23;

/// Why a map stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum MapError {
    /// Empty, or longer than it may be, compressed or not.
    #[error(transparent)]
    Length(#[from] FrameError),
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
    if text.len() > limits::MAP_MESSAGE_BYTES { Err(FrameError(text.len()).into()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_a_bomb_is_not() {
        let text = br#"{"KeepAlive":true}"#;
        let packed = zstd::encode_all(&text[..], 1).unwrap();
        assert!(read(text, Compression::None).unwrap().keep_alive);
        assert!(read(&packed, Compression::Zstd).unwrap().keep_alive);
        let bomb = zstd::encode_all(io::repeat(b' ').take(limits::MAP_MESSAGE_BYTES as u64 + 1), 1).unwrap();
        assert!(bomb.len() < 1 << 20);
        assert!(matches!(read(&bomb, Compression::Zstd), Err(MapError::Length(_))));
        assert!(matches!(read(text, Compression::Zstd), Err(MapError::Zstd(_))));
        assert!(matches!(read(&packed, Compression::None), Err(MapError::Json(_))));
    }
}
