//! Texts of others for a terminal.
//!
//! Names, systems, problems and pages come from other hosts, and a terminal obeys what is in them: some characters write
//! the clipboard, some move the cursor over what stands there, some turn the direction of writing around. So whatever a
//! program prints goes through here last, and such a character is written as `\u{…}`. Logs need none of it: they are
//! escaped where they are written.

use std::borrow::Cow;

/// One line. Tabs stay; a line break is made visible, for a text of one line could show another one.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, &['\t'], |letter| letter.escape_default().collect())
}

/// The same of a text of several lines.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, &['\t', '\n'], |letter| letter.escape_default().collect())
}

/// A JSON text, which means the same afterwards. JSON escapes some of these characters itself, so that those left over
/// stand within strings.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    escaped(text, &['\n'], |letter| format!("\\u{:04x}", u32::from(letter)))
}

/// Whether a terminal obeys a character instead of showing it: controls, and what turns the direction of writing around.
fn steers(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped<'t>(text: &'t str, kept: &[char], escape: impl Fn(char) -> String) -> Cow<'t, str> {
    let is_escaped = |letter: char| steers(letter) && !kept.contains(&letter);
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let letters = text.chars().map(|letter| if is_escaped(letter) { escape(letter) } else { letter.to_string() });
    Cow::Owned(letters.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_shown_and_not_obeyed() {
        assert_eq!(line("a\x1b]52;c;eA==\x07b"), "a\\u{1b}]52;c;eA==\\u{7}b");
        assert_eq!(line("a\u{9b}2J\u{7f}\r\u{202e}\u{2066}\n"), "a\\u{9b}2J\\u{7f}\\r\\u{202e}\\u{2066}\\n");
        assert_eq!(lines("one\ntwo\x08"), "one\ntwo\\u{8}");
        for text in ["O'Brien's \"Büro\" \\ 日本 🙂", "\tname: value", ""] {
            assert!(matches!(line(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn an_object_means_the_same() {
        let object = serde_json::json!({"os": "a\x1b[2J\u{9b}\u{7f}\u{202e}b", "n": [1, "ü"]});
        for text in [object.to_string(), format!("{object:#}")] {
            let shown = json(&text);
            assert!(shown.chars().all(|letter| letter == '\n' || !steers(letter)), "{shown}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), object);
        }
    }
}
