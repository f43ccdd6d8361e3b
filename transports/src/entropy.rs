//! Randomness of the operating system, once per start: everything else grows from the seed.

use std::io;

use mesh_core::rng::Seed;

/// 32 bytes that nobody can guess. Waits until the kernel has gathered enough after boot.
///
/// # Errors
/// When the kernel has no `getrandom` (before Linux 3.17).
#[expect(unsafe_code, reason = "std offers no randomness of the operating system")]
pub fn seed() -> io::Result<Seed> {
    let mut bytes = [0_u8; 32];
    // SAFETY: `bytes` is 32 bytes to write to. Up to 256 bytes are never cut short.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(got) {
        Ok(got) if got == bytes.len() => Ok(Seed::from_bytes(bytes)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_seeds_differ() {
        assert_ne!(seed().unwrap().to_bytes(), seed().unwrap().to_bytes());
    }
}
