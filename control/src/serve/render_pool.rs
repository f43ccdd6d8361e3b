//! Renders and compresses messages on as many threads as there are cores.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{cell::RefCell, io, sync::Arc, thread};

use bytes::Bytes;
use tokio::{sync::Semaphore, task::spawn_blocking};
use zstd::bulk::Compressor;

use crate::render::MapUpdate;

/// zstd's fastest: maps are texts that repeat themselves, and a level more costs twice the time for a tenth of the bytes.
const LEVEL: i32 = 1;

/// What a node gets every minute when there is nothing to say; always the same bytes.
const KEEP_ALIVE: &[u8] = b"{\"KeepAlive\":true}";

thread_local! {
    /// One compressor for each thread: making one costs more than most messages.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
}

/// How messages of a stream are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Plain,
    Zstd,
}

/// Threads that render.
#[derive(Clone)]
pub(super) struct RenderPool {
    free: Arc<Semaphore>,
}

impl RenderPool {
    /// As many threads as there are cores.
    pub(super) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { free: Arc::new(Semaphore::new(cores)) }
    }

    /// A message as it is written to its stream.
    ///
    /// # Errors
    /// When it cannot be compressed, which is a bug, or is longer than a frame can be.
    pub(super) async fn render(&self, update: Box<MapUpdate>, coding: Coding) -> io::Result<Bytes> {
        let free = Arc::clone(&self.free).acquire_owned().await.map_err(io::Error::other)?;
        let rendered = spawn_blocking(move || {
            let frame = frame(&update.render().to_json(), coding);
            drop(free);
            frame
        });
        rendered.await.map_err(io::Error::other)?
    }
}

/// A keepalive as it is written to its stream.
///
/// # Errors
/// When it cannot be compressed, which is a bug.
pub(super) fn keep_alive(coding: Coding) -> io::Result<Bytes> {
    frame(KEEP_ALIVE, coding)
}

/// Length and message.
fn frame(json: &[u8], coding: Coding) -> io::Result<Bytes> {
    let compressed;
    let body = match coding {
        Coding::Plain => json,
        Coding::Zstd => {
            compressed = compress(json)?;
            &compressed
        }
    };
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(body);
    Ok(frame.into())
}

fn compress(json: &[u8]) -> io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|compressor| {
        let compressor = match compressor {
            Some(compressor) => compressor,
            None => compressor.insert(Compressor::new(LEVEL)?),
        };
        compressor.compress(json)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_its_length_and_decodes_to_what_was_said() {
        let plain = keep_alive(Coding::Plain).unwrap();
        assert_eq!(&plain[..4], &18_u32.to_le_bytes());
        assert_eq!(&plain[4..], KEEP_ALIVE);
        let packed = keep_alive(Coding::Zstd).unwrap();
        let length = u32::from_le_bytes(packed[..4].try_into().unwrap()) as usize;
        assert_eq!(packed.len(), 4 + length);
        assert_eq!(zstd::decode_all(&packed[4..]).unwrap(), KEEP_ALIVE);
        assert_eq!(keep_alive(Coding::Zstd).unwrap(), packed, "clients keep the bytes and compare");
    }

    #[test]
    fn each_message_stands_alone() {
        let text = b"one message after the other ".repeat(1_000);
        for _ in 0..2 {
            let packed = frame(&text, Coding::Zstd).unwrap();
            assert!(packed.len() < 200, "{}", packed.len());
            assert_eq!(zstd::decode_all(&packed[4..]).unwrap(), text);
        }
    }
}
