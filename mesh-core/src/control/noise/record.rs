//! Records: one direction each, sealed in order.

use core::fmt;

use super::{HEADER, NoiseError, PLAINTEXT_BYTES, RECORD_BYTES, TAG, TYPE_RECORD};
use crate::crypto::aead::{AeadKey, nonce_be};

/// Writes records.
pub struct Sealer {
    key: AeadKey,
    counter: u64,
}

impl Sealer {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self { key: AeadKey::new(key), counter: 0 }
    }

    /// Appends the records of `plaintext` to `out`: as few as can hold it, none for nothing.
    ///
    /// # Errors
    /// [`NoiseError::Exhausted`] when there are no more counters; nothing more is written then.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        for chunk in plaintext.chunks(PLAINTEXT_BYTES) {
            let nonce = next_nonce(&mut self.counter)?;
            let length = u16::try_from(chunk.len() + TAG).map_err(|_| NoiseError::Exhausted)?;
            out.push(TYPE_RECORD);
            out.extend_from_slice(&length.to_be_bytes());
            let start = out.len();
            out.extend_from_slice(chunk);
            out.resize(start + usize::from(length), 0);
            if let Some(record) = out.get_mut(start..) {
                self.key.seal(nonce, &[], record);
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn key_for_tests(&self) -> &AeadKey {
        &self.key
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({} records)", self.counter)
    }
}

/// Reads records, in whatever pieces they arrive. Keeps less than one record between two calls.
pub struct Opener {
    key: AeadKey,
    counter: u64,
    /// The beginning of a record.
    partial: Vec<u8>,
    /// Why nothing more can be read.
    ended: Option<NoiseError>,
}

impl Opener {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self { key: AeadKey::new(key), counter: 0, partial: Vec::new(), ended: None }
    }

    /// Takes the next bytes of the stream, and appends what the records that they complete say to `plaintext`.
    ///
    /// # Errors
    /// When a record is malformed or forged. That is final: the same error comes again. What came before it is in
    /// `plaintext`.
    pub fn open(&mut self, mut bytes: &[u8], plaintext: &mut Vec<u8>) -> Result<(), NoiseError> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        loop {
            let wanted = match self.wanted() {
                Ok(wanted) => wanted.saturating_sub(self.partial.len()),
                Err(error) => return self.end(error),
            };
            if wanted == 0 && self.partial.len() >= HEADER {
                if let Err(error) = self.open_record(plaintext) {
                    return self.end(error);
                }
                continue;
            }
            if bytes.is_empty() {
                return Ok(());
            }
            let (now, later) = bytes.split_at_checked(wanted).unwrap_or((bytes, &[]));
            self.partial.extend_from_slice(now);
            bytes = later;
        }
    }

    /// Whether bytes of a record have come whose end has not.
    #[must_use]
    pub fn is_within_record(&self) -> bool {
        !self.partial.is_empty()
    }

    /// How long the record is that has begun, as far as that is known.
    fn wanted(&self) -> Result<usize, NoiseError> {
        let Some(([kind, l0, l1], _)) = self.partial.split_first_chunk::<HEADER>() else {
            return Ok(HEADER);
        };
        if *kind != TYPE_RECORD {
            return Err(NoiseError::Type { expected: TYPE_RECORD, got: *kind });
        }
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        if !(TAG..=RECORD_BYTES - HEADER).contains(&length) {
            return Err(NoiseError::Length { kind: *kind, bytes: length });
        }
        Ok(HEADER + length)
    }

    fn open_record(&mut self, plaintext: &mut Vec<u8>) -> Result<(), NoiseError> {
        let nonce = next_nonce(&mut self.counter)?;
        let sealed = self.partial.get_mut(HEADER..).unwrap_or_default();
        plaintext.extend_from_slice(self.key.open(nonce, &[], sealed)?);
        self.partial.clear();
        Ok(())
    }

    fn end(&mut self, error: NoiseError) -> Result<(), NoiseError> {
        self.ended = Some(error.clone());
        Err(error)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener({} records)", self.counter)
    }
}

/// The nonce of the next record. The last counter is none.
fn next_nonce(counter: &mut u64) -> Result<[u8; 12], NoiseError> {
    let nonce = nonce_be(*counter);
    *counter = counter.checked_add(1).ok_or(NoiseError::Exhausted)?;
    Ok(nonce)
}
