//! Lines of the log that strangers can cause: so many in a while, and then how many were left out.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{mem, time::Instant};

use crate::limits;

/// Counts them.
#[derive(Debug, Default)]
pub struct Told {
    /// Since when they are counted.
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Told {
    /// Whether there may be another line, and how many were left out before it.
    pub fn next(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= limits::LINES_TIME) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines >= limits::LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_fill_no_log() {
        let (mut told, start) = (Told::default(), Instant::now());
        let said = (0..1_000).filter(|_| told.next(start) == Some(0)).count();
        assert_eq!(said, limits::LINES as usize);
        let later = start + limits::LINES_TIME;
        assert_eq!(told.next(later), Some(1_000 - u64::from(limits::LINES)), "the next line says how many are missing");
        assert_eq!(told.next(later), Some(0));
    }
}
