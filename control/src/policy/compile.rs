//! The packet filter of a node, as it travels.
//!
//! Steps in order, each reduced to what concerns the node: its own addresses, what overlaps its subnets, and what lies
//! in the internet when it is an exit node. Rules with the same sources and protocol become one, at the place of the
//! first; rules that give capabilities stay as they are.

use core::net::IpAddr;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::{
    control::types::{CapGrant, CapMap, FilterRule, NetPortRange, NodeId, PortRange},
    ip::prefix::Prefix,
};

use super::{
    ipset::{IpSet, Span},
    plan::{self, Gives, SelectorId, Step},
    ports::Protocol,
    rulebook::{Placed, Rulebook},
    selector::Selector,
    tailnet::Node,
};

/// The name under which a node's whole filter travels.
pub const BASE: &str = "base";

/// One rule of a node's filter. Its sources are shared with the filters of other nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduced {
    /// Whom it is for, as texts.
    pub sources: Arc<[String]>,
    /// Which rule of the policy it comes from; the first of those that became one.
    pub rule: usize,
    /// What it admits or grants.
    pub gives: Given,
}

/// What a rule of a filter admits or grants.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    /// Packets.
    Packets {
        /// Of which protocol.
        protocol: Protocol,
        /// To which addresses and ports.
        to: Vec<NetPortRange>,
    },
    /// Capabilities.
    Capabilities(Vec<CapGrant>),
}

impl From<&Reduced> for FilterRule {
    fn from(rule: &Reduced) -> Self {
        let mut wire = Self { src_ips: rule.sources.to_vec(), ..Self::default() };
        match &rule.gives {
            Given::Packets { protocol, to } => {
                wire.dst_ports.clone_from(to);
                wire.ip_proto = protocol.wire();
            }
            Given::Capabilities(grants) => wire.cap_grant.clone_from(grants),
        }
        wire
    }
}

impl Rulebook {
    /// The packet filters of a node by name, as a map message carries them: all of it is [`BASE`]. Empty admits nothing.
    #[must_use]
    pub fn packet_filters(&self, id: NodeId) -> BTreeMap<String, Vec<FilterRule>> {
        let rules = self.filter(id).iter().map(FilterRule::from).collect();
        [(BASE.to_owned(), rules)].into()
    }

    /// The packet filter of a node.
    #[must_use]
    pub fn filter(&self, id: NodeId) -> Vec<Reduced> {
        let Some(placed) = self.nodes.get(&id) else { return Vec::new() };
        let Some(class) = self.classes.get(&placed.class) else { return Vec::new() };
        let has_own = placed.node.owner().is_some() && self.has_own(class);
        let own: &[_] = if has_own { &self.plan.own } else { &[] };
        let steps: BTreeSet<_> = class.signature.1.iter().chain(own).copied().collect();

        let covered = self.covered(&placed.node);
        let mut filter = Filter::default();
        for id in steps {
            let step = &self.plan.steps[id];
            // Sources that are nobody at the moment get an empty rule for capabilities; no sources at all get none.
            let has_sources = !self.plan.sources[step.sources].selectors.is_empty();
            if has_sources && class.signature.1.binary_search(&id).is_ok() {
                let sources = &self.source_set(step.sources).texts;
                let to: Vec<_> = step.dst.iter().map(|dst| self.reduced(placed, &covered, step, *dst)).collect();
                filter.add(step, sources, &to, &placed.node);
            }
            if has_own && step.own > 0 && class.signature.0.binary_search(&step.own_sources).is_ok() {
                let own = Targets::Own(placed.node.addresses.clone());
                filter.add(step, &self.own_texts(&placed.node), &vec![own; step.own], &placed.node);
            }
        }
        filter.rules
    }

    /// The addresses of the untagged nodes of a node's user.
    fn own_texts(&self, node: &Node) -> Arc<[String]> {
        let nodes = node.owner().and_then(|owner| self.owned.get(&owner)).into_iter().flatten();
        let addresses: IpSet = nodes.flat_map(|id| &self.nodes[id].node.addresses).copied().collect();
        let texts: BTreeSet<_> = addresses.spans().iter().map(ToString::to_string).collect();
        texts.into_iter().collect()
    }

    /// What of a destination concerns a node.
    fn reduced(&self, placed: &Placed, covered: &BTreeSet<NodeId>, step: &Step, dst: SelectorId) -> Targets {
        let node = &placed.node;
        let overlaps = |span: &Span| node.subnets.iter().any(|subnet| Span::from(*subnet).overlaps(span));
        // Through a router goes what it routes; its own addresses are not meant.
        let is_through = !step.via.is_empty();
        if is_through && !self.routes_to(node, dst) {
            return Targets::Spans(Vec::new());
        }
        match &self.plan.selectors[dst] {
            Selector::All if is_through => {
                let internet = self.internet().spans().iter().filter(|_| node.is_exit()).copied();
                Targets::Spans(node.subnets.iter().copied().map(Span::from).chain(internet).collect())
            }
            Selector::All => Targets::All,
            Selector::Internet => {
                let spans = self.internet().spans().iter();
                Targets::Spans(spans.filter(|span| node.is_exit() || overlaps(span)).copied().collect())
            }
            Selector::Address(prefix) => {
                let span = Span::from(*prefix);
                let has = node.addresses.iter().any(|address| span.covers(&Span::from(*address)));
                let leaves = node.is_exit() && self.internet().covers(span);
                let concerned = has || leaves || overlaps(&span);
                Targets::Spans(concerned.then_some(span).into_iter().collect())
            }
            _ => {
                let named = |placed: &&Placed| placed.named_by.contains(&dst);
                let mut nodes: BTreeSet<_> = covered.clone();
                nodes.insert(node.id);
                let nodes = nodes.iter().map(|id| &*self.nodes[id]).filter(named);
                let addresses = nodes.flat_map(|other| {
                    let is_self = other.node.id == node.id && !is_through;
                    other.node.addresses.iter().filter(move |address| is_self || overlaps(&Span::from(**address)))
                });
                Targets::Own(addresses.copied().collect())
            }
        }
    }
}

/// What of a destination concerns a node.
#[derive(Clone, Debug)]
enum Targets {
    All,
    Spans(Vec<Span>),
    Own(Vec<IpAddr>),
}

impl Targets {
    fn texts(&self) -> Vec<String> {
        match self {
            Self::All => vec!["*".to_owned()],
            // The internet's only prefix is written as a range like its neighbours; a rule never names half of IPv6.
            Self::Spans(spans) => spans.iter().map(text).collect(),
            Self::Own(addresses) => addresses.iter().map(ToString::to_string).collect(),
        }
    }

    /// As the prefixes at which a node holds capabilities: its own addresses, and what overlaps its subnets.
    fn prefixes(&self, node: &Node) -> Vec<Prefix> {
        let own = |span: &Span| {
            let inside = node.addresses.iter().filter(|address| span.covers(&Span::from(**address)));
            inside.copied().map(Prefix::host).collect::<Vec<_>>()
        };
        let mut prefixes = Vec::new();
        match self {
            Self::All => prefixes.extend(plan::tailnet().spans().iter().flat_map(own)),
            Self::Own(addresses) => prefixes.extend(addresses.iter().copied().map(Prefix::host)),
            Self::Spans(spans) => {
                for span in spans {
                    prefixes.extend(own(span));
                    let overlaps = node.subnets.iter().any(|subnet| Span::from(*subnet).overlaps(span));
                    prefixes.extend(span.prefix().filter(|_| overlaps));
                }
            }
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes
    }
}

/// As the stock service writes it: global IPv6 as a range.
fn text(span: &Span) -> String {
    let is_global = span.prefix().is_some_and(|prefix| prefix.length() == 3);
    if is_global { format!("{}-{}", span.first(), span.last()) } else { span.to_string() }
}

/// A filter as it is put together.
#[derive(Default)]
struct Filter {
    rules: Vec<Reduced>,
    /// Where the rule for packets of some sources and a protocol is.
    packets: BTreeMap<(Arc<[String]>, Protocol), usize>,
}

impl Filter {
    fn add(&mut self, step: &Step, sources: &Arc<[String]>, targets: &[Targets], node: &Node) {
        match &step.gives {
            Gives::Packets(packets) => {
                let texts: Vec<_> = targets.iter().flat_map(Targets::texts).collect();
                if sources.is_empty() || texts.is_empty() {
                    return;
                }
                for (protocol, ranges) in packets {
                    self.add_packets(step.rule, sources, *protocol, &texts, ranges);
                }
            }
            Gives::Capabilities(capabilities) => self.add_capabilities(step.rule, sources, targets, capabilities, node),
        }
    }

    fn add_packets(
        &mut self,
        rule: usize,
        sources: &Arc<[String]>,
        protocol: Protocol,
        texts: &[String],
        ranges: &[PortRange],
    ) {
        let to = texts
            .iter()
            .flat_map(|text| ranges.iter().map(|ports| NetPortRange { ip: text.clone(), bits: None, ports: *ports }));
        let at = *self.packets.entry((sources.clone(), protocol)).or_insert(self.rules.len());
        if at == self.rules.len() {
            let gives = Given::Packets { protocol, to: Vec::new() };
            self.rules.push(Reduced { sources: sources.clone(), rule, gives });
        }
        if let Given::Packets { to: all, .. } = &mut self.rules[at].gives {
            all.extend(to);
        }
    }

    fn add_capabilities(
        &mut self,
        rule: usize,
        sources: &Arc<[String]>,
        targets: &[Targets],
        capabilities: &CapMap,
        node: &Node,
    ) {
        let mut grants = Vec::new();
        for target in targets {
            let dsts = target.prefixes(node);
            if !dsts.is_empty() {
                grants.push(CapGrant { dsts, caps: Vec::new(), cap_map: capabilities.clone() });
            }
        }
        if !grants.is_empty() {
            self.rules.push(Reduced { sources: sources.clone(), rule, gives: Given::Capabilities(grants) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Policy, support},
        *,
    };

    fn wire(rulebook: &Rulebook, id: i64) -> String {
        serde_json::to_string(&rulebook.packet_filters(NodeId(id))).unwrap()
    }

    #[test]
    fn a_filter_travels_as_the_stock_service_writes_it() {
        let text = r#"{"tagOwners": {"tag:a": [], "tag:r": []}, "acls": [
            {"action": "accept", "src": ["alice@example.com"], "dst": ["tag:a:22,80"], "proto": "tcp"},
            {"action": "accept", "src": ["*"], "dst": ["10.0.0.0/8:*", "autogroup:self:*"]}]}"#;
        let rulebook = support::rulebook(text, &["1 alice", "2 alice", "3 tag:a", "4 tag:r 10.1.0.0/16", "5 tag:r"]);
        assert_eq!(
            wire(&rulebook, 3),
            "{\"base\":[{\"SrcIPs\":[\"100.64.0.1-100.64.0.2\",\"fd7a:115c:a1e0::1-fd7a:115c:a1e0::2\"],\"DstPorts\":[\
             {\"IP\":\"100.64.0.3\",\"Ports\":{\"First\":22,\"Last\":22}},{\"IP\":\"100.64.0.3\",\"Ports\":{\"First\":80,\"Last\":80}},\
             {\"IP\":\"fd7a:115c:a1e0::3\",\"Ports\":{\"First\":22,\"Last\":22}},\
             {\"IP\":\"fd7a:115c:a1e0::3\",\"Ports\":{\"First\":80,\"Last\":80}}],\"IPProto\":[6]}]}"
        );
        assert_eq!(
            wire(&rulebook, 4),
            "{\"base\":[{\"SrcIPs\":[\"10.1.0.0/16\",\"100.115.94.0-100.127.255.255\",\"100.64.0.0-100.115.91.255\",\
             \"fd7a:115c:a1e0::/48\"],\"DstPorts\":[{\"IP\":\"10.0.0.0/8\",\"Ports\":{\"First\":0,\"Last\":65535}}]}]}"
        );
        let own = rulebook.filter(NodeId(2));
        assert_eq!((own.len(), &*own[0].sources), (1, &*rulebook.filter(NodeId(1))[0].sources));
        assert_eq!(wire(&rulebook, 5), "{\"base\":[]}");
        assert_eq!(rulebook.peers(NodeId(5)), [NodeId(4)].into());
    }

    #[test]
    fn an_exit_node_hears_of_rules_for_the_internet_alone() {
        let text = r#"{"tagOwners": {"tag:r": []}, "grants": [
            {"src": ["alice@example.com"], "dst": ["8.8.8.8", "10.9.0.0/16"], "ip": ["53"]},
            {"src": ["alice@example.com"], "dst": ["10.8.0.0/16"], "ip": ["22"]}]}"#;
        let rulebook = support::rulebook(text, &["1 alice", "2 tag:r 0.0.0.0/0 ::/0", "3 tag:r"]);
        let filter = wire(&rulebook, 2);
        assert!(filter.contains("8.8.8.8") && !filter.contains("10."), "{filter}");
        assert_eq!(wire(&rulebook, 3), "{\"base\":[]}");
    }

    #[test]
    fn no_policy_allows_nothing_and_a_document_without_rules_everything() {
        let all = support::rulebook("{\"groups\": {}}", &["1 alice", "2 bob"]);
        assert_eq!(all.filter(NodeId(1)).len(), 1);
        assert!(all.sees(NodeId(1), NodeId(2)));
        for none in
            [Policy::none(), Policy::parse("{\"acls\": []}").unwrap(), Policy::parse("{\"grants\": []}").unwrap()]
        {
            let none = support::with_policy(&all, none);
            assert_eq!((wire(&none, 1).as_str(), none.peers(NodeId(1)).len()), ("{\"base\":[]}", 0));
        }
    }

    #[test]
    fn capabilities_come_with_their_companions_the_other_way() {
        let text = r#"{"tagOwners": {"tag:a": []}, "grants": [{"src": ["alice@example.com"], "dst": ["tag:a"],
            "app": {"tailscale.com/cap/drive": [{"access": "rw"}]}}]}"#;
        let rulebook = support::rulebook(text, &["1 alice", "2 tag:a"]);
        let grants = |id| {
            let rules = rulebook.filter(NodeId(id));
            let Given::Capabilities(grants) = &rules[0].gives else { panic!("{rules:?}") };
            (rules[0].sources[0].clone(), grants[0].dsts[0].to_string(), grants[0].cap_map.0.keys().next().cloned())
        };
        let cap = |name: &str| Some(format!("tailscale.com/cap/{name}"));
        assert_eq!(grants(2), ("100.64.0.1".into(), "100.64.0.2/32".into(), cap("drive")));
        assert_eq!(grants(1), ("100.64.0.2".into(), "100.64.0.1/32".into(), cap("drive-sharer")));
    }
}
