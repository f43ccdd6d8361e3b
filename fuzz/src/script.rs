//! Bytes read as a script. Whatever is missing at the end reads as zero, so that every prefix is a script too.

use std::time::Duration;

use crate::support::world::{Side, Step};

/// Takes values off the front of the bytes.
#[derive(Debug)]
pub struct Script<'d>(&'d [u8]);

impl<'d> Script<'d> {
    /// A script of these bytes.
    #[must_use]
    pub fn new(data: &'d [u8]) -> Self {
        Self(data)
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// The next two bytes.
    pub fn short(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// The next `length` bytes, or all that are left.
    pub fn take(&mut self, length: usize) -> &'d [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A length of up to 1,535 bytes in one byte or two, and as many bytes.
    pub fn chunk(&mut self) -> &'d [u8] {
        let first = usize::from(self.byte());
        let length = if first < 250 { first } else { (first - 250) * 256 + usize::from(self.byte()) };
        self.take(length)
    }

    /// A time between nothing and five hours: a unit and a count.
    fn while_(&mut self) -> Duration {
        let byte = self.byte();
        let count = u64::from(byte & 63);
        Duration::from_millis(match byte >> 6 {
            0 => count,
            1 => count * 100,
            2 => count * 4_000,
            _ => count * 300_000,
        })
    }
}

/// The next step for a pair of nodes; `None` at the end.
pub(crate) fn step(script: &mut Script<'_>) -> Option<Step> {
    if script.is_done() {
        return None;
    }
    let byte = script.byte();
    let side = if byte & 0x80 == 0 { Side::A } else { Side::B };
    Some(match byte & 0x1f {
        0..=3 => Step::Send { from: side, bytes: u16::from(script.byte()) * 5, lag: Duration::ZERO },
        4 => Step::Send { from: side, bytes: 9, lag: script.while_() },
        5..=9 => Step::Deliver { to: side, pick: usize::from(script.byte()), lag: Duration::ZERO },
        10 => Step::Deliver { to: side, pick: 0, lag: script.while_() },
        11..=14 => Step::DeliverAll { to: side },
        15 => Step::Duplicate { to: side, pick: usize::from(script.byte()) },
        16 => Step::Drop { to: side, pick: usize::from(script.byte()) },
        17 => {
            let (pick, at, xor) = (script.byte(), script.short(), script.byte().max(1));
            Step::Corrupt { to: side, pick: usize::from(pick), at: usize::from(at), xor }
        }
        18 => Step::Truncate { to: side, pick: usize::from(script.byte()), length: usize::from(script.short()) },
        19 => Step::Replay { to: side, pick: usize::from(script.byte()) },
        20 => Step::Garbage { to: side, bytes: script.chunk().to_vec() },
        21 => Step::Flood { to: side, count: u16::from(script.byte()) },
        22..=24 => Step::Jump { by: script.while_() },
        25..=27 => Step::Wait,
        28 => Step::OldTimeout { side, by: script.while_() },
        29 => Step::Host { side },
        30 => Step::Restart { side },
        _ => Step::Reconfigure { side },
    })
}
