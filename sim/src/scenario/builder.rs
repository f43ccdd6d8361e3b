//! Worlds written in Rust, for tests and benches.

use core::time::Duration;
use std::{cell::RefCell, rc::Rc};

use mesh_core::{derp::RegionId, time::Instant};

use crate::{
    check::{Expectation, Held, Hold, PathIs},
    host::{HostId, RelayChange},
    kernel::dice::Probability,
    net::{Ipv6, NetId, NetSetup, firewall::FirewallParams, link::LinkParams, nat::NatParams},
    report::{RunReport, Verdict, terminal},
};

use super::{
    DEFAULT_PORT, Endpoint, EventSpec, ExpectSpec, Fault, Maps, NetSpec, NodeSpec, PeerSpec, RelaySpec, RelayStart,
    ResolverSpec, Scenario, TrafficKind, TrafficSpec, default_user,
};

/// A world that is being described, for one seed.
///
/// Handles share the description with the world, so that a test reads from top to bottom.
#[derive(Clone, Debug)]
pub struct World {
    seed: u64,
    scenario: Rc<RefCell<Scenario>>,
}

/// A net of a [`World`].
#[derive(Clone, Debug)]
pub struct NetRef {
    world: World,
    id: NetId,
}

/// A node of a [`World`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRef(pub HostId);

/// A relay of a [`World`].
#[derive(Clone, Debug)]
pub struct RelayRef {
    world: World,
    index: usize,
}

/// Traffic of a [`World`].
#[derive(Clone, Debug)]
pub struct TrafficRef {
    world: World,
    index: usize,
}

/// An expectation of a [`World`] that something is delivered.
#[derive(Clone, Debug)]
pub struct DeliveryRef {
    world: World,
    index: usize,
}

impl World {
    /// An empty world with the dice of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let scenario = Scenario { name: "test".to_owned(), seeds: vec![seed], ..Scenario::default() };
        Self { seed, scenario: Rc::new(RefCell::new(scenario)) }
    }

    /// Adds a net with public addresses on a gigabit Ethernet.
    pub fn net(&self, name: &str) -> NetRef {
        let mut scenario = self.scenario.borrow_mut();
        scenario.nets.push(NetSpec { name: name.to_owned(), setup: NetSetup::PUBLIC });
        NetRef { world: self.clone(), id: NetId(scenario.nets.len() as u32 - 1) }
    }

    /// Adds a node.
    pub fn node(&self, name: &str, net: &NetRef) -> NodeRef {
        let mut scenario = self.scenario.borrow_mut();
        let (name, port, user) = (name.to_owned(), DEFAULT_PORT, default_user(name));
        let (net, tags, start, key) = (net.id, Vec::new(), Instant::ZERO, None);
        scenario.nodes.push(NodeSpec { name, net, port, user, tags, start, key });
        NodeRef(HostId(scenario.nodes.len() as u32 - 1))
    }

    /// Adds a relay that answers STUN and relays.
    ///
    /// # Panics
    /// When the region is 0, which is none.
    pub fn relay(&self, name: &str, region: u16, net: &NetRef) -> RelayRef {
        let mut scenario = self.scenario.borrow_mut();
        let region = RegionId::new(region).expect("regions are counted from 1");
        let (net, name) = (net.id, name.to_owned());
        scenario.relays.push(RelaySpec { name, region, net, stun: true, derp: true, start: RelayStart::Fast });
        RelayRef { world: self.clone(), index: scenario.relays.len() - 1 }
    }

    /// Sets what nodes are told of each other.
    pub fn maps(&self, maps: Maps) {
        self.scenario.borrow_mut().maps = maps;
    }

    /// Sets the policy; without one everything is allowed. It is read when the world is made.
    pub fn policy(&self, text: &str) {
        self.scenario.borrow_mut().policy = Some(text.to_owned());
    }

    /// Gives a node a tag; it is nobody's then.
    pub fn tag(&self, node: NodeRef, tag: &str) {
        self.scenario.borrow_mut().nodes[node.0.index()].tags.push(tag.to_owned());
    }

    /// Adds a DNS server; relays are told by name from then on.
    pub fn resolver(&self, net: &NetRef, delay: Duration) {
        self.scenario.borrow_mut().resolver = Some(ResolverSpec { net: net.id, delay });
    }

    /// Lets something happen to a relay; a killed one is started, and a black hole answers, after `length`.
    pub fn at_relay(&self, at: Instant, relay: &RelayRef, change: RelayChange, length: Option<Duration>) {
        let relay = self.scenario.borrow().relay_host(relay.index);
        self.at(at, Fault::Relay { relay, change, length });
    }

    /// Tells `of` who `is` is, and where if `endpoint` says so.
    pub fn peer(&self, of: NodeRef, is: NodeRef, endpoint: Endpoint, keepalive: Option<Duration>) {
        self.scenario.borrow_mut().peers.push(PeerSpec { of: of.0, is: is.0, endpoint, keepalive });
    }

    /// Tells two nodes who and where the other is.
    pub fn befriend(&self, a: NodeRef, b: NodeRef) {
        self.peer(a, b, Endpoint::Told, None);
        self.peer(b, a, Endpoint::Told, None);
    }

    /// Lets `from` ping `to`, from the start on.
    pub fn ping(&self, from: NodeRef, to: NodeRef, every: Duration) -> TrafficRef {
        self.traffic(TrafficKind::Ping, from, to, every)
    }

    /// Lets `from` send requests over UDP to `to`, from the start on.
    pub fn request(&self, from: NodeRef, to: NodeRef, every: Duration) -> TrafficRef {
        self.traffic(TrafficKind::Request, from, to, every)
    }

    /// Lets something happen.
    pub fn at(&self, at: Instant, fault: Fault) {
        self.scenario.borrow_mut().events.push(EventSpec { at, fault });
    }

    /// Expects something.
    pub fn expect(&self, expectation: Expectation) {
        let spec = ExpectSpec { line: None, expectation, min_rate: Probability::ONE };
        self.scenario.borrow_mut().expects.push(spec);
    }

    /// Expects that a message of `from` is delivered to `to`.
    pub fn expect_delivery(&self, from: NodeRef, to: NodeRef) -> DeliveryRef {
        let (from, to) = (from.0, to.0);
        self.expect(Expectation::Delivered {
            from,
            to,
            after: Instant::ZERO,
            within: None,
            held: Held::Once,
            via: None,
        });
        DeliveryRef { world: self.clone(), index: self.scenario.borrow().expects.len() - 1 }
    }

    /// Expects that two nodes speak directly within so long.
    pub fn expect_direct(&self, a: NodeRef, b: NodeRef, within: Duration) {
        self.expect(Expectation::Path {
            between: [a.0, b.0],
            is: PathIs::Direct,
            after: Instant::ZERO,
            within: Some(within),
            hold: Hold::Once,
            technique: Vec::new(),
        });
    }

    /// The description so far, to run until `until`.
    #[must_use]
    pub fn scenario(&self, until: Instant) -> Scenario {
        let mut scenario = self.scenario.borrow().clone();
        scenario.duration = until.since(Instant::ZERO);
        scenario
    }

    /// Runs the world from its beginning until `until`.
    ///
    /// # Panics
    /// When an expectation or invariant did not hold; the message says which, and the seed.
    pub fn run_until(&self, until: Instant) -> RunReport {
        let scenario = self.scenario(until);
        let report = crate::run(&scenario, self.seed);
        assert!(report.verdict == Verdict::Pass, "{}", terminal::failure(&scenario, &report, None));
        report
    }

    fn traffic(&self, kind: TrafficKind, from: NodeRef, to: NodeRef, every: Duration) -> TrafficRef {
        let mut scenario = self.scenario.borrow_mut();
        scenario.traffic.push(TrafficSpec {
            kind,
            from: from.0,
            to: to.0,
            every,
            start: Instant::ZERO,
            stop: None,
            bytes: 56,
            answer_bytes: 56,
        });
        TrafficRef { world: self.clone(), index: scenario.traffic.len() - 1 }
    }
}

impl NetRef {
    /// Puts a NAT between the net's hosts and its access link.
    #[must_use]
    pub fn nat(self, nat: NatParams) -> Self {
        self.world.scenario.borrow_mut().nets[self.id.index()].setup.nat = Some(nat);
        self
    }

    /// Puts a firewall between the net's hosts and its NAT, or its access link.
    #[must_use]
    pub fn firewall(self, firewall: FirewallParams) -> Self {
        self.world.scenario.borrow_mut().nets[self.id.index()].setup.firewall = Some(firewall);
        self
    }

    /// Puts the net behind another that was there before it.
    ///
    /// # Panics
    /// When it has no NAT.
    #[must_use]
    pub fn behind(self, other: &Self) -> Self {
        let mut scenario = self.world.scenario.borrow_mut();
        let setup = &mut scenario.nets[self.id.index()].setup;
        assert!(setup.nat.is_some(), "a net behind another has a NAT");
        setup.behind = Some(other.id);
        drop(scenario);
        self
    }

    /// Gives the net another access link.
    #[must_use]
    pub fn link(self, link: LinkParams) -> Self {
        self.world.scenario.borrow_mut().nets[self.id.index()].setup.link = link;
        self
    }

    /// Gives its hosts IPv6.
    #[must_use]
    pub fn ipv6(self, ipv6: Ipv6) -> Self {
        self.world.scenario.borrow_mut().nets[self.id.index()].setup.ipv6 = ipv6;
        self
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> NetId {
        self.id
    }
}

impl RelayRef {
    /// Connections to it begin with its key, or in hope of it.
    #[must_use]
    pub fn start(self, start: RelayStart) -> Self {
        self.world.scenario.borrow_mut().relays[self.index].start = start;
        self
    }
}

impl TrafficRef {
    /// Starts then.
    pub fn start(self, at: Instant) -> Self {
        self.world.scenario.borrow_mut().traffic[self.index].start = at;
        self
    }

    /// Stops then.
    pub fn stop(self, at: Instant) -> Self {
        self.world.scenario.borrow_mut().traffic[self.index].stop = Some(at);
        self
    }

    /// Bytes of payload of questions and answers, between [`MIN_BYTES`](crate::host::message::MIN_BYTES) and
    /// [`MAX_BYTES`](crate::host::message::MAX_BYTES).
    pub fn sizes(self, question: usize, answer: usize) -> Self {
        let mut scenario = self.world.scenario.borrow_mut();
        scenario.traffic[self.index].bytes = question;
        scenario.traffic[self.index].answer_bytes = answer;
        drop(scenario);
        self
    }
}

impl DeliveryRef {
    /// So long after the start, or after what [`Self::after`] says.
    pub fn within(self, limit: Duration) -> Self {
        if let Expectation::Delivered { within, .. } =
            &mut self.world.scenario.borrow_mut().expects[self.index].expectation
        {
            *within = Some(limit);
        }
        self
    }

    /// Of messages sent from then on.
    pub fn after(self, from: Instant) -> Self {
        if let Expectation::Delivered { after, .. } =
            &mut self.world.scenario.borrow_mut().expects[self.index].expectation
        {
            *after = from;
        }
        self
    }
}

/// A star for measuring: one node in the middle, `nodes - 1` around it, each in a net of its own, that ping the
/// middle `every` so often, evenly spread.
///
/// # Panics
/// With less than two nodes.
#[must_use]
pub fn star(nodes: u32, every: Duration, duration: Duration) -> Scenario {
    assert!(nodes >= 2, "a star has a middle and a ray");
    let world = World::new(0);
    let middle = world.node("middle", &world.net("middle"));
    for number in 1..nodes {
        let name = format!("ray-{number}");
        let ray = world.node(&name, &world.net(&name));
        world.befriend(ray, middle);
        let _ = world.ping(ray, middle, every).start(Instant::ZERO + every / nodes * number);
    }
    world.expect(Expectation::Delivered {
        from: HostId(1),
        to: middle.0,
        after: Instant::ZERO,
        within: None,
        held: Held::Once,
        via: None,
    });
    world.scenario(Instant::ZERO + duration)
}
