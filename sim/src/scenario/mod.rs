//! What is to be simulated, and what is expected of it: the one form that files and the Rust builder come to.

mod builder;
mod read;
mod toml;
mod toml_expect;
mod toml_nat;
mod value;

use core::{fmt, time::Duration};

use mesh_core::time::Instant;

use crate::{
    check::Expectation,
    host::HostId,
    kernel::{dice::Probability, trace::Names},
    net::{Ipv6, NetId, NetSetup, Renumber, link::LinkParams, nat::NatParams},
};

pub use builder::{DeliveryRef, NetRef, NodeRef, TrafficRef, World, star};
pub use toml::parse;
pub use value::parse_seeds;

/// The UDP port of nodes that are not given another.
pub const DEFAULT_PORT: u16 = 41641;

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
            hosts: self.nodes.iter().map(|node| node.name.clone()).collect(),
            nets: self.nets.iter().map(|net| net.name.clone()).collect(),
            events: Vec::new(),
        };
        names.events = self.events.iter().map(|event| event.fault.text(&names)).collect();
        names
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
        text.into_bytes()
    }
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
        match self {
            Self::Link { net: id, change: LinkChange::Set(_) } => format!("link {} changes", net(id)),
            Self::Link { net: id, change: LinkChange::Down(_) } => format!("link {} goes down", net(id)),
            Self::Link { net: id, change: LinkChange::Up } => format!("link {} comes up", net(id)),
            Self::Restart { node, .. } => {
                format!("restart of {}", names.hosts.get(node.index()).map_or("?", String::as_str))
            }
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
