//! Text forms of keys.

use mesh_core::key::{DiscoPublic, MachinePublic, NodePrivate, NodePublic, PresharedKey};

/// What reads as a key prints as a text that reads as the same key.
///
/// # Panics
/// When it does not.
pub fn text(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let mut kinds = 0;
    if let Ok(key) = text.parse::<NodePublic>() {
        assert_eq!(key.to_string(), text.to_ascii_lowercase());
        assert_eq!(NodePublic::from_base64(&key.to_base64()), Ok(key));
        kinds += 1;
    }
    if let Ok(key) = text.parse::<MachinePublic>() {
        assert_eq!(key.to_string(), text.to_ascii_lowercase());
        kinds += 1;
    }
    if let Ok(key) = text.parse::<DiscoPublic>() {
        assert_eq!(key.to_string(), text.to_ascii_lowercase());
        kinds += 1;
    }
    if let Ok(key) = NodePrivate::from_secret_text(text) {
        assert_eq!(NodePrivate::from_secret_text(&key.to_secret_text()), Ok(key.clone()));
        assert!(!format!("{key:?}").contains(&key.to_secret_text()["privkey:".len()..]));
        kinds += 1;
    }
    assert!(kinds <= 1, "a text is a key of one kind");

    if let Ok(key) = NodePublic::from_base64(text) {
        assert_eq!(key.to_base64(), text);
        assert!(NodePrivate::from_base64(text).is_ok() && PresharedKey::from_base64(text).is_ok());
    }
    if let Ok(key) = NodePrivate::from_base64(text) {
        // Clamped, so the text may be another one; the key is not.
        assert_eq!(NodePrivate::from_base64(&key.to_secret_base64()), Ok(key));
    }
}
