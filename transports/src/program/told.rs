//! Lines of the log that strangers can cause: so many in a while, and then how many were left out.

use std::{
    mem,
    time::{Duration, Instant},
};

/// Lines in [`TIME`]. At the bound they are counted, and the next line says how many were left out.
const LINES: u32 = 20;

/// See [`LINES`].
const TIME: Duration = Duration::from_secs(10);

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
        if self.since.is_none_or(|since| now.duration_since(since) >= TIME) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines >= LINES {
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
        assert_eq!(said, LINES as usize);
        let later = start + TIME;
        assert_eq!(told.next(later), Some(1_000 - u64::from(LINES)), "the next line says how many are missing");
        assert_eq!(told.next(later), Some(0));
    }
}
