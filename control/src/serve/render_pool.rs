//! Renders and compresses messages on as many threads as there are cores.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use bytes::Bytes;
use mesh_core::control::codec::frame;
use tokio::{sync::Semaphore, task::spawn_blocking};
use zstd::{bulk::Compressor, zstd_safe::compress_bound};

use crate::render::{MapUpdate, Message};

/// zstd's fastest: maps are texts that repeat themselves, and a level more costs twice the time for a tenth of the bytes.
const LEVEL: i32 = 1;

/// What a node gets every minute when there is nothing to say; always the same bytes.
const KEEP_ALIVE: &[u8] = b"{\"KeepAlive\":true}";

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
    presses: Arc<Presses>,
}

impl RenderPool {
    /// As many threads as there are cores.
    pub(super) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { free: Arc::new(Semaphore::new(cores)), presses: Arc::default() }
    }

    /// A message as it is written to its stream.
    ///
    /// # Errors
    /// When it cannot be compressed, which is a bug, or is longer than nodes take.
    pub(super) async fn render(&self, update: Box<MapUpdate>, coding: Coding) -> io::Result<Bytes> {
        // To hand it to another thread costs more than it does.
        if update.is_brief() {
            return self.presses.frame(&update.render(), coding);
        }
        let presses = Arc::clone(&self.presses);
        let free = Arc::clone(&self.free).acquire_owned().await.map_err(io::Error::other)?;
        let rendered = spawn_blocking(move || {
            let frame = presses.frame(&update.render(), coding);
            drop(free);
            frame
        });
        rendered.await.map_err(io::Error::other)?
    }
}

/// What it takes to make a frame: much memory, which would lie in pieces if it were made anew each time.
struct Press {
    compressor: Compressor<'static>,
    json: Vec<u8>,
    packed: Vec<u8>,
}

/// Presses that nobody uses at the moment. There are never more than threads that use them.
#[derive(Default)]
struct Presses(Mutex<Vec<Press>>);

impl Presses {
    fn frame(&self, message: &Message, coding: Coding) -> io::Result<Bytes> {
        let unused = self.unused().pop();
        let mut press = unused.map_or_else(Press::new, Ok)?;
        press.json.clear();
        message.write_json(&mut press.json);
        let frame = press.frame(coding);
        self.unused().push(press);
        frame
    }

    fn unused(&self) -> MutexGuard<'_, Vec<Press>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Press {
    fn new() -> io::Result<Self> {
        Ok(Self { compressor: Compressor::new(LEVEL)?, json: Vec::new(), packed: Vec::new() })
    }

    /// What is in `json`, with its length.
    fn frame(&mut self, coding: Coding) -> io::Result<Bytes> {
        match coding {
            Coding::Plain => framed(&self.json),
            Coding::Zstd => {
                self.packed.clear();
                self.packed.reserve(compress_bound(self.json.len()));
                self.compressor.compress_to_buffer(&self.json, &mut self.packed)?;
                framed(&self.packed)
            }
        }
    }
}

/// A keepalive as it is written to its stream.
///
/// # Errors
/// When it cannot be compressed, which is a bug.
pub(super) fn keep_alive(coding: Coding) -> io::Result<Bytes> {
    static ZSTD: OnceLock<Bytes> = OnceLock::new();
    match (coding, ZSTD.get()) {
        (Coding::Plain, _) => framed(KEEP_ALIVE),
        (Coding::Zstd, Some(frame)) => Ok(frame.clone()),
        (Coding::Zstd, None) => {
            let frame = framed(&Compressor::new(LEVEL)?.compress(KEEP_ALIVE)?)?;
            Ok(ZSTD.get_or_init(|| frame).clone())
        }
    }
}

/// Length and message.
fn framed(message: &[u8]) -> io::Result<Bytes> {
    frame(message).map(Bytes::from).map_err(io::Error::other)
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
        let mut press = Press::new().unwrap();
        press.json = text.clone();
        for _ in 0..2 {
            let packed = press.frame(Coding::Zstd).unwrap();
            assert!(packed.len() < 200, "{}", packed.len());
            assert_eq!(zstd::decode_all(&packed[4..]).unwrap(), text);
        }
        press.json = b"short".to_vec();
        assert_eq!(&press.frame(Coding::Plain).unwrap()[4..], b"short");
        assert_eq!(zstd::decode_all(&press.frame(Coding::Zstd).unwrap()[4..]).unwrap(), b"short");
    }
}
