//! Files that users write: WireGuard configuration and scenarios.

use mesh_agent::static_file;

/// A static file is read, or refused with a line that it has.
///
/// # Panics
/// When it is refused with another line.
pub fn static_file(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    match static_file::parse(text) {
        Ok(file) => assert!(file.mtu_bytes.is_none_or(|mtu| mtu >= 576), "an MTU that no IPv4 host may have"),
        Err(error) => {
            let lines = text.lines().count().max(1);
            assert!((1..=lines + 1).contains(&error.line), "line {} of {lines}: {error}", error.line);
        }
    }
}

/// A scenario is read, or refused with one sentence.
///
/// # Panics
/// When the refusal is not one line.
pub fn scenario(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    if let Err(error) = sim::scenario::parse(text) {
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
}
