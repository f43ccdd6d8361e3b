//! JSON with comments and trailing commas (HuJSON), as a tree in which every value knows where it stands.
//!
//! Nothing else is let through: no single quotes, no bare names, no missing commas. A name may stand only once in an
//! object, because of two that are alike one would silently win. The library bounds the depth (512 levels).

use jsonc_parser::{CollectOptions, ParseOptions, ast, common::Ranged as _, parse_to_ast};

use super::{
    limits,
    problem::{Located, Position, Problem},
};

/// A value, and where it begins.
pub type Value = Located<Kind>;

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A number.
    Number(serde_json::Number),
    /// A text.
    String(String),
    /// A list.
    Array(Vec<Value>),
    /// Names and values, in the order written.
    Object(Vec<Member>),
}

/// A name and its value in an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The name.
    pub name: Located<String>,
    /// The value.
    pub value: Value,
}

impl Kind {
    /// What it is, for messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::String(_) => "a text",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// The same value as plain JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Number(number) => number.clone().into(),
            Self::String(text) => text.clone().into(),
            Self::Array(items) => items.iter().map(|item| item.value.to_json()).collect(),
            Self::Object(members) => serde_json::Value::Object(
                members.iter().map(|member| (member.name.value.clone(), member.value.value.to_json())).collect(),
            ),
        }
    }
}

/// Reads a text. `None` when it holds comments and blanks alone.
///
/// # Errors
/// The first place at which it is not HuJSON.
pub fn parse(text: &str) -> Result<Option<Value>, Problem> {
    if text.len() > limits::TEXT_BYTES {
        let message = format!("the policy has {} bytes, more than {}", text.len(), limits::TEXT_BYTES);
        return Err(Problem { at: Position::START, message });
    }
    let options = ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let parsed = parse_to_ast(text, &CollectOptions::default(), &options).map_err(|error| Problem {
        at: Cursor::new(text).position(error.range().start),
        message: error.kind().to_string(),
    })?;
    let mut cursor = Cursor::new(text);
    parsed.value.map(|value| convert(value, &mut cursor)).transpose()
}

fn convert(value: ast::Value<'_>, cursor: &mut Cursor<'_>) -> Result<Value, Problem> {
    let at = cursor.position(value.start());
    let value = match value {
        ast::Value::NullKeyword(_) => Kind::Null,
        ast::Value::BooleanLit(literal) => Kind::Bool(literal.value),
        ast::Value::NumberLit(literal) => {
            let number = literal.value.parse();
            Kind::Number(number.map_err(|_| Problem { at, message: format!("{} is no number", literal.value) })?)
        }
        ast::Value::StringLit(literal) => Kind::String(literal.value.into_owned()),
        ast::Value::Array(array) => {
            Kind::Array(array.elements.into_iter().map(|item| convert(item, cursor)).collect::<Result<_, _>>()?)
        }
        ast::Value::Object(object) => {
            let mut members = Vec::with_capacity(object.properties.len());
            for property in object.properties {
                let at = cursor.position(property.range.start);
                let name = Located { at, value: property.name.into_string() };
                members.push(Member { name, value: convert(property.value, cursor)? });
            }
            refuse_doubles(&members)?;
            Kind::Object(members)
        }
    };
    Ok(Located { at, value })
}

fn refuse_doubles(members: &[Member]) -> Result<(), Problem> {
    let mut names: Vec<_> = members.iter().map(|member| &member.name).collect();
    names.sort_by(|a, b| a.value.cmp(&b.value));
    match names.windows(2).find(|pair| pair[0].value == pair[1].value) {
        Some(pair) => {
            let at = pair[0].at.max(pair[1].at);
            Err(Problem { at, message: format!("{:?} is there twice", pair[0].value) })
        }
        None => Ok(()),
    }
}

/// Turns byte offsets into lines and columns, going forward only, so that a text is walked once.
struct Cursor<'a> {
    rest: &'a str,
    offset: usize,
    at: Position,
}

impl<'a> Cursor<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text, offset: 0, at: Position::START }
    }

    fn position(&mut self, offset: usize) -> Position {
        let ahead = offset.saturating_sub(self.offset).min(self.rest.len());
        let (passed, rest) = self.rest.split_at_checked(ahead).unwrap_or((self.rest, ""));
        for letter in passed.chars() {
            if letter == '\n' {
                self.at = Position { line: self.at.line + 1, column: 1 };
            } else {
                self.at.column += 1;
            }
        }
        self.offset += passed.len();
        self.rest = rest;
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn every_value_knows_its_line_and_column() {
        let text = "// first\n{\n  \"é\": [1, /* two */ \"x\",],\n\t\"b\": {\"c\": null,},\n}\n";
        let root = parse(text).unwrap().unwrap();
        let Kind::Object(members) = &root.value else { panic!("{root:?}") };
        assert_eq!(root.at, Position { line: 2, column: 1 });
        assert_eq!(members[0].name.at, Position { line: 3, column: 3 });
        let Kind::Array(items) = &members[0].value.value else { panic!("{members:?}") };
        assert_eq!(items[1].at, Position { line: 3, column: 22 });
        assert_eq!(members[1].value.at, Position { line: 4, column: 7 });
        assert_eq!(root.value.to_json(), serde_json::json!({"é": [1, "x"], "b": {"c": null}}));
    }

    #[test]
    fn comments_alone_are_no_value() {
        assert_eq!(parse(" // nothing\n/* at all */ ").unwrap(), None);
    }

    #[test]
    fn what_is_not_hujson_is_refused_with_its_place() {
        for (text, message) in [
            ("{\n \"a\" 1}", "line 2, column 6: "),
            ("{\"a\": 1 \"b\": 2}", "line 1, column 8: "),
            ("{'a': 1}", "line 1, column 2: "),
            ("{a: 1}", "line 1, column 2: "),
            ("[0x10]", "line 1, column 2: "),
            ("[NaN]", "line 1, column 2: "),
            ("[1] [2]", "line 1, column 5: "),
            ("[1", "line 1, column 1: "),
            ("{\"a\": 1,\n \"a\": 2}", "line 2, column 2: \"a\" is there twice"),
        ] {
            assert!(refused(text).starts_with(message), "{text}: {}", refused(text));
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        assert!(refused(&"[".repeat(100_000)).contains("depth"));
        assert!(refused(&" ".repeat(limits::TEXT_BYTES + 1)).contains("bytes"));
    }
}
