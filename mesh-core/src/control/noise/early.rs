//! What a server may say before HTTP/2 begins.

use serde::{Deserialize, Serialize};

use super::NoiseError;

/// The bytes that an early payload begins with, chosen so that no HTTP/2 frame does.
const MAGIC: [u8; 5] = [0xff, 0xff, 0xff, b'T', b'S'];

/// Magic and length, the size of an HTTP/2 frame header.
const HEADER: usize = 9;

/// Bytes of JSON at most. Ours are about 100; stock nodes take 10 MiB. At the bound: the connection is refused.
const MAX_BYTES: usize = 64 << 10;

/// The early payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EarlyNoise {
    /// A key to show possession of the node key with, `chalpub:` and 64 hex digits. Nobody asks for that today.
    pub node_key_challenge: String,
}

impl EarlyNoise {
    /// The bytes, to be sealed before all others.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let length = u32::try_from(json.len()).unwrap_or_default().to_be_bytes();
        [MAGIC.as_slice(), &length, &json].concat()
    }
}

/// What the first bytes of the server are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Early {
    /// HTTP/2 began at once.
    Absent,
    /// There was one.
    Present(EarlyNoise),
}

/// Takes the early payload off the beginning of what the server says, in whatever pieces it arrives.
#[derive(Debug, Default)]
pub struct EarlyReader {
    buffer: Vec<u8>,
}

impl EarlyReader {
    /// Nothing has come yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next plaintext. `None` while it cannot be said; then what there was, and the bytes after it, which are
    /// HTTP/2. The reader is not to be used after that.
    ///
    /// # Errors
    /// When it is too long or no JSON.
    pub fn receive(&mut self, plaintext: &[u8]) -> Result<Option<(Early, Vec<u8>)>, NoiseError> {
        self.buffer.extend_from_slice(plaintext);
        let seen = self.buffer.iter().zip(&MAGIC);
        if seen.clone().any(|(byte, magic)| byte != magic) {
            return Ok(Some((Early::Absent, core::mem::take(&mut self.buffer))));
        }
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [_, _, _, _, _, length @ ..] = header;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_BYTES {
            return Err(NoiseError::EarlyLength(length));
        }
        let Some((json, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let payload = serde_json::from_slice(json).map_err(|error| NoiseError::Early(error.to_string()))?;
        Ok(Some((Early::Present(payload), rest.to_vec())))
    }
}
