//! States that cannot be.
//!
//! [`never!`](crate::never) panics in tests, in the simulator and in every build with debug assertions. In a release build
//! it counts, says so once, and returns the condition so that the caller can back out.

use core::sync::atomic::{AtomicU64, Ordering};

static BROKEN: AtomicU64 = AtomicU64::new(0);

/// How often a `never!` condition was true in this process. In the metrics of all programs; anything but 0 is a bug of ours.
#[must_use]
pub fn broken_total() -> u64 {
    BROKEN.load(Ordering::Relaxed)
}

#[doc(hidden)]
pub fn note_broken(message: &str, file: &str, line: u32) {
    if BROKEN.fetch_add(1, Ordering::Relaxed) == 0 {
        tracing::error!(file, line, message, "broken invariant, please report");
    }
    if cfg!(debug_assertions) {
        panic!("broken invariant at {file}:{line}: {message}");
    }
}

/// States that a condition never holds; returns it, so that a release build can back out.
///
/// ```
/// fn half(n: u32) -> Option<u32> {
///     if mesh_core::never!(n % 2 == 1, "callers pass even numbers") {
///         return None;
///     }
///     Some(n / 2)
/// }
/// assert_eq!(half(4), Some(2));
/// ```
#[macro_export]
macro_rules! never {
    ($condition:expr, $message:literal) => {{
        let broken = $condition;
        if broken {
            $crate::invariant::note_broken($message, file!(), line!());
        }
        broken
    }};
}
