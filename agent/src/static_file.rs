//! Static files: keys, addresses and peers in the format of wg-quick.
//!
//! [`parse`] is a pure function from text to [`StaticFile`]; every complaint carries the number of the line it is
//! about. Keys and sections are compared without regard to case, `#` begins a comment, lists are separated by commas
//! and may be spread over several lines, as WireGuard tools have it.
//!
//! What would change more of the host than the tunnel is refused by name rather than ignored: scripts, DNS, routing
//! tables. Names of hosts are left as they are; [`Endpoint`] says where resolving begins.

use core::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::BTreeMap;

use mesh_core::{
    ip::prefix::{ParsePrefixError, Prefix},
    key::{NodePrivate, NodePublic, ParseKeyError, PresharedKey},
};

/// What a static file says.
#[derive(Clone, Debug)]
pub struct StaticFile {
    /// Who we are.
    pub private_key: NodePrivate,
    /// Our overlay addresses with the lengths of their networks.
    pub addresses: Vec<(IpAddr, u8)>,
    /// UDP port to listen on.
    pub listen_port: Option<u16>,
    /// MTU of the TUN in bytes.
    pub mtu_bytes: Option<usize>,
    /// The peers, in the order of the file.
    pub peers: Vec<StaticPeer>,
}

/// A peer of a static file.
#[derive(Clone, Debug)]
pub struct StaticPeer {
    /// Who it is.
    pub public_key: NodePublic,
    /// A secret shared with it beforehand.
    pub preshared_key: Option<PresharedKey>,
    /// Overlay addresses that are sent to it and accepted from it.
    pub allowed_ips: Vec<Prefix>,
    /// Where to begin.
    pub endpoint: Option<Endpoint>,
    /// Send something at least this often.
    pub persistent_keepalive: Option<Duration>,
}

/// Where a peer is said to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An address, nothing to resolve.
    Address(SocketAddr),
    /// A name, to be resolved at start.
    Host {
        /// The name.
        name: String,
        /// The UDP port.
        port: u16,
        /// Where the file says so.
        line: usize,
    },
}

/// Why a static file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ParseError {
    /// Counted from 1; for something that is missing, the line that makes it necessary.
    pub line: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Neither a section nor an assignment.
    #[error("expected \"Key = Value\" or a section such as [Peer]")]
    Syntax,
    /// An assignment before the first section.
    #[error("{0} stands before the first section; begin with [Interface]")]
    NoSection(String),
    /// Not a section of such files.
    #[error("unknown section [{0}]; there are [Interface] and [Peer]")]
    Section(String),
    /// `[Interface]` again.
    #[error("a second [Interface]; the first is in line {0}")]
    SecondInterface(usize),
    /// Not a key of the section.
    #[error("unknown key {key} in [{section}]{hint}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The section it is in.
        section: &'static str,
        /// The nearest key that there is.
        hint: Hint,
    },
    /// A key of wg-quick that meshd does not carry out.
    #[error("{key} is not supported: {why}")]
    Refused {
        /// The key.
        key: &'static str,
        /// Why, and what to do instead.
        why: &'static str,
    },
    /// A key that can stand once, twice.
    #[error("{key} is given twice; the first is in line {first}")]
    Twice {
        /// The key.
        key: &'static str,
        /// Where it was given first.
        first: usize,
    },
    /// A key without which a section says nothing.
    #[error("{section} has no {key}")]
    Missing {
        /// The section.
        section: &'static str,
        /// The key.
        key: &'static str,
    },
    /// Not a WireGuard key.
    #[error("{key} is not a key: {source}")]
    Key {
        /// Where.
        key: &'static str,
        /// Why.
        source: ParseKeyError,
    },
    /// Not an address or network. The text may be shown: it is no secret.
    #[error("\"{text}\" in {key} is not an address: {source}")]
    Prefix {
        /// Where.
        key: &'static str,
        /// What stands there.
        text: String,
        /// Why.
        source: ParsePrefixError,
    },
    /// Not a number, or out of range.
    #[error("\"{text}\" in {key} is not a number between {low} and {high}{or}")]
    Number {
        /// Where.
        key: &'static str,
        /// What stands there.
        text: String,
        /// The least that is accepted.
        low: u32,
        /// The most that is accepted.
        high: u32,
        /// What else is accepted.
        or: &'static str,
    },
    /// Not an endpoint.
    #[error("\"{0}\" is not an endpoint; write address:port, [IPv6]:port or name:port")]
    Endpoint(String),
    /// A peer that is there already.
    #[error("this peer is listed already; its public key is in line {0}")]
    DuplicatePeer(usize),
    /// A peer with our key.
    #[error("this peer has the public key of this node itself")]
    OwnKey,
}

/// The nearest key that there is, if one is near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint(Option<&'static str>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(known) => write!(f, "; did you mean {known}?"),
            None => Ok(()),
        }
    }
}

const INTERFACE_KEYS: [&str; 4] = ["PrivateKey", "ListenPort", "Address", "MTU"];
const PEER_KEYS: [&str; 5] = ["PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"];

/// Keys of wg-quick that are refused, and why.
const REFUSED: [(&str, &str); 8] = [
    ("Table", "routes always go to table 52, and rules lead there"),
    ("FwMark", "own datagrams always carry the mark 0x80000/0xff0000"),
    ("SaveConfig", "meshd never writes to this file"),
    ("DNS", "meshd does not change name resolution in static mode; set it up outside"),
    ("PreUp", "meshd runs no scripts; use a unit or a wrapper around it"),
    ("PostUp", "meshd runs no scripts; use a unit or a wrapper around it"),
    ("PreDown", "meshd runs no scripts; use a unit or a wrapper around it"),
    ("PostDown", "meshd runs no scripts; use a unit or a wrapper around it"),
];

/// The least MTU: what every IPv4 host must take (RFC 791). The most is what a datagram carries.
const MTU_BYTES: (u32, u32) = (576, mesh_core::limits::PACKET_BYTES as u32);

/// Reads the text of a static file.
///
/// # Errors
/// The first thing that is wrong, with its line.
pub fn parse(text: &str) -> Result<StaticFile, ParseError> {
    let mut parser = Parser::default();
    let mut last = 0;
    for (index, line) in text.lines().enumerate() {
        last = index + 1;
        parser.line(last, line).map_err(|problem| ParseError { line: last, problem })?;
    }
    parser.finish(last.max(1))
}

#[derive(Default)]
struct Parser {
    section: Section,
    interface: Option<InterfaceLines>,
    peers: Vec<PeerLines>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Section {
    #[default]
    None,
    Interface,
    Peer,
}

/// An `[Interface]` as far as it was read.
#[derive(Default)]
struct InterfaceLines {
    line: usize,
    /// Where keys that can stand once were given.
    given: BTreeMap<&'static str, usize>,
    private_key: Option<NodePrivate>,
    addresses: Vec<(IpAddr, u8)>,
    listen_port: Option<u16>,
    mtu_bytes: Option<usize>,
}

/// A `[Peer]` as far as it was read.
#[derive(Default)]
struct PeerLines {
    line: usize,
    given: BTreeMap<&'static str, usize>,
    public_key: Option<NodePublic>,
    preshared_key: Option<PresharedKey>,
    allowed_ips: Vec<Prefix>,
    endpoint: Option<Endpoint>,
    persistent_keepalive: Option<Duration>,
}

impl Parser {
    fn line(&mut self, number: usize, line: &str) -> Result<(), Problem> {
        let line = line.split('#').next().unwrap_or_default().trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            return Ok(());
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').ok_or(Problem::Syntax)?.trim();
            return self.open(number, name);
        }
        let (key, value) = line.split_once('=').ok_or(Problem::Syntax)?;
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() {
            return Err(Problem::Syntax);
        }
        match (self.section, &mut self.interface, self.peers.last_mut()) {
            (Section::Interface, Some(interface), _) => interface.assign(number, key, value),
            (Section::Peer, _, Some(peer)) => peer.assign(number, key, value),
            _ => Err(Problem::NoSection(key.to_owned())),
        }
    }

    fn open(&mut self, number: usize, name: &str) -> Result<(), Problem> {
        if name.eq_ignore_ascii_case("Interface") {
            if let Some(first) = &self.interface {
                return Err(Problem::SecondInterface(first.line));
            }
            self.section = Section::Interface;
            self.interface = Some(InterfaceLines { line: number, ..InterfaceLines::default() });
        } else if name.eq_ignore_ascii_case("Peer") {
            self.section = Section::Peer;
            self.peers.push(PeerLines { line: number, ..PeerLines::default() });
        } else {
            return Err(Problem::Section(name.to_owned()));
        }
        Ok(())
    }

    fn finish(self, last: usize) -> Result<StaticFile, ParseError> {
        let at = |line, problem| ParseError { line, problem };
        let Some(interface) = self.interface else {
            return Err(at(last, Problem::Missing { section: "the file", key: "[Interface]" }));
        };
        let missing = Problem::Missing { section: "[Interface]", key: "PrivateKey" };
        let private_key = interface.private_key.ok_or(at(interface.line, missing))?;
        let own = private_key.public();

        let mut lines = BTreeMap::new();
        let mut peers = Vec::with_capacity(self.peers.len());
        for peer in self.peers {
            let missing = Problem::Missing { section: "[Peer]", key: "PublicKey" };
            let public_key = peer.public_key.ok_or(at(peer.line, missing))?;
            let line = peer.given.get("PublicKey").copied().unwrap_or(peer.line);
            if public_key == own {
                return Err(at(line, Problem::OwnKey));
            }
            if let Some(first) = lines.insert(public_key, line) {
                return Err(at(line, Problem::DuplicatePeer(first)));
            }
            peers.push(StaticPeer {
                public_key,
                preshared_key: peer.preshared_key,
                allowed_ips: peer.allowed_ips,
                endpoint: peer.endpoint,
                persistent_keepalive: peer.persistent_keepalive,
            });
        }
        Ok(StaticFile {
            private_key,
            addresses: interface.addresses,
            listen_port: interface.listen_port,
            mtu_bytes: interface.mtu_bytes,
            peers,
        })
    }
}

impl InterfaceLines {
    fn assign(&mut self, line: usize, key: &str, value: &str) -> Result<(), Problem> {
        match known(&INTERFACE_KEYS, "Interface", key)? {
            key @ "PrivateKey" => {
                once(&mut self.given, key, line)?;
                let parsed = NodePrivate::from_base64(value).map_err(|source| Problem::Key { key, source })?;
                self.private_key = Some(parsed);
            }
            key @ "ListenPort" => {
                once(&mut self.given, key, line)?;
                self.listen_port = Some(number(key, value, 0, u32::from(u16::MAX), "")? as u16);
            }
            key @ "MTU" => {
                once(&mut self.given, key, line)?;
                self.mtu_bytes = Some(number(key, value, MTU_BYTES.0, MTU_BYTES.1, "")? as usize);
            }
            key => {
                for text in items(value) {
                    // The prefix checks the form; the address keeps its host bits.
                    let prefix = prefix(key, text)?;
                    let address = text.split('/').next().and_then(|address| address.parse().ok());
                    let entry = (address.unwrap_or(prefix.address()), prefix.length());
                    if !self.addresses.contains(&entry) {
                        self.addresses.push(entry);
                    }
                }
            }
        }
        Ok(())
    }
}

impl PeerLines {
    fn assign(&mut self, line: usize, key: &str, value: &str) -> Result<(), Problem> {
        let key = known(&PEER_KEYS, "Peer", key)?;
        if key == "AllowedIPs" {
            for text in items(value) {
                let prefix = prefix(key, text)?;
                if !self.allowed_ips.contains(&prefix) {
                    self.allowed_ips.push(prefix);
                }
            }
            return Ok(());
        }
        once(&mut self.given, key, line)?;
        match key {
            "PublicKey" => {
                let parsed = NodePublic::from_base64(value).map_err(|source| Problem::Key { key, source })?;
                self.public_key = Some(parsed);
            }
            "PresharedKey" => {
                let parsed = PresharedKey::from_base64(value).map_err(|source| Problem::Key { key, source })?;
                self.preshared_key = Some(parsed);
            }
            "Endpoint" => self.endpoint = Some(endpoint(line, value)?),
            _ => {
                if !value.eq_ignore_ascii_case("off") {
                    let seconds = number(key, value, 0, u32::from(u16::MAX), " or \"off\"")?;
                    self.persistent_keepalive = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
                }
            }
        }
        Ok(())
    }
}

/// The key as we write it.
fn known(keys: &[&'static str], section: &'static str, key: &str) -> Result<&'static str, Problem> {
    if let Some(known) = keys.iter().find(|known| known.eq_ignore_ascii_case(key)) {
        return Ok(known);
    }
    if let Some((key, why)) = REFUSED.iter().find(|(refused, _)| refused.eq_ignore_ascii_case(key)) {
        return Err(Problem::Refused { key, why });
    }
    let hint = Hint(nearest(key, keys));
    Err(Problem::UnknownKey { key: key.to_owned(), section, hint })
}

/// The key that was probably meant.
fn nearest(text: &str, keys: &[&'static str]) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    let scored = keys.iter().map(|key| (strsim::levenshtein(&text, &key.to_ascii_lowercase()), *key));
    let (score, key) = scored.min_by_key(|(score, _)| *score)?;
    (score <= key.len().div_ceil(3)).then_some(key)
}

fn once(given: &mut BTreeMap<&'static str, usize>, key: &'static str, line: usize) -> Result<(), Problem> {
    match given.insert(key, line) {
        Some(first) => Err(Problem::Twice { key, first }),
        None => Ok(()),
    }
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn prefix(key: &'static str, text: &str) -> Result<Prefix, Problem> {
    text.parse().map_err(|source| Problem::Prefix { key, text: text.to_owned(), source })
}

fn number(key: &'static str, text: &str, low: u32, high: u32, or: &'static str) -> Result<u32, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parsed = text.parse().ok().filter(|number| digits && (low..=high).contains(number));
    parsed.ok_or_else(|| Problem::Number { key, text: text.to_owned(), low, high, or })
}

fn endpoint(line: usize, text: &str) -> Result<Endpoint, Problem> {
    let refuse = || Problem::Endpoint(text.to_owned());
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 { Err(refuse()) } else { Ok(Endpoint::Address(address)) };
    }
    let (name, port) = text.rsplit_once(':').ok_or_else(refuse)?;
    let is_name = !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        // Such as 1.2.3.4.5 or 300.1.1.1: a mistyped address, not a name.
        && !name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let port = port.parse().ok().filter(|port| *port != 0);
    match (is_name, port) {
        (true, Some(port)) => Ok(Endpoint::Host { name: name.to_owned(), port, line }),
        _ => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    const B: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    const C: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

    #[test]
    fn the_key_that_was_meant_is_found() {
        let keys = ["PublicKey", "PresharedKey", "AllowedIPs"];
        assert_eq!(nearest("publickey", &keys), Some("PublicKey"));
        assert_eq!(nearest("AllowedIP", &keys), Some("AllowedIPs"));
        assert_eq!(nearest("PreSharedKy", &keys), Some("PresharedKey"));
        assert_eq!(nearest("Colour", &keys), None);
        assert_eq!(nearest("x", &[]), None);
    }

    #[test]
    fn reads_all_that_wg_quick_writes() {
        let text = format!(
            "\u{feff}# head\r\n[interface]\r\nPrivateKey = {A}\nlistenport=51820 # here\nAddress = 10.0.0.1/24, fd00::1/64\n\
             Address = 10.9.0.1\nMTU = 1280\n\n[PEER]\nPublicKey = {B}\nPresharedKey = {C}\n\
             AllowedIPs = 10.0.0.2/32, 192.168.7.9/24\nAllowedIPs = ::/0\nEndpoint = [2001:db8::1]:51820\n\
             PersistentKeepalive = 25\n[Peer]\nPublicKey = {C}\nAllowedIPs =\nEndpoint = vpn.example.org:51820\n\
             PersistentKeepalive = off\n"
        );
        let file = parse(&text).unwrap();
        assert_eq!(file.listen_port, Some(51820));
        assert_eq!(file.mtu_bytes, Some(1280));
        let addresses: Vec<_> = file.addresses.iter().map(|(a, l)| format!("{a}/{l}")).collect();
        assert_eq!(addresses, ["10.0.0.1/24", "fd00::1/64", "10.9.0.1/32"]);
        let first = &file.peers[0];
        assert_eq!(first.public_key.to_base64(), B);
        assert!(first.preshared_key.is_some());
        let allowed: Vec<_> = first.allowed_ips.iter().map(Prefix::to_string).collect();
        assert_eq!(allowed, ["10.0.0.2/32", "192.168.7.0/24", "::/0"]);
        assert_eq!(first.endpoint, Some(Endpoint::Address("[2001:db8::1]:51820".parse().unwrap())));
        assert_eq!(first.persistent_keepalive, Some(Duration::from_secs(25)));
        let second = &file.peers[1];
        assert!(second.allowed_ips.is_empty() && second.persistent_keepalive.is_none());
        let host = Endpoint::Host { name: "vpn.example.org".into(), port: 51820, line: 19 };
        assert_eq!(second.endpoint, Some(host));
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        for (lines, told) in [
            ("", "line 1: the file has no [Interface]"),
            ("[Interface]", "line 1: [Interface] has no PrivateKey"),
            ("nonsense", "line 1: expected \"Key = Value\" or a section such as [Peer]"),
            ("MTU = 1", "line 1: MTU stands before the first section; begin with [Interface]"),
            ("[Foo]", "line 1: unknown section [Foo]; there are [Interface] and [Peer]"),
            ("<I>\n[Interface]", "line 3: a second [Interface]; the first is in line 1"),
            ("<I>\nPrivatKey = x", "line 3: unknown key PrivatKey in [Interface]; did you mean PrivateKey?"),
            ("<I>\nColour = x", "line 3: unknown key Colour in [Interface]"),
            ("<I>\nMTU = 9\n", "line 3: \"9\" in MTU is not a number between 576 and 65472"),
            ("<I>\nListenPort = 1\nListenPort = 2", "line 4: ListenPort is given twice; the first is in line 3"),
            ("<I>\nListenPort = 65536", "line 3: \"65536\" in ListenPort is not a number between 0 and 65535"),
            (
                "<I>\nAddress = 10.0.0.1/33",
                "line 3: \"10.0.0.1/33\" in Address is not an address: expected a prefix length of at most 32 (IPv4) or \
                 128 (IPv6)",
            ),
            ("<I>\n[Peer]\nAllowedIPs = ::/0", "line 3: [Peer] has no PublicKey"),
            (
                "<I>\n[Peer]\nPublicKey = abc",
                "line 4: PublicKey is not a key: expected the base64 of 32 bytes: 44 characters ending in \"=\"",
            ),
            ("<I>\n<P>\n<P>", "line 6: this peer is listed already; its public key is in line 4"),
            (
                "<I>\n<P>\nPersistentKeepalive = soon",
                "line 5: \"soon\" in PersistentKeepalive is not a number between 0 and 65535 or \"off\"",
            ),
        ] {
            let text = lines
                .replace("<I>", &format!("[Interface]\nPrivateKey = {A}"))
                .replace("<P>", &format!("[Peer]\nPublicKey = {B}"));
            assert_eq!(parse(&text).unwrap_err().to_string(), told, "{text}");
        }
    }

    #[test]
    fn what_would_change_the_host_is_refused_by_name() {
        for (key, why) in REFUSED {
            let text = format!("[Interface]\nPrivateKey = {A}\n{} = x\n", key.to_lowercase());
            assert_eq!(parse(&text).unwrap_err().to_string(), format!("line 3: {key} is not supported: {why}"));
        }
    }

    #[test]
    fn a_peer_cannot_be_this_node() {
        let own = NodePrivate::from_base64(A).unwrap().public().to_base64();
        let text = format!("[Interface]\nPrivateKey = {A}\n[Peer]\nPublicKey = {own}\n");
        assert_eq!(parse(&text).unwrap_err(), ParseError { line: 4, problem: Problem::OwnKey });
    }

    #[test]
    fn endpoints_are_addresses_or_names_with_ports() {
        for text in ["10.0.0.1:1", "[::1]:1", "host:1", "a-b.example.org:65535"] {
            assert!(endpoint(1, text).is_ok(), "{text}");
        }
        for text in
            ["10.0.0.1", "10.0.0.1:0", "::1:1", "[::1]", "host", "host:", ":1", "300.1.1.1:1", "a b:1", "h:65536"]
        {
            assert!(endpoint(1, text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_private_key_is_in_no_message() {
        let text = format!("[Interface]\nPrivateKey = {}\n", &A[..43]);
        assert!(!parse(&text).unwrap_err().to_string().contains(&A[..20]));
    }
}
