//! Tables of a TOML file, read key by key with the place of everything.
//!
//! A reader is made with all keys that its table may have and refuses others at once, before a missing key is
//! missed: whoever misspells a key wants to hear of the spelling.

use core::ops::Range;

use ::toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use strsim::osa_distance;

use super::ScenarioError;

/// The text of a scenario.
#[derive(Clone, Copy)]
pub(super) struct Source<'t>(pub(super) &'t str);

/// A value and where it is.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

impl Source<'_> {
    /// An error at the first byte of `span`.
    pub(super) fn error(self, span: Range<usize>, message: impl Into<String>) -> ScenarioError {
        let before = self.0.get(..span.start).unwrap_or(self.0);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        ScenarioError {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn line(self, span: &Range<usize>) -> usize {
        self.error(span.clone(), "").line
    }
}

/// One table.
pub(super) struct Reader<'r, 't> {
    pub(super) source: Source<'t>,
    table: &'r DeTable<'t>,
    /// Where the table begins.
    span: Range<usize>,
    /// What the table is, for errors.
    what: &'static str,
}

impl<'r, 't> Reader<'r, 't> {
    /// Reads `table`, which may have `keys` and no others.
    pub(super) fn new(
        source: Source<'t>,
        table: &'r DeTable<'t>,
        span: Range<usize>,
        what: &'static str,
        keys: &[&str],
    ) -> Result<Self, ScenarioError> {
        let unknown = table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref()));
        if let Some(key) = unknown.min_by_key(|key| key.span().start) {
            let name = key.get_ref();
            let mut error = source.error(key.span(), format!("{what} has no key `{name}`"));
            error.hint = Some(nearest(name, keys));
            return Err(error);
        }
        Ok(Self { source, table, span, what })
    }

    /// Reads a value that is a table.
    pub(super) fn of_value(
        source: Source<'t>,
        value: &'r Value<'t>,
        what: &'static str,
        keys: &[&str],
    ) -> Result<Self, ScenarioError> {
        match value.get_ref() {
            DeValue::Table(table) => Self::new(source, table, value.span(), what, keys),
            _ => Err(source.error(value.span(), format!("{what} is a table"))),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'r Value<'t>> {
        self.table.get(key)
    }

    pub(super) fn require(&self, key: &str) -> Result<&'r Value<'t>, ScenarioError> {
        self.get(key).ok_or_else(|| self.error(format!("{} needs the key `{key}`", self.what)))
    }

    /// An error about the table as a whole.
    pub(super) fn error(&self, message: impl Into<String>) -> ScenarioError {
        self.source.error(self.span.clone(), message)
    }

    /// The line on which the table begins.
    pub(super) fn line(&self) -> usize {
        self.source.line(&self.span)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'r str>, ScenarioError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = value.get_ref().as_str();
        text.map(Some).ok_or_else(|| self.source.error(value.span(), format!("`{key}` is a text in quotes")))
    }

    pub(super) fn require_text(&self, key: &str) -> Result<&'r str, ScenarioError> {
        self.require(key)?;
        Ok(self.text(key)?.unwrap_or_default())
    }

    pub(super) fn bool(&self, key: &str) -> Result<bool, ScenarioError> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.get_ref().as_bool().ok_or_else(|| self.source.error(value.span(), format!("`{key}` is true or false")))
    }

    /// A whole number within `range`.
    pub(super) fn integer(&self, key: &str, range: Range<u64>) -> Result<Option<u64>, ScenarioError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.get_ref().as_integer().filter(|number| number.radix() == 10);
        let number = number.and_then(|number| number.as_str().parse().ok()).filter(|number| range.contains(number));
        let expected = || format!("`{key}` is a whole number from {} to {}", range.start, range.end - 1);
        number.map(Some).ok_or_else(|| self.source.error(value.span(), expected()))
    }

    /// Something that is written as a text and read by `parse`.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        expected: &str,
    ) -> Result<Option<T>, ScenarioError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let parsed = value.get_ref().as_str().and_then(parse);
        parsed.map(Some).ok_or_else(|| self.source.error(value.span(), format!("`{key}` is {expected}")))
    }

    /// Something that is written as a number or as a text and read by `parse` from its digits.
    pub(super) fn number<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        expected: &str,
    ) -> Result<Option<T>, ScenarioError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let parsed = match value.get_ref() {
            DeValue::Integer(number) => parse(number.as_str()),
            DeValue::Float(number) => parse(number.as_str()),
            DeValue::String(text) => parse(text),
            DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
        };
        parsed.map(Some).ok_or_else(|| self.source.error(value.span(), format!("`{key}` is {expected}")))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>, ScenarioError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = self.text(key)?.unwrap_or_default();
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(Some(*choice));
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let mut error = self.source.error(value.span(), format!("`{key}` cannot be `{text}`"));
        error.hint = Some(nearest(text, &names));
        Err(error)
    }

    /// The tables of an array of tables; empty when there is none.
    pub(super) fn tables(&self, key: &str) -> Result<Vec<&'r Value<'t>>, ScenarioError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let wrong = |value: &Value<'_>| self.source.error(value.span(), format!("write `[[{key}]]`, once for each"));
        let DeValue::Array(items) = value.get_ref() else { return Err(wrong(value)) };
        match items.iter().find(|item| !matches!(item.get_ref(), DeValue::Table(_))) {
            Some(item) => Err(wrong(item)),
            None => Ok(items.iter().collect()),
        }
    }

    /// An array of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<(Range<usize>, &'r str)>, ScenarioError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let wrong = |value: &Value<'_>| self.source.error(value.span(), format!("`{key}` is a list of texts"));
        let DeValue::Array(items) = value.get_ref() else { return Err(wrong(value)) };
        items
            .iter()
            .map(|item| item.get_ref().as_str().map(|text| (item.span(), text)).ok_or_else(|| wrong(item)))
            .collect()
    }
}

/// What was probably meant, or what there is. Letters that swapped places are one mistake.
pub(super) fn nearest(name: &str, known: &[&str]) -> String {
    let best = known.iter().map(|known| (osa_distance(name, known), *known)).min();
    match best {
        Some((distance, known)) if distance <= (name.chars().count() / 3).max(2) => {
            format!("did you mean `{known}`?")
        }
        _ => {
            let mut known = known.to_vec();
            known.sort_unstable();
            format!("there are: {}", known.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_suggested_when_it_is_near() {
        let keys = ["keepalive", "endpoint", "of", "is"];
        assert_eq!(nearest("keepalife", &keys), "did you mean `keepalive`?");
        assert_eq!(nearest("endpiont", &keys), "did you mean `endpoint`?");
        assert_eq!(nearest("colour", &keys), "there are: endpoint, is, keepalive, of");
    }

    #[test]
    fn places_are_lines_and_columns_from_one() {
        let source = Source("a = 1\nbé = 2\n");
        let error = source.error(10..11, "x");
        assert_eq!((error.line, error.column), (2, 4));
    }
}
