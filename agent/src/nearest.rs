//! The nearest known name to a mistyped one.

/// The name of `known` that `text` was probably meant to be, or `None` when none is near.
#[must_use]
pub fn nearest<'k>(text: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let text = text.to_ascii_lowercase();
    let scored = known.into_iter().map(|name| (distance(&text, &name.to_ascii_lowercase()), name));
    let (score, name) = scored.min_by_key(|(score, _)| *score)?;
    (score <= name.len().div_ceil(3)).then_some(name)
}

/// Insertions, deletions and replacements from `a` to `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let known = ["PublicKey", "PresharedKey", "AllowedIPs"];
        assert_eq!(nearest("publickey", known), Some("PublicKey"));
        assert_eq!(nearest("AllowedIP", known), Some("AllowedIPs"));
        assert_eq!(nearest("PreSharedKy", known), Some("PresharedKey"));
        assert_eq!(nearest("Colour", known), None);
        assert_eq!(nearest("x", []), None);
    }
}
