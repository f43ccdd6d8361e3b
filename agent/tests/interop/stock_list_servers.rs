//! The control servers of the list: ours and headscale, spoken to in the same words.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    super::{
        homes::Homes,
        joined::{ALLOW, Control, PATIENCE, certificate, on_segment},
        lab::{Node, Process, text, until},
    },
    stock_list::{HEADSCALE, trust},
};

/// A control server on the segment, as https://control.lab, with a user named lab.
pub(crate) enum Server {
    /// `mesh-control`.
    Ours(Box<Control>),
    /// headscale.
    Headscale(Box<Headscale>),
}

/// What a key is to be good for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Key {
    pub(crate) reusable: bool,
    pub(crate) ephemeral: bool,
    pub(crate) tags: Option<&'static str>,
    /// How long it is good; the server's own default without.
    pub(crate) life: Option<Duration>,
}

/// A node, as the server lists it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) online: bool,
    pub(crate) tags: Value,
}

impl Server {
    /// Ours, with the relay asking it who may connect.
    pub(crate) fn ours(homes: &mut Homes) -> Result<Self> {
        Ok(Self::Ours(Box::new(Control::with_certificate(homes)?)))
    }

    /// The other.
    pub(crate) fn headscale(homes: &mut Homes) -> Result<Self> {
        Ok(Self::Headscale(Box::new(Headscale::new(homes)?)))
    }

    pub(crate) fn url(&self) -> &'static str {
        "https://control.lab"
    }

    /// Its address on the segment.
    pub(crate) fn address(&self) -> &'static str {
        "203.0.113.242"
    }

    pub(crate) fn certificate(&self) -> Result<&Path> {
        match self {
            Self::Ours(control) => control.certificate().map(PathBuf::as_path).context("no https"),
            Self::Headscale(headscale) => Ok(&headscale.chain),
        }
    }

    /// Ours, for what only ours has.
    pub(crate) fn own(&self) -> Result<&Control> {
        match self {
            Self::Ours(control) => Ok(control),
            Self::Headscale(_) => anyhow::bail!("headscale"),
        }
    }

    /// All hosts trust it, everything is allowed, and the relay asks it who may connect.
    pub(crate) fn open_to(&self, homes: &mut Homes) -> Result<()> {
        let relay = &homes.relay.node;
        for node in homes.members.iter().map(|member| &member.node).chain([relay]) {
            trust(node, self.certificate()?)?;
        }
        relay.run(&["sh", "-c", &format!("echo {} control.lab >> /etc/hosts", self.address())])?;
        homes.relay.ask(format!("{}/verify", self.url()))?;
        self.set_policy(ALLOW)
    }

    pub(crate) fn kill(&mut self) {
        match self {
            Self::Ours(control) => control.kill(),
            Self::Headscale(headscale) => headscale.process = None,
        }
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        match self {
            Self::Ours(control) => control.start(),
            Self::Headscale(headscale) => headscale.start(),
        }
    }

    /// A key of the user, and its id.
    pub(crate) fn key_with_id(&self, key: Key) -> Result<(String, String)> {
        let life = key.life.map(|life| format!("{}s", life.as_secs()));
        let (mut words, expiry): (Vec<&str>, &str) = match self {
            Self::Ours(_) => (vec!["--json", "keys", "create", "--user", "lab"], "--expiry"),
            Self::Headscale(_) => (vec!["preauthkeys", "create", "-u", "1", "-o", "json"], "-e"),
        };
        words.extend(key.reusable.then_some("--reusable"));
        words.extend(key.ephemeral.then_some("--ephemeral"));
        words.extend(key.tags.iter().flat_map(|tags| ["--tags", tags]));
        words.extend(life.iter().flat_map(|life| [expiry, life]));
        let made: Value = serde_json::from_str(&self.run(&words)?)?;
        let part =
            |name: &str| made[name].as_str().map(ToOwned::to_owned).with_context(|| format!("no {name}: {made}"));
        Ok((part("key")?, part("id")?))
    }

    pub(crate) fn key(&self, key: Key) -> Result<String> {
        Ok(self.key_with_id(key)?.0)
    }

    /// Takes a key back.
    pub(crate) fn expire_key(&self, id: &str) -> Result<()> {
        match self {
            Self::Ours(_) => self.run(&["keys", "expire", id]).map(drop),
            Self::Headscale(_) => self.run(&["preauthkeys", "expire", "-i", id, "--force"]).map(drop),
        }
    }

    pub(crate) fn set_policy(&self, policy: &str) -> Result<()> {
        match self {
            Self::Ours(control) => control.set_policy(policy),
            Self::Headscale(headscale) => {
                let path = headscale.node.path("policy.hujson");
                fs::write(&path, policy)?;
                self.run(&["policy", "set", "-f", &path.display().to_string()]).map(drop)
            }
        }
    }

    /// Lets in the node that shows this code at the end of its URL.
    pub(crate) fn register(&self, code: &str) -> Result<()> {
        match self {
            Self::Ours(_) => self.run(&["nodes", "register", code, "--user", "lab"]).map(drop),
            Self::Headscale(_) => self.run(&["auth", "register", "--auth-id", code, "--user", "lab"]).map(drop),
        }
    }

    /// Does something with the node at this address; headscale wants its number in another place.
    pub(crate) fn node(&self, verb: &str, address: &str, more: &[&str]) -> Result<()> {
        match self {
            Self::Ours(_) => self.run(&[&["nodes", verb, address], more].concat()).map(drop),
            Self::Headscale(_) => {
                let id = self.listed(address)?.with_context(|| format!("no node {address}"))?.id;
                let more = match (verb, more) {
                    ("tag", [tags]) => vec!["-t", *tags],
                    _ => more.to_vec(),
                };
                self.run(&[&["nodes", verb, "-i", &id, "--force"], &more[..]].concat()).map(drop)
            }
        }
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> Result<Value> {
        let words: &[&str] = match self {
            Self::Ours(_) => &["nodes", "list", "--json"],
            Self::Headscale(_) => &["nodes", "list", "-o", "json"],
        };
        let listed: Value = serde_json::from_str(&self.run(words)?)?;
        Ok(if listed["devices"].is_array() { listed["devices"].clone() } else { listed })
    }

    /// The node at this address.
    pub(crate) fn listed(&self, address: &str) -> Result<Option<Listed>> {
        let nodes = self.nodes()?;
        let (id, name, addresses, online) = match self {
            Self::Ours(_) => ("nodeId", "name", "addresses", "connectedToControl"),
            Self::Headscale(_) => ("id", "givenName", "ipAddresses", "online"),
        };
        let has_it = |node: &&Value| node[addresses].as_array().is_some_and(|all| all.contains(&json!(address)));
        let found = nodes.as_array().context("no list")?.iter().find(has_it);
        Ok(found.map(|node| Listed {
            id: node[id].as_str().unwrap_or_default().to_owned(),
            name: node[name].as_str().and_then(|name| name.split('.').next()).unwrap_or_default().to_owned(),
            online: node[online] == true,
            tags: node["tags"].clone(),
        }))
    }

    /// Waits until it lists the node at this address as connected.
    pub(crate) fn wait_for_online(&self, address: &str) -> Result<()> {
        until(&format!("{address} is online"), PATIENCE, || {
            Ok(self.listed(address)?.filter(|node| node.online).map(drop))
        })
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        match self {
            Self::Ours(control) => control.run(words),
            Self::Headscale(headscale) => headscale.run(words),
        }
    }
}

/// headscale on a host of its own.
pub(crate) struct Headscale {
    node: Node,
    process: Option<Process>,
    config: PathBuf,
    chain: PathBuf,
}

impl Headscale {
    fn new(homes: &mut Homes) -> Result<Self> {
        let (node, address) = on_segment(homes, 0)?;
        let (chain, key) = certificate(&node, homes, &address)?;
        let (config, relays) = (node.path("headscale.yaml"), node.path("relays.yaml"));
        // It takes JSON as YAML, less the number of the region, which must be none in quotes.
        fs::write(&relays, lower(&homes.relay.derp_map()?).to_string().replace("\"900\":", "900: "))?;
        let path = |name: &str| node.path(name).display().to_string();
        let settings = json!({
            "server_url": "https://control.lab",
            "listen_addr": "0.0.0.0:443",
            "metrics_listen_addr": "127.0.0.1:9090",
            "grpc_listen_addr": "127.0.0.1:50443",
            "grpc_allow_insecure": true,
            "noise": {"private_key_path": path("noise.key")},
            "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential"},
            "derp": {"server": {"enabled": false}, "urls": [], "paths": [relays], "auto_update_enabled": false},
            "disable_check_updates": true,
            "node": {"expiry": "0", "ephemeral": {"inactivity_timeout": "2m"}},
            "database": {"type": "sqlite", "sqlite": {"path": path("db.sqlite"), "write_ahead_log": true}},
            "tls_cert_path": chain,
            "tls_key_path": key,
            "log": {"level": "info"},
            "policy": {"mode": "database"},
            "dns": {"magic_dns": true, "base_domain": "lab.internal", "override_local_dns": false,
                "nameservers": {"global": []}},
            "unix_socket": path("headscale.sock"),
            "unix_socket_permission": "0770",
            "logtail": {"enabled": false},
        });
        fs::write(&config, serde_json::to_string_pretty(&settings)?)?;
        let mut headscale = Self { node, process: None, config, chain };
        headscale.start()?;
        headscale.run(&["users", "create", "lab"])?;
        Ok(headscale)
    }

    fn start(&mut self) -> Result<()> {
        let (program, config) = (HEADSCALE.path()?, self.config.display().to_string());
        let process = self.node.spawn(&[&program, "-c", &config, "serve"])?;
        until("headscale answers", PATIENCE, || Ok(self.try_users()?.then_some(())))
            .with_context(|| process.output())?;
        self.process = Some(process);
        Ok(())
    }

    fn try_users(&self) -> Result<bool> {
        let (program, config) = (HEADSCALE.path()?, self.config.display().to_string());
        Ok(self.node.try_run(&[&program, "-c", &config, "users", "list"])?.status.success())
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        let (program, config) = (HEADSCALE.path()?, self.config.display().to_string());
        let output = self.node.try_run(&[&[&program, "-c", &config], words].concat())?;
        ensure!(output.status.success(), "headscale {words:?}: {}: {}", output.status, text(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A DERP map with the names of fields as headscale's files have them.
fn lower(map: &Value) -> Value {
    match map {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.to_lowercase(), lower(value))).collect(),
        Value::Array(values) => values.iter().map(lower).collect(),
        other => other.clone(),
    }
}
