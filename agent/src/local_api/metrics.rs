//! A snapshot as Prometheus text.

use core::fmt::Write;

use mesh_core::invariant::broken_total;

use crate::daemon::Snapshot;

/// All counters and gauges of a snapshot.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let peers = snapshot.status.peers.iter();
    let bytes = |of: fn(&mesh_core::node::PeerStatus) -> u64| peers.clone().map(of).sum::<u64>();
    let relays = &snapshot.relays;
    let single: [(&str, &str, &str, u64); 23] = [
        ("mesh_peers", "gauge", "Peers of this node.", peers.len() as u64),
        ("mesh_peers_with_session", "gauge", "Peers with a session that can be sent on.", {
            peers.clone().filter(|peer| peer.has_session).count() as u64
        }),
        ("mesh_tunnels", "gauge", "Peers with traffic in the last minutes.", snapshot.tunnels as u64),
        ("mesh_received_bytes_total", "counter", "Bytes of authenticated datagrams received.", {
            bytes(|peer| peer.received_bytes)
        }),
        ("mesh_sent_bytes_total", "counter", "Bytes of datagrams sent to peers.", bytes(|peer| peer.sent_bytes)),
        ("mesh_udp_sends_total", "counter", "System calls that sent datagrams.", snapshot.udp.sends),
        ("mesh_udp_datagrams_total", "counter", "Datagrams sent.", snapshot.udp.datagrams),
        ("mesh_udp_fallbacks_total", "counter", "Paths that refused a train of datagrams.", snapshot.udp.fallbacks),
        ("mesh_udp_unreachable_total", "counter", "Datagrams that no route led to.", snapshot.udp.unreachable),
        ("mesh_udp_failed_total", "counter", "Datagrams that the host did not send.", snapshot.udp.failed),
        ("mesh_relay_sent_packets_total", "counter", "Packets handed to relays.", relays.sent_packets),
        ("mesh_relay_sent_bytes_total", "counter", "Bytes of packets handed to relays.", relays.sent_bytes),
        ("mesh_relay_received_packets_total", "counter", "Packets that came over relays.", relays.received_packets),
        ("mesh_relay_received_bytes_total", "counter", "Bytes of packets over relays.", relays.received_bytes),
        ("mesh_relay_dropped_full_total", "counter", "Packets that waited too long for a relay.", relays.dropped_full),
        ("mesh_relay_dropped_no_link_total", "counter", "Packets without connection to the relay.", {
            relays.dropped_no_link
        }),
        ("mesh_relay_dropped_over_rate_total", "counter", "Packets beyond what the relay allows.", {
            relays.dropped_over_rate
        }),
        ("mesh_relay_dropped_too_large_total", "counter", "Packets larger than a relay takes.", {
            relays.dropped_too_large
        }),
        ("mesh_tun_read_packets_total", "counter", "Packets taken from the host.", snapshot.tun.read),
        ("mesh_tun_written_packets_total", "counter", "Packets given to the host.", snapshot.tun.written),
        ("mesh_filter_flows_evicted_total", "counter", "Flows forgotten because others needed the room.", {
            snapshot.flows.evicted
        }),
        ("mesh_filter_flows_unnoted_total", "counter", "Packets whose flow found no room: no reply comes in.", {
            snapshot.flows.unnoted
        }),
        ("mesh_broken_invariants_total", "counter", "States that cannot be, and were: bugs.", broken_total()),
    ];
    for (name, kind, help, value) in single {
        describe(&mut text, name, kind, help);
        let _ = writeln!(text, "{name} {value}");
    }
    let name = "mesh_relay_connected";
    describe(&mut text, name, "gauge", "Whether packets can go over a region's relay.");
    for relay in &snapshot.status.relays {
        let _ = writeln!(text, "{name}{{region=\"{}\"}} {}", relay.region, u8::from(relay.is_connected));
    }
    let name = "mesh_dropped_packets_total";
    describe(&mut text, name, "counter", "Packets that ended here, by reason.");
    for (reason, count) in snapshot.drops.iter() {
        let _ = writeln!(text, "{name}{{reason=\"{}\"}} {count}", reason.name());
    }
    let _ = writeln!(text, "{name}{{reason=\"tun_write\"}} {}", snapshot.tun.write_failed);
    text
}

/// Writing to a string does not fail.
fn describe(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
