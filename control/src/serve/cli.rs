//! The verbs for those who run the server: what they say becomes a [`Command`], what it comes to a text or JSON.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use mesh_core::{ip::prefix::Prefix, printable};
use serde_json::{Value, json};
use transports::program::{Exit, Failure, print};

use super::{socket, table::Table, text::fingerprint};
use crate::coordinator::{Command, check_policy_alone};

/// Users.
#[derive(Debug, Subcommand)]
pub(super) enum UsersVerb {
    /// Make a user; the first one owns the network
    Create {
        /// The name they sign in with
        name: String,
    },
    /// All users
    List,
    /// Delete a user who has no nodes
    Delete {
        /// Login or id
        name: String,
    },
}

/// Auth keys.
#[derive(Debug, Subcommand)]
pub(super) enum KeysVerb {
    /// Make an auth key, and print it: nobody is told it again
    Create {
        /// Whose nodes it makes: login or id
        #[arg(long, value_name = "U")]
        user: String,
        /// Make the user when there is none of this name
        #[arg(long)]
        create_user: bool,
        /// Good for more than one node
        #[arg(long)]
        reusable: bool,
        /// Its nodes are forgotten soon after they are gone
        #[arg(long)]
        ephemeral: bool,
        /// Its nodes are these tags' and not the user's
        #[arg(long, value_name = "tag:a,tag:b", value_delimiter = ',')]
        tags: Vec<String>,
        /// How long it is good: 90d, 12h, 30m or 45s [default and longest: 90d]
        #[arg(long, value_name = "TIME", value_parser = read_duration)]
        expiry: Option<Duration>,
    },
    /// All auth keys, without their secrets
    List,
    /// Take an auth key back; its nodes stay
    Expire {
        /// Its id
        id: String,
    },
}

/// Nodes. N is a name, an id or an address.
#[derive(Debug, Subcommand)]
pub(super) enum NodesVerb {
    /// All nodes
    List,
    /// One node
    Show {
        /// Which
        #[arg(value_name = "N")]
        node: String,
    },
    /// Let in a node that shows a sign-in URL
    Register {
        /// What stands at the end of the URL
        code: String,
        /// Whose it is: login or id
        #[arg(long, value_name = "U")]
        user: String,
    },
    /// Have a node sign in again
    Expire {
        /// Which
        #[arg(value_name = "N")]
        node: String,
    },
    /// Forget a node
    Delete {
        /// Which
        #[arg(value_name = "N")]
        node: String,
    },
    /// Give a node tags in place of its user or its tags
    Tag {
        /// Which
        #[arg(value_name = "N")]
        node: String,
        /// Such as tag:a,tag:b
        #[arg(value_delimiter = ',', required = true)]
        tags: Vec<String>,
    },
    /// Name a node; an empty name lets it follow its host's again
    Rename {
        /// Which
        #[arg(value_name = "N")]
        node: String,
        /// A DNS label
        name: String,
    },
    /// Let a node serve these routes and no others; without any, none
    ApproveRoutes {
        /// Which
        #[arg(value_name = "N")]
        node: String,
        /// Such as 10.0.0.0/8
        #[arg(value_name = "CIDR")]
        routes: Vec<Prefix>,
    },
}

/// The policy.
#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    /// Print it as it was written
    Get,
    /// Put a policy in force
    Set {
        /// HuJSON; - is standard input
        file: PathBuf,
    },
    /// Judge a policy as set would, and change nothing; without a server, by itself
    Check {
        /// HuJSON; - is standard input
        file: PathBuf,
    },
    /// Say which rule lets a packet through, or why none does; exit code 1 when it is refused
    Explain {
        /// A node or an address
        src: String,
        /// A node or an address, and a port
        #[arg(value_name = "DST:PORT", value_parser = read_target)]
        target: (String, u16),
        /// tcp, udp, icmp, icmpv6, sctp or a number
        #[arg(default_value = "tcp", value_parser = read_protocol)]
        protocol: u8,
    },
    /// What a policy would change
    Diff {
        /// HuJSON; - is standard input
        file: PathBuf,
    },
}

/// How the answer is printed.
#[derive(Clone, Copy)]
enum Show {
    Users,
    User,
    Keys,
    NewKey,
    Key,
    Nodes,
    Node,
    Policy,
    Good(&'static str),
    Difference,
    Explained,
}

pub(super) async fn users(verb: UsersVerb, socket: &Path, json: bool) -> Result<(), Failure> {
    let (command, show) = match verb {
        UsersVerb::Create { name } => (Command::CreateUser { login: name }, Show::User),
        UsersVerb::List => (Command::ListUsers, Show::Users),
        UsersVerb::Delete { name } => (Command::DeleteUser { user: name }, Show::Good("deleted")),
    };
    act(&command, show, socket, json).await
}

pub(super) async fn keys(verb: KeysVerb, socket: &Path, json: bool) -> Result<(), Failure> {
    let (command, show) = match verb {
        KeysVerb::Create { user, create_user, reusable, ephemeral, tags, expiry } => {
            if create_user {
                see_to_user(&user, socket).await?;
            }
            (Command::CreateKey { user, reusable, ephemeral, tags: set(tags), expiry }, Show::NewKey)
        }
        KeysVerb::List => (Command::ListKeys, Show::Keys),
        KeysVerb::Expire { id } => (Command::ExpireKey { id }, Show::Key),
    };
    act(&command, show, socket, json).await
}

/// Makes a user unless there is one that is called so.
async fn see_to_user(name: &str, socket: &Path) -> Result<(), Failure> {
    match socket::ask(socket, &Command::ShowUser { user: name.to_owned() }).await {
        Err(failure) if failure.code() == "not_found" => {
            socket::ask(socket, &Command::CreateUser { login: name.to_owned() }).await.map(drop)
        }
        found => found.map(drop),
    }
}

pub(super) async fn nodes(verb: NodesVerb, socket: &Path, json: bool) -> Result<(), Failure> {
    let (command, show) = match verb {
        NodesVerb::List => (Command::ListNodes, Show::Nodes),
        NodesVerb::Show { node } => (Command::ShowNode { node }, Show::Node),
        NodesVerb::Register { code, user } => (Command::RegisterNode { code: last_part(&code), user }, Show::Node),
        NodesVerb::Expire { node } => (Command::ExpireNode { node }, Show::Node),
        NodesVerb::Delete { node } => (Command::DeleteNode { node }, Show::Good("deleted")),
        NodesVerb::Tag { node, tags } => (Command::TagNode { node, tags: set(tags) }, Show::Node),
        NodesVerb::Rename { node, name } => (Command::RenameNode { node, name }, Show::Node),
        NodesVerb::ApproveRoutes { node, routes } => {
            (Command::ApproveRoutes { node, routes: routes.into_iter().collect() }, Show::Node)
        }
    };
    act(&command, show, socket, json).await
}

pub(super) async fn policy(verb: PolicyVerb, socket: &Path, json: bool) -> Result<(), Failure> {
    let (command, show) = match verb {
        PolicyVerb::Get => (Command::GetPolicy, Show::Policy),
        PolicyVerb::Set { file } => {
            (Command::SetPolicy { text: read_policy(&file)? }, Show::Good("the policy is in force"))
        }
        PolicyVerb::Check { file } => return check_policy(read_policy(&file)?, socket, json).await,
        PolicyVerb::Explain { src, target: (dst, port), protocol } => {
            (Command::Explain { src, dst, port, protocol }, Show::Explained)
        }
        PolicyVerb::Diff { file } => (Command::DiffPolicy { text: read_policy(&file)? }, Show::Difference),
    };
    act(&command, show, socket, json).await
}

/// Judges a policy by the server's network, or by itself where no server runs.
async fn check_policy(text: String, socket: &Path, json: bool) -> Result<(), Failure> {
    let (object, told) = match socket::ask(socket, &Command::CheckPolicy { text: text.clone() }).await {
        Ok(_) => (json!({ "network": true }), "the policy is good".to_owned()),
        Err(failure) if failure.code() == socket::NOT_RUNNING => {
            let open = check_policy_alone(&text).map_err(|error| socket::refused_policy(&error))?;
            let tests = match open {
                0 => String::new(),
                1 => "; 1 thing that its tests want needs them and was not judged".to_owned(),
                open => format!("; {open} things that its tests want need them and were not judged"),
            };
            let socket = socket.display();
            let told = format!(
                "the policy is good by itself; no server runs at {socket} to check it with users and nodes{tests}"
            );
            (json!({ "network": false, "testsNotJudged": open }), told)
        }
        Err(failure) => return Err(failure),
    };
    print(&if json { object.to_string() } else { told });
    Ok(())
}

async fn act(command: &Command, show: Show, socket: &Path, json: bool) -> Result<(), Failure> {
    let answer = socket::ask(socket, command).await?;
    if json {
        // Lists are arrays.
        let list = match show {
            Show::Users => answer.get("users"),
            Show::Keys => answer.get("keys"),
            Show::Nodes => answer.get("devices"),
            _ => None,
        };
        print(&printable::json(&list.unwrap_or(&answer).to_string()));
    }
    match show {
        Show::Policy if answer["policy"].is_null() => {
            return Err(Failure::new(Exit::Refused, "no-policy", "no policy is stored: nothing is allowed")
                .hint("store one with mesh-control policy set FILE"));
        }
        Show::Explained if json || !answer["allowed"].as_bool().unwrap_or(false) => {
            let allowed = answer["allowed"].as_bool().unwrap_or(false);
            if !json {
                print(&printable::lines(word(&answer, "text")));
            }
            return if allowed { Ok(()) } else { Err(Failure::silent(Exit::Refused)) };
        }
        _ if json => {}
        // As it was written, by those who run the server.
        Show::Policy => print(&text(&answer, show)),
        _ => print(&printable::lines(&text(&answer, show))),
    }
    Ok(())
}

fn text(answer: &Value, show: Show) -> String {
    match show {
        Show::Users => {
            let row = |user: &Value| ["loginName", "id", "role", "created"].map(|name| word(user, name).to_owned());
            Table::new(["LOGIN", "ID", "ROLE", "CREATED"]).rows(list(answer, "users").map(row)).to_string()
        }
        Show::User => word(answer, "loginName").to_owned(),
        Show::Keys => Table::new(["ID", "USER", "FLAGS", "USES", "EXPIRES"])
            .rows(list(answer, "keys").map(|key| {
                [
                    word(key, "id").to_owned(),
                    word(key, "user").to_owned(),
                    key_flags(key),
                    key["uses"].to_string(),
                    word(key, "expires").to_owned(),
                ]
            }))
            .to_string(),
        Show::NewKey => word(answer, "key").to_owned(),
        Show::Key => word(answer, "id").to_owned(),
        Show::Nodes => nodes_text(answer),
        Show::Node => node_text(answer),
        Show::Policy => word(answer, "policy").trim_end().to_owned(),
        Show::Good(done) => done.to_owned(),
        Show::Difference => {
            let mut lines: Vec<&str> = list(answer, "lines").filter_map(Value::as_str).collect();
            if answer["more"].as_bool().unwrap_or(false) {
                lines.push("and more");
            }
            if lines.is_empty() { "nothing changes".to_owned() } else { lines.join("\n") }
        }
        Show::Explained => word(answer, "text").to_owned(),
    }
}

fn key_flags(key: &Value) -> String {
    let create = &key["capabilities"]["devices"]["create"];
    let is = |name: &str| create[name].as_bool().unwrap_or(false);
    let mut flags = vec![if is("reusable") { "reusable" } else { "single-use" }.to_owned()];
    if is("ephemeral") {
        flags.push("ephemeral".to_owned());
    }
    flags.extend(words(&create["tags"]));
    if key["invalid"].as_bool().unwrap_or(false) {
        flags.push("invalid".to_owned());
    }
    flags.join(",")
}

fn nodes_text(answer: &Value) -> String {
    let row = |node: &Value| {
        let owner = if node["tags"].is_null() { word(node, "user").to_owned() } else { words(&node["tags"]).join(",") };
        let state = match (node["expired"].as_bool(), node["connectedToControl"].as_bool()) {
            (Some(true), _) => "expired",
            (_, Some(true)) => "online",
            _ => "offline",
        };
        [
            word(node, "name").split('.').next().unwrap_or_default().to_owned(),
            word(node, "nodeId").to_owned(),
            words(&node["addresses"]).first().cloned().unwrap_or_default(),
            owner,
            state.to_owned(),
            word(node, "os").to_owned(),
            word(node, "lastSeen").to_owned(),
        ]
    };
    let table = Table::new(["NAME", "ID", "ADDRESS", "USER", "STATE", "OS", "LAST SEEN"])
        .rows(list(answer, "devices").map(row))
        .to_string();
    if answer["hasPolicy"].as_bool().unwrap_or(false) {
        table
    } else {
        format!("no policy is stored: nothing is allowed; store one with mesh-control policy set FILE\n{table}")
    }
}

fn node_text(node: &Value) -> String {
    let connectivity = &node["clientConnectivity"];
    let yes = |value: &Value| if value.as_bool().unwrap_or(false) { "yes" } else { "no" }.to_owned();
    let expires = match (&node["expired"], node["expires"].as_str()) {
        (_, None) => "never".to_owned(),
        (Value::Bool(true), Some(when)) => format!("{when} (expired)"),
        (_, Some(when)) => when.to_owned(),
    };
    let lines = [
        ("name", word(node, "name").to_owned()),
        ("id", word(node, "nodeId").to_owned()),
        ("user", word(node, "user").to_owned()),
        ("tags", words(&node["tags"]).join(" ")),
        ("addresses", words(&node["addresses"]).join(" ")),
        ("host name", word(node, "hostname").to_owned()),
        ("system", [word(node, "os"), word(node, "clientVersion")].join(" ").trim().to_owned()),
        ("online", yes(&node["connectedToControl"])),
        ("last seen", word(node, "lastSeen").to_owned()),
        ("created", word(node, "created").to_owned()),
        ("key expires", expires),
        ("ephemeral", yes(&node["isEphemeral"])),
        ("home relay", word(connectivity, "derp").to_owned()),
        ("endpoints", words(&connectivity["endpoints"]).join(" ")),
        ("routes offered", words(&node["advertisedRoutes"]).join(" ")),
        ("routes served", words(&node["enabledRoutes"]).join(" ")),
        ("fingerprint", fingerprint(word(node, "machineKey"))),
        ("machine key", word(node, "machineKey").to_owned()),
        ("node key", word(node, "nodeKey").to_owned()),
    ];
    let said = lines.iter().filter(|(_, value)| !value.is_empty());
    said.map(|(name, value)| format!("{name:<14} {}", printable::line(value))).collect::<Vec<_>>().join("\n")
}

fn list<'a>(answer: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    answer[name].as_array().into_iter().flatten()
}

fn word<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_default()
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn set(words: Vec<String>) -> BTreeSet<String> {
    words.into_iter().filter(|word| !word.is_empty()).collect()
}

/// The code, also when the whole URL was given.
fn last_part(text: &str) -> String {
    text.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

pub(super) fn read_policy(file: &Path) -> Result<String, Failure> {
    let read = || {
        if file == Path::new("-") {
            let mut text = String::new();
            return io::stdin().read_to_string(&mut text).map(|_| text);
        }
        fs::read_to_string(file)
    };
    read().map_err(|error| {
        Failure::new(Exit::Usage, "no-file", format!("cannot read {}: {error}", file.display()))
            .hint("name a file that holds a policy, or - for standard input")
    })
}

fn read_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a time such as 90d, 12h, 30m or 45s".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(wrong)
}

fn read_target(text: &str) -> Result<(String, u16), String> {
    let wrong = || "not a node or an address, a colon and a port".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host.to_owned(), port.parse().map_err(|_| wrong())?))
}

fn read_protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp" => Ok(1),
        "icmpv6" | "ipv6-icmp" => Ok(58),
        "sctp" => Ok(132),
        number => number.parse().map_err(|_| "not tcp, udp, icmp, icmpv6, sctp or a number up to 255".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_number_and_a_unit() {
        assert_eq!(read_duration("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(read_duration("1s"), Ok(Duration::from_secs(1)));
        for text in ["", "d", "0d", "1", "-1d", "1y", "99999999999999999999d", "300000000000000d", "1ü"] {
            assert!(read_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn targets_end_in_a_port() {
        assert_eq!(read_target("web:22"), Ok(("web".to_owned(), 22)));
        assert_eq!(read_target("[fd7a::1]:22"), Ok(("fd7a::1".to_owned(), 22)));
        assert_eq!(read_target("fd7a::1:22"), Ok(("fd7a::1".to_owned(), 22)));
        for text in ["", "web", ":22", "web:", "web:65536"] {
            assert!(read_target(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_list_says_first_that_there_is_no_policy() {
        let text = nodes_text(&json!({ "devices": [], "hasPolicy": false }));
        assert!(text.starts_with("no policy is stored: nothing is allowed"), "{text}");
        let node = json!({ "name": "web.mesh.internal", "nodeId": "n1", "addresses": ["100.64.0.1"], "user": "a" });
        let text = nodes_text(&json!({ "devices": [node], "hasPolicy": true }));
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("NAME"), "{text}");
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["web", "n1", "100.64.0.1", "a", "offline"]);
    }

    #[test]
    fn a_code_may_be_given_as_its_url() {
        assert_eq!(last_part("https://c/register/abc"), "abc");
        assert_eq!(last_part("abc"), "abc");
    }
}
