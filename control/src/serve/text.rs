//! Texts that nodes said of themselves, made fit to be shown on a page, and keys that people compare.

use mesh_core::printable;

/// Letters of a text that a page shows. Names of hosts have 63; at the bound the rest is left out.
const SHOWN: usize = 80;

/// A text for a page.
pub(super) fn html(text: &str) -> String {
    let entity = |letter| match letter {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        '\'' => "&#39;".to_owned(),
        letter => letter.to_string(),
    };
    let text: String = text.chars().take(SHOWN).collect();
    printable::line(&text).chars().map(entity).collect()
}

/// The beginning of a machine's key, in a form that people can compare: 80 bits, which nobody meets by trying.
pub(super) fn fingerprint(machine_key: &str) -> String {
    let digits = machine_key.strip_prefix("mkey:").unwrap_or(machine_key);
    let digits: Vec<char> = digits.chars().take(20).collect();
    digits.chunks(4).map(String::from_iter).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_say_stays_text() {
        assert_eq!(html("<b>\"a&b'</b>"), "&lt;b&gt;&quot;a&amp;b&#39;&lt;/b&gt;");
        assert_eq!(html(&"<".repeat(500)).len(), SHOWN * 4);
        assert_eq!(html("a\u{1b}[2J\r\nb\u{202e}c"), "a\\u{1b}[2J\\r\\nb\\u{202e}c");
    }

    #[test]
    fn a_fingerprint_is_how_the_key_begins() {
        let key = "mkey:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert_eq!(fingerprint(key), "0123-4567-89ab-cdef-0123");
        assert_eq!(fingerprint(""), "");
    }
}
