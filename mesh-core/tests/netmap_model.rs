//! A [`NetMap`] that is told what changed against one that is told everything: they are the same, and each [`Change`]
//! says what is other than before and nothing else.
//!
//! The model is a server that keeps plain tables. Each step changes them and makes a message of it, in the order in
//! which the parts of a message count; messages travel as JSON.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*, sample::select, test_runner::FileFailurePersistence};
use serde_json::{Value, json};

use mesh_core::{
    control::{
        Change, Interner, MapResponse, NetMap, NodeId,
        netmap::{PeersChange, decode},
    },
    derp::DerpRegion,
    time::WallTime,
};

const NOW: WallTime = WallTime::from_unix_secs(1_800_000_000);
const NOW_TEXT: &str = "2027-01-15T08:00:00Z";
const NAMES: [&str; 3] = ["base", "a", "b"];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/regressions/netmap_model.txt"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn telling_what_changed_is_the_same_as_telling_everything(steps in vec(step(), 0..24)) {
        let mut server = Server::default();
        let mut interner = Interner::new();
        let (mut told, mut told_shared) = (NetMap::new(), NetMap::new());
        apply(&mut told, &server.full(), None);
        apply(&mut told_shared, &server.full(), Some(&mut interner));
        for step in steps {
            let before = told.clone();
            if matches!(step, Step::NewStream) {
                told.begin_stream();
                told_shared.begin_stream();
            }
            let message = server.step(&step);
            let change = apply(&mut told, &message, None);
            prop_assert_eq!(&apply(&mut told_shared, &message, Some(&mut interner)), &change);
            prop_assert_eq!(&change, &difference(&before, &told), "{}", message);
            prop_assert_eq!(&change.skipped, &[]);

            let mut everything = NetMap::new();
            apply(&mut everything, &server.full(), None);
            same(&told, &everything)?;
            same(&told_shared, &everything)?;
        }
    }
}

/// One message's worth of changes.
#[derive(Clone, Debug)]
enum Step {
    /// All lists of peers at once, and whom a user is.
    Peers {
        removed: Vec<i64>,
        upserts: Vec<(i64, u8)>,
        seen: Vec<(i64, bool)>,
        online: Vec<(i64, bool)>,
        patches: Vec<Patch>,
    },
    AllPeers,
    User(i64, u8),
    SelfNode(u8),
    /// `PacketFilter`, and `PacketFilters` with or without `*`.
    Filters {
        base: Option<u8>,
        clear: bool,
        names: Vec<(&'static str, Option<u8>)>,
    },
    Regions(Vec<(u16, u8)>),
    Scores(Option<Vec<u16>>),
    Dns(u8),
    Domain(u8),
    NewStream,
    KeepAlive,
}

#[derive(Clone, Debug)]
struct Patch {
    id: i64,
    salt: u8,
    key: bool,
    disco: bool,
    endpoints: bool,
    home: bool,
    expiry: Option<bool>,
    online: Option<bool>,
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 2i64..8;
    let flags = || vec((id(), any::<bool>()), 0..3);
    let patch = (id(), any::<u8>(), any::<[bool; 4]>(), any::<Option<bool>>(), any::<Option<bool>>());
    let patch = patch.prop_map(|(id, salt, [key, disco, endpoints, home], expiry, online)| Patch {
        id,
        salt,
        key,
        disco,
        endpoints,
        home,
        expiry,
        online,
    });
    let upserts = vec((id(), any::<u8>()), 0..4);
    let names = vec((select(&NAMES[..]), any::<Option<u8>>()), 0..3);
    let peers = (vec(id(), 0..3), upserts, flags(), flags(), vec(patch, 0..4));
    prop_oneof![
        8 => peers.prop_map(|(removed, upserts, seen, online, patches)| {
            Step::Peers { removed, upserts, seen, online, patches }
        }),
        1 => Just(Step::AllPeers),
        1 => (1i64..4, any::<u8>()).prop_map(|(id, salt)| Step::User(id, salt)),
        1 => any::<u8>().prop_map(Step::SelfNode),
        2 => (any::<Option<u8>>(), any::<bool>(), names)
            .prop_map(|(base, clear, names)| Step::Filters { base, clear, names }),
        1 => vec((1u16..5, 0u8..3), 0..4).prop_map(Step::Regions),
        1 => any::<Option<Vec<u16>>>().prop_map(Step::Scores),
        1 => (0u8..3).prop_map(Step::Dns),
        1 => (0u8..3).prop_map(Step::Domain),
        1 => Just(Step::NewStream),
        1 => Just(Step::KeepAlive),
    ]
}

/// What the server knows, as it would write it.
#[derive(Debug, Default)]
struct Server {
    node: u8,
    peers: BTreeMap<i64, Value>,
    users: BTreeMap<i64, Value>,
    filters: BTreeMap<&'static str, Value>,
    regions: BTreeMap<u16, Value>,
    scores: Option<BTreeMap<u16, f64>>,
    dns: u8,
    domain: u8,
}

impl Server {
    fn full(&self) -> Value {
        let mut message = json!({
            "Node": node(self.node),
            "Peers": self.peers.values().collect::<Vec<_>>(),
            "UserProfiles": self.users.values().collect::<Vec<_>>(),
            "PacketFilters": self.filters,
            "DERPMap": {"Regions": self.regions},
            "DNSConfig": dns(self.dns),
            "Domain": domain(self.domain),
        });
        if let Some(scores) = &self.scores {
            message["DERPMap"]["HomeParams"] = json!({"RegionScore": scores});
        }
        message
    }

    fn step(&mut self, step: &Step) -> Value {
        match step {
            Step::Peers { removed, upserts, seen, online, patches } => {
                self.peers.retain(|id, _| !removed.contains(id));
                // A list names a peer once.
                let upserts: BTreeMap<_, _> = upserts.iter().copied().collect();
                self.peers.extend(upserts.iter().map(|(id, salt)| (*id, peer(*id, *salt))));
                let seen = self.known(seen);
                for (id, seen) in &seen {
                    let peer = self.peer(*id);
                    peer.remove("LastSeen");
                    peer.extend(seen.then(|| ("LastSeen".to_owned(), NOW_TEXT.into())));
                }
                let online = self.known(online);
                for (id, online) in &online {
                    self.peer(*id).insert("Online".into(), (*online).into());
                }
                let patches: Vec<_> = patches.iter().filter(|patch| self.peers.contains_key(&patch.id)).collect();
                let patches: Vec<_> = patches.into_iter().map(|patch| self.patch(patch)).collect();
                let changed: Vec<_> = upserts.iter().map(|(id, salt)| peer(*id, *salt)).collect();
                json!({"PeersRemoved": removed, "PeersChanged": changed, "PeerSeenChange": seen, "OnlineChange": online,
                    "PeersChangedPatch": patches})
            }
            // With a list that is not empty, the other lists of peers are void.
            Step::AllPeers if self.peers.is_empty() => json!({"Peers": []}),
            Step::AllPeers => {
                let peers: Vec<_> = self.peers.values().collect();
                json!({"Peers": peers, "PeersRemoved": [2, 3], "PeersChanged": [peer(9, 9)], "OnlineChange": {"2": true}})
            }
            Step::User(id, salt) => {
                let user = json!({"ID": id, "LoginName": format!("user{salt}"), "DisplayName": ""});
                self.users.insert(*id, user.clone());
                json!({"UserProfiles": [user]})
            }
            Step::SelfNode(salt) => {
                self.node = *salt;
                json!({"Node": node(*salt)})
            }
            Step::Filters { base, clear, names } => self.filters(*base, *clear, names),
            Step::Regions(regions) => {
                self.regions = regions.iter().map(|(id, salt)| (*id, region(*id, *salt))).collect();
                json!({"DERPMap": {"Regions": self.regions}})
            }
            Step::Scores(scores) => {
                if let Some(scores) = scores {
                    self.scores = Some(scores.iter().map(|id| (*id, 0.5)).collect());
                } else {
                    self.scores.get_or_insert_default();
                }
                json!({"DERPMap": {"Regions": null, "HomeParams": {"RegionScore": self.scores}}})
            }
            Step::Dns(salt) => {
                self.dns = *salt;
                json!({"DNSConfig": dns(*salt)})
            }
            // An empty name is the same as none, so that it stays.
            Step::Domain(0) => json!({"Domain": ""}),
            Step::Domain(salt) => {
                self.domain = *salt;
                json!({"Domain": domain(*salt)})
            }
            Step::NewStream => self.full(),
            Step::KeepAlive => json!({"KeepAlive": true, "Domain": "void", "PeersRemoved": [2, 3, 4, 5, 6, 7]}),
        }
    }

    fn known(&self, flags: &[(i64, bool)]) -> BTreeMap<i64, bool> {
        flags.iter().copied().filter(|(id, _)| self.peers.contains_key(id)).collect()
    }

    fn peer(&mut self, id: i64) -> &mut serde_json::Map<String, Value> {
        self.peers.get_mut(&id).and_then(Value::as_object_mut).expect("it is known")
    }

    fn patch(&mut self, patch: &Patch) -> Value {
        let Patch { id, salt, key, disco, endpoints, home, expiry, online } = *patch;
        // One that tells a disco key of an offline peer needs to know better when it was seen; that is another test.
        let online = online.filter(|online| *online || !disco);
        let told = [
            (key, "Key", "Key", key_text("nodekey", id, salt).into()),
            (disco, "DiscoKey", "DiscoKey", key_text("discokey", id, salt).into()),
            (endpoints, "Endpoints", "Endpoints", json!([format!("192.0.2.{salt}:1")])),
            (home, "DERPRegion", "HomeDERP", (i64::from(salt) + 1).into()),
            (expiry == Some(true), "KeyExpiry", "KeyExpiry", NOW_TEXT.into()),
            (online.is_some(), "Online", "Online", online.into()),
        ];
        let mut message = json!({"NodeID": id});
        let peer = self.peer(id);
        for (_, name, of_peer, value) in told.into_iter().filter(|(is_told, ..)| *is_told) {
            message[name] = value.clone();
            peer.insert(of_peer.into(), value);
        }
        if expiry == Some(false) {
            message["KeyExpiry"] = "0001-01-01T00:00:00Z".into();
            peer.remove("KeyExpiry");
        }
        message
    }

    fn filters(&mut self, base: Option<u8>, clear: bool, names: &[(&'static str, Option<u8>)]) -> Value {
        let names: BTreeMap<_, _> = names.iter().copied().collect();
        if let Some(salt) = base {
            self.filters.insert("base", rules(salt));
        }
        let mut message = json!({"PacketFilter": base.map(rules), "PacketFilters": {}});
        if clear {
            self.filters.clear();
            message["PacketFilters"]["*"] = Value::Null;
        }
        for (name, salt) in names {
            message["PacketFilters"][name] = salt.map(rules).into();
            match salt {
                Some(salt) => drop(self.filters.insert(name, rules(salt))),
                None => drop(self.filters.remove(name)),
            }
        }
        message
    }
}

fn node(salt: u8) -> Value {
    json!({"ID": 1, "Key": key_text("nodekey", 1, 0), "Name": format!("self{salt}.")})
}

fn peer(id: i64, salt: u8) -> Value {
    let mut peer = json!({"ID": id, "Key": key_text("nodekey", id, salt % 2), "Name": format!("peer{}.", salt % 4),
        "Addresses": [format!("100.64.0.{id}/32")], "Tags": null});
    if salt >= 128 {
        peer["Online"] = salt.is_multiple_of(2).into();
        peer["DiscoKey"] = key_text("discokey", id, salt).into();
        peer["HomeDERP"] = 1.into();
    }
    peer
}

/// Different for each peer and salt, and never that of the node itself.
fn key_text(kind: &str, id: i64, salt: u8) -> String {
    format!("{kind}:{id:02x}{}", format!("{salt:02x}").repeat(31))
}

fn region(id: u16, salt: u8) -> Value {
    json!({"RegionID": id, "RegionName": format!("{salt}"), "Nodes": [{"Name": "n", "HostName": format!("h{}", salt % 2)}]})
}

/// None for each third, which denies all as well as no rules do.
fn rules(salt: u8) -> Value {
    if salt.is_multiple_of(3) { json!([]) } else { json!([{"SrcIPs": [format!("100.64.0.{}", salt % 4)]}]) }
}

fn dns(salt: u8) -> Value {
    json!({"Proxied": salt > 0, "Domains": [format!("d{salt}")]})
}

fn domain(salt: u8) -> String {
    if salt == 0 { String::new() } else { format!("domain{salt}") }
}

fn apply(map: &mut NetMap, message: &Value, interner: Option<&mut Interner>) -> Change {
    let text = serde_json::to_vec(message).expect("it can be written");
    let response: MapResponse = decode(&text, interner).expect("it can be read");
    map.apply(response, NOW).expect("it makes a map")
}

fn same(a: &NetMap, b: &NetMap) -> Result<(), TestCaseError> {
    prop_assert_eq!(a.self_node(), b.self_node());
    prop_assert_eq!(a.peers(), b.peers());
    prop_assert_eq!(a.regions().collect::<Vec<_>>(), b.regions().collect::<Vec<_>>());
    prop_assert_eq!(&a.derp_map().home_params, &b.derp_map().home_params);
    prop_assert_eq!(a.filters(), b.filters());
    prop_assert_eq!((a.dns(), a.users(), a.domain()), (b.dns(), b.users(), b.domain()));
    for (id, peer) in a.peers() {
        prop_assert_eq!(a.peer_by_key(&peer.key).map(|peer| peer.id), Some(*id));
    }
    Ok(())
}

/// What is other in `after`, found by looking at all of it.
fn difference(before: &NetMap, after: &NetMap) -> Change {
    fn ids(map: &NetMap) -> BTreeSet<NodeId> {
        map.peers().keys().copied().collect()
    }
    let (old, new) = (ids(before), ids(after));
    let is_changed = |id: &&NodeId| before.peer(**id) != after.peer(**id);
    let nodes = |map: &NetMap| -> BTreeMap<_, _> {
        map.regions().map(|(id, region): (_, &DerpRegion)| (id, region.nodes.clone())).collect()
    };
    let (old_nodes, new_nodes) = (nodes(before), nodes(after));
    let regions = old_nodes.keys().chain(new_nodes.keys()).copied();
    Change {
        self_node: before.self_node() != after.self_node(),
        peers: PeersChange {
            added: new.difference(&old).copied().collect(),
            changed: old.intersection(&new).filter(is_changed).copied().collect(),
            removed: old.difference(&new).copied().collect(),
        },
        derp_map: before.derp_map() != after.derp_map(),
        derp_regions: regions.filter(|id| old_nodes.get(id) != new_nodes.get(id)).collect(),
        filters: before.filters() != after.filters(),
        dns: before.dns() != after.dns(),
        other: before.domain() != after.domain(),
        users: after.users().keys().copied().filter(|id| before.user(*id) != after.user(*id)).collect(),
        ..Change::default()
    }
}
