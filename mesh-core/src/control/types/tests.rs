//! What the types owe to Go's encoder, and the pitfalls of the protocol that concern reading and writing.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::*;
use crate::{
    derp::DerpMap,
    key::{DiscoPublic, NodePublic},
    time::WallTime,
};

#[test]
fn zero_values_are_left_out_as_stock_programs_do() {
    let zeros = |kind: &str| format!("{kind}:{}", "0".repeat(64));
    assert_eq!(written(&MapResponse::default()), json!({}));
    assert_eq!(written(&Hostinfo::default()), json!({}));
    assert_eq!(written(&NetInfo::default()), json!({}));
    assert_eq!(written(&DnsConfig::default()), json!({}));
    assert_eq!(written(&PeerChange::default()), json!({"NodeID": 0}));
    assert_eq!(written(&FilterRule::default()), json!({"SrcIPs": []}));
    assert_eq!(
        written(&PeerNode::default()),
        json!({"ID": 0, "StableID": "", "Name": "", "User": 0, "Key": zeros("nodekey"), "Addresses": [], "AllowedIPs": null})
    );
    assert_eq!(
        written(&MapRequest::default()),
        json!({"Version": 0, "NodeKey": zeros("nodekey"), "DiscoKey": zeros("discokey"), "Hostinfo": null})
    );
    assert_eq!(
        written(&RegisterRequest::default()),
        json!({"Version": 0, "NodeKey": zeros("nodekey"), "OldNodeKey": zeros("nodekey"), "NLKey": zeros("nlpub"),
            "Expiry": "0001-01-01T00:00:00Z", "Followup": "", "Hostinfo": null, "NodeKeySignature": null})
    );
}

/// The whole answer is written: some clients have no defaults for its fields. Pitfall 36: the signature is null.
#[test]
fn a_register_response_has_all_its_fields() {
    assert_eq!(
        written(&RegisterResponse::default()),
        json!({"User": {"ID": 0, "DisplayName": ""},
            "Login": {"ID": 0, "Provider": "", "LoginName": "", "DisplayName": ""},
            "NodeKeyExpired": false, "MachineAuthorized": false, "AuthURL": "", "NodeKeySignature": null, "Error": ""})
    );
}

/// Go writes lists that were never set as null, and takes null for anything.
#[test]
fn null_is_zero_in_every_field() {
    check_nulls(&every_hostinfo());
    check_nulls(&every_netinfo());
    check_nulls(&every_node());
    check_nulls(&every_response());
    check_nulls(&every_map_request());
    check_nulls(&every_register_request());
    check_nulls(&every_patch());
    check_nulls(&every_dns());
    check_nulls(&RegisterResponse::default());
    check_nulls(&every_rule());
    check_nulls(&PingRequest { url: "u".into(), payload: vec![1], types: "c2n".into(), ..PingRequest::default() });
    check_nulls(&Service { proto: "tcp".into(), port: 1, description: "x".into() });
    check_nulls(&UserProfile { login_name: "a".into(), groups: vec!["g".into()], ..UserProfile::default() });
}

#[test]
fn every_field_comes_back() {
    check_same(&every_hostinfo());
    check_same(&every_netinfo());
    check_same(&every_node());
    check_same(&every_response());
    check_same(&every_map_request());
    check_same(&every_register_request());
    check_same(&every_patch());
    check_same(&every_dns());
    check_same(&every_rule());
}

#[test]
fn unknown_fields_are_skipped() {
    let node: PeerNode = read(json!({"ID": 7, "ComputedName": "x", "Later": {"deep": [1, {}]}}));
    assert_eq!(node, PeerNode { id: NodeId(7), ..PeerNode::default() });
}

/// One client calls it so.
#[test]
fn hostinfo_may_be_called_host_info() {
    let request: MapRequest = read(json!({"HostInfo": {"OS": "linux"}}));
    assert_eq!(request.hostinfo.unwrap().os, "linux");
}

#[test]
fn keys_of_zeros_are_none() {
    let zeros = |kind: &str| format!("{kind}:{}", "0".repeat(64));
    let node: PeerNode =
        read(json!({"DiscoKey": zeros("discokey"), "Machine": zeros("mkey"), "Key": zeros("nodekey")}));
    assert_eq!((node.disco_key, node.machine, node.key.is_zero()), (None, None, true));
    let patch: PeerChange = read(json!({"Key": zeros("nodekey"), "DiscoKey": zeros("discokey")}));
    assert_eq!(patch, PeerChange::default());
    let request: RegisterRequest = read(json!({"OldNodeKey": zeros("nodekey"), "NLKey": zeros("nlpub")}));
    assert_eq!(request, RegisterRequest::default());
}

#[test]
fn pitfall_1_a_bad_name_of_one_peer_spoils_no_map() {
    let names = ["", "no-dot", "..", &"x".repeat(300)];
    for name in names {
        let response: MapResponse = read(json!({"Peers": [{"ID": 2, "Name": name}, {"ID": 3, "Name": "ok.example."}]}));
        assert_eq!((response.peers.len(), response.peers[0].name.as_str()), (2, name));
    }
}

#[test]
fn pitfall_2_the_zero_time_is_no_expiry() {
    let zero = "0001-01-01T00:00:00Z";
    let node: PeerNode = read(json!({"KeyExpiry": zero, "LastSeen": zero, "Created": zero}));
    assert_eq!(node, PeerNode::default());
    assert_eq!(written(&node).get("KeyExpiry"), None, "and is not written");
    let request: RegisterRequest = read(json!({"Expiry": zero}));
    assert_eq!(request.expiry, None);
    assert_eq!(written(&request)["Expiry"], zero, "but there it always is");
    let patch: PeerChange = read(json!({"KeyExpiry": zero}));
    assert_eq!(patch.key_expiry, Some(Expiry::Never), "in a patch it takes the expiry back");
    assert_eq!(written(&patch)["KeyExpiry"], zero);
}

#[test]
fn pitfall_3_a_logout_is_an_expiry_in_the_past() {
    let request: RegisterRequest = read(json!({"Expiry": "1970-01-01T00:02:03Z"}));
    assert_eq!(request.expiry, Some(WallTime::from_unix_secs(123)));
}

#[test]
fn pitfall_7_no_peers_are_not_written_at_all() {
    let nobody: MapResponse = read(json!({"Peers": [], "PeersChanged": [], "PeersRemoved": null}));
    assert_eq!(written(&nobody), json!({}));
}

#[test]
fn pitfall_9_absent_net_info_is_told_from_an_empty_one() {
    let absent: Hostinfo = read(json!({"OS": "linux"}));
    let empty: Hostinfo = read(json!({"OS": "linux", "NetInfo": {}}));
    assert_eq!((absent.net_info, empty.net_info), (None, Some(NetInfo::default())));
}

#[test]
fn pitfall_19_a_region_of_null_is_read() {
    let response: MapResponse = read(json!({"DERPMap": {"Regions": {"1": null, "2": {"RegionID": 2, "Nodes": null}}}}));
    let regions = response.derp_map.unwrap().regions.unwrap();
    assert!(regions[&1].is_none() && regions[&2].as_ref().unwrap().nodes.is_none());
}

#[test]
fn pitfall_22_allowed_ips_are_the_addresses_when_they_are_null_and_host_bits_are_left_out() {
    let node: PeerNode = read(json!({"Addresses": ["100.64.0.7/32"], "AllowedIPs": null}));
    assert_eq!(node.allowed_ips(), node.addresses);
    let node: PeerNode = read(json!({"Addresses": ["100.64.0.7/32"], "AllowedIPs": ["10.0.0.1/8", "10.1.0.0/16", ""]}));
    assert_eq!(node.allowed_ips(), ["10.1.0.0/16".parse().unwrap()]);
    let node: PeerNode = read(json!({"Addresses": ["100.64.0.7/32"], "AllowedIPs": []}));
    assert!(node.allowed_ips().is_empty(), "none is not null");
}

#[test]
fn pitfall_42_escapes_in_texts_are_read() {
    let text = r#"{"Name":"a\u0026b\u003c\u003e.","Key":"\u006eodekey:0101010101010101010101010101010101010101010101010101010101010101",
        "Addresses":["100.64.0.1\/32"],"Endpoints":["192.0.2.1\u003a1"],"Created":"2026-01-01T00:00:00\u005a"}"#;
    let node: PeerNode = serde_json::from_str(text).unwrap();
    assert_eq!((node.name.as_str(), node.key), ("a&b<>.", NodePublic::from_bytes([1; 32])));
    assert_eq!((node.addresses.len(), node.endpoints.len(), node.created.is_some()), (1, 1, true));
}

#[test]
fn endpoints_that_no_peer_can_use_are_left_out() {
    let endpoints = json!(["", "[fe80::1%eth0]:1", "[fe80::1]:1", "[::ffff:192.0.2.1]:2", "[2001:db8::1]:3"]);
    let node: PeerNode = read(json!({"Endpoints": endpoints}));
    assert_eq!(node.endpoints, ["192.0.2.1:2".parse().unwrap(), "[2001:db8::1]:3".parse().unwrap()]);
    let error = serde_json::from_value::<PeerNode>(json!({"Endpoints": ["192.0.2.1"]})).unwrap_err();
    assert!(error.to_string().contains("\"192.0.2.1\""), "{error}");
}

#[test]
fn a_home_region_has_two_forms() {
    let home = |node: Value| read::<PeerNode>(node).home().map(|id| id.number());
    assert_eq!(home(json!({"HomeDERP": 7, "DERP": "127.3.3.40:9"})), Some(7));
    assert_eq!(home(json!({"DERP": "127.3.3.40:9"})), Some(9));
    for none in
        [json!({}), json!({"DERP": "127.3.3.40:0"}), json!({"DERP": "192.0.2.1:9"}), json!({"HomeDERP": 70_000})]
    {
        assert_eq!(home(none), None);
    }
}

#[test]
fn capabilities_have_two_forms() {
    let node: PeerNode = read(json!({"Capabilities": ["old"], "CapMap": {"new": null, "valued": [1]}}));
    assert!(node.has_capability("old") && node.has_capability("new") && !node.has_capability("none"));
    assert_eq!((node.cap_map.values("valued"), node.cap_map.values("new")), (&[json!(1)][..], &[][..]));
}

#[test]
fn a_key_to_register_with_is_not_printed() {
    let request: RegisterRequest = read(json!({"Auth": {"AuthKey": "hush"}}));
    assert!(!format!("{request:?}").contains("hush"));
    assert_eq!(request.auth.unwrap().auth_key, "hush");
}

/// Each member set to null, one at a time, is the same as each member left out.
fn check_nulls<T: Serialize + DeserializeOwned + PartialEq + core::fmt::Debug>(value: &T) {
    let Value::Object(object) = written(value) else { panic!("an object") };
    assert!(!object.is_empty());
    for name in object.keys() {
        let mut nulled = object.clone();
        nulled.insert(name.clone(), Value::Null);
        let mut without = object.clone();
        without.remove(name);
        assert_eq!(read::<T>(nulled.into()), read::<T>(without.into()), "{name}");
    }
}

fn check_same<T: Serialize + DeserializeOwned + PartialEq + core::fmt::Debug>(value: &T) {
    let text = serde_json::to_string(value).unwrap();
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *value, "{text}");
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Every member of the object is one of the type and is written again.
fn whole<T: Serialize + DeserializeOwned>(value: Value) -> T {
    let parsed = read(value.clone());
    let again = written(&parsed);
    for (name, member) in value.as_object().unwrap() {
        assert_eq!(again.get(name), Some(member), "{name}");
    }
    parsed
}

fn written<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap()
}

/// Everything is in it, so that no field is left out when it is written.
fn every_hostinfo() -> Hostinfo {
    whole(
        serde_json::from_str(
            r#"{"IPNVersion": "1", "FrontendLogID": "f", "BackendLogID": "b", "OS": "linux", "OSVersion": "6",
        "Container": false, "Env": "e", "Distro": "d", "DistroVersion": "1", "DistroCodeName": "c", "App": "a",
        "Desktop": true, "Package": "p", "DeviceModel": "m", "PushDeviceToken": "t", "Hostname": "h",
        "ShieldsUp": true, "ShareeNode": true, "NoLogsNoSupport": true, "RemoteConfig": true, "WireIngress": true,
        "IngressEnabled": true, "AllowsUpdate": true, "Machine": "m", "GoArch": "a", "GoArchVar": "v",
        "GoVersion": "g", "RoutableIPs": ["10.0.0.0/8", "::/0"], "RequestTags": ["tag:a"], "WoLMACs": ["02:00:00:00:00:01"],
        "Services": [{"Proto": "peerapi4", "Port": 1, "Description": "x"}], "NetInfo": {"PreferredDERP": 1},
        "sshHostKeys": ["k"], "Cloud": "c", "Userspace": true, "UserspaceRouter": false, "AppConnector": true,
        "ServicesHash": "s", "PeerRelay": true, "ExitNodeID": "n", "Location": {"Country": "C", "CountryCode": "CC",
        "City": "T", "CityCode": "TT", "Latitude": 1.5, "Longitude": -2.5, "Priority": 3}, "TPM": {"Manufacturer": "M",
        "Vendor": "V", "Model": 1, "FirmwareVersion": 2, "SpecRevision": 3, "FamilyIndicator": "2.0"},
        "StateEncrypted": true}"#,
        )
        .unwrap(),
    )
}

fn every_netinfo() -> NetInfo {
    whole(json!({"MappingVariesByDestIP": true, "WorkingIPv6": false, "OSHasIPv6": true, "WorkingUDP": true,
        "WorkingICMPv4": false, "HavePortMap": true, "UPnP": true, "PMP": false, "PCP": true, "PreferredDERP": 900,
        "LinkType": "wired", "DERPLatency": {"900-v4": 0.001}, "FirewallMode": "nft"}))
}

fn every_node() -> PeerNode {
    let key = |kind: &str| format!("{kind}:{}", "01".repeat(32));
    whole(json!({"ID": 1, "StableID": "n1", "Name": "a.example.", "User": 2, "Sharer": 3, "Key": key("nodekey"),
        "KeyExpiry": "2027-01-01T00:00:00.000000001Z", "KeySignature": "AQI=", "Machine": key("mkey"),
        "DiscoKey": key("discokey"), "Addresses": ["100.64.0.1/32"], "AllowedIPs": ["10.0.0.0/8"],
        "Endpoints": ["192.0.2.1:1", "[2001:db8::1]:2"], "DERP": "127.3.3.40:900", "HomeDERP": 900,
        "Hostinfo": {"OS": "linux"}, "Created": "2026-01-01T00:00:00Z", "Cap": 130, "Tags": ["tag:a"],
        "PrimaryRoutes": ["10.0.0.0/8"], "LastSeen": "2026-02-01T00:00:00Z", "Online": false,
        "MachineAuthorized": true, "Capabilities": ["old"], "CapMap": {"new": [], "valued": [{"a": 1.5}]},
        "UnsignedPeerAPIOnly": true, "DataPlaneAuditLogID": "l", "Expired": true,
        "SelfNodeV4MasqAddrForThisPeer": "100.64.0.9", "SelfNodeV6MasqAddrForThisPeer": "fd7a::9",
        "IsWireGuardOnly": true, "IsJailed": true,
        "ExitNodeDNSResolvers": [{"Addr": "9.9.9.9", "BootstrapResolution": ["9.9.9.9"], "UseWithExitNode": true}]}))
}

fn every_response() -> MapResponse {
    let node = written(&every_node());
    whole(json!({"MapSessionHandle": "h", "Seq": 1, "KeepAlive": true,
        "PingRequest": {"URL": "u", "URLIsNoise": true, "Log": true, "Types": "disco", "IP": "100.64.0.1", "Payload": "AQ=="},
        "PopBrowserURL": "u", "Node": node, "DERPMap": written(&DerpMap::default()), "Peers": [node], "PeersChanged": [node],
        "PeersRemoved": [4], "PeersChangedPatch": [written(&every_patch())], "PeerSeenChange": {"5": true},
        "OnlineChange": {"6": false}, "DNSConfig": written(&every_dns()), "Domain": "d", "CollectServices": false,
        "PacketFilter": [], "PacketFilters": {"base": null, "x": [written(&every_rule())]},
        "UserProfiles": [{"ID": 1, "LoginName": "a", "DisplayName": "A", "ProfilePicURL": "u", "Groups": ["g"]}], "Health": [], "DisplayMessages": {"*": null, "a": {"Title": "t", "Text": "x",
        "Severity": "high", "ImpactsConnectivity": true, "PrimaryAction": {"URL": "u", "Label": "l"}}},
        "SSHPolicy": {"rules": null}, "ControlTime": "2026-01-01T00:00:00Z", "TKAInfo": {"Head": "h", "Disabled": true},
        "DomainDataPlaneAuditLogID": "l", "Debug": {"SleepSeconds": 0.5, "DisableLogTail": true, "Exit": 0},
        "ControlDialPlan": {"Candidates": [{"IP": "192.0.2.1", "ACEHost": "a", "DialStartDelaySec": 0.1,
        "DialTimeoutSec": 2.5, "Priority": 1}]}, "ClientVersion": {"RunningLatest": true, "LatestVersion": "2",
        "UrgentSecurityUpdate": true, "Notify": true, "NotifyURL": "u", "NotifyText": "t"},
        "DefaultAutoUpdate": false}))
}

fn every_map_request() -> MapRequest {
    MapRequest {
        version: 130,
        compress: "zstd".into(),
        keep_alive: true,
        node_key: NodePublic::from_bytes([1; 32]),
        disco_key: Some(DiscoPublic::from_bytes([2; 32])),
        stream: true,
        hostinfo: Some(Box::new(every_hostinfo())),
        endpoints: vec!["192.0.2.1:1".parse().unwrap()],
        endpoint_types: vec![2],
        omit_peers: true,
        read_only: true,
        tka_head: "h".into(),
        debug_flags: vec!["warn".into()],
        map_session_handle: "h".into(),
        map_session_seq: 1,
    }
}

fn every_register_request() -> RegisterRequest {
    RegisterRequest {
        version: 130,
        node_key: NodePublic::from_bytes([1; 32]),
        old_node_key: Some(NodePublic::from_bytes([2; 32])),
        nl_key: format!("nlpub:{}", "01".repeat(32)),
        auth: Some(RegisterAuth { auth_key: "k".into() }),
        expiry: Some(WallTime::from_unix_secs(123)),
        followup: "u".into(),
        hostinfo: Some(Box::new(every_hostinfo())),
        ephemeral: true,
        node_key_signature: vec![1],
        signature_type: Some(json!("signature-v1")),
        timestamp: Some(WallTime::from_unix_secs(1)),
        device_cert: vec![2],
        signature: vec![3],
        tailnet: "t".into(),
    }
}

fn every_patch() -> PeerChange {
    read(
        json!({"NodeID": 1, "DERPRegion": 2, "Cap": 3, "CapMap": {}, "Endpoints": [], "Key": format!("nodekey:{}", "01".repeat(32)),
        "KeySignature": "AQ==", "DiscoKey": format!("discokey:{}", "01".repeat(32)), "Online": false,
        "LastSeen": "2026-01-01T00:00:00Z", "KeyExpiry": "2027-01-01T00:00:00Z"}),
    )
}

fn every_dns() -> DnsConfig {
    whole(json!({"Resolvers": [{"Addr": "9.9.9.9"}], "Routes": {"a.example": [], "b.example": [{"Addr": "1.1.1.1"}]},
        "FallbackResolvers": [{}], "Domains": ["a.example"], "Proxied": true, "Nameservers": ["9.9.9.9"],
        "CertDomains": ["c"], "ExtraRecords": [{"Name": "n", "Type": "A", "Value": "192.0.2.1"}],
        "ExitNodeFilteredSet": [".x"]}))
}

fn every_rule() -> FilterRule {
    read(
        json!({"SrcIPs": ["*", "cap:x"], "SrcBits": [32], "DstPorts": [{"IP": "*", "Bits": 0, "Ports": {"First": 1, "Last": 2}}],
        "IPProto": [6, 300], "CapGrant": [{"Dsts": ["10.0.0.0/8"], "Caps": ["c"], "CapMap": {"x": [1]}}]}),
    )
}
