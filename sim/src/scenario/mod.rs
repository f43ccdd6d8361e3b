//! What is to be simulated, and what is expected of it: the one form that files and the Rust builder come to.

mod builder;
mod read;
mod toml;
mod toml_control;
mod toml_event;
mod toml_expect;
mod toml_nat;
mod toml_world;
mod value;
mod write;
mod write_event;
mod write_net;

use core::{fmt, time::Duration};

use control::coordinator::Command;
use mesh_core::{derp::RegionId, time::Instant};

use crate::{
    check::Expectation,
    host::{ControlChange, HostId, Manner, NodeOrder, Preparation, RelayChange},
    kernel::{dice::Probability, trace::Names},
    net::{
        Direction, Family, Ipv6, NetId, NetSetup, Renumber, firewall::FirewallParams, link::LinkParams, nat::NatParams,
    },
};

pub use builder::{DeliveryRef, NetRef, NodeRef, RelayRef, TrafficRef, World, star};
pub use toml::{parse, parse_with};
pub use value::parse_seeds;
pub use write::write;

/// The UDP port of nodes that are not given another.
pub const DEFAULT_PORT: u16 = 41641;

/// What the DNS server is called.
const RESOLVER: &str = "resolver";

/// What the control server is called.
pub const CONTROL: &str = "control";

/// A world, what happens in it, and what is expected.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// The seeds that it is run with unless others are asked for.
    pub seeds: Vec<u64>,
    /// How long it runs, in simulated time.
    pub duration: Duration,
    /// Sites.
    pub nets: Vec<NetSpec>,
    /// Members of the overlay.
    pub nodes: Vec<NodeSpec>,
    /// Relays.
    pub relays: Vec<RelaySpec>,
    /// Who tells everybody the relays' addresses, if they are told by name.
    pub resolver: Option<ResolverSpec>,
    /// The control server that nodes join, if there is one; then nobody is told of anybody by `peers` or `maps`.
    pub control: Option<ControlSpec>,
    /// How long the core takes between two regions.
    pub latencies: Vec<(u16, u16, Duration)>,
    /// What nodes are told of each other, in a world with relays in which nobody is told of anybody by `peers`.
    pub maps: Maps,
    /// Who may reach whom, as the text of a policy, in a world with network maps; `None` is everybody everything.
    pub policy: Option<String>,
    /// Who is told of whom.
    pub peers: Vec<PeerSpec>,
    /// What applications do.
    pub traffic: Vec<TrafficSpec>,
    /// What goes wrong, and what is changed.
    pub events: Vec<EventSpec>,
    /// What is expected.
    pub expects: Vec<ExpectSpec>,
}

/// A site.
#[derive(Clone, Debug)]
pub struct NetSpec {
    /// Its name.
    pub name: String,
    /// What it is made of; without a NAT its hosts have public addresses.
    pub setup: NetSetup,
}

/// A member of the overlay.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub net: NetId,
    /// The UDP port that it listens on.
    pub port: u16,
    /// Whose it is, as a policy names them.
    pub user: String,
    /// Its tags, `tag:` included. With tags it is nobody's.
    pub tags: Vec<String>,
    /// When it starts.
    pub start: Instant,
    /// The auth key that it joins with, by its name in the scenario; with none somebody has to sign in.
    pub key: Option<String>,
}

/// A control server.
#[derive(Clone, Debug)]
pub struct ControlSpec {
    /// Where it is.
    pub net: NetId,
    /// How long its disk takes to store something.
    pub commit: Duration,
    /// What was set up before the world begins.
    pub preparation: Preparation,
}

/// A relay.
#[derive(Clone, Debug)]
pub struct RelaySpec {
    /// Its name, and its host name.
    pub name: String,
    /// The region that it is of.
    pub region: RegionId,
    /// Where it is.
    pub net: NetId,
    /// Whether it answers STUN.
    pub stun: bool,
    /// Whether it relays.
    pub derp: bool,
    /// How connections to it begin.
    pub start: RelayStart,
}

/// How connections to a relay begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayStart {
    /// Its certificate names its key.
    Fast,
    /// It says its key first.
    Slow,
}

/// What network maps say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Maps {
    /// Keys, homes and addresses, always the newest.
    #[default]
    Live,
    /// Keys and homes: addresses come from the nodes themselves, over relays.
    Static,
    /// There are none.
    None,
}

/// A DNS server that knows the relays.
#[derive(Clone, Debug)]
pub struct ResolverSpec {
    /// Where it is.
    pub net: NetId,
    /// How long an answer takes.
    pub delay: Duration,
}

/// One node is told of another.
#[derive(Clone, Debug)]
pub struct PeerSpec {
    /// Who is told.
    pub of: HostId,
    /// Of whom.
    pub is: HostId,
    /// Whether also where that is: its address in the core, and its port.
    pub endpoint: Endpoint,
    /// How often to send something.
    pub keepalive: Option<Duration>,
}

/// Whether a node is told where its peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// It is.
    Told,
    /// It must wait for the peer.
    Unknown,
}

/// What an application does.
#[derive(Clone, Debug)]
pub struct TrafficSpec {
    /// How it travels.
    pub kind: TrafficKind,
    /// Who asks.
    pub from: HostId,
    /// Who answers.
    pub to: HostId,
    /// From question to question.
    pub every: Duration,
    /// When the first is asked.
    pub start: Instant,
    /// None is asked at or after this.
    pub stop: Option<Instant>,
    /// Bytes of a question.
    pub bytes: usize,
    /// Bytes of an answer.
    pub answer_bytes: usize,
}

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficKind {
    /// ICMP echo.
    Ping,
    /// Request and response over UDP.
    Request,
}

/// Something happens to the world.
#[derive(Clone, Debug)]
pub struct EventSpec {
    /// When.
    pub at: Instant,
    /// What.
    pub fault: Fault,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The access link of a net changes.
    Link {
        /// Of which net.
        net: NetId,
        /// Which part of it.
        part: LinkPart,
        /// How.
        change: LinkChange,
    },
    /// A node is ended and started again with its key and nothing else.
    Restart {
        /// Which.
        node: HostId,
        /// How long it is off in between.
        off: Duration,
    },
    /// The NAT of a net forgets everything.
    Reboot {
        /// Which net's.
        net: NetId,
        /// Whether it has another address afterwards.
        renumber: Renumber,
        /// How long the access link is down meanwhile.
        down: Duration,
    },
    /// The NAT of a net behaves otherwise from now on.
    Nat {
        /// Which net's.
        net: NetId,
        /// How.
        params: Box<NatParams>,
    },
    /// A net has another firewall from now on, or none.
    Firewall {
        /// Which net.
        net: NetId,
        /// Which firewall.
        params: Option<FirewallParams>,
    },
    /// A node's host leaves its net for another, where it has other addresses.
    Move {
        /// Which.
        node: HostId,
        /// Where to.
        to: NetId,
        /// How long it is in neither.
        gap: Duration,
    },
    /// A node's host sleeps.
    Suspend {
        /// Which.
        node: HostId,
        /// For how long.
        length: Duration,
    },
    /// Something happens to a relay.
    Relay {
        /// Which: its host.
        relay: HostId,
        /// What.
        change: RelayChange,
        /// How long until a killed one is started, or a black hole answers again; for ever when `None`.
        length: Option<Duration>,
    },
    /// The DNS server behaves otherwise from now on.
    Resolver(Manner),
    /// Something happens to the control server.
    Control {
        /// What.
        change: ControlChange,
        /// How long until a killed one is started, a frozen one goes on, or a black hole answers; for ever when `None`.
        length: Option<Duration>,
    },
    /// Somebody who runs the control server wants something of it.
    Admin(Box<Command>),
    /// Somebody tells a node what to do.
    Order {
        /// Which.
        node: HostId,
        /// What.
        order: NodeOrder,
    },
    /// Somebody sends a host again what it received last, as if it came from somebody else.
    Replay {
        /// Which: a node's or a relay's.
        at: HostId,
    },
    /// There is another policy.
    Policy {
        /// Its text.
        text: String,
    },
}

/// A part of an access link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkPart {
    /// All of it.
    Whole,
    /// One direction.
    Direction(Direction),
    /// What is of one family of addresses.
    Family(Family),
}

/// How a link changes.
#[derive(Clone, Debug)]
pub enum LinkChange {
    /// It behaves like this from now on.
    Set(Box<LinkParams>),
    /// It carries nothing, for this long or until it is up again.
    Down(Option<Duration>),
    /// It carries again.
    Up,
}

/// Something is expected.
#[derive(Clone, Debug)]
pub struct ExpectSpec {
    /// The line of the file that says so.
    pub line: Option<usize>,
    /// What.
    pub expectation: Expectation,
    /// Of at least this share of the seeds.
    pub min_rate: Probability,
}

impl Scenario {
    /// What numbers are called.
    #[must_use]
    pub fn names(&self) -> Names {
        let mut names = Names {
            hosts: self.host_names().map(str::to_owned).collect(),
            nets: self.nets.iter().map(|net| net.name.clone()).collect(),
            events: Vec::new(),
        };
        names.events = self.events.iter().map(|event| event.fault.text(&names)).collect();
        names
    }

    /// The names of all hosts, in order of their numbers: nodes, then relays, then the DNS server, then control.
    pub fn host_names(&self) -> impl Iterator<Item = &str> {
        let nodes = self.nodes.iter().map(|node| node.name.as_str());
        let relays = self.relays.iter().map(|relay| relay.name.as_str());
        let resolver = self.resolver.as_ref().map(|_| RESOLVER);
        nodes.chain(relays).chain(resolver).chain(self.control.as_ref().map(|_| CONTROL))
    }

    /// The host of the control server.
    #[must_use]
    pub fn control_host(&self) -> HostId {
        self.relay_host(self.relays.len() + usize::from(self.resolver.is_some()))
    }

    /// The host of a relay.
    #[must_use]
    pub fn relay_host(&self, relay: usize) -> HostId {
        HostId((self.nodes.len() + relay) as u32)
    }

    /// Whether there are no maps that a policy could be in.
    pub(crate) fn policy_is_unused(&self) -> bool {
        let is_without_maps = self.relays.is_empty() || !self.peers.is_empty() || self.maps == Maps::None;
        is_without_maps || self.control.is_some()
    }

    /// Bytes that stand for everything that decides what happens. Names and expectations do not.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let nets: Vec<_> = self.nets.iter().map(|net| (net.setup.link, net.setup.nat)).collect();
        let nodes: Vec<_> = self.nodes.iter().map(|node| (node.net, node.port)).collect();
        let mut text =
            format!("{nets:?} {nodes:?} {:?} {:?} {:?} {:?}", self.peers, self.traffic, self.events, self.duration);
        // Told where they are, so that what was recorded of worlds without them stays good.
        for (number, net) in self.nets.iter().enumerate() {
            let NetSetup { firewall, behind, ipv6, region, .. } = net.setup;
            if firewall.is_some() || behind.is_some() {
                text += &format!(" {number}: {firewall:?} {behind:?}");
            }
            if ipv6 != Ipv6::None || region != 0 {
                text += &format!(" {number}: {ipv6:?} in {region}");
            }
        }
        for relay in &self.relays {
            let RelaySpec { region, net, stun, derp, start, .. } = relay;
            text += &format!(" relay {region} {net:?} {stun} {derp} {start:?}");
        }
        for (number, node) in self.nodes.iter().enumerate() {
            if node.start != Instant::ZERO || node.key.is_some() {
                text += &format!(" {number}: {} {:?}", node.start, node.key);
            }
        }
        if let Some(control) = &self.control {
            let names: Vec<_> = self.nodes.iter().map(|node| &node.name).collect();
            text += &format!(" {control:?} {names:?}");
        }
        if let Some(resolver) = &self.resolver {
            text += &format!(" {resolver:?}");
        }
        if self.maps != Maps::Live {
            text += &format!(" maps {:?}", self.maps);
        }
        if let Some(policy) = &self.policy {
            let whose: Vec<_> = self.nodes.iter().map(|node| (&node.user, &node.tags)).collect();
            text += &format!(" policy {policy:?} {whose:?}");
        }
        for latency in &self.latencies {
            text += &format!(" {latency:?}");
        }
        text.into_bytes()
    }
}

/// Whose a node is that says nothing of it: each has a user of its own.
fn default_user(node: &str) -> String {
    format!("{node}@example.com")
}

impl ExpectSpec {
    /// Whether it must hold in every seed; otherwise all seeds together are judged.
    #[must_use]
    pub fn is_for_every_seed(&self) -> bool {
        self.min_rate == Probability::ONE
    }
}

impl Fault {
    /// A few words.
    #[must_use]
    pub fn text(&self, names: &Names) -> String {
        let net = |id: &NetId| names.nets.get(id.index()).map_or("?", String::as_str);
        let host = |id: &HostId| names.hosts.get(id.index()).map_or("?", String::as_str);
        match self {
            Self::Link { net: id, change: LinkChange::Set(_), .. } => format!("link {} changes", net(id)),
            Self::Link { net: id, change: LinkChange::Down(_), .. } => format!("link {} goes down", net(id)),
            Self::Link { net: id, change: LinkChange::Up, .. } => format!("link {} comes up", net(id)),
            Self::Restart { node, .. } => format!("restart of {}", host(node)),
            Self::Firewall { net: id, .. } => format!("firewall of {} changes", net(id)),
            Self::Move { node, to, .. } => format!("{} moves to {}", host(node), net(to)),
            Self::Suspend { node, .. } => format!("{} sleeps", host(node)),
            Self::Relay { relay, change, .. } => format!("relay {} {change:?}", host(relay)),
            Self::Resolver(manner) => format!("resolver {manner:?}"),
            Self::Control { change, .. } => format!("control {change:?}"),
            Self::Admin(command) => format!("control is told {command:?}"),
            Self::Order { node, order } => format!("{} is told {order:?}", host(node)),
            Self::Policy { .. } => "another policy".to_owned(),
            Self::Replay { at } => format!("what {} received is replayed", host(at)),
            Self::Reboot { net: id, .. } => format!("reboot of the NAT of {}", net(id)),
            Self::Nat { net: id, .. } => format!("NAT of {} changes", net(id)),
        }
    }
}

/// Why a scenario is refused, and where in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioError {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl core::error::Error for ScenarioError {}
