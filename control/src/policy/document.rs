//! The policy as it is written: sections, fields and texts with their places. Nothing is looked up yet.
//!
//! Names of sections and fields match in any case; a name that is none of them is refused. A value of null is an absent
//! one. Texts lose blanks at both ends. What a section means is [`super::check`]'s; sections that are not built are kept
//! as [`Unbuilt`], for whoever stores a policy to refuse.

use std::collections::BTreeMap;

use super::{
    hujson::{self, Kind, Value},
    problem::{Gathered, Located, Position, Problem, Problems},
};

/// A text and its place.
pub type Text = Located<String>;

/// A name and the texts that belong to it.
pub type Names = BTreeMap<String, Located<Vec<Text>>>;

/// Something of the language that this build does not have, and that says more than nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unbuilt {
    /// Where it stands.
    pub at: Position,
    /// The section, field or selector.
    pub name: String,
}

/// A policy's text, taken apart.
#[derive(Clone, Debug, Default)]
pub struct Document {
    /// `acls`; `None` when the section is not there.
    pub acls: Option<Vec<Acl>>,
    /// `grants`; `None` when the section is not there.
    pub grants: Option<Vec<Grant>>,
    /// `groups`.
    pub groups: Names,
    /// `hosts`.
    pub hosts: BTreeMap<String, Text>,
    /// `tagOwners`.
    pub tag_owners: Names,
    /// `autoApprovers`.
    pub auto_approvers: AutoApprovers,
    /// `tests`.
    pub tests: Vec<Test>,
    /// What is not built.
    pub unbuilt: Vec<Unbuilt>,
}

/// An entry of `acls`.
#[derive(Clone, Debug)]
pub struct Acl {
    /// Where it begins.
    pub at: Position,
    /// `action`.
    pub action: Text,
    /// `src`.
    pub src: Vec<Text>,
    /// `dst`.
    pub dst: Vec<Text>,
    /// `proto`; empty when absent.
    pub proto: Text,
    /// Whether there is a `srcPosture`.
    pub has_posture: bool,
}

/// An entry of `grants`.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Where it begins.
    pub at: Position,
    /// `src`.
    pub src: Vec<Text>,
    /// `dst`.
    pub dst: Vec<Text>,
    /// `ip`.
    pub ip: Vec<Text>,
    /// `app`: capabilities and their values.
    pub app: Vec<(Text, Vec<serde_json::Value>)>,
    /// `via`.
    pub via: Vec<Text>,
    /// Whether there is a `srcPosture`.
    pub has_posture: bool,
}

/// `autoApprovers`.
#[derive(Clone, Debug, Default)]
pub struct AutoApprovers {
    /// `routes`: a prefix, and who gets routes inside it approved.
    pub routes: Vec<(Text, Vec<Text>)>,
    /// `exitNode`: who gets exit routes approved.
    pub exit_node: Vec<Text>,
}

/// An entry of `tests`.
#[derive(Clone, Debug)]
pub struct Test {
    /// Where it begins.
    pub at: Position,
    /// `src`; empty when absent.
    pub src: Text,
    /// `accept`: destinations that must be reached.
    pub accept: Vec<Text>,
    /// `deny`: destinations that must not be.
    pub deny: Vec<Text>,
    /// `proto`; empty when absent.
    pub proto: Text,
}

impl Document {
    /// Takes a text apart.
    ///
    /// # Errors
    /// All that is wrong with its form.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        let Some(root) = hujson::parse(text)? else {
            return Err(Problem { at: Position::START, message: "the text holds no policy".into() }.into());
        };
        let mut reader = Reader::default();
        let mut document = Self::default();
        for mut section in reader.fields(&root) {
            document.read(&mut reader, &mut section);
        }
        let Reader { problems, unbuilt } = reader;
        document.unbuilt = unbuilt;
        problems.or(document)
    }

    fn read(&mut self, reader: &mut Reader, section: &mut Field<'_>) {
        let value = section.value;
        match section.name.as_str() {
            "acls" => self.acls = Some(reader.list(value).iter().map(|entry| reader.acl(entry)).collect()),
            "grants" => self.grants = Some(reader.list(value).iter().map(|entry| reader.grant(entry)).collect()),
            "groups" => self.groups = reader.names(value),
            "hosts" => {
                let members = reader.members(value).into_iter();
                self.hosts = members.map(|(name, value)| (trimmed(name), reader.text(value))).collect();
            }
            "tagowners" => self.tag_owners = reader.names(value),
            "autoapprovers" => self.auto_approvers = reader.auto_approvers(value),
            "tests" => self.tests = reader.list(value).iter().map(|entry| reader.test(entry)).collect(),
            "ipsets"
            | "postures"
            | "defaultsrcposture"
            | "ssh"
            | "sshtests"
            | "nodeattrs"
            | "attrconfig"
            | "derpmap"
            | "randomizeclientport"
            | "disableipv4"
            | "onecgnatroute" => reader.note_unbuilt(section),
            _ => reader.unknown(section),
        }
    }
}

/// A name in small letters, as written, and its value.
struct Field<'a> {
    name: String,
    written: &'a Text,
    value: &'a Value,
}

#[derive(Default)]
struct Reader {
    problems: Gathered,
    unbuilt: Vec<Unbuilt>,
}

fn trimmed(text: &Text) -> String {
    text.value.trim().to_owned()
}

impl Reader {
    fn unknown(&mut self, field: &Field<'_>) {
        self.problems.say(field.written.at, format!("unknown field: {:?}", field.written.value));
    }

    fn wrong(&mut self, value: &Value, expected: &str) {
        self.problems.say(value.at, format!("expected {expected}, found {}", value.value.name()));
    }

    /// Notes a section or field that is not built, unless it says nothing.
    fn note_unbuilt(&mut self, field: &Field<'_>) {
        let is_empty = match &field.value.value {
            Kind::Null | Kind::Bool(false) => true,
            Kind::String(text) => text.is_empty(),
            Kind::Array(items) => items.is_empty(),
            Kind::Object(members) => members.is_empty(),
            Kind::Bool(true) | Kind::Number(_) => false,
        };
        if !is_empty {
            self.unbuilt.push(Unbuilt { at: field.written.at, name: field.written.value.clone() });
        }
    }

    /// The members of an object with names of its own; none when it is something else, which is noted.
    fn members<'a>(&mut self, value: &'a Value) -> Vec<(&'a Text, &'a Value)> {
        match &value.value {
            Kind::Object(members) => members.iter().map(|member| (&member.name, &member.value)).collect(),
            Kind::Null => Vec::new(),
            _ => {
                self.wrong(value, "an object");
                Vec::new()
            }
        }
    }

    /// The fields of an object whose names are known, less those that are null.
    fn fields<'a>(&mut self, value: &'a Value) -> Vec<Field<'a>> {
        let mut fields: Vec<Field<'a>> = Vec::new();
        for (written, value) in self.members(value) {
            let name = written.value.to_ascii_lowercase();
            if fields.iter().any(|field| field.name == name) {
                self.problems.say(written.at, format!("{:?} is there twice", written.value));
            }
            fields.push(Field { name, written, value });
        }
        fields.retain(|field| field.value.value != Kind::Null);
        fields
    }

    fn list<'a>(&mut self, value: &'a Value) -> &'a [Value] {
        match &value.value {
            Kind::Array(items) => items,
            Kind::Null => &[],
            _ => {
                self.wrong(value, "a list");
                &[]
            }
        }
    }

    fn text(&mut self, value: &Value) -> Text {
        if let Kind::String(text) = &value.value {
            return Located { at: value.at, value: text.trim().to_owned() };
        }
        self.wrong(value, "a text");
        Located { at: value.at, value: String::new() }
    }

    fn texts(&mut self, value: &Value) -> Vec<Text> {
        self.list(value).iter().map(|item| self.text(item)).collect()
    }

    fn names(&mut self, value: &Value) -> Names {
        let members = self.members(value).into_iter();
        members.map(|(name, value)| (trimmed(name), Located { at: name.at, value: self.texts(value) })).collect()
    }

    fn acl(&mut self, entry: &Value) -> Acl {
        let none = || Located { at: entry.at, value: String::new() };
        let mut acl =
            Acl { at: entry.at, action: none(), src: Vec::new(), dst: Vec::new(), proto: none(), has_posture: false };
        let (mut has_src, mut has_dst) = (false, false);
        for field in self.fields(entry) {
            match field.name.as_str() {
                "action" => acl.action = self.text(field.value),
                "src" | "users" => {
                    acl.src.extend(self.texts(field.value));
                    has_src = true;
                }
                "dst" | "ports" => {
                    acl.dst.extend(self.texts(field.value));
                    has_dst = true;
                }
                "proto" => acl.proto = self.text(field.value),
                "srcposture" => acl.has_posture = self.posture(&field),
                name if name.starts_with('#') => {}
                _ => self.unknown(&field),
            }
        }
        if !has_src {
            self.problems.say(entry.at, "src must be specified");
        }
        if !has_dst {
            self.problems.say(entry.at, "dst must be specified");
        }
        acl
    }

    fn posture(&mut self, field: &Field<'_>) -> bool {
        self.note_unbuilt(field);
        !self.list(field.value).is_empty()
    }

    fn grant(&mut self, entry: &Value) -> Grant {
        let mut grant = Grant {
            at: entry.at,
            src: Vec::new(),
            dst: Vec::new(),
            ip: Vec::new(),
            app: Vec::new(),
            via: Vec::new(),
            has_posture: false,
        };
        for field in self.fields(entry) {
            match field.name.as_str() {
                "src" => grant.src = self.texts(field.value),
                "dst" => grant.dst = self.texts(field.value),
                "ip" => grant.ip = self.texts(field.value),
                "app" => {
                    for (name, value) in self.members(field.value) {
                        let values = self.list(value).iter().map(|item| item.value.to_json()).collect();
                        grant.app.push((name.clone(), values));
                    }
                }
                "via" => grant.via = self.texts(field.value),
                "srcposture" => grant.has_posture = self.posture(&field),
                _ => self.unknown(&field),
            }
        }
        grant
    }

    fn auto_approvers(&mut self, value: &Value) -> AutoApprovers {
        let mut approvers = AutoApprovers::default();
        for field in self.fields(value) {
            match field.name.as_str() {
                "routes" => {
                    let members = self.members(field.value).into_iter();
                    approvers.routes = members.map(|(prefix, who)| (prefix.clone(), self.texts(who))).collect();
                }
                "exitnode" => approvers.exit_node = self.texts(field.value),
                "services" | "appconnectors" => self.note_unbuilt(&field),
                _ => self.unknown(&field),
            }
        }
        approvers
    }

    fn test(&mut self, entry: &Value) -> Test {
        let none = || Located { at: entry.at, value: String::new() };
        let mut test = Test { at: entry.at, src: none(), accept: Vec::new(), deny: Vec::new(), proto: none() };
        for field in self.fields(entry) {
            match field.name.as_str() {
                "src" | "user" => test.src = self.text(field.value),
                "accept" | "allow" => test.accept.extend(self.texts(field.value)),
                "deny" => test.deny = self.texts(field.value),
                "proto" => test.proto = self.text(field.value),
                "srcpostureattrs" => self.note_unbuilt(&field),
                _ => self.unknown(&field),
            }
        }
        test
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_fields_are_known_in_any_case() {
        let text = "{\"ACLs\": [{\"Action\": \" accept\", \"users\": [\"a@b \"], \"ports\": [\"*:*\"], \"#x\": 1}],
            \"Groups\": {\"group:a\": [\"a@b\"]}, \"HOSTS\": {\"h\": \"10.0.0.1\"}, \"tests\": null}";
        let document = Document::parse(text).unwrap();
        let acl = &document.acls.unwrap()[0];
        assert_eq!((acl.action.value.as_str(), acl.src[0].value.as_str()), ("accept", "a@b"));
        assert_eq!(acl.at, Position { line: 1, column: 11 });
        assert_eq!(document.groups["group:a"].value[0].at, Position { line: 2, column: 36 });
        assert_eq!(document.hosts["h"].value, "10.0.0.1");
        assert!(document.unbuilt.is_empty() && document.grants.is_none());
    }

    #[test]
    fn what_is_unknown_or_of_the_wrong_kind_is_said_with_its_place() {
        for (text, message) in [
            ("{\n\"aclz\": []}", "line 2, column 1: unknown field: \"aclz\""),
            ("{\"acls\": {}}", "line 1, column 10: expected a list, found an object"),
            ("{\"acls\": [], \"ACLs\": []}", "line 1, column 14: \"ACLs\" is there twice"),
            ("{\"groups\": {\"group:a\": \"b\"}}", "line 1, column 24: expected a list, found a text"),
            ("{\"hosts\": {\"h\": 1}}", "line 1, column 17: expected a text, found a number"),
            ("{\"acls\": [{\"src\": []}]}", "line 1, column 11: dst must be specified"),
            ("{\"grants\": [{\"dest\": []}]}", "line 1, column 14: unknown field: \"dest\""),
            ("[]", "line 1, column 1: expected an object, found a list"),
            ("// none", "line 1, column 1: the text holds no policy"),
        ] {
            assert_eq!(Document::parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn sections_that_are_not_built_are_noted_unless_they_say_nothing() {
        let text = "{\"ssh\": [], \"disableIPv4\": false, \"derpMap\": {},\n \"nodeAttrs\": [{}],\n
            \"autoApprovers\": {\"exitNode\": [\"tag:x\"], \"services\": {\"svc:a\": []}},
            \"acls\": [{\"src\": [], \"dst\": [], \"srcPosture\": [\"posture:p\"]}]}";
        let document = Document::parse(text).unwrap();
        let names: Vec<_> = document.unbuilt.iter().map(|unbuilt| unbuilt.name.as_str()).collect();
        assert_eq!(names, ["nodeAttrs", "services", "srcPosture"]);
        assert_eq!(document.unbuilt[0].at, Position { line: 2, column: 2 });
        assert_eq!(document.auto_approvers.exit_node.len(), 1);
        assert!(document.acls.unwrap()[0].has_posture);
    }
}
